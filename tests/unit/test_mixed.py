"""MixedReplay: one batch from several replays."""

import copy
import pickle
import threading

import gymnasium
import numpy as np
import pytest

from replaykit import (
    CombinedReplay,
    Field,
    HindsightReplay,
    LatestBuffer,
    LinearSchedule,
    MixedReplay,
    PrioritizedBuffer,
    ReplayBuffer,
    Spec,
    record,
)
from replaykit.diagnostics import ReplayMonitor
from replaykit.io import from_npz, to_npz
from replaykit.testing import assert_lawful, bits_of
from tests.helpers import (
    FLAT,
    GOAL_SPEC,
    filled,
    goal_episodes,
    prioritized,
    run_in_child,
    sparse,
    step,
    stretch,
    unchanged,
)

SHARES = {"demos": 0.25, "online": 0.75}


def mixture(shares=None, seed=2, demos=12, online=20, **options):
    """Two lanes of demonstrations with uniform replay, and one lane of steps with prioritized replay."""
    first = ReplayBuffer(12, FLAT, num_envs=2, seed=0, **options)
    second = PrioritizedBuffer(20, FLAT, seed=1, **options)
    if demos:
        first.extend(**stretch(demos // 2, 2))
    if online:
        filled(second, online)
        stored = second.stored()
        second.update_priorities(stored, np.arange(stored.size) / 7.0)
    return MixedReplay({"demos": first, "online": second}, shares=shares or SHARES, add_to="online", seed=seed)


# -- The fields of a batch -----------------------------------------------------------------------------------------


def test_every_field_probability_and_index_is_that_of_its_source():
    """Fields, probabilities and indices equal those of lists with every added step, for many random mixtures."""
    rng = np.random.default_rng(0)
    for trial in range(25):
        count = int(rng.integers(1, 5))
        lanes = rng.integers(1, 4, count).tolist()
        buffers = [ReplayBuffer(int(rng.integers(3, 9)) * e, FLAT, num_envs=e, seed=k) for k, e in enumerate(lanes)]
        added = [[[] for _ in range(e)] for e in lanes]
        number = 0
        for _ in range(int(rng.integers(30, 60))):
            k = int(rng.integers(count)) if all(map(len, buffers)) else int(np.argmin([len(b) for b in buffers]))
            steps = [step(number + e, terminated=bool(rng.random() < 0.2)) for e in range(lanes[k])]
            number += lanes[k]
            for e, fields in enumerate(steps):
                added[k][e].append(fields)
            lead = (slice(None),) if lanes[k] > 1 else (0,)
            buffers[k].add(**{name: np.array([s[name] for s in steps])[lead] for name in steps[0]})
        tenths = np.diff([0, *sorted(rng.integers(0, 11, count - 1).tolist()), 10]).tolist()
        names = [f"buffer{k}" for k in range(count)]
        shares = {name: part / 10 for name, part in zip(names, tenths, strict=True)}
        sources = dict(zip(names, buffers, strict=True))
        replay = MixedReplay(sources, shares=shares, add_to=names[-1], seed=trial)
        total, offsets = sum(lanes), np.cumsum([0, *lanes]).tolist()
        batch = replay.sample(20)
        assert batch.source.tolist() == np.repeat(np.arange(count), [2 * part for part in tenths]).tolist()
        assert batch.source.dtype == np.int64
        for row, (k, index) in enumerate(zip(batch.source.tolist(), batch.indices.tolist(), strict=True)):
            at, lane = divmod(index, total)
            fields = added[k][lane - offsets[k]][at]
            for name, value in fields.items():
                np.testing.assert_array_equal(batch[name][row], value, err_msg=name)
            stored = sum(min(len(of), buffers[k].capacity // lanes[k]) for of in added[k])
            assert batch.probabilities[row] == pytest.approx(tenths[k] / 10 / stored, rel=1e-12)
            assert batch.length[row] == 1
        assert_lawful(replay, 20)


def test_probabilities_of_everything_stored_sum_to_one():
    """Probabilities sum to 1 for all kinds of sources, also if shares of a batch are not whole numbers."""
    for inner in (lambda b: b, CombinedReplay):
        replay = mixture()
        sources = {name: inner(source) for name, source in replay.sources.items()}
        replay = MixedReplay(sources, shares=SHARES, add_to="online")
        for batch_size in (4, 5, 6, 7, 8, 100):
            assert replay.probability(replay.stored(), batch_size).sum() == pytest.approx(1.0, rel=1e-12)


def test_a_source_whose_draws_depend_on_their_number_has_true_probabilities():
    """Probabilities match counted draws of a small buffer, also with random rounding."""
    replay = MixedReplay(
        {"all": filled(ReplayBuffer(4, FLAT, seed=0), 4), "last": filled(LatestBuffer(3, FLAT), 3)},
        shares={"all": 0.5, "last": 0.5}, add_to="last", seed=1,
    )  # fmt: skip
    expected, counts, batches = replay.probability(replay.stored(), 5), dict.fromkeys(replay.stored().tolist(), 0), 4000
    for _ in range(batches):
        for index in replay.draw(5).indices.tolist():
            counts[index] += 1
    found = np.array(list(counts.values())) / (5 * batches)
    # A share of a batch varies by 1/2 at most: Hoeffding's bound, with a chance of 1e-9 for each of seven
    np.testing.assert_allclose(found, expected, atol=np.sqrt(np.log(2e9) / (2 * batches)))
    assert expected[replay.stored() % 2 == 1].tolist() == pytest.approx([0.1, 0.2, 0.2])


def test_weights_are_those_of_the_source_alone():
    """Weights are normalized within each source, with each kind of normalization."""
    for weights in ("batch", "none", "buffer"):
        for batch_size in (8, 10, 13):
            alone = filled(PrioritizedBuffer(20, FLAT, seed=1, beta=0.7, weights=weights), 20)
            alone.update_priorities(np.arange(20), np.arange(20) / 7.0)
            demos = filled(ReplayBuffer(10, FLAT, seed=0), 10)
            replay = MixedReplay({"d": demos, "o": alone}, shares={"d": 0.3, "o": 0.7}, add_to="o", seed=0)
            twin = copy.deepcopy(alone)
            batch = replay.sample(batch_size)
            rows = batch.source == 1
            expected = twin.sample(int(rows.sum()))
            np.testing.assert_array_equal(batch.indices[rows] // 2, expected.indices)
            np.testing.assert_allclose(batch.weights[rows], expected.weights, rtol=1e-6)
            assert (batch.weights[~rows] == 1.0).all()


def test_each_source_draws_as_it_would_alone():
    """Each source draws the same rows as a copy of it with the same generator."""
    replay = mixture()
    twins = copy.deepcopy(dict(replay.sources))
    for batch_size in (8, 20, 8):
        batch = replay.sample(batch_size)
        for k, (name, twin) in enumerate(twins.items()):
            rows, alone = batch.source == k, twin.sample(int(batch_size * SHARES[name]))
            for field in ("obs", "action", "reward", "next_obs", "terminated", "truncated", "discount", "length"):
                np.testing.assert_array_equal(batch[field][rows], alone[field])


def test_a_field_that_only_one_source_has_is_false_elsewhere():
    """If only one source has hindsight, `relabelled` is False in all other rows, also if it has no rows."""
    buffers = [ReplayBuffer(20, GOAL_SPEC, seed=seed) for seed in range(2)]
    for buffer in buffers:
        goal_episodes(buffer, [5, 5])
    sources = {"online": buffers[0], "demos": HindsightReplay(buffers[1], sparse, ratio=1.0)}
    replay = MixedReplay(sources, shares={"demos": 0.25, "online": 0.75}, add_to="online", seed=0)
    assert replay.sample(8).relabelled.tolist() == [False] * 6 + [True] * 2
    kinds = {tuple(replay.sample(1).relabelled) for _ in range(30)}
    assert kinds == {(False,), (True,)}
    assert set(replay.sample(1).keys()) == set(replay.sample(8).keys())


def test_windows_stay_in_the_lanes_of_their_source():
    """Windows of three steps stay in their source, also if its lanes are shorter than a window."""
    short = ReplayBuffer(2, FLAT, n_step=3, gamma=0.5, seed=0)
    wide = ReplayBuffer(24, FLAT, num_envs=3, n_step=3, gamma=0.5, seed=1)
    filled(short, 5)
    wide.extend(**stretch(8, 3))
    replay = MixedReplay({"s": short, "w": wide}, shares={"s": 0.5, "w": 0.5}, add_to="s", seed=0)
    for outer in (replay, CombinedReplay(replay, 2)):
        batch = outer.sample(40)
        for index, source, length, reward in zip(
            batch.indices.tolist(), batch.source.tolist(), batch.length.tolist(), batch.reward.tolist(), strict=True
        ):
            at, lane = divmod(index, 4)
            first, distance, last = (at, 1, 4) if source == 0 else (3 * at + lane - 1, 3, 21 + lane - 1)
            steps = [first + k * distance for k in range(3) if first + k * distance <= last]
            assert length == len(steps)
            assert reward == sum(number * 0.5**k for k, number in enumerate(steps))


def test_rows_of_several_windows_are_of_one_source_each():
    """Indices (B, T) give windows (B, T). A row with indices of two sources raises an error."""
    replay = mixture(n_step=2)
    lanes = [replay.stored()[replay.stored() % 3 == lane] for lane in range(3)]
    rows = np.array([lanes[2][3:6], lanes[0][:3], lanes[2][:3], lanes[1][1:4]])
    window = replay.window(rows)
    assert window.shape == (4, 3)
    np.testing.assert_array_equal(window.indices, rows.reshape(-1))
    fields = replay.reduce(window)
    flat = replay.reduce(replay.window(rows.reshape(-1)))
    assert fields.pop("source").tolist() == [1, 0, 1, 0]
    assert flat.pop("source").tolist() == np.repeat([1, 0, 1, 0], 3).tolist()
    for name, values in fields.items():
        np.testing.assert_array_equal(values, flat[name], err_msg=name)
    with pytest.raises(IndexError, match="a row of indices belongs to several sources"):
        replay.window(np.array([[lanes[2][0], lanes[0][0]]]))


# -- Shares --------------------------------------------------------------------------------------------------------


def test_whole_shares_of_a_batch_are_exact():
    """Whole shares are exact, also if batch size times share is inexact in floating point."""
    for tenths in range(11):
        shares = {"demos": tenths / 10, "online": 1.0 - tenths / 10}
        replay = mixture(shares)
        before = replay.rng.bit_generator.state
        for batch_size in (10, 30, 290):
            batch = replay.sample(batch_size)
            assert (batch.source == 0).sum() == batch_size * tenths // 10
        assert replay.rng.bit_generator.state == before


def test_other_shares_are_rounded_without_bias():
    """The count is one of the two next to ``B * share``, and its mean is that, within an exact bound."""
    three = {f"b{k}": filled(ReplayBuffer(9, FLAT, seed=k), 9) for k in range(3)}
    shares = {"b0": 0.17, "b1": 0.33, "b2": 0.5}
    replay, batches = MixedReplay(three, shares=shares, add_to="b0", seed=5), 5000
    counts = np.array([np.bincount(replay.draw(7).indices % 3, minlength=3) for _ in range(batches)])
    exact = 7 * np.array(list(shares.values()))
    assert (counts.sum(axis=1) == 7).all()
    assert (np.abs(counts - exact) < 1.0).all()
    # Hoeffding's bound for means of numbers that vary by 1; a chance of 1e-9 for each of three
    np.testing.assert_allclose(counts.mean(axis=0), exact, atol=np.sqrt(np.log(2e9) / (2 * batches)))


def test_shares_follow_schedules_and_can_be_set():
    """Shares can be set, and can be schedules. Schedules of shares and of sources count batches."""
    schedules = {"demos": LinearSchedule(1.0, 0.0, steps=10), "online": LinearSchedule(0.0, 1.0, steps=10)}
    replay = mixture(schedules)
    found = [int((replay.sample(10).source == 0).sum()) for _ in range(12)]
    assert found == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0]
    assert replay.shares == {"demos": 0.0, "online": 1.0}
    replay.shares = {"online": 0.4, "demos": 0.6}
    assert replay.shares == {"demos": 0.6, "online": 0.4}
    assert (replay.sample(10).source == 0).sum() == 6
    replay.sources["online"].beta = LinearSchedule(0.0, 1.0, steps=13)
    assert replay.beta == 1.0


def test_a_source_without_a_share_may_be_empty():
    """A source with share 0 contributes no rows, and may be empty."""
    replay = mixture({"demos": 1.0, "online": 0.0}, online=0)
    assert (replay.sample(5).source == 0).all()
    assert (CombinedReplay(replay).sample(5).source == 0).all()
    replay.add(**step(1.0))
    batch = CombinedReplay(replay).sample(5)
    assert batch.source.tolist() == [0, 0, 0, 0, 1]
    assert (batch.weights == 1.0).all()


# -- Indices -------------------------------------------------------------------------------------------------------


def test_what_is_added_goes_to_one_source():
    """Steps are added to one source. The others do not change."""
    replay = mixture()
    demos = pickle.dumps(replay.sources["demos"])
    indices = replay.extend(**stretch(100))
    assert pickle.dumps(replay.sources["demos"]) == demos
    assert replay.add(**step(7.0)).tolist() == [3 * 120 + 2]
    np.testing.assert_array_equal(indices, 3 * np.arange(20, 120) + 2)
    np.testing.assert_array_equal(replay.latest(2), [3 * 119 + 2, 3 * 120 + 2])
    np.testing.assert_array_equal(replay.newest, [15, 16, 362])
    np.testing.assert_array_equal(replay.oldest, [0, 1, 305])
    assert replay.add(**step(8.0), mask=[False]).tolist() == [-1]
    assert replay.num_envs == 1
    assert replay.capacity == 32
    assert len(replay) == 32
    replay.check()


def test_priorities_find_their_source():
    """TD errors of a batch update the priorities of each row's source."""
    replay = mixture()
    batch = replay.sample(16)
    rows, online = batch.source == 1, replay.sources["online"]
    assert replay.update_priorities(batch.indices, np.arange(16.0)) == rows.sum()
    newest = dict(zip(batch.indices[rows].tolist(), np.arange(16.0)[rows], strict=True))
    shares = online.probability(np.array([index // 3 for index in newest]))
    scaled = (np.array(list(newest.values())) + 1e-2) ** 0.6
    np.testing.assert_allclose(shares / shares[0], scaled / scaled[0])


@pytest.mark.parametrize(
    ("indices", "options", "error", "match"),
    [
        ([2, 63], {"td_errors": [1.0, 1.0]}, IndexError, "contains 63, which the buffer never returned"),
        ([2, -3], {"td_errors": [1.0, 1.0]}, IndexError, "contains -3"),
        ([2, 0], {"td_errors": [1.0, np.nan]}, ValueError, "td_errors contains nan"),
        ([0, 2], {"td_errors": [1.0, np.inf]}, ValueError, "td_errors contains inf"),
        ([2, 0], {"td_errors": [1.0, 1.7e308]}, ValueError, "finite numbers of at most"),
        ([2, 0], {"priorities": [1.0, -1.0]}, ValueError, "priorities contains -1.0; expected non-negative"),
        ([2, 5], {"td_errors": [1.0]}, ValueError, r"td_errors has shape \(1,\); expected \(2,\)"),
        ([2, 5], {}, TypeError, "pass either td_errors or priorities="),
        ([2.5], {"td_errors": [1.0]}, TypeError, "integers"),
    ],
)
def test_wrong_updates_change_no_source(indices, options, error, match):
    """Everything is checked before the first source is changed."""
    first, second = (filled(PrioritizedBuffer(20, FLAT, seed=k), 20) for k in range(2))
    lone = filled(ReplayBuffer(9, FLAT, seed=3), 9)
    replay = MixedReplay(
        {"a": first, "b": second, "c": lone}, shares={"a": 0.5, "b": 0.25, "c": 0.25}, add_to="a", seed=0
    )
    with unchanged(replay, error, match):
        replay.update_priorities(indices, **options)


def test_a_wrong_index_or_value_overwrites_nothing_in_any_source():
    """An invalid index or value changes no source, also after padding."""
    replay = mixture()
    with unchanged(replay, IndexError, "contains 62, which the buffer never returned"):
        replay.overwrite([0, -1, 62], reward=[5.0, 5.0, 5.0])
    with unchanged(replay, ValueError, "reward contains nan"):
        replay.overwrite([0, -1, 2], reward=[5.0, 5.0, np.nan])


def test_stale_indices_are_dropped():
    """Stale indices are ignored and counted, as by a buffer."""
    replay = mixture()
    replay.extend(**stretch(5))
    assert replay.update_priorities([2, 5, 17, 62, 0], np.ones(5)) == 2
    assert replay.stats()["stale_updates"] == 2
    for call in (replay.window, replay.fetch, replay.episode, replay.probability, lambda i: replay.read(i, "obs")):
        with pytest.raises(
            IndexError,
            match="contains 5, which is stale: .*; the oldest stored index of lane 2 is 17",
        ):
            call(np.array([17, 5]))
        with pytest.raises(
            IndexError, match="contains 18, which the buffer never returned; the newest index of lane 0 is 15"
        ):
            call(np.array([17, 18]))


def test_padding_is_read_as_zeros_in_any_place():
    """Padding reads as zeros, and its episode is -1."""
    replay = mixture()
    np.testing.assert_array_equal(replay.read([-1, 59, 1, -1], "reward"), [0.0, 19.0, 1.0, 0.0])
    numbers, first, last = replay.episode(np.array([-1, 59, 1, 0]))
    assert (numbers[0], first.tolist(), last.tolist()) == (-1, [-1, 2, 1, 0], [-1, 59, 16, 15])
    assert len(set(numbers.tolist())) == 4


# -- Reading, writing and saving -----------------------------------------------------------------------------------


def test_stats_are_of_all_and_of_each():
    """`stats` has numbers of the mixture, and of each source with the source's name as a prefix."""
    replay = mixture()
    replay.sample(8)
    stats = replay.stats("replay/")
    assert stats["replay/size"] == 32.0
    assert stats["replay/demos/size"] == 12.0
    assert stats["replay/online/beta"] == 0.4
    assert (stats["replay/demos/share"], stats["replay/online/share"]) == (0.25, 0.75)
    assert stats["replay/batches"] == stats["replay/demos/batches"] == stats["replay/online/batches"] == 1.0
    assert stats["replay/nbytes"] == replay.nbytes == sum(source.nbytes for source in replay.sources.values())


def test_clear_empties_all_sources():
    """`clear` empties all sources. The mixture then accepts new steps."""
    replay = mixture()
    replay.clear()
    assert len(replay) == 0
    with pytest.raises(ValueError, match="source 'demos' is empty, but its share is not 0; add to it first"):
        replay.sample(4)
    replay.sources["demos"].extend(**stretch(2, 2))
    replay.add(**step(1.0))
    assert replay.sample(4).indices.tolist()[1:] == [62] * 3


def test_beta_is_set_for_all_that_have_one():
    """Setting beta sets it in all sources with priorities."""
    replay = mixture()
    replay.beta = 0.9
    assert replay.beta == replay.sources["online"].beta == CombinedReplay(replay).beta == 0.9
    with unchanged(replay, ValueError, "beta is 2"):
        replay.beta = 2
    plain = MixedReplay({"a": ReplayBuffer(4, FLAT)}, shares={"a": 1.0}, add_to="a")
    with pytest.raises(AttributeError, match="has no priorities, so it has no beta"):
        _ = plain.beta
    with pytest.raises(AttributeError, match="has no priorities"):
        plain.beta = 0.5
    two = {"a": PrioritizedBuffer(4, FLAT, beta=0.1), "b": PrioritizedBuffer(4, FLAT, beta=0.2)}
    both = MixedReplay(two, shares={"a": 0.5, "b": 0.5}, add_to="a")
    with pytest.raises(ValueError, match=r"beta is \{'a': 0.1, 'b': 0.2\}; expected the same in all sources"):
        _ = both.beta


def test_a_writer_of_a_mixture_writes_to_its_source():
    """A writer returns indices of the mixture, and has lanes of the source that is added to."""
    buffers = ReplayBuffer(12, FLAT, num_envs=3, seed=0), filled(ReplayBuffer(9, FLAT, seed=1), 9)
    replay = MixedReplay(dict(zip("ab", buffers, strict=True)), shares={"a": 0.5, "b": 0.5}, add_to="a")
    with replay.writer([0, 2]) as writer:
        assert writer.add(**{name: [value] * 2 for name, value in step(1.0).items()}).tolist() == [0, 2]
        with pytest.raises(ValueError, match="lanes contains 2, which already has a writer"):
            buffers[0].writer(2)
        with pytest.raises(RuntimeError, match="lane 0 has a writer"):
            replay.add(**{name: [value] * 3 for name, value in step(1.0).items()})
        with pytest.raises(RuntimeError, match="lanes have writers"):
            replay.load_state_dict(replay.state_dict())
    assert len(buffers[0]) == 2


def test_an_environment_is_recorded_into_a_mixture():
    """A recorder adds to one source of the mixture. That source has one recorder."""
    env = gymnasium.make("CartPole-v1")
    online, demos = (ReplayBuffer.from_env(env, 100, seed=seed) for seed in range(2))
    recorded = record(env, demos)
    recorded.reset(seed=0)
    for _ in range(5):
        recorded.step(0)
    replay = MixedReplay({"d": demos, "o": online}, shares={"d": 0.5, "o": 0.5}, add_to="o", seed=0)
    first = record(gymnasium.make("CartPole-v1"), replay)
    first.reset(seed=0)
    first.step(1)
    assert len(online) == 1
    with pytest.raises(ValueError, match="already recorded into this buffer"):
        record(first, online)
    recorded.step(0)  # the demonstrations have a recorder of their own
    second = record(gymnasium.make("CartPole-v1"), online)
    with pytest.raises(RuntimeError, match="another recorder has taken over"):
        first.step(1)
    second.reset(seed=0)
    replay.load_state_dict(replay.state_dict())
    second.reset(seed=0)  # a load forgets the recorder, which takes over again


def test_everything_goes_on_after_a_load(tmp_path):
    """Batches continue bit for bit from a directory, a state_dict, a pickle or a copy, with wrappers."""

    def make(seed=2):
        replay = mixture(seed=seed)
        sources = dict(replay.sources) | {"online": CombinedReplay(replay.sources["online"])}
        schedule = LinearSchedule(0.9, 0.1, steps=50)
        shares = {"demos": schedule, "online": LinearSchedule(0.1, 0.9, steps=50)}
        return CombinedReplay(MixedReplay(sources, shares=shares, add_to="online", seed=seed), 2)

    replay = make()
    for _ in range(3):
        replay.sample(11)
    assert list(replay.parts()) == [
        *(f"demos.{part}" for part in ("storage", "distribution", "buffer")),
        *(f"online.{part}" for part in ("storage", "distribution", "buffer")),
        "mixture",
    ]
    replay.save(tmp_path)
    loaded, from_dict = make(8), make(9)
    loaded.load(tmp_path)
    from_dict.load_state_dict(replay.state_dict())
    twins = [loaded, from_dict, pickle.loads(pickle.dumps(replay)), copy.deepcopy(replay)]
    for batch_size in (11, 12, 30):
        batch = bits_of(replay.sample(batch_size))
        assert all(bits_of(twin.sample(batch_size)) == batch for twin in twins)


def test_a_load_takes_other_capacities_and_refuses_what_else_differs(tmp_path):
    """Capacities may differ in a load. Any other difference raises an error that names it, and nothing changes."""
    replay = mixture()
    replay.save(tmp_path)
    online = PrioritizedBuffer(8, FLAT, seed=1)
    sources = {"demos": ReplayBuffer(12, FLAT, num_envs=2), "online": online}
    smaller = MixedReplay(sources, shares={"demos": 0.5, "online": 0.5}, add_to="online")
    smaller.load(tmp_path)
    assert (len(online), smaller.shares) == (8, SHARES)
    np.testing.assert_array_equal(smaller.stored()[-8:], replay.stored()[-8:])

    def other(**changes):
        sources = {"demos": ReplayBuffer(12, FLAT, num_envs=2), "online": PrioritizedBuffer(8, FLAT)} | changes
        return MixedReplay(sources, shares={name: 1.0 / len(sources) for name in sources}, add_to="online")

    for made, match in (
        (other(demos=ReplayBuffer(12, FLAT)), r"sources\['demos'\]|num_envs was 2, but is 1"),
        (other(more=ReplayBuffer(12, FLAT)), "sources was"),
        (other(online=ReplayBuffer(8, FLAT)), r"saved from a PrioritizedBuffer, and this is a ReplayBuffer"),
        (ReplayBuffer(12, FLAT), "it was saved from a MixedReplay, and this is a ReplayBuffer"),
    ):
        with unchanged(made, ValueError, match):
            made.load(tmp_path)
    inexact = other(online=ReplayBuffer(20, FLAT))
    inexact.load(tmp_path, exact=False)
    np.testing.assert_array_equal(inexact.stored(), replay.stored())
    with unchanged(lone := ReplayBuffer(12, FLAT), ValueError, "it has demos.storage, online.storage"):
        lone.load(tmp_path, exact=False)


def test_functions_as_shares_are_not_saved(tmp_path):
    """Functions as shares are not saved. A load keeps those of the mixture."""
    shares = {"demos": _falling, "online": _rising}
    replay = mixture(shares)
    replay.save(tmp_path)
    twin = mixture(shares, seed=9)
    twin.load(tmp_path)
    assert [bits_of(twin.sample(9)) for _ in range(3)] == [bits_of(replay.sample(9)) for _ in range(3)]
    assert bits_of(pickle.loads(pickle.dumps(replay)).sample(9)) == bits_of(replay.sample(9))


def _falling(batches):
    return 0.5 ** (1 + batches)


def _rising(batches):
    return 1.0 - _falling(batches)


def test_a_mixture_goes_through_a_file(tmp_path):
    """A file has all lanes of a mixture, and can be read into a buffer with as many lanes."""
    replay = mixture()
    to_npz(replay, tmp_path / "steps.npz")
    buffer = from_npz(tmp_path / "steps.npz")
    assert (buffer.num_envs, len(buffer)) == (3, 32)
    into = mixture(online=0)
    from_npz(tmp_path / "steps.npz", into)
    assert len(into) == 32


def test_a_new_seed_reaches_every_generator():
    """The same seed gives another mixture the same state. The SeedSequence is not changed."""
    one, two = mixture(seed=3), mixture(seed=4)
    one.sources["demos"].sample(3)
    seed = np.random.SeedSequence(7)
    CombinedReplay(one).reseed(seed)
    two.reseed(np.random.SeedSequence(7))
    assert seed.n_children_spawned == 0
    assert bits_of(one.sample(10)) == bits_of(two.sample(10))
    two.reseed(8)
    assert bits_of(one.sample(10)) != bits_of(two.sample(10))
    with unchanged(one, TypeError, "seed is 'x'"):
        one.reseed("x")


def test_a_monitor_watches_a_mixture():
    """A monitor of a mixture reports numbers of all sources together."""
    replay = mixture()
    monitor = ReplayMonitor(replay, every=1)
    for number in range(30):
        batch = replay.sample(8)
        monitor.record(batch, td_errors=np.ones(8))
        replay.add(**step(number))
    stats = monitor.stats()
    assert stats["stored_transitions"] == 32.0
    assert stats["stale_share"] == 0.0


# -- Invalid arguments ---------------------------------------------------------------------------------------------

ONE, TWO = filled(ReplayBuffer(9, FLAT, seed=0), 9), filled(PrioritizedBuffer(9, FLAT, seed=1), 9)
BOTH = {"a": ONE, "b": TWO}
HALVES = {"a": 0.5, "b": 0.5}
GENERATOR = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("sources", "shares", "add_to", "error", "match"),
    [
        ([ONE, TWO], HALVES, "a", TypeError, "sources is a list; expected a dict of names and replays"),
        ({}, {}, "a", ValueError, "sources is empty; expected a dict of at least one"),
        ({"a": ONE, "b": 3}, HALVES, "a", TypeError, "source 'b' is a int; expected a buffer, or a wrapper"),
        ({1: ONE}, {1: 1.0}, 1, ValueError, "name 1; expected letters, digits"),
        ({"a/b": ONE}, {"a/b": 1.0}, "a/b", ValueError, "name 'a/b'; expected letters, digits"),
        (BOTH, {"a": 0.5, "b": 0.6}, "a", ValueError, "{'a': 0.5, 'b': 0.6}, with the sum 1.1; expected a sum of 1"),
        (BOTH, {"a": -0.5, "b": 1.5}, "a", ValueError, r"shares\['a'\] is -0.5; expected a number in \[0, 1\]"),
        (BOTH, {"a": "x", "b": 1.0}, "a", TypeError, r"shares\['a'\] is 'x'; expected a number"),
        (BOTH, {"a": np.nan, "b": 1.0}, "a", ValueError, r"shares\['a'\] is nan"),
        (BOTH, {"a": 1.0}, "a", ValueError, "shares lacks 'b'; expected a share of each source, 0 for none"),
        (BOTH, {"a": 0.5, "b": 0.5, "c": 0.0}, "a", ValueError, "unknown name 'c'; expected 'a', 'b'"),
        (BOTH, [0.5, 0.5], "a", TypeError, "shares is .*; expected a dict with a number for each of 'a', 'b'"),
        (BOTH, {"a": _falling, "b": 0.5}, "a", ValueError, "after 1 batches, with the sum 0.75; expected a sum of 1"),
        (BOTH, HALVES, "c", ValueError, "add_to is 'c'; expected one of 'a', 'b'"),
        (BOTH, HALVES, None, ValueError, "add_to is None; expected one of 'a', 'b'"),
        ({"a": ONE, "b": ONE}, HALVES, "a", ValueError, "'a' and 'b' share a storage, so each transition would"),
        ({"a": ONE, "b": CombinedReplay(ONE)}, HALVES, "a", ValueError, "'a' and 'b' share a storage"),
        ({"a": ONE, "b": ReplayBuffer(9, FLAT, n_step=3)}, HALVES, "a", ValueError, "differ in n_step: 1 and 3"),
        ({"a": ONE, "b": ReplayBuffer(9, FLAT, gamma=0.9)}, HALVES, "a", ValueError, "differ in gamma: 0.99 and 0.9"),
        (
            {"a": ONE, "b": ReplayBuffer(9, Spec(obs=Field((4,)), action=Field((), np.int64)))}, HALVES, "a",
            ValueError, r"differ in spec: obs is Field\(\(3,\), float32\) and Field\(\(4,\).*; build both with",
        ),
        (
            {"a": MixedReplay(BOTH, shares=HALVES, add_to="a"), "b": ReplayBuffer(9, FLAT)}, HALVES, "a",
            ValueError, "source 'a' is itself a mixture; pass all its sources here, and multiply their shares",
        ),
        (
            {"a": ReplayBuffer(9, FLAT, seed=GENERATOR), "b": ReplayBuffer(9, FLAT, seed=GENERATOR)}, HALVES, "a",
            ValueError, "source 'a' and source 'b' use the same random generator.*give each its own seed",
        ),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused(sources, shares, add_to, error, match):
    """Each error names the argument, what was expected and what was given."""
    before = pickle.dumps((ONE, TWO))
    with pytest.raises(error, match=match.replace("{", r"\{").replace("}", r"\}")):
        MixedReplay(sources, shares=shares, add_to=add_to)
    assert pickle.dumps((ONE, TWO)) == before


def test_frames_must_be_stacked_alike():
    """Sources with frames must have the same `stack`, because it changes the shape of observations."""
    frames = Spec(obs=Field((4, 4), np.uint8), action=Field(()))
    sources = {"a": ReplayBuffer(9, frames, stack=2), "b": ReplayBuffer(9, frames, stack=3)}
    with pytest.raises(ValueError, match="differ in stack: 2 and 3"):
        MixedReplay(sources, shares=HALVES, add_to="a")


def test_a_field_with_the_name_of_what_is_added_is_refused():
    """A spec with a field `source` raises an error, because a mixture adds this field."""
    with pytest.raises(ValueError, match="extra field 'source' has a name that replaykit uses itself"):
        Spec(obs=Field(()), action=Field(()), source=Field(()))


def test_wrong_shares_are_refused_later_too():
    """Setting invalid shares raises the errors of the constructor. Read-only attributes stay read-only."""
    replay = mixture()
    for shares, match in (({"demos": 0.5, "online": 0.4}, "expected a sum of 1"), ({"demos": 1.0}, "lacks 'online'")):
        with unchanged(replay, ValueError, match):
            replay.shares = shares
    for name in ("add_to", "sources", "lock"):
        with pytest.raises(AttributeError, match=f"{name} of a MixedReplay cannot be set later"):
            setattr(replay, name, None)
    with pytest.raises(TypeError, match="does not support item assignment"):
        replay.sources["demos"] = None
    late = mixture({"demos": lambda n: 0.25 if n in (0, 1) or n % 10 == 0 else 0.5, "online": 0.75})
    late.sample(4)
    late.sample(4)
    assert late.sources["demos"].stats()["batches"] == 2.0
    with pytest.raises(ValueError, match="after 2 batches, with the sum 1.25; expected a sum of 1"):
        late.sample(4)


@pytest.mark.parametrize("shares", [SHARES, {"demos": 0.3, "online": 0.7}])
@pytest.mark.parametrize("call", ["sample", "draw", "serve"])
def test_a_batch_that_cannot_be_made_changes_no_generator(shares, call):
    """If a source cannot draw, no generator changes, even those of sources that have drawn."""
    cases = [
        (mixture(shares, online=0), "source 'online' is empty, but its share is not 0"),
        (mixture(shares, demos=0), "source 'demos' is empty, but its share is not 0"),
    ]
    replay = mixture(shares)
    replay.update_priorities(replay.stored()[12:], priorities=np.zeros(20))
    cases.append((replay, r"source 'online', asked for \d+ of 13 rows: .*every priority is 0"))
    few = ReplayBuffer(3, FLAT, replace=False, seed=1)
    sources = dict(mixture().sources) | {"online": filled(few, 3)}
    cases.append((MixedReplay(sources, shares=shares, add_to="online", seed=2), r"of 13 rows: .*without replacement"))
    sources = dict(mixture().sources)
    sources["online"] = CombinedReplay(sources["online"], latest=12)
    cases.append((MixedReplay(sources, shares=shares, add_to="online", seed=2), r"of 13 rows: .*at least latest=12"))
    for each, match in cases:
        with unchanged(each, ValueError, match):
            getattr(each, call)(13)


def test_a_failing_function_of_a_source_changes_no_generator():
    """If a source's `reward_fn` raises an error, no generator changes."""
    buffers = [ReplayBuffer(20, GOAL_SPEC, seed=seed) for seed in range(2)]
    for buffer in buffers:
        goal_episodes(buffer, [5, 5])
    sources = {"a": buffers[0], "b": HindsightReplay(buffers[1], _failing)}
    replay = MixedReplay(sources, shares={"a": 0.3, "b": 0.7}, add_to="a", seed=0)
    for each in (replay, CombinedReplay(replay)):
        with unchanged(each, RuntimeError, "reward_fn _failing raised KeyError"):
            each.sample(11)
    with pytest.raises(ValueError, match="inner already contains a HindsightReplay"):
        HindsightReplay(replay, sparse)


def _failing(achieved_goal, desired_goal, info):
    raise KeyError("no reward")


def test_a_function_of_one_source_cannot_write_to_another():
    """A function of one source cannot write to another, because a batch shows all sources at one moment."""
    buffers = [ReplayBuffer(20, GOAL_SPEC, seed=seed) for seed in range(2)]
    for buffer in buffers:
        goal_episodes(buffer, [5, 5])

    def meddle(achieved_goal, desired_goal, info):
        buffers[0].clear()

    sources = {"a": buffers[0], "b": HindsightReplay(buffers[1], meddle, ratio=1.0)}
    replay = MixedReplay(sources, shares={"a": 0.5, "b": 0.5}, add_to="a", seed=0)
    with pytest.raises(RuntimeError, match="write before or after sample"):
        replay.sample(10)
    assert len(buffers[0]) == 10
    buffers[0].clear()


# -- Threads and processes -----------------------------------------------------------------------------------------


def test_locks_are_taken_in_the_order_of_their_creation():
    """Locks are acquired in the order of their creation, for any order of the sources."""
    made = [filled(ReplayBuffer(9, FLAT, seed=seed), 9) for seed in range(3)]
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        sources = {f"b{k}": made[k] for k in order}
        replay = MixedReplay(sources, shares=dict.fromkeys(sources, 1.0 / 3.0), add_to="b0")
        assert replay.lock.each == [buffer.lock for buffer in made]
        assert replay.lock.written is made[0].lock


def test_a_source_that_is_in_use_is_waited_for():
    """A batch waits for a source in use. The thread that uses it can still write to other sources."""
    replay = mixture()
    online, found = replay.sources["online"], []
    with online.lock:
        thread = threading.Thread(target=lambda: found.append(replay.sample(8)))
        thread.start()
        thread.join(0.05)
        assert not found
    thread.join(10)
    assert len(found) == 1


def test_a_forked_child_has_free_locks():
    """A forked child has free locks and can sample."""
    replay = mixture()
    with replay.lock:
        run_in_child(lambda: replay.sample(8))


def test_two_priorities_of_one_source_are_not_mixed_up():
    """The last priority of a repeated index is kept, as in a buffer."""
    replay = MixedReplay({"a": prioritized([1.0, 1.0])}, shares={"a": 1.0}, add_to="a")
    assert replay.update_priorities([0, 1, 0], priorities=[5.0, 1.0, 3.0]) == 3
    np.testing.assert_allclose(replay.probability([0, 1]), [0.75, 0.25])


@pytest.mark.parametrize("device", [None, "cpu"])
def test_weights_are_normalized_by_the_buffer_also_if_its_source_drew_nothing(device):
    """Weights are normalized by the buffer, also if only a wrapper takes rows from a source."""
    spec = Spec(obs=Field(()), action=Field(()))
    options = {"alpha": 1.0, "beta": 1.0, "eps": 0.0, "device": device}
    sources = {
        "often": ReplayBuffer(8, spec, seed=1, device=device),
        "rarely": PrioritizedBuffer(8, spec, weights="buffer", seed=2, **options),
    }
    for source in sources.values():
        zeros = np.zeros(8, np.float32)
        source.extend(zeros, zeros, zeros, zeros, zeros > 0, zeros > 0)
    sources["rarely"].update_priorities(np.arange(8), priorities=[1.0, *[4.0] * 7])
    mixture = MixedReplay(sources, shares={"often": 0.9, "rarely": 0.1}, add_to="rarely", seed=0)
    replay = CombinedReplay(mixture)
    stored = replay.stored()
    of_rarely = stored[np.asarray(stored % replay.successor == replay.latest(1)[0].item() % replay.successor)]
    for _ in range(30):
        batch = replay.sample(4)
        batch = batch if device is None else batch.to_numpy()
        shares = np.asarray(replay.probability(of_rarely, 4))
        newest = batch.probabilities[-1]
        np.testing.assert_allclose(batch.weights[-1], shares.min() / newest, rtol=1e-6)
