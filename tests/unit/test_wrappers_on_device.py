"""Hindsight and mixtures on a device: the same numbers as on the CPU, late errors, and no waiting."""

import copy
import pickle

import numpy as np
import pytest
import torch

from replaykit import (
    CombinedReplay,
    Field,
    HindsightReplay,
    LatestBuffer,
    LinearSchedule,
    MixedReplay,
    PrioritizedBuffer,
    ReplayBuffer,
    ReplayWrapper,
    SequenceReplay,
    Spec,
)
from replaykit.testing import assert_lawful, bits_of
from tests.helpers import FLAT, GOAL_SPEC, STRATEGIES, filled, goal_episodes, stretch
from tests.unit.test_device_waits import nothing_waits

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PLACES = [None, DEVICE]
PAIR = {"achieved_goal": ("place", "speed"), "desired_goal": ("target", "wish")}
SPEC = Spec(
    obs={"place": Field((2,)), "target": Field((2,)), "speed": Field((), np.int16), "wish": Field((), np.int16)},
    action=Field(()),
    cost=Field((), np.float64),
    deep={"x": Field((2,), np.int16)},
)


def numbers(tree):
    """The same tree of NumPy arrays."""
    if isinstance(tree, dict):
        return {name: numbers(value) for name, value in tree.items()}
    return tree.cpu().numpy() if isinstance(tree, torch.Tensor) else np.asarray(tree)


def assert_same(got, expected, rtol=0.0):
    """Two trees are equal, bit for bit unless a tolerance is given."""
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, dict):
            assert_same(got[name], value, rtol)
        else:
            np.testing.assert_allclose(got[name], value, rtol=rtol, atol=0.0, err_msg=name)


# -- Hindsight -----------------------------------------------------------------------------------------------------


def tagged(achieved_goal, desired_goal, info):
    """A reward that identifies its arguments, which are arrays or tensors."""
    (place, speed), (target, wish) = achieved_goal, desired_goal
    return place[:, 0] + 3.0 * speed - 7.0 * target[:, 1] + 11.0 * wish + info["cost"] + info["deep"]["x"][:, 1]


def near(achieved_goal, desired_goal, info):
    (place, speed), (target, wish) = achieved_goal, desired_goal
    return (abs(place - target)[:, 0] < 1.5) & (abs(speed - wish) < 2)


def pairs(device, lanes=1, n_step=3, capacity=24, steps=20, make=ReplayBuffer, **options):
    """Steps of a goal of two fields, in episodes of random lengths."""
    rng = np.random.default_rng(0)
    shape = (steps, lanes) if lanes > 1 else (steps,)
    obs = [
        {
            "place": rng.integers(0, 5, (*shape, 2)).astype(np.float32),
            "target": np.full((*shape, 2), 9.0 + k, np.float32),
            "speed": rng.integers(0, 4, shape).astype(np.int16),
            "wish": np.full(shape, 9 + k, np.int16),
        }
        for k in range(2)
    ]
    flags = [rng.random(shape) < 0.15 for _ in range(2)]
    buffer = make(capacity * lanes, SPEC, num_envs=lanes, n_step=n_step, gamma=0.9, device=device, seed=0)
    extras = {"cost": rng.normal(size=shape), "deep": {"x": rng.integers(0, 9, (*shape, 2)).astype(np.int16)}}
    buffer.extend(obs[0], np.zeros(shape), np.full(shape, -1.0), obs[1], *flags, **extras)
    return HindsightReplay(buffer, tagged, **(PAIR | {"ratio": 0.7} | options))


def relabelled(replay, indices, uniforms):
    """The transitions at these indices with goals chosen by these numbers, and the rewards of each step."""
    put = replay.backend.array
    window = replay.inner.window(put(indices))
    window.ahead = replay.inner.look_ahead(window, replay.look, put(uniforms))
    window = replay.change(window)
    return numbers({"rewards": window.reward} | replay.reduce(window))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("terminated_fn", [None, near])
@pytest.mark.parametrize("n_step", [1, 4])
def test_the_same_numbers_choose_the_goals_of_the_cpu(strategy, lanes, terminated_fn, n_step):
    """The same random numbers give the goals, rewards, ends and flags of the CPU, bit for bit."""
    options = {"strategy": strategy, "terminated_fn": terminated_fn, "lanes": lanes, "n_step": n_step}
    if strategy != "random" or lanes == 1:  # transitions of several lanes are counted in another order
        options |= {"capacity": 24 if strategy == "random" else 16}
        replays = [pairs(device, **options) for device in PLACES]
        stored = replays[0].stored()
        uniforms = np.random.default_rng(1).random((2, len(stored)))
        cpu, device = (relabelled(replay, stored, uniforms) for replay in replays)
        assert len(set(cpu["length"].tolist())) == n_step or terminated_fn
        assert_same(device, cpu)
        rows = stored[stored % lanes == 0][:12].reshape(3, 4)
        cpu, device = (relabelled(replay, rows, uniforms[:, :3]) for replay in replays)
        assert_same(device, cpu)
        replays[1].check()
    else:
        replay = pairs(DEVICE, **options)
        found = relabelled(replay, replay.stored(), np.random.default_rng(1).random((2, len(replay))))
        places = {tuple(place) for place in numbers(replay.read(replay.stored(), "next_obs.place")).tolist()}
        assert {tuple(goal) for goal in found["obs"]["target"][found["relabelled"]].tolist()} <= places


def test_reward_fn_gets_tensors_of_every_step_of_every_row():
    """The number of steps that `reward_fn` gets does not depend on the draw. Goals have their own dtypes."""
    calls = []

    def reward_fn(achieved_goal, desired_goal, info):
        calls.append((achieved_goal, desired_goal, info))
        return tagged(achieved_goal, desired_goal, info)

    replay = pairs(DEVICE)
    replay = HindsightReplay(replay.inner, reward_fn, **PAIR)
    for _ in range(3):
        replay.sample(8)
    assert len(calls) == 3
    for achieved, desired, info in calls:
        leaves = [*achieved, *desired, info["cost"], info["deep"]["x"]]
        assert all(leaf.device.type == DEVICE and len(leaf) == 8 * 3 for leaf in leaves)
        assert [leaf.dtype for leaf in leaves[:2]] == [torch.float32, torch.int16]


def sparse(achieved_goal, desired_goal, info):
    return 1.0 * (achieved_goal == desired_goal).all(-1) - 1.0


def reached(achieved_goal, desired_goal, info):
    return (achieved_goal == desired_goal).all(-1)


def goals(reward_fn=sparse, make=PrioritizedBuffer, lengths=(5, 9), **options):
    """Hindsight replay on a device, with windows of two steps."""
    buffer = make(20, GOAL_SPEC, n_step=2, seed=5, device=DEVICE)
    goal_episodes(buffer, lengths)
    return HindsightReplay(buffer, reward_fn, **options)


def careless(achieved_goal, desired_goal, info):
    rewards = sparse(achieved_goal, desired_goal, info)
    achieved_goal.fill_(7.0)
    desired_goal.fill_(8.0)
    return rewards


def in_numpy(achieved_goal, desired_goal, info):
    return numbers(sparse(achieved_goal, desired_goal, info))


def learned(achieved_goal, desired_goal, info):
    return sparse(achieved_goal, desired_goal, info) * torch.ones((), device=DEVICE, requires_grad=True)


@pytest.mark.parametrize("reward_fn", [careless, in_numpy, learned])
@pytest.mark.parametrize("terminated_fn", [None, reached])
def test_a_function_may_change_its_arguments_and_return_other_arrays(reward_fn, terminated_fn):
    """If `reward_fn` returns a NumPy array, it is copied to the device. A tensor is detached."""
    batches = [bits_of(assert_lawful(goals(each, terminated_fn=terminated_fn), 20)) for each in (sparse, reward_fn)]
    assert batches[0] == batches[1]
    assert not goals(reward_fn, terminated_fn=terminated_fn).sample(20).reward.requires_grad


def test_a_ratio_of_0_changes_nothing_on_a_device():
    """With a ratio of 0, batches do not change and no random numbers are drawn."""
    replay = goals(ratio=0.0)
    plain = copy.deepcopy(replay.inner)
    for _ in range(3):
        expected, got = bits_of(plain.sample(9).to_numpy()), bits_of(replay.sample(9).to_numpy())
        assert got.pop("relabelled") == ("bool", (9,), bytes(9))
        assert got == expected


def test_rewards_of_several_numbers_are_relabelled_on_a_device():
    """Rewards of several numbers are relabelled as on the CPU."""
    spec = Spec(GOAL_SPEC["obs"], GOAL_SPEC["action"], reward=Field((2,)))
    found = []
    for device in PLACES:
        buffer = ReplayBuffer(20, spec, n_step=2, gamma=0.5, device=device)
        obs = [{"achieved_goal": np.full((9, 2), 1.0 * k), "desired_goal": np.full((9, 2), 5.0)} for k in range(2)]
        none = np.zeros(9, bool)
        buffer.extend(obs[0], np.zeros(9, int), np.ones((9, 2)), obs[1], none, none)
        replay = HindsightReplay(buffer, lambda a, d, i: a + 3.0 * d)
        found.append(relabelled(replay, np.arange(9), np.random.default_rng(0).random((2, 9))))
    assert_same(*found)
    assert found[0]["reward"].shape == (9, 2)


@pytest.mark.parametrize(("value", "dtype"), [(np.nan, torch.float64), (np.inf, torch.float32), (1e300, torch.float64)])
def test_a_reward_that_is_not_finite_is_raised_later(value, dtype):
    """New rewards that are not finite raise an error once, with their number. Original rewards do not count."""

    def reward_fn(achieved_goal, desired_goal, info):
        return torch.full((len(achieved_goal),), value, dtype=dtype, device=DEVICE)

    replay = goals(reward_fn, ratio=0.5)
    batch = replay.sample(10)
    wrong = int(batch.length[batch.relabelled].sum())
    with pytest.raises(ValueError, match=f"{wrong} rewards that reward_fn returned are NaN, infinite or too large"):
        replay.stats()
    replay.check()


def raises(achieved_goal, desired_goal, info):
    raise KeyError("speed")


WRONG = {
    "a scalar": (lambda a, d, i: 0.0, ValueError, r"returned shape \(\); expected \(60,\).*torch.vmap\(reward_fn\)"),
    "columns": (lambda a, d, i: a[:, :1], ValueError, r"returned shape \(60, 1\); expected \(60,\)"),
    "complex": (lambda a, d, i: a[:, 0] + 1j, TypeError, "returned dtype torch.complex128; expected real numbers"),
    "words": (lambda a, d, i: np.array(["no"] * len(a)), TypeError, "returned dtype <U2; expected real numbers"),
    "an error": (raises, RuntimeError, r"reward_fn raises raised KeyError.*of shape \(60, 2\), torch.float64"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_reward_function_on_a_device_changes_nothing(case):
    """A wrong shape or dtype from `reward_fn` raises an error immediately, and the next batch is unchanged."""
    reward_fn, error, match = WRONG[case]
    replay = goals(reward_fn)
    with pytest.raises(error, match=match):
        replay.sample(30)
    assert replay.stats()["batches"] == 0
    again = HindsightReplay(replay.inner, sparse)
    assert bits_of(again.sample(30).to_numpy()) == bits_of(goals().sample(30).to_numpy())


def at_any(achieved_goal, desired_goal, info):
    return reached(achieved_goal, desired_goal, info).any().expand(len(achieved_goal))


def at_one(achieved_goal, desired_goal, info):
    return (achieved_goal == desired_goal).all()


def test_a_terminated_function_that_is_not_vectorized_is_detected_on_a_device():
    """A `terminated_fn` that is not vectorized raises an error, which suggests torch.vmap."""
    with pytest.raises(ValueError, match=r"at_any returns another value.*wrap it: torch.vmap\(terminated_fn\)"):
        goals(terminated_fn=at_any).sample(30)
    with pytest.raises(TypeError, match="returned dtype torch.float64; expected bool"):
        goals(terminated_fn=lambda a, d, i: a[:, 0]).sample(30)
    wrapped, expected = (goals(terminated_fn=each).sample(30) for each in (torch.vmap(at_one), reached))
    assert bits_of(wrapped.to_numpy()) == bits_of(expected.to_numpy())


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("terminated_fn", [None, reached])
def test_relabelling_does_not_wait_for_the_device(strategy, terminated_fn):
    """Relabelling does not wait for the device, except once, when it checks `terminated_fn`."""
    replay = goals(strategy=strategy, terminated_fn=terminated_fn)
    replay.sample(30)
    with nothing_waits():
        replay.sample(30)
        SequenceReplay(replay, 3).sample(4)


# -- Mixtures ------------------------------------------------------------------------------------------------------

SHARES = {"demos": 0.25, "online": 0.75}


def mixture(device=DEVICE, shares=None, demos=6, online=20, seed=2, n_step=2, wrap=lambda replay: replay, **options):
    """Two lanes of demonstrations with uniform replay, and one lane of steps with prioritized replay."""
    first = ReplayBuffer(12, FLAT, num_envs=2, n_step=n_step, device=device, seed=0)
    second = PrioritizedBuffer(20, FLAT, n_step=n_step, device=device, seed=1, **options)
    if demos:
        ends = np.arange(2 * demos).reshape(demos, 2) % 5 == 3
        first.extend(**stretch(demos, 2, terminated=ends))
    if online:
        filled(second, online)
        second.update_priorities(second.stored(), np.arange(len(second)) / 7.0)
    sources = {"demos": first, "online": wrap(second)}
    return MixedReplay(sources, shares=shares or SHARES, add_to="online", seed=seed)


def test_everything_but_the_draws_is_that_of_a_mixture_on_the_cpu():
    """For any indices, windows, fields and updates equal those of the same mixture on the CPU."""
    replays = [mixture(device, demos=8, online=27) for device in PLACES]
    shuffled = np.random.default_rng(0).permutation(replays[0].stored())
    padded = np.concatenate((shuffled, [-1, -1]))
    rows = np.stack([shuffled[shuffled % 3 == lane][:4] for lane in (2, 0, 1)])
    for look in (
        lambda r, put: r.fetch(put(shuffled)),
        lambda r, put: r.fetch(put(rows)),
        lambda r, put: r.reduce(r.window(put(rows))),
        lambda r, put: {"read": r.read(put(padded), "obs"), "latest": r.latest(4), "bounds": r.bounds},
        lambda r, put: dict(zip("abc", r.episode(put(padded)), strict=True)),
    ):
        cpu, device = (numbers(look(replay, replay.backend.array)) for replay in replays)
        assert_same(device, cpu)
    for size in (1, 4, 7):
        shares = [numbers(replay.probability(replay.backend.array(shuffled), size)) for replay in replays]
        np.testing.assert_allclose(*shares, rtol=1e-12)
        assert shares[1].sum() == pytest.approx(1.0, rel=1e-12)
    replays[1].check()


@pytest.mark.parametrize("weights", ["batch", "none", "buffer"])
@pytest.mark.parametrize("batch_size", [8, 10, 13])
def test_each_source_draws_and_weighs_as_it_would_alone(weights, batch_size):
    """Each source draws the same rows as a copy of it with the same generator."""
    replay = mixture(weights=weights, beta=0.7)
    twins = copy.deepcopy(dict(replay.sources))
    for _ in range(3):
        batch = assert_lawful(replay, batch_size)
        assert (np.diff(batch.source) >= 0).all()
        for k, twin in enumerate(twins.values()):
            rows = batch.source == k
            assert abs(rows.sum() - batch_size * replay.shares[("demos", "online")[k]]) < 1.0
            if rows.any():
                alone = twin.sample(int(rows.sum())).to_numpy()
                for name in ("obs", "reward", "next_obs", "terminated", "discount", "length"):
                    np.testing.assert_array_equal(batch[name][rows], alone[name])
                np.testing.assert_allclose(batch.weights[rows], alone.weights, rtol=1e-6)


@pytest.mark.parametrize("batch_size", [8, 9])
def test_the_least_probabilities_are_those_of_the_cpu(batch_size):
    """The least probability is that of the CPU, with or without some or all indices of a source."""
    replays = [mixture(device, weights="buffer") for device in PLACES]
    stored = replays[0].stored()
    for without in ([], [0, 1, 5], [62 - 3, 2], stored[stored % 3 == 2], stored[stored % 3 != 2], stored):
        without = np.array(without, np.int64)
        cpu, device = (
            numbers(replay.least_probability(batch_size, replay.backend.array(without))) for replay in replays
        )
        np.testing.assert_allclose(device, cpu, rtol=1e-12)


def test_rows_of_a_source_that_drew_nothing_are_weighed_among_themselves():
    """If a source draws nothing, only a CombinedReplay takes rows from it, with weights among themselves."""
    weights = []
    for device in PLACES:
        sources = {name: PrioritizedBuffer(9, FLAT, weights="buffer", device=device, seed=0) for name in "ab"}
        for source in sources.values():
            filled(source, 9)
            source.update_priorities(np.arange(9), np.arange(9.0))
        replay = CombinedReplay(MixedReplay(sources, shares={"a": 1.0, "b": 0.0}, add_to="b", seed=0), 3)
        weights.append(assert_lawful(replay, 8).weights[-3:])
    np.testing.assert_allclose(*weights, rtol=1e-6)


def test_shares_on_a_device_are_rounded_without_bias_and_follow_schedules():
    """Shares are rounded without bias, with random numbers on the CPU, so that it knows the sizes of the draws."""
    replay, batches = mixture(), 400
    counts = np.array([int((replay.draw(7).indices % 3 == 2).sum()) for _ in range(batches)])
    assert set(counts.tolist()) == {5, 6}
    # Hoeffding's bound for the mean of numbers that vary by 1, with a chance of 1e-9
    assert counts.mean() == pytest.approx(7 * 0.75, abs=np.sqrt(np.log(2e9) / (2 * batches)))
    replay = mixture(shares={"demos": LinearSchedule(1.0, 0.0, steps=10), "online": LinearSchedule(0.0, 1.0, steps=10)})
    assert [int((replay.sample(10).source == 0).sum()) for _ in range(12)] == [*range(10, -1, -1), 0]


@pytest.mark.parametrize("wrap", [lambda replay: replay, CombinedReplay], ids=["plain", "combined"])
@pytest.mark.parametrize("name", ["td_errors", "priorities"])
def test_updates_find_their_source(wrap, name):
    """Updates reach their source. The last value of a repeated index counts, and stale indices are ignored."""
    replays = [wrap(mixture(device, online=23)) for device in PLACES]
    indices = np.array([59, 0, 2, 17, 59, 5, 62])
    for replay in replays:
        given = indices if replay.backend.is_numpy else np.append(indices, -1)
        values = np.arange(1.0, len(given) + 1.0)
        applied = replay.update_priorities(replay.backend.array(given), **{name: replay.backend.array(values)})
        assert int(applied) == 4
        assert replay.stats()["stale_updates"] == 2.0
    cpu, device = (numbers(replay.probability(replay.stored(), 7)) for replay in replays)
    np.testing.assert_allclose(device, cpu, rtol=1e-12)
    replays[1].check()


def test_overwritten_fields_find_their_source():
    """`overwrite` works as on the CPU. An invalid value changes no source."""
    replays = [mixture(device, online=23) for device in PLACES]
    indices = np.array([59, 0, 2, 17, 59, -1])
    for replay in replays:
        put = replay.backend.array
        rewards = put(np.arange(6, dtype=np.float32))
        assert int(replay.overwrite(put(indices), reward=rewards)) == 4
        with pytest.raises(ValueError, match="reward has shape"):
            replay.overwrite(put(indices), reward=rewards[:2])
        with pytest.raises(ValueError, match="terminated cannot be overwritten"):
            replay.overwrite(put(indices), terminated=rewards > 1.0)
        replay.check()
    cpu, device = (numbers(replay.read(replay.backend.array(replay.stored()), "reward")) for replay in replays)
    np.testing.assert_array_equal(device, cpu)


def test_what_is_added_on_a_device_goes_to_one_source():
    """Steps, with or without a mask, are added to one source, and the mixture's indices are returned."""
    replay = mixture(online=0)
    assert replay.extend(**stretch(4)).tolist() == [2, 5, 8, 11]
    first = {name: value[0] for name, value in stretch(1).items()}
    assert replay.add(**first).tolist() == [14]
    assert replay.add(**first, mask=np.array([False])).tolist() == [-1]
    assert replay.latest(2).tolist() == [11, 14]
    assert len(replay.sources["demos"]) == 12
    replay.clear()
    with pytest.raises(ValueError, match="source 'demos' is empty, but its share is not 0"):
        replay.sample(4)


def test_a_source_without_a_share_may_be_empty_on_a_device():
    """A source may be empty if it has no share, or if only indices of other sources are read."""
    replay = mixture(shares={"demos": 1.0, "online": 0.0}, online=0)
    assert_lawful(replay, 5)
    batch = assert_lawful(CombinedReplay(replay), 5)
    assert (batch.source == 0).all()
    filled(replay, 1)
    batch = assert_lawful(CombinedReplay(replay), 5)
    assert batch.source.tolist() == [0, 0, 0, 0, 1]
    assert mixture(online=0).read([0, -1], "reward").tolist() == [0.0, 0.0]


def test_a_field_that_only_one_source_has_is_false_elsewhere_on_a_device():
    """If only one source has hindsight, `relabelled` is False in the rows of the others."""
    plain, relabelling = goals().inner, goals(ratio=1.0, make=ReplayBuffer)
    replay = MixedReplay({"a": plain, "b": relabelling}, shares={"a": 0.75, "b": 0.25}, add_to="a", seed=0)
    assert assert_lawful(replay, 8).relabelled.tolist() == [False] * 6 + [True] * 2
    assert {tuple(replay.sample(1).relabelled.tolist()) for _ in range(30)} == {(False,), (True,)}


def test_lanes_on_a_device_may_be_shorter_than_a_window():
    """If a source's lanes are shorter than a window, rewards of different lengths are joined."""
    short, wide = (ReplayBuffer(size, FLAT, n_step=3, device=DEVICE, seed=0) for size in (2, 24))
    filled(short, 5)
    filled(wide, 20)
    replay = MixedReplay({"s": short, "w": wide}, shares={"s": 0.5, "w": 0.5}, add_to="s", seed=0)
    batch = assert_lawful(replay, 20)
    assert batch.length[:10].max() == 2
    assert batch.length[10:].max() == 3


class Halved(ReplayWrapper):
    """A wrapper of a user inside a mixture."""

    def change(self, window):
        window.reward = window.reward / 2.0
        return window


def test_wrappers_of_users_work_inside_of_a_mixture_on_a_device():
    plain, wrapped = mixture(), mixture(wrap=Halved)
    indices = plain.backend.array(plain.stored())
    expected, got = numbers(plain.fetch(indices)), numbers(wrapped.fetch(indices))
    np.testing.assert_array_equal(got["reward"], np.where(expected["source"] == 1, 0.5, 1.0) * expected["reward"])


LATE = {
    "a stale index": (lambda r: r.fetch(r.backend.array(np.array([2, 62]))), "1 indices that were read are not stored"),
    "an unknown index": (lambda r: r.read([62, 600], "reward"), "1 indices that were read are not stored"),
    "an unknown update": (lambda r: r.update_priorities([62, 600], [1.0, 1.0]), "1 indices .* never returned"),
    "a negative index": (lambda r: r.update_priorities([62, -2], [1.0, 1.0]), "1 indices .* never returned"),
    "an unknown value": (lambda r: r.overwrite([62, 600], reward=[1.0, 1.0]), "1 indices .* never returned"),
    "a negative priority": (
        lambda r: r.update_priorities([62, 0], priorities=[-1.0, 1.0]),
        "1 priorities are negative",
    ),
    "NaN": (lambda r: r.update_priorities([62, 0], [np.nan, 1.0]), "1 TD errors or priorities are NaN"),
    "two sources": (lambda r: r.window(r.backend.array(np.array([[62, 15]]))), "1 indices that were read"),
}


@pytest.mark.parametrize("case", LATE)
def test_wrong_input_of_a_mixture_is_raised_later(case):
    """An invalid value is raised once, by the source to which it would belong."""
    call, text = LATE[case]
    replay = mixture(online=23)
    call(replay)
    with pytest.raises((IndexError, ValueError), match=text):
        replay.stats()
    replay.check()


@pytest.mark.parametrize("call", ["fetch", "probability"])
def test_indices_of_an_empty_source_are_raised_later(call):
    """Indices of an empty source raise an error, because no values can be read in their place."""
    replay = mixture(online=0)
    getattr(replay, call)(replay.backend.array(np.array([0, 2])))
    with pytest.raises(IndexError, match="1 indices that were read are not stored"):
        replay.check()


@pytest.mark.parametrize("weights", ["batch", "buffer", "none"])
def test_a_mixture_does_not_wait_for_the_device(weights):
    """A mixture does not wait for the device to draw, to round shares, to update or to read."""
    replay = mixture(weights=weights)
    stored = replay.backend.array(replay.stored())
    goal = MixedReplay({"a": goals(strategy="episode")}, shares={"a": 1.0}, add_to="a")
    with nothing_waits():
        for size in (8, 9, 10):
            batch = replay.sample(size)
            replay.update_priorities(batch.indices, batch.reward)
            goal.sample(size)
        replay.overwrite(batch.indices, reward=batch.reward)
        replay.fetch(stored)
        replay.read(stored, "obs")
        replay.episode(stored)
        replay.probability(stored, 9)
        replay.latest(3)
        replay.extend(**stretch(2))
        if weights != "buffer":  # which looks for the least probability
            CombinedReplay(replay, 2).sample(9)


def test_a_mixture_on_a_device_goes_on_after_a_load(tmp_path):
    """After a load, batches continue bit for bit: from a directory, a state_dict, a pickle or a copy."""

    def make(seed=2):
        return CombinedReplay(mixture(seed=seed, wrap=CombinedReplay), 2)

    replay = make()
    for _ in range(3):
        replay.sample(11)
    replay.save(tmp_path)
    loaded, from_dict = make(8), make(9)
    loaded.load(tmp_path)
    from_dict.load_state_dict(replay.state_dict())
    twins = [loaded, from_dict, pickle.loads(pickle.dumps(replay)), copy.deepcopy(replay)]
    for batch_size in (11, 12, 30):
        batch = bits_of(replay.sample(batch_size).to_numpy())
        assert all(bits_of(twin.sample(batch_size).to_numpy()) == batch for twin in twins)
    loaded.reseed(3)
    replay.reseed(3)
    assert bits_of(loaded.sample(11).to_numpy()) == bits_of(replay.sample(11).to_numpy())


def test_a_state_without_the_generator_on_the_cpu_is_accepted():
    """An older state without the generator on the CPU is accepted. Only mixtures use that generator."""
    source, target = (ReplayBuffer(9, FLAT, device=DEVICE, seed=seed) for seed in range(2))
    state = {name: value for name, value in source.rng.state.items() if name != "host"}
    target.backend.check_generator_state(target.rng, state)
    target.backend.set_generator_state(target.rng, state)
    assert target.rng.random(5).tolist() == source.rng.random(5).tolist()


@pytest.mark.parametrize("way", [PLACES, PLACES[::-1]])
def test_a_checkpoint_of_a_mixture_loads_in_the_other_place(way, tmp_path):
    """A checkpoint of a mixture loads on another device. The saved generator gives a seed for the new one."""
    source, *targets = (mixture(device, seed=seed) for seed, device in enumerate((way[0], way[1], way[1])))
    source.sample(9)
    source.save(tmp_path)
    for target in targets:
        target.load(tmp_path)
    one, other = (bits_of(target.sample(9).to_numpy()) for target in targets)
    assert one == other
    shares = [numbers(replay.probability(replay.stored(), 9)) for replay in (source, targets[0])]
    np.testing.assert_allclose(*shares, rtol=1e-12)


@pytest.mark.parametrize("wrap", [lambda replay: replay, CombinedReplay], ids=["plain", "combined"])
def test_sources_in_different_places_are_refused(wrap):
    """Sources on different devices raise an error that names both devices."""
    sources = {"demos": ReplayBuffer(9, FLAT), "online": wrap(LatestBuffer(9, FLAT, device=DEVICE))}
    match = f"source 'demos' is in NumPy arrays and source 'online' on the device {DEVICE}.*build both buffers"
    with pytest.raises(ValueError, match=match):
        MixedReplay(sources, shares=SHARES, add_to="online")
