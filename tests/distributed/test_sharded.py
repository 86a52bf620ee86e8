"""A sharded replay without an engine: its shards are in this process."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import replaykit
from replaykit import (
    CombinedReplay,
    Field,
    HindsightReplay,
    LatestBuffer,
    MixedReplay,
    PrioritizedBuffer,
    ReplayBuffer,
    SequenceReplay,
    Spec,
)
from replaykit.batch import Draw
from replaykit.distributed.generations import STEPS
from replaykit.rate_limit import RateLimit
from tests.distributed.local import LocalReplay
from tests.helpers import FLAT, GOAL_SPEC, arrays_of, step, stretch

ALPHA = 0.7


def per(capacity=1000, **options):
    """A `make_buffer` for prioritized buffers."""
    return lambda: PrioritizedBuffer(capacity, FLAT, alpha=ALPHA, **options)


def filled(make, sizes, seed=0, **options):
    """A replay whose shards have these sizes."""
    replay = LocalReplay(make, len(sizes), seed, **options)
    writers = [replay.writer() for _ in sizes]
    for writer, size in zip(writers, sizes, strict=True):
        if size:
            writer.extend(**stretch(size))
    for writer in writers:
        writer.close()
    len(replay)
    return replay


def with_priorities(replay, priorities):
    """The replay, with these priorities of its transitions, and all indices."""
    indices = replay.stored()
    assert replay.update_priorities(indices, priorities=priorities) == len(indices)
    return indices


# -- The draw ----------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 12), min_size=1, max_size=5), st.integers(1, 40), st.integers(0, 99))
def test_four_shards_have_the_probabilities_of_one_buffer(sizes, batch_size, seed):
    """Probabilities and weights of a prioritized replay in four shards are those of one buffer."""
    sizes = [*sizes, 3]
    priorities = np.random.default_rng(seed).exponential(size=sum(sizes)) + 0.01
    replay = filled(per(beta=0.6, weights="none"), sizes)
    indices = with_priorities(replay, priorities)
    one = PrioritizedBuffer(1000, FLAT, alpha=ALPHA, beta=0.6, weights="none")
    own = one.extend(**stretch(len(indices)))
    one.update_priorities(own, priorities=priorities)
    expected = dict(zip(indices.tolist(), one.probability(own), strict=True))
    np.testing.assert_allclose(replay.probability(indices, batch_size), list(expected.values()), rtol=1e-12)
    batch = replay.sample(batch_size)
    np.testing.assert_allclose(batch.probabilities, [expected[i] for i in batch.indices.tolist()], rtol=1e-12)
    np.testing.assert_array_equal(batch.weights, one.weigh(Draw(own, batch.probabilities)))


@pytest.mark.parametrize("weights", ["batch", "buffer", "none"])
def test_weights_are_those_of_one_buffer(weights):
    """Weights are those of one buffer, with each normalization and with a schedule for beta."""
    options = {"weights": weights, "beta": replaykit.LinearSchedule(0.4, 1.0, 2)}
    replay, one = filled(per(**options), [5, 9]), PrioritizedBuffer(1000, FLAT, alpha=ALPHA, **options)
    own, priorities = one.extend(**stretch(14)), np.arange(1.0, 15.0)
    with_priorities(replay, priorities)
    one.update_priorities(own, priorities=priorities)
    for beta in (0.4, 0.7, 1.0):
        assert replay.beta == pytest.approx(beta)
        batch = replay.sample(6)
        draw = Draw(own, batch.probabilities, one.probability(own).min())
        one.beta = beta
        np.testing.assert_allclose(batch.weights, one.weigh(draw), rtol=1e-6)


def test_uniform_shards_weigh_nothing_and_have_equal_probabilities():
    """With uniform replay in shards of any size, each of N transitions has probability 1/N and weight 1."""
    replay = filled(lambda: ReplayBuffer(100, FLAT), [3, 40, 0, 7])
    batch = replay.sample(32)
    np.testing.assert_allclose(batch.probabilities, 0.02)
    assert (batch.weights == 1.0).all() and batch.weights.dtype == np.float32
    with pytest.raises(AttributeError, match="has no beta"):
        replay.beta  # noqa: B018


@pytest.mark.parametrize("changes", [False, True], ids=["before updates", "after updates"])
def test_frequencies_of_unequal_shards_are_the_probabilities(changes):
    """Transitions of three unequal shards are drawn as often as they should (chi-square test at 1e-4, fixed seed)."""
    replay = filled(per(draws="iid"), [3, 11, 6], seed=4)
    indices = with_priorities(replay, np.arange(1.0, 21.0))
    if changes:
        replay.update_priorities(indices[::2], td_errors=np.linspace(0.1, 30.0, 10))
    expected = replay.probability(indices, 10)
    counts = dict.fromkeys(indices.tolist(), 0)
    for _ in range(1500):
        batch = replay.sample(10)
        for index in batch.indices.tolist():
            counts[index] += 1
    # Shards give rounded shares of each batch, so the counts vary less than independent draws
    result = stats.chisquare(list(counts.values()), expected * 15_000)
    assert result.pvalue > 1e-4
    by_shard = np.bincount(indices % 3, list(counts.values())) / 15_000
    np.testing.assert_allclose(by_shard, np.bincount(indices % 3, expected), atol=4 * 0.5 / 10 / np.sqrt(1500))


def test_probabilities_are_those_of_the_draw_while_shards_grow():
    """Even if sums are out of date, the mean of 1/P is the number of transitions at the draw, within 4 sigma."""
    replay = LocalReplay(per(draws="iid"), 3, 7)
    writers = [replay.writer() for _ in range(3)]
    for writer in writers:
        writer.extend(**stretch(5))
        writer.flush()
    rng, errors = np.random.default_rng(0), []
    for round_ in range(700):
        writers[round_ % 2].add(**step(0))  # not known when the shards are chosen
        writers[round_ % 2].flush()
        batch = replay.sample(8)
        size = sum(status.size for status in replay._all.known)
        errors.append(np.mean(1.0 / batch.probabilities) / size - 1.0)
        replay.update_priorities(batch.indices, td_errors=rng.exponential(size=8) + 0.2)
    assert size == 715
    assert abs(np.mean(errors)) < 4 * np.std(errors) / np.sqrt(len(errors))


def test_a_batch_is_one_round_trip():
    """All calls for a batch are sent together, even if the last known sums are out of date."""
    replay = filled(per(), [5, 5, 5])
    before = replay.cluster.calls
    for _ in range(5):
        replay.sample(7)
    assert replay.cluster.calls == before + 5


def test_a_shard_that_was_empty_is_noticed():
    """Shards that contribute no rows to a batch are also asked for their sums."""
    replay = LocalReplay(per(), 2, 0)
    first, second = replay.writer(), replay.writer()
    first.extend(**stretch(4))
    first.flush()
    assert set(replay.sample(8).indices % 2) == {0}
    second.extend(**stretch(100))
    second.flush()
    replay.sample(8)
    assert set(replay.sample(64).indices % 2) == {0, 1}


def test_same_seed_same_batches():
    """Each shard gets its own seed, derived from the seed of the replay. The seed in `make_buffer` is not used."""
    one, two, other = (filled(per(seed=1), [30, 30], seed) for seed in (3, 3, 4))
    first, second, third = (replay.sample(40) for replay in (one, two, other))
    np.testing.assert_array_equal(first.indices, second.indices)
    assert (first.indices != third.indices).any()
    assert (first.indices[:20] // 2 != first.indices[20:] // 2).any()
    one.reseed(9)
    two.reseed(9)
    np.testing.assert_array_equal(one.sample(40).indices, two.sample(40).indices)


def combined():
    """A `make_buffer` for wrappers whose probabilities depend on the number of rows."""
    return CombinedReplay(PrioritizedBuffer(100, FLAT, alpha=ALPHA))


@pytest.mark.parametrize("make", [combined, lambda: LatestBuffer(100, FLAT)], ids=["combined", "latest"])
def test_probabilities_that_depend_on_the_number_of_rows_are_exact(make):
    """Probabilities average over the possible numbers of rows, equal those of `probability`, and sum to 1."""
    replay = filled(make, [5, 8])
    assert replay.probability(replay.stored(), 7).sum() == pytest.approx(1.0)
    for _ in range(20):
        batch = replay.sample(7)
        np.testing.assert_allclose(batch.probabilities, replay.probability(batch.indices, 7))


def test_fields_are_those_of_a_buffer():
    """A batch has a buffer's fields, in the same order and dtypes, in arrays that the caller owns."""
    replay, buffer = filled(per(), [9, 9]), PrioritizedBuffer(10, FLAT)
    buffer.extend(**stretch(9))
    batch, expected = replay.sample(5), buffer.sample(5)
    assert list(batch) == list(expected)
    for name, array in arrays_of(batch).items():
        assert (array.dtype, array.shape) == (expected[name].dtype, expected[name].shape)
        assert array.flags.writeable
    np.testing.assert_array_equal(batch.reward, batch.indices // 2)
    np.testing.assert_array_equal(replay.read(batch.indices, "reward"), batch.reward)


def test_sequences_of_shards():
    """With a SequenceReplay in each shard, rows, step indices and updates with a mask work."""
    replay = filled(lambda: SequenceReplay(PrioritizedBuffer(100, FLAT), 6, burn_in=2, stride=2), [20, 30])
    batch = replay.sample(8)
    assert batch.obs.shape == (8, 6, 3) and batch.step_indices.shape == (8, 6)
    assert (batch.step_indices[batch.mask] % 2 == np.broadcast_to(batch.indices[:, None] % 2, (8, 6))[batch.mask]).all()
    assert (batch.step_indices[~batch.mask] == -1).all()
    np.testing.assert_array_equal((batch.step_indices // 2)[batch.mask], batch.reward[batch.mask])
    assert replay.update_priorities(batch.indices, np.ones((8, 6)), mask=batch.loss_mask) > 0
    with pytest.raises(ValueError, match="expected \\(B, T\\)"):
        replay.update_priorities(batch.indices, np.ones(8))


def test_hindsight_in_shards():
    """With a HindsightReplay in each shard, goals come from the same shard."""
    goal = np.zeros(2)

    def make():
        return HindsightReplay(ReplayBuffer(50, GOAL_SPEC), lambda achieved, wanted, info: -np.ones(len(achieved)))

    replay = LocalReplay(make, 2, 0)
    for _ in range(2):
        writer = replay.writer()
        for _ in range(10):
            obs = {"achieved_goal": goal, "desired_goal": goal}
            writer.add(obs, 0, 0.0, obs, False, False)
        writer.flush()
    batch = replay.sample(40)
    assert batch.relabelled.dtype == np.bool_ and 0 < batch.relabelled.sum() < 40
    assert (batch.reward[batch.relabelled] == -1.0).all()


# -- Updates -----------------------------------------------------------------------------------------------------


def test_stale_updates_are_dropped_and_not_counted():
    """Updates of transitions that were overwritten in any shard are ignored and not counted."""
    replay = LocalReplay(per(4), 2, 0)
    writers = [replay.writer(), replay.writer()]
    for writer in writers:
        writer.extend(**stretch(6))
        writer.flush()
    stored = replay.stored()
    assert replay.update_priorities([0, 1, *stored], np.ones(10)) == 8
    assert replay.stats()["stale_updates"] == 2.0


@pytest.mark.parametrize(
    ("indices", "options", "error", "match"),
    [
        ([10], {"td_errors": [1.0]}, IndexError, "never returned"),
        ([-1], {"td_errors": [1.0]}, IndexError, "never returned"),
        ([STEPS * 2], {"td_errors": [1.0]}, IndexError, "never returned"),
        ([0], {"td_errors": [np.nan]}, ValueError, "nan"),
        ([0], {"priorities": [-1.0]}, ValueError, "non-negative"),
        ([0], {"td_errors": [1.0, 2.0]}, ValueError, "shape"),
        ([0], {}, TypeError, "either"),
        ([0], {"td_errors": [1.0], "mask": [True]}, TypeError, "returns a SequenceReplay"),
    ],
)
def test_wrong_updates_are_refused_before_anything_is_sent(indices, options, error, match):
    """Invalid updates raise the same errors as in a buffer, before anything is sent."""
    replay = filled(per(), [5, 5])
    before, calls = replay.probability(replay.stored()), replay.cluster.calls
    with pytest.raises(error, match=match):
        replay.update_priorities(indices, **options)
    assert replay.cluster.calls == calls
    np.testing.assert_array_equal(replay.probability(replay.stored()), before)


def test_the_last_duplicate_wins_and_overwrite_goes_to_the_shards():
    """As in a buffer, the last value of a repeated index is kept, and `overwrite` reaches the right shard."""
    replay = filled(per(), [4, 4])
    assert replay.update_priorities([2, 2], priorities=[5.0, 1.0]) == 2
    p = replay.probability([2, 0])
    assert p[0] == p[1]
    assert replay.overwrite([1, 4, -1], action=[7, 8, 9]) == 2
    np.testing.assert_array_equal(replay.read([1, 4, 0, -1], "action"), [7, 8, 1, 0])
    replay.clear()
    assert len(replay) == 0 and replay.overwrite([1], action=[3]) == 0
    with pytest.raises(ValueError, match="empty"):
        replay.sample(2)


# -- Shards that die ---------------------------------------------------------------------------------------------


def test_a_shard_that_dies_costs_its_rows_and_nothing_else():
    """If a shard dies, the learner continues with the others, warns once, and ignores updates of lost rows."""
    replay = filled(per(), [10, 10, 10])
    batch = replay.sample(30)
    replay.cluster.kill(1)
    with pytest.warns(RuntimeWarning, match="shard 1 is lost, with 10 transitions: it was killed"):
        rest = replay.sample(30)
    assert set(rest.indices % 3) == {0, 2}
    np.testing.assert_allclose(rest.probabilities, 1 / 20)
    assert replay.update_priorities(batch.indices, np.ones(30)) == (batch.indices % 3 != 1).sum()
    assert len(replay) == 20
    found = replay.stats()
    assert (found["shards"], found["shards_present"], found["losses"]) == (3.0, 2.0, 1.0)
    assert len(replay.warnings()) == 1


def come_back(replay, k):
    """Restart a shard, and let the learner notice it."""
    replay.cluster.start_again(k)
    for status in list(replay._all._away):
        pending, _ = replay._all._away[status]
        replay._all._away[status] = pending, -1e9  # it is time to ask again
    with pytest.warns(RuntimeWarning, match=f"shard {k} is back"):
        sample_some(replay)


def sample_some(replay):
    """Sample a few batches, so that the learner looks for shards that are back, and begins them."""
    for _ in range(3):
        replay.sample(4)


def test_a_shard_that_is_started_again_gives_no_index_twice():
    """A restarted shard is empty. Its earlier indices are stale, and its new indices are 2**40 steps later."""
    replay = filled(per(), [10, 10])
    former = replay.stored()
    replay.cluster.kill(0)
    with pytest.warns(RuntimeWarning, match="lost"):
        replay.sample(4)
    come_back(replay, 0)
    with replay.writer() as writer:
        writer.extend(**stretch(5))
    assert writer.shard == 0 and len(replay) == 15
    now = replay.stored()
    assert not set(former[former % 2 == 0]) & set(now)
    np.testing.assert_array_equal(now[now % 2 == 0], (STEPS + np.arange(5)) * 2)
    assert replay.update_priorities(former, np.ones(20)) == 10
    batch = replay.sample(64)
    assert (batch.indices >= STEPS * 2).any() and replay.update_priorities(batch.indices, np.ones(64)) == 64
    replay.check()
    with pytest.raises(IndexError, match="stale"):
        replay.read(former[:1], "reward")


def test_a_shard_that_is_started_again_between_two_calls_is_noticed():
    """A restart is noticed even if no call failed, because a shard serves nothing before `begin`."""
    replay = filled(per(), [10, 10])
    replay.cluster.start_again(1)
    with pytest.warns(RuntimeWarning, match="shard 1 is lost.*restarted"):
        assert set(replay.sample(8).indices % 2) == {0}
    with pytest.warns(RuntimeWarning, match="shard 1 is back, with 0"):
        sample_some(replay)


def test_a_shard_comes_back_from_its_last_checkpoint(tmp_path):
    """A restarted shard has the transitions of its last checkpoint, with new indices."""
    replay = filled(per(), [10, 10])
    with_priorities(replay, np.arange(1.0, 21.0))
    replay.save(tmp_path)
    replay.cluster.kill(1)
    with pytest.warns(RuntimeWarning, match="lost"):
        replay.sample(4)
    come_back(replay, 1)
    assert len(replay) == 20 and "with 10 transitions" in replay.warnings()[-1]
    stored = replay.stored()
    np.testing.assert_array_equal(stored[10:], (STEPS + np.arange(10)) * 2 + 1)
    scaled = np.arange(1.0, 21.0) ** ALPHA
    np.testing.assert_allclose(replay.probability(stored), scaled / scaled.sum())


def test_a_damaged_checkpoint_leaves_the_shard_empty_and_is_named(tmp_path):
    """If the checkpoint of a restarted shard is damaged, a warning names it, and the learner continues."""
    replay = filled(per(), [10, 10])
    replay.save(tmp_path)
    (tmp_path / "shard-1" / "manifest.json").write_text("{}")
    replay.cluster.kill(1)
    with pytest.warns(RuntimeWarning, match="lost"):
        replay.sample(4)
    come_back(replay, 1)
    assert len(replay) == 10 and "its checkpoint could not be loaded" in replay.warnings()[-1]


def test_a_shard_that_is_late_comes_back_with_what_it_has():
    """A shard that answers late is not restarted. It keeps its transitions and its indices."""
    replay = filled(per(), [10, 10])
    former = replay.stored()
    replay.cluster.answers[0] = False
    with pytest.warns(RuntimeWarning, match="no answer for 10"):
        assert set(replay.sample(8).indices % 2) == {1}
    assert replay.update_priorities(former, np.ones(20)) == 10
    replay.cluster.answers[0] = True
    with pytest.warns(RuntimeWarning, match="shard 0 is back, with 10"):
        replay.sample(8)
    np.testing.assert_array_equal(replay.stored(), former)


def test_without_any_shard_the_error_names_the_last_that_was_lost():
    """Without any shard, sampling raises an error. It works again when a shard is back."""
    replay = filled(per(), [10])
    replay.cluster.kill(0)
    with (
        pytest.warns(RuntimeWarning, match="lost"),
        pytest.raises(RuntimeError, match="no shard answers: shard 0 is lost"),
    ):
        replay.sample(4)
    assert len(replay) == 0


def test_an_error_in_a_shard_is_raised_with_its_number():
    """An error in a shard is raised with the shard's number. The shard is not lost."""
    replay = filled(lambda: ReplayBuffer(100, FLAT, replace=False), [3, 3])
    with pytest.raises(ValueError, match="shard [01]: batch_size is 5; expected at most 3"):
        replay.sample(10)
    assert replay.stats()["losses"] == 0.0 and len(replay.sample(6)) == 6


# -- Writers -----------------------------------------------------------------------------------------------------


@given(st.integers(1, 3), st.integers(1, 5), st.data())
def test_a_writer_stores_what_a_writer_of_a_buffer_stores(lanes, block, data):
    """Single steps, several steps, masks and ended episodes are stored as in a buffer, in blocks of any size."""
    replay = LocalReplay(lambda: ReplayBuffer(60 * lanes, FLAT, num_envs=lanes, n_step=3), 1, 0, block)
    buffer = ReplayBuffer(60 * lanes, FLAT, num_envs=lanes, n_step=3)
    writer, direct = replay.writer(lanes), buffer.writer(range(lanes))
    for number in range(data.draw(st.integers(0, 12))):
        kind = data.draw(st.sampled_from(["add", "extend", "end"]))
        mask = data.draw(st.none() | st.lists(st.booleans(), min_size=lanes, max_size=lanes).map(np.array))
        if kind == "end":
            writer.end_episode(mask)
            direct.end_episode(mask)
            continue
        steps = data.draw(st.integers(1, 4)) if kind == "extend" else 1
        fields = stretch(steps, lanes, terminated=np.full((steps, lanes), number % 5 == 4))
        fields = {
            n: v.reshape(steps, lanes, *FLAT[n].shape) + (number if n == "reward" else 0) for n, v in fields.items()
        }
        fields = fields if kind == "extend" else {name: value[0] for name, value in fields.items()}
        getattr(writer, kind)(**fields, mask=mask)
        getattr(direct, kind)(**fields, mask=mask)
    writer.flush()
    np.testing.assert_array_equal(replay.bounds, buffer.bounds)
    shard = replay.cluster.shards[0].replay
    stored = buffer.stored()
    for name, array in arrays_of(replaykit.Batch.of(buffer.fetch(stored))).items():
        np.testing.assert_array_equal(array, arrays_of(replaykit.Batch.of(shard.fetch(stored)))[name])
    np.testing.assert_array_equal(np.array(shard.episode(stored))[1:], np.array(buffer.episode(stored))[1:])


def test_steps_are_sent_in_blocks():
    """Steps are sent when a block is full, and the remaining steps with `flush`."""
    replay = LocalReplay(per(), 1, 0, block=4)
    writer = replay.writer()
    for number in range(7):
        assert writer.add(**step(number)) is None
    assert len(replay) == 4
    writer.flush()
    assert len(replay) == 7


def test_initial_td_errors_are_sent():
    """Initial TD errors are sent. A block has them for all of its steps or for none."""
    replay = LocalReplay(per(eps=0.0), 1, 0, block=8)
    writer = replay.writer()
    for number in range(6):
        writer.add(**step(number), td_error=number + 1.0 if number < 4 else None)
    writer.flush()
    scaled = np.array([1.0, 2.0, 3.0, 4.0, 4.0, 4.0]) ** ALPHA
    np.testing.assert_allclose(replay.probability(np.arange(6)), scaled / scaled.sum())


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"reward": np.nan}, ValueError, "reward contains nan"),
        ({"obs": np.zeros(2)}, ValueError, "obs has shape"),
        ({"action": 0.5}, TypeError, "action has dtype"),
        ({"extra": 1}, TypeError, "unknown field 'extra'"),
        ({"td_error": np.inf}, ValueError, "td_error contains inf"),
        ({"mask": [1]}, ValueError, "mask has shape"),
    ],
)
def test_wrong_values_are_refused_at_once_and_nothing_is_added(changes, error, match):
    """Invalid values raise an error when they are added, not later when they are stored."""
    replay = LocalReplay(per(), 1, 0)
    writer = replay.writer()
    writer.add(**step(0))
    with pytest.raises(error, match=match):
        writer.add(**(step(1) | changes))
    writer.flush()
    assert len(replay) == 1


def test_writers_are_spread_evenly_until_lanes_run_out():
    """Writers are spread evenly over the shards. A closed writer releases its lanes."""
    replay = LocalReplay(per(num_envs=3), 2, 0)
    writers = [replay.writer() for _ in range(4)]
    assert [writer.shard for writer in writers] == [0, 1, 0, 1]
    assert [writer.lanes for writer in writers] == [(0,), (0,), (1,), (1,)]
    with pytest.raises(ValueError, match="num_envs is 2.*larger num_envs"):
        replay.writer(2)
    writers[1].close()
    writers[1].close()
    assert replay.writer(2).lanes == (0, 2)
    with pytest.raises(RuntimeError, match="closed"):
        writers[1].add(**step(0))


def test_a_copy_takes_a_writer_over():
    """A worker that replaces a dead one can use the same writer. The running episode ends."""
    replay = LocalReplay(per(), 1, 0, block=2)
    writer = replay.writer()
    first = pickle.loads(pickle.dumps(writer))
    for number in range(3):
        first.add(**step(number))  # the third is not sent
    second = pickle.loads(pickle.dumps(writer))
    second.extend(**stretch(2))
    assert len(replay) == 4
    shard = replay.cluster.shards[0].replay
    np.testing.assert_array_equal(shard.episode(np.arange(4))[1], [0, 0, 2, 2])
    with pytest.raises(RuntimeError, match="another copy of this writer has taken over"):
        first.flush()


def test_a_writer_goes_on_when_its_shard_dies():
    """If a shard dies, its sent steps are lost and counted, with one warning. A new shard gets the next steps."""
    replay = LocalReplay(per(), 1, 0, block=2)
    writer = replay.writer()
    writer.extend(**stretch(2))
    replay.cluster.kill(0)
    with pytest.warns(RuntimeWarning, match="shard 0 died, with steps that this writer had sent"):
        writer.extend(**stretch(2))
    writer.extend(**stretch(2))
    assert writer.lost == 4
    replay.cluster.start_again(0)
    writer.extend(**stretch(2))
    writer.flush()
    assert len(replay.cluster.shards[0].replay) == 2
    with pytest.warns(RuntimeWarning, match="lost"):
        assert len(replay) == 0
    with pytest.warns(RuntimeWarning, match="back"):
        assert [len(replay), len(replay)] == [0, 2]
    assert replay.stored()[0] == STEPS


def test_record_through_a_writer():
    """`record` stores steps through a writer as in a buffer. An environment with another spec raises an error."""
    gymnasium = pytest.importorskip("gymnasium")
    env = gymnasium.make("CartPole-v1")
    replay = LocalReplay(lambda: ReplayBuffer.from_env(env, 1000), 1, 0)
    buffer = ReplayBuffer.from_env(env, 1000)
    writer = replay.writer()
    recorded = [replaykit.record(gymnasium.make("CartPole-v1"), target) for target in (writer, buffer)]
    for each in recorded:
        each.reset(seed=0)
        for number in range(60):
            if any(each.step(number // 2 % 2)[2:4]):
                each.reset()
    writer.flush()
    np.testing.assert_array_equal(replay.read(np.arange(60), "obs"), buffer.read(np.arange(60), "obs"))
    with pytest.raises(ValueError, match="env has the spec"):
        replaykit.record(gymnasium.make("MountainCar-v0"), writer)
    with pytest.raises(ValueError, match="env has 2 environments; expected 1"):
        replaykit.record(gymnasium.make_vec("CartPole-v1", 2), writer)


# -- Saving ------------------------------------------------------------------------------------------------------


def test_after_load_batches_go_on_bit_for_bit(tmp_path):
    """A checkpoint contains the shards, their generators, the learner's generator and the number of batches."""
    replay = filled(per(beta=replaykit.LinearSchedule(0.4, 1.0, 10)), [20, 30], seed=1)
    replay.sample(9)
    replay.save(tmp_path)
    twin = LocalReplay(per(beta=replaykit.LinearSchedule(0.4, 1.0, 10)), 2, 5)
    twin.load(tmp_path)
    for _ in range(3):
        one, two = replay.sample(9), twin.sample(9)
        for name, array in arrays_of(one).items():
            np.testing.assert_array_equal(array, arrays_of(two)[name])
        for each, batch in ((replay, one), (twin, two)):
            each.update_priorities(batch.indices, np.arange(9.0))
    with twin.writer() as writer:  # former writers ended with their episodes
        writer.add(**step(0))
    assert len(twin) == 51


def test_checkpoints_of_another_replay_are_refused(tmp_path):
    """A checkpoint that is damaged, missing or has another number of shards raises an error. Nothing changes."""
    replay = filled(per(), [5, 5])
    replay.save(tmp_path)
    other = filled(per(), [1, 1, 1])
    with pytest.raises(ValueError, match="has 2 shards; expected 3"):
        other.load(tmp_path)
    with pytest.raises(OSError, match=r"replay\.json"):
        replay.load(tmp_path / "nothing")
    content = json.loads((tmp_path / "replay.json").read_text())
    (tmp_path / "replay.json").write_text(json.dumps(content | {"batches": -1}))
    with pytest.raises(ValueError, match="is damaged"):
        replay.load(tmp_path)
    assert len(replay) == 10 and len(other) == 3
    (tmp_path / "replay.json").write_text(json.dumps(content))
    (tmp_path / "shard-0" / "manifest.json").unlink()
    with pytest.raises(OSError, match="shard-0"):
        replay.load(tmp_path)


# -- As a replay -------------------------------------------------------------------------------------------------


def test_batches_are_made_in_a_thread():
    """`batches` samples in a thread, even for small batches, because the round trip takes most of the time."""
    replay = filled(per(), [50, 50])
    with replay.batches(4) as batches:
        for _, batch in zip(range(5), batches, strict=False):
            assert len(batch) == 4
            replay.update_priorities(batch.indices, np.ones(4))
        assert batches._producer is not None
    assert len(next(replay.batches(4, prefetch=0))) == 4


def test_what_shards_cannot_do_is_refused_with_the_reason():
    """Methods that would need all transitions in one place raise an error with the reason."""
    replay = filled(per(), [5, 5])
    for call in (
        lambda: replay.add(**step(0)),
        lambda: replay.extend(**stretch(2)),
        lambda: replay.end_episode(),
        lambda: replay.draw(3),
        lambda: replay.window(np.zeros(1, np.int64)),
        lambda: replay.latest(3),
        lambda: replay.episodes(),
        lambda: replay.state_dict(),
        lambda: replay.load_state_dict({}),
    ):
        with pytest.raises(NotImplementedError, match="a LocalReplay"):
            call()
    with pytest.raises(TypeError, match="around the buffer that make_buffer returns"):
        CombinedReplay(replay)
    with pytest.raises(TypeError, match="makes its batches in other processes"):
        MixedReplay({"a": replay}, shares={"a": 1.0}, add_to="a")
    with pytest.raises(TypeError, match="cannot be copied or pickled"):
        pickle.dumps(replay)


def test_settings_are_those_of_all_shards():
    """The settings of the replay are those of one ring with the lanes of all shards."""
    replay = filled(per(10, n_step=3, num_envs=2), [2, 2])
    assert (replay.capacity, replay.num_envs, replay.n_step, replay.successor) == (20, 4, 3, 4)
    assert isinstance(replay, replaykit.Replay) and not replay.is_full
    np.testing.assert_array_equal(replay.oldest, [0, -1, 2, -1])
    np.testing.assert_array_equal(replay.newest, [4, -1, 6, -1])
    assert replay.nbytes == replay.stats("x/")["x/nbytes"] > 0
    assert "2 shards of PrioritizedBuffer" in repr(replay)
    replay.check()


def raises():
    """A `make_buffer` that raises an error."""
    raise ZeroDivisionError("no memory")


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (raises, "make_buffer raised an error in shard 0: ZeroDivisionError: no memory"),
        (lambda: 3, "make_buffer returned a int"),
        (
            lambda: MixedReplay({"a": ReplayBuffer(2, FLAT, seed=0)}, shares={"a": 1.0}, add_to="a"),
            "make_buffer returned a mixture",
        ),
    ],
    ids=["raises", "no buffer", "mixture"],
)
def test_a_factory_that_is_wrong_is_named(make, match):
    """An error in `make_buffer` is raised with its message and the number of the shard."""
    with pytest.raises(RuntimeError, match=match):
        LocalReplay(make, 2)


def test_shards_that_differ_are_refused():
    """If `make_buffer` returns buffers with different settings, the constructor raises an error."""
    sizes = iter([5, 6])
    with pytest.raises(ValueError, match=r"make_buffer returned ReplayBuffer\(0 of 6.*in shard 1"):
        LocalReplay(lambda: ReplayBuffer(next(sizes), FLAT), 2)


def test_nested_fields_and_extras_arrive():
    """Extra fields, and dicts and tuples of any depth, are stored."""
    spec = Spec(obs={"x": Field((2,)), "y": (Field(), Field((3,), "uint8"))}, action=Field(), note=Field((), "int32"))
    replay = LocalReplay(lambda: ReplayBuffer(10, spec), 1, 0)
    obs = {"x": np.ones(2), "y": (0.5, np.arange(3, dtype=np.uint8))}
    with replay.writer() as writer:
        writer.add(obs, 0.0, 1.0, obs, True, False, note=4)
    batch = replay.sample(3)
    assert batch.obs["y"][1].tolist() == [[0, 1, 2]] * 3 and (batch.note == 4).all()


# -- Flow control ------------------------------------------------------------------------------------------------


def test_a_limit_keeps_samples_for_each_insert():
    """All writers and the learner share one rate limit. The faster side waits for the slower one."""
    limit = RateLimit(2.0, min_size=16, tolerance=24.0, timeout=0.0)
    replay = LocalReplay(per(), 2, 0, 4, limit)
    one, two = replay.writer(), replay.writer()
    with pytest.raises(TimeoutError, match="8 transitions cannot be sampled after 0 inserted"):
        replay.sample(8)
    for writer in (one, two):
        writer.extend(**stretch(12))
        writer.flush()
    one.extend(**stretch(4))  # 28 * 2 - 0 is the right end of the corridor, 16 * 2 + 24
    with pytest.raises(TimeoutError, match="4 transitions cannot be inserted; waited 0 seconds for samples"):
        one.extend(**stretch(4))
    assert len(replay) == 28
    for _ in range(6):
        replay.sample(8)
    with pytest.raises(TimeoutError, match="after 28 inserted and 48 sampled"):
        replay.sample(8)
    one.add(**step(0))  # the block that waited goes first, and is not lost
    one.flush()
    assert len(replay) == 33
    replay.sample(8)
    assert (replay.stats()["inserted"], replay.stats()["sampled"]) == (33.0, 56.0)
    limit.close()
    for _ in range(20):
        replay.sample(8)
    two.extend(**stretch(100))
    two.flush()
    assert len(replay) == 133


def test_a_limit_goes_on_when_the_shard_that_counts_dies():
    """If shard 0 dies, there is no limit until it is back. Then the last known counts continue."""
    limit = RateLimit(1.0, min_size=4, tolerance=40.0, timeout=0.0)
    replay = LocalReplay(per(), 2, 0, 4, limit)
    writers = [replay.writer(), replay.writer()]
    for writer in writers:
        writer.extend(**stretch(20))
        writer.flush()
    replay.sample(8)
    replay.cluster.kill(0)
    with pytest.warns(RuntimeWarning, match="lost"):
        replay.sample(8)
    writers[1].extend(**stretch(40))
    come_back(replay, 0)
    replay.sample(4)
    assert replay.stats()["inserted"] == 40.0


@pytest.mark.parametrize(
    ("limit", "error", "match"),
    [
        (3, TypeError, "rate_limit is a int"),
        (RateLimit(1.0, min_size=10_000), ValueError, "min_size=10000; expected at most 2000"),
        (RateLimit(8.0, tolerance=16.0), ValueError, "block is 64, which is too large"),
    ],
)
def test_limits_that_cannot_work_are_refused(limit, error, match):
    """A limit with which inserts and samples would wait forever raises an error immediately."""
    with pytest.raises(error, match=match):
        LocalReplay(per(), 2, 0, 64, limit)
    replay = LocalReplay(per(), 2, 0, 1, RateLimit(1.0, tolerance=16.0))
    with pytest.raises(ValueError, match="batch_size is 64, which is too large"):
        replay.sample(64)
