"""Hindsight replay: which goals are taken, what follows from them, and what is refused."""

import copy
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replaykit import (
    CombinedReplay,
    Field,
    HindsightReplay,
    LatestBuffer,
    PrioritizedBuffer,
    ReplayBuffer,
    ReplayWrapper,
    Spec,
)
from replaykit.testing import assert_lawful, bits_of
from tests.helpers import FLAT, filled

GOAL = Field((2,), np.float64)
SPEC = Spec(obs={"achieved_goal": GOAL, "desired_goal": GOAL}, action=Field((), np.int64))
STRATEGIES = ("future", "final", "episode", "random")


def sparse(achieved_goal, desired_goal, info):
    """-1, and 0 at the goal."""
    return (achieved_goal == desired_goal).all(axis=-1) - 1.0


def reached(achieved_goal, desired_goal, info):
    """Whether it is at the goal."""
    return (achieved_goal == desired_goal).all(axis=-1)


def state(lane, moment):
    """A goal that tells its lane and the number of its observation there."""
    return np.array([lane, moment], np.float64)


_OBS, _ACHIEVED = (
    str([leaf.name for leaf in SPEC.leaves].index(name)) for name in ("obs.achieved_goal", "next_obs.achieved_goal")
)
UNREACHABLE = np.array([-1.0, -1.0])


def walk(buffer, lengths, ends="truncated"):
    """Fill one buffer with episodes of these lengths in every lane; observation numbers differ between episodes.

    Returns the number of observations of each lane.
    """
    lanes, moment = buffer.num_envs, 0
    for length in lengths:
        for t in range(length):
            now, then = (np.stack([state(e, moment + t + dt) for e in range(lanes)]) for dt in (0, 1))
            goals = np.tile(UNREACHABLE, (lanes, 1))
            if lanes == 1:
                now, then, goals = now[0], then[0], goals[0]
            flags = {"terminated": np.zeros(lanes, bool), "truncated": np.zeros(lanes, bool)}
            if t == length - 1 and ends is not None:
                flags[ends][:] = True
            if lanes == 1:
                flags = {name: bool(flag[0]) for name, flag in flags.items()}
            buffer.add(
                {"achieved_goal": now, "desired_goal": goals},
                np.zeros((lanes,) if lanes > 1 else (), np.int64),
                np.full((lanes,) if lanes > 1 else (), -1.0),
                {"achieved_goal": then, "desired_goal": goals},
                **flags,
            )
        moment += length + 1
    return moment


def test_by_hand():
    """One episode of three steps and its last outcome: goal, reward and end of a window of two steps."""
    buffer = HindsightReplay(ReplayBuffer(10, SPEC, n_step=2, gamma=0.5, seed=0), sparse, strategy="final", ratio=1.0)
    walk(buffer, [3])
    batch = assert_lawful(buffer, 50)
    rewards = {0: -1.0 - 0.5, 1: -1.0 + 0.0, 2: 0.0}  # the goal is the outcome of step 2
    lengths = {0: 2, 1: 2, 2: 1}
    for row, index in enumerate(batch.indices.tolist()):
        for obs in (batch.obs, batch.next_obs):
            assert obs["desired_goal"][row].tolist() == [0.0, 3.0]
        assert batch.obs["achieved_goal"][row].tolist() == [0.0, index]
        assert batch.next_obs["achieved_goal"][row].tolist() == [0.0, index + lengths[index]]
        assert batch.reward[row] == rewards[index]
        assert batch.length[row] == lengths[index]
        assert batch.truncated[row] == (index > 0)
        assert not batch.terminated[row]
        assert batch.discount[row] == 0.5 ** lengths[index]
    assert batch.relabelled.all()
    assert batch.relabelled.dtype == np.bool_


def test_a_window_that_reaches_the_new_goal_stops_there():
    """And one that ended at the old goal goes on to its last step, where it does not terminate under the new one."""
    inner = ReplayBuffer(10, SPEC, n_step=5, gamma=0.5, seed=0)
    buffer = HindsightReplay(inner, sparse, terminated_fn=reached, ratio=1.0)
    walk(buffer, [4], ends="terminated")
    window = buffer.window(np.arange(4).repeat(20))
    assert not window.reward[np.arange(5) >= window.length[:, None]].any(), "entries past the length are 0"
    batch = assert_lawful(buffer, 200)
    goal = batch.obs["desired_goal"][:, 1].astype(int)  # the number of an observation after the anchor's
    length = goal - batch.indices
    np.testing.assert_array_equal(batch.length, length)
    assert batch.terminated.all()
    assert not batch.discount.any()
    assert not batch.truncated.any()
    np.testing.assert_allclose(batch.reward, [sum(-(0.5**k) for k in range(m - 1)) for m in length])
    np.testing.assert_array_equal(batch.next_obs["achieved_goal"], batch.obs["desired_goal"])

    kept = HindsightReplay(inner, sparse, ratio=1.0).sample(200)
    assert kept.terminated[kept.indices >= 0].all(), "without terminated_fn, ends stay as stored"

    never = HindsightReplay(inner, sparse, terminated_fn=lambda a, d, info: np.zeros(len(a), bool), ratio=1.0)
    batch = assert_lawful(never, 200)
    assert not batch.terminated.any()
    np.testing.assert_array_equal(batch.length, 4 - batch.indices)
    np.testing.assert_array_equal(batch.discount, 0.5 ** batch.length.astype(np.float32))


def test_truncated_belongs_to_the_last_step_used():
    """A window cut short before a truncated step is not truncated."""
    buffer = HindsightReplay(
        ReplayBuffer(10, SPEC, n_step=5, seed=0), sparse, terminated_fn=reached, strategy="future", ratio=1.0
    )
    walk(buffer, [4], ends="truncated")
    batch = buffer.sample(200)
    np.testing.assert_array_equal(batch.truncated, batch.obs["desired_goal"][:, 1] == 4)


def allowed_outcomes(buffer, index, strategy):
    """The numbers (lane, moment) of the outcomes that `index` may be given as a goal, found without the library."""
    ring = buffer._storage.ring
    alive = ring.living()
    outcome = {int(i): tuple(ring.rows[_ACHIEVED][i % ring.capacity]) for i in alive}
    if strategy == "random":
        return [outcome[int(i)] for i in alive]
    lane = index % buffer.num_envs
    of_lane = [int(i) for i in alive if i % buffer.num_envs == lane]
    run, runs = [], []
    for i in of_lane:
        run.append(i)
        if ring.ended[i % ring.capacity]:
            runs, run = [*runs, run], []
    (mine,) = (r for r in [*runs, run] if index in r)
    return [
        outcome[i] for i in {"future": [i for i in mine if i >= index], "final": mine[-1:], "episode": mine}[strategy]
    ]


STREAMS = {
    "running": ([6], None, 20),
    "truncated": ([5, 6], "truncated", 20),
    "terminated": ([5, 6], "terminated", 20),
    "half overwritten": ([9, 5], "truncated", 10),
    "longer than the lane": ([40], None, 7),
    "wrapped many times": ([3, 5, 1, 7, 2, 6, 4], "terminated", 11),
    "single steps": ([1, 1, 1], "terminated", 3),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("lanes", [1, 3])
def test_goals_are_uniform_over_the_allowed_outcomes(strategy, stream, lanes):
    """By position: never another outcome, and each allowed one equally often (chi-square, false positive 1e-6 each).

    So never of another episode or lane, and for `future` and `final` never the present state or one before it.
    """
    stats = pytest.importorskip("scipy.stats")
    lengths, ends, length = STREAMS[stream]
    buffer = HindsightReplay(
        ReplayBuffer(length * lanes, SPEC, num_envs=lanes, seed=1), sparse, strategy=strategy, ratio=1
    )
    walk(buffer, lengths, ends)
    counts = {}
    for _ in range(40):
        batch = buffer.sample(500)
        for index, goal in zip(batch.indices.tolist(), map(tuple, batch.obs["desired_goal"]), strict=True):
            counts.setdefault(index, {}).setdefault(goal, 0)
            counts[index][goal] += 1
    assert sorted(counts) == sorted(buffer._storage.ring.living().tolist())
    for index, found in counts.items():
        allowed = allowed_outcomes(buffer, index, strategy)
        assert set(found) <= set(allowed)
        present = tuple(buffer._storage.ring.rows[_OBS][index % buffer.capacity])
        if strategy in ("future", "final"):
            assert present not in found
        if len(allowed) > 1:
            observed = [found.get(goal, 0) for goal in allowed]
            assert stats.chisquare(observed).pvalue > 1e-6


@pytest.mark.parametrize("strategy", ["future", "final", "episode"])
def test_share_of_successes(strategy):
    """Goals all distinct: future H_T / T, final and episode 1 / T; at the last step future always succeeds."""
    stats = pytest.importorskip("scipy.stats")
    steps = 10
    buffer = HindsightReplay(ReplayBuffer(steps, SPEC, seed=0), sparse, strategy=strategy, ratio=1.0)
    walk(buffer, [steps])
    count = 60_000
    batch = buffer.sample(count)
    expected = {"future": float(sum(Fraction(1, k) for k in range(1, steps + 1)) / steps)}.get(strategy, 1 / steps)
    success = batch.reward == 0.0
    assert stats.binomtest(int(success.sum()), count, expected).pvalue > 1e-6
    if strategy == "future":
        assert success[batch.indices == steps - 1].all()


@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.8, 1.0])
def test_the_share_of_relabelled_rows_is_binomial(ratio):
    """With the probability `ratio`, and independent of the transition; the others are as stored."""
    stats = pytest.importorskip("scipy.stats")
    buffer = HindsightReplay(ReplayBuffer(50, SPEC, seed=3), sparse, ratio=ratio)
    walk(buffer, [20, 30])
    batch = buffer.sample(40_000)
    assert stats.binomtest(int(batch.relabelled.sum()), 40_000, ratio).pvalue > 1e-6
    assert (batch.obs["desired_goal"][~batch.relabelled] == UNREACHABLE).all()
    assert (batch.next_obs["desired_goal"][~batch.relabelled] == UNREACHABLE).all()
    assert (batch.obs["desired_goal"][batch.relabelled] != UNREACHABLE).all()
    assert (batch.reward[~batch.relabelled] == -1.0).all()
    if 0.0 < ratio < 1.0:
        table = [np.bincount(batch.indices[batch.relabelled == flag], minlength=50) for flag in (False, True)]
        assert stats.chi2_contingency(table).pvalue > 1e-6


@given(
    n_step=st.integers(1, 4),
    lanes=st.integers(1, 3),
    strategy=st.sampled_from(STRATEGIES),
    terminates=st.booleans(),
    seed=st.integers(0, 99),
)
def test_wrappers_on_different_verbs_commute(n_step, lanes, strategy, terminates, seed):
    """Hindsight in combined replay or around it: the same bits."""
    batches = []
    for order in ((HindsightReplay, CombinedReplay), (CombinedReplay, HindsightReplay)):
        buffer = PrioritizedBuffer(12 * lanes, SPEC, num_envs=lanes, n_step=n_step, seed=seed)
        for wrapper in order:
            if wrapper is CombinedReplay:
                buffer = CombinedReplay(buffer, latest=2)
            else:
                terminated_fn = reached if terminates else None
                buffer = HindsightReplay(buffer, sparse, strategy=strategy, terminated_fn=terminated_fn)
        walk(buffer, [5, 3, 8])
        batches.append([bits_of(buffer.sample(20)) for _ in range(3)])
    assert batches[0] == batches[1]


@given(n_step=st.integers(1, 4), strategy=st.sampled_from(STRATEGIES))
def test_a_ratio_of_0_changes_nothing(n_step, strategy):
    """Bit for bit, batch after batch; only that `relabelled` is there, and False."""
    plain = PrioritizedBuffer(12, SPEC, n_step=n_step, seed=4)
    walk(plain, [5, 3, 8])
    wrapped = HindsightReplay(copy.deepcopy(plain), sparse, strategy=strategy, ratio=0.0)
    for _ in range(3):
        expected, got = bits_of(plain.sample(9)), bits_of(wrapped.sample(9))
        assert got.pop("relabelled") == ("bool", (9,), bytes(9))
        assert got == expected


def test_reward_fn_is_called_once_a_batch_with_rows_of_equal_shape():
    """With every step of every relabelled window, the goals in their own dtype, and the extra fields as info."""
    calls = []

    def reward_fn(achieved_goal, desired_goal, info):
        calls.append((achieved_goal, desired_goal, info))
        assert achieved_goal.shape == desired_goal.shape == (*info["cost"].shape, 2)
        assert achieved_goal.dtype == desired_goal.dtype == np.float64
        assert info["deep"]["x"].shape == (*info["cost"].shape, 3)
        return info["cost"]

    spec = Spec(SPEC["obs"], SPEC["action"], cost=Field(()), deep={"x": Field((3,), np.int16)})
    buffer = HindsightReplay(ReplayBuffer(30, spec, n_step=3, gamma=1.0, seed=0), reward_fn)
    for i in range(20):
        obs, next_obs = ({"achieved_goal": state(0, i + d), "desired_goal": UNREACHABLE} for d in (0, 1))
        buffer.add(obs, 0, -1.0, next_obs, False, i % 10 == 9, cost=100.0 + i, deep={"x": [i, i, i]})
    batch = buffer.sample(64)
    assert len(calls) == 1
    assert calls[0][0].shape == (batch.length[batch.relabelled].sum(), 2)
    for row in np.flatnonzero(batch.relabelled):
        first = batch.indices[row]
        assert batch.reward[row] == sum(100.0 + i for i in range(first, first + batch.length[row]))


def test_goal_keys_can_be_chosen():
    """Also of nested observations, with dots."""
    spec = Spec(obs={"task": {"goal": GOAL}, "now": GOAL}, action=Field(()))
    buffer = ReplayBuffer(10, spec, seed=0)
    for i in range(5):
        obs, next_obs = ({"task": {"goal": UNREACHABLE}, "now": state(0, i + d)} for d in (0, 1))
        buffer.add(obs, 0.0, -1.0, next_obs, False, False)
    batch = assert_lawful(
        HindsightReplay(buffer, sparse, strategy="final", ratio=1.0, achieved_goal="now", desired_goal="task.goal"), 9
    )
    assert (batch.obs["task"]["goal"] == state(0, 5)).all()
    assert (batch.next_obs["task"]["goal"] == state(0, 5)).all()
    assert (batch.obs["now"][:, 1] == batch.indices).all()


def test_images_as_goals():
    """Goals that are kept among the frames, plain and as stacks, are read and replaced like any other."""
    for shape in ((40, 40), (4, 20, 20)):
        image = Field(shape, np.uint8)
        spec = Spec(obs={"achieved_goal": image, "desired_goal": image}, action=Field(()))
        base = np.arange(np.prod(shape)).reshape(shape).astype(np.uint8)  # no two frames of a goal are the same
        for n_step in (1, 3):
            buffer = ReplayBuffer(20, spec, n_step=n_step, seed=0)
            for i in range(10):
                obs, next_obs = (
                    {"achieved_goal": base + np.uint8(i + d), "desired_goal": np.full(shape, 99, np.uint8)}
                    for d in (0, 1)
                )
                buffer.add(obs, 0.0, -1.0, next_obs, False, i == 9)

            def reward_fn(achieved_goal, desired_goal, info):
                return (achieved_goal == desired_goal).all(axis=tuple(range(1, achieved_goal.ndim))) - 1.0

            batch = assert_lawful(HindsightReplay(buffer, reward_fn, strategy="final", ratio=0.5), 30)
            for row in range(30):
                goal = base + np.uint8(10) if batch.relabelled[row] else 99
                assert (batch.obs["desired_goal"][row] == goal).all()
                assert (batch.next_obs["desired_goal"][row] == goal).all()
                before = base + batch.indices[row].astype(np.uint8)
                assert (batch.obs["achieved_goal"][row] == before).all()
                assert (batch.next_obs["achieved_goal"][row] == before + batch.length[row].astype(np.uint8)).all()


def test_over_a_buffer_without_replay():
    """The newest transitions, relabelled."""
    buffer = HindsightReplay(LatestBuffer(20, SPEC, seed=0), sparse, strategy="final", ratio=1.0)
    walk(buffer, [4, 4])
    batch = assert_lawful(buffer, 4)
    assert batch.indices.tolist() == [4, 5, 6, 7]
    assert batch.reward.tolist() == [-1.0, -1.0, -1.0, 0.0]


def test_a_function_may_change_what_it_is_given():
    """The goals of the batch and what is stored stay as they were."""

    def careless(achieved_goal, desired_goal, info):
        rewards = sparse(achieved_goal, desired_goal, info)
        achieved_goal[:] = 7.0
        desired_goal[:] = 8.0
        return rewards

    batches = []
    for reward_fn in (sparse, careless):
        buffer = HindsightReplay(ReplayBuffer(10, SPEC, n_step=2, seed=0), reward_fn, terminated_fn=reached)
        walk(buffer, [8])
        batches.append([bits_of(assert_lawful(buffer, 20)) for _ in range(3)])
    assert batches[0] == batches[1]


# -- What is refused ---------------------------------------------------------------------------------------------


def goals(inner=None, reward_fn=sparse, **options):
    """A hindsight replay that is ready to be sampled."""
    inner = PrioritizedBuffer(10, SPEC, n_step=2, seed=5) if inner is None else inner
    walk(inner, [5, 9])
    inner.update_priorities([12], [3.0])
    return HindsightReplay(inner, reward_fn, **options)


def raises(error):
    def reward_fn(achieved_goal, desired_goal, info):
        raise error

    return reward_fn


WRONG_REWARDS = {
    "a scalar": (lambda a, d, i: 0.0, ValueError, r"reward_fn .* returned shape \(\); expected \(\d+,\)"),
    "columns": (lambda a, d, i: np.zeros((len(a), 1)), ValueError, r"returned shape \(\d+, 1\); expected \(\d+,\)"),
    "one too many": (lambda a, d, i: np.zeros(len(a) + 1), ValueError, "one number for each row"),
    "NaN": (lambda a, d, i: np.where(a[:, 1] > 3, np.nan, 0), ValueError, "returned nan; expected finite float32"),
    "too large": (lambda a, d, i: np.full(len(a), 1e300), ValueError, r"returned 1e\+300; expected finite float32"),
    "words": (lambda a, d, i: np.array(["no"] * len(a)), TypeError, "returned dtype <U2; expected real numbers"),
    "masked": (lambda a, d, i: np.ma.zeros(len(a)), TypeError, r"what reward_fn <lambda> returned is a masked array"),
    "nothing": (lambda a, d, i: None, ValueError, "returned shape"),
    "an error": (raises(KeyError("speed")), RuntimeError, "reward_fn raises.*reward_fn raised KeyError: 'speed'"),
    "an interrupt": (raises(KeyboardInterrupt()), KeyboardInterrupt, None),
}


@pytest.mark.parametrize("case", WRONG_REWARDS)
def test_a_wrong_reward_function_changes_nothing(case):
    """The error names the function, and the next batch is the one that this would have been."""
    reward_fn, error, match = WRONG_REWARDS[case]
    twin = goals()
    buffer = goals(reward_fn=reward_fn)
    wrapped = CombinedReplay(buffer)
    for replay in (buffer, wrapped):
        before = copy.deepcopy(replay._storage.rng.bit_generator.state)
        with pytest.raises(error, match=match):
            replay.sample(30)
        assert replay._storage.rng.bit_generator.state == before
        assert replay.stats()["batches"] == 0
        replay.check()
    buffer.reward_fn = sparse
    assert bits_of(buffer.sample(30)) == bits_of(twin.sample(30))


NOT_VECTORISED = "not vectorised; if it takes one goal at a time, wrap it"
WRONG_ENDS = {
    "the norm of all rows": (lambda a, d, i: bool(np.linalg.norm(a - d) < 0.5), ValueError, r"returned shape \(\)"),
    "one for all": (
        lambda a, d, i: np.full(len(a), np.array_equal(a, d)),
        ValueError,
        NOT_VECTORISED,
    ),
    "any for all": (
        lambda a, d, i: np.full(len(a), (a == d).all(axis=1).any()),
        ValueError,
        NOT_VECTORISED,
    ),
    "once, for ever": (lambda a, d, i: np.logical_or.accumulate((a == d).all(-1)), ValueError, NOT_VECTORISED),
    "until once": (lambda a, d, i: np.logical_and.accumulate((a == d).all(-1)), ValueError, NOT_VECTORISED),
    "numbers": (lambda a, d, i: np.zeros(len(a)), TypeError, "terminated_fn .* returned dtype float64; expected bool"),
    "an error": (raises(ValueError("no")), RuntimeError, "terminated_fn .* raised ValueError: no"),
}


@pytest.mark.parametrize("case", WRONG_ENDS)
def test_a_terminated_function_that_is_not_vectorised_is_detected(case):
    """By its shape, or because a row is answered otherwise among other rows."""
    terminated_fn, error, match = WRONG_ENDS[case]
    buffer = goals(terminated_fn=terminated_fn)
    with pytest.raises(error, match=match):
        buffer.sample(30)
    buffer.terminated_fn = reached
    assert bits_of(buffer.sample(30)) == bits_of(goals(terminated_fn=reached).sample(30))


def test_a_scalar_terminated_function_works_when_wrapped_as_the_error_says():
    """One row at a time."""

    def terminated_fn(achieved_goal, desired_goal, info):
        return bool(np.linalg.norm(achieved_goal - desired_goal) < 0.5)

    one_by_one = goals(terminated_fn=lambda a, d, i: np.array([terminated_fn(x, y, {}) for x, y in zip(a, d)]))  # noqa: B905
    assert bits_of(one_by_one.sample(30)) == bits_of(goals(terminated_fn=reached).sample(30))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"ratio": 1.1}, ValueError, r"ratio is 1.1; expected a number in \[0, 1\]"),
        ({"ratio": -0.1}, ValueError, "ratio is -0.1"),
        ({"ratio": float("nan")}, ValueError, "ratio is nan"),
        ({"ratio": True}, TypeError, "ratio is True"),
        ({"ratio": "0.8"}, TypeError, "ratio is '0.8'"),
        (
            {"strategy": "past"},
            ValueError,
            "strategy is 'past'; expected one of 'future', 'final', 'episode', 'random'",
        ),
        ({"reward_fn": 3}, TypeError, "reward_fn is 3; expected a function"),
        ({"terminated_fn": 3}, TypeError, "terminated_fn is 3; expected a function"),
        (
            {"achieved_goal": "position"},
            ValueError,
            "obs has no field 'position', only 'achieved_goal', 'desired_goal'",
        ),
        ({"desired_goal": "wish"}, ValueError, "obs has no field 'wish'.*desired_goal="),
        ({"strategie": "final"}, TypeError, "strategie"),
    ],
)
def test_wrong_options_are_refused(options, error, match):
    """By an error that names the option, what it is, and what is expected."""
    with pytest.raises(error, match=match):
        HindsightReplay(ReplayBuffer(10, SPEC), **({"reward_fn": sparse} | options))


def test_specs_without_goals_are_refused():
    """Flat observations, goals of another shape or dtype, goals that are stacked, and a second wrapper."""
    with pytest.raises(TypeError, match=r"obs is Field\(\(3,\), float32\); expected a dict with the goals"):
        HindsightReplay(filled(ReplayBuffer(9, FLAT), 3), sparse)
    for other in (Field((3,), np.float64), Field((2,), np.float32)):
        spec = Spec(obs={"achieved_goal": GOAL, "desired_goal": other}, action=Field(()))
        with pytest.raises(ValueError, match=r"obs.desired_goal is .*; expected Field\(\(2,\), float64\)"):
            HindsightReplay(ReplayBuffer(9, spec), sparse)
    image = Field((8, 8), np.uint8)
    spec = Spec(obs={"achieved_goal": image, "desired_goal": image}, action=Field(()))
    with pytest.raises(ValueError, match="stack is 2, and so obs.achieved_goal is a stack"):
        HindsightReplay(ReplayBuffer(9, spec, stack=2), sparse)
    with pytest.raises(ValueError, match="relabelled by a HindsightReplay already"):
        HindsightReplay(CombinedReplay(goals()), sparse)
    with pytest.raises(TypeError, match="inner is a int"):
        HindsightReplay(3, sparse)


def test_a_wrapper_of_ones_own_around_or_inside():
    """One that scales rewards, inside: those of new goals are what reward_fn says; outside, they are scaled, too."""

    class Scaled(ReplayWrapper):
        def window(self, indices):
            window = self.inner.window(indices)
            window.reward = window.reward * 10
            return window

    batch = HindsightReplay(Scaled(goals().inner), sparse, ratio=0.5).sample(64)
    assert set(batch.reward[~batch.relabelled & (batch.length == 1)].tolist()) <= {-10.0}
    batch = Scaled(goals(ratio=1.0)).sample(64)
    assert set(batch.reward[batch.length == 1].tolist()) <= {-10.0, 0.0}


def test_each_function_has_its_own_info():
    """What reward_fn makes of it does not reach terminated_fn."""
    spec = Spec(SPEC["obs"], SPEC["action"], cost=Field((), np.int64))

    def careless(achieved_goal, desired_goal, info):
        info["cost"][:] = 99
        rewards = sparse(achieved_goal, desired_goal, info)
        info.clear()
        info["done"] = True
        return rewards

    batches = []
    for reward_fn in (sparse, careless):
        buffer = ReplayBuffer(20, spec, n_step=3, seed=0)
        for i in range(15):
            obs, next_obs = ({"achieved_goal": state(0, i + d), "desired_goal": UNREACHABLE} for d in (0, 1))
            buffer.add(obs, 0, -1.0, next_obs, False, i % 7 == 6, cost=i)
        replay = HindsightReplay(buffer, reward_fn, terminated_fn=lambda a, d, info: info["cost"] % 3 == 0)
        batches.append(bits_of(replay.sample(30)))
    assert batches[0] == batches[1]


def test_one_key_for_both_goals_is_refused():
    """It is a misprint."""
    with pytest.raises(ValueError, match="achieved_goal and desired_goal are both 'desired_goal'"):
        HindsightReplay(ReplayBuffer(9, SPEC), sparse, achieved_goal="desired_goal")


def test_a_batch_that_cannot_be_drawn_draws_nothing_at_random():
    """So that the next one is the same under a wrapper that puts the generator back."""
    batches = []
    for wrap in (lambda b: b, lambda b: HindsightReplay(b, sparse, ratio=0.0)):
        buffer = PrioritizedBuffer(9, SPEC, eps=0.0, seed=0)
        walk(buffer, [9])
        buffer.update_priorities(np.arange(9), np.zeros(9))
        with pytest.raises(ValueError, match="every priority is 0"):
            wrap(buffer).sample(4)
        buffer.update_priorities(np.arange(9), np.ones(9))
        batches.append(wrap(buffer).sample(6).indices.tolist())
    assert batches[0] == batches[1]


# -- At once, and step by step ----------------------------------------------------------------------------------


class LongWay(ReplayWrapper):
    """Changes nothing, but takes the long way: window and reduce."""

    def window(self, indices):
        return self.inner.window(indices)


class Doubled(ReplayWrapper):
    """Doubles the rewards when a window is opened, before goals are replaced."""

    def window(self, indices):
        window = self.inner.window(indices)
        window.reward *= 2
        return window


class Negated(ReplayWrapper):
    """Negates the rewards when a window is reduced."""

    def reduce(self, window):
        fields = self.inner.reduce(window)
        fields["reward"] = -fields["reward"]
        return fields


def goals_of(field, seed=0, make=ReplayBuffer, wrap=lambda buffer: buffer, n_step=1, **options):
    """A replay with goals of this field, of episodes of seven steps that wrap around."""
    spec = Spec(obs={"x": Field((3,)), "achieved_goal": field, "desired_goal": field}, action=Field((), np.int8))
    buffer = make(40, spec, seed=seed, n_step=n_step)
    rng = np.random.default_rng(1)

    def goal():
        return rng.integers(0, 4, field.shape).astype(field.dtype)

    for number in range(65):
        obs, next_obs = (
            {"x": np.full(3, number + dt), "achieved_goal": goal(), "desired_goal": goal()} for dt in (0, 1)
        )
        buffer.add(obs, number % 100, -1.0, next_obs, False, number % 7 == 6)
    return HindsightReplay(wrap(buffer), told, **options)


def told(achieved_goal, desired_goal, info):
    """A reward that tells both goals."""
    rows = achieved_goal.shape[0]
    achieved, desired = (goal.reshape(rows, -1).astype(np.float64) for goal in (achieved_goal, desired_goal))
    return achieved @ np.arange(1.0, achieved.shape[1] + 1) - 100.0 * desired.sum(axis=1)


def first_is_equal(achieved_goal, desired_goal, info):
    """An end that depends on a part of the goals."""
    return achieved_goal.reshape(len(achieved_goal), -1)[:, 0] == desired_goal.reshape(len(desired_goal), -1)[:, 0]


WIDTHS = [
    Field((3,), "u1"),
    Field((), "f2"),
    Field((2,)),
    Field((), "f8"),
    Field((5,), "i2"),
    Field((2, 3)),
    Field((), "?"),
]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("field", WIDTHS, ids=str)
@pytest.mark.parametrize("make", [ReplayBuffer, PrioritizedBuffer, LatestBuffer])
def test_relabelled_at_once_is_relabelled_step_by_step(make, field, strategy):
    """Bit for bit, for goals of every width, inside and outside of CombinedReplay."""
    for terminated_fn in (None, first_is_equal):
        options = {"strategy": strategy, "ratio": 0.7, "terminated_fn": terminated_fn}
        fast = goals_of(field, make=make, **options)
        assert fast._is_direct
        replays = [fast, goals_of(field, make=make, wrap=LongWay, **options)]
        outside = [
            CombinedReplay(goals_of(field, make=make, wrap=wrap, **options), 3) for wrap in (LongWay, lambda b: b)
        ]
        inside = [goals_of(field, make=make, wrap=lambda b, w=w: w(CombinedReplay(b, 3)), **options)
                  for w in (LongWay, lambda b: b)]  # fmt: skip
        for group in (replays, outside + inside):
            for batch_size in (1, 4, 50):
                if batch_size < 3 and group is not replays:
                    continue
                batches = [bits_of(replay.sample(batch_size)) for replay in group]
                assert all(batch == batches[0] for batch in batches)
                names = list(group[0].sample(5))
                assert all(list(replay.sample(5)) == names for replay in group[1:])


def test_the_discount_is_0_where_a_new_goal_terminates():
    """And gamma elsewhere, whatever was stored."""
    batch = goals_of(Field((2,)), terminated_fn=first_is_equal, ratio=0.8).sample(200)
    assert set(batch.terminated.tolist()) == {True, False}
    np.testing.assert_array_equal(batch.discount, np.where(batch.terminated, 0.0, 0.99).astype(np.float32))


@pytest.mark.parametrize("n_step", [1, 3])
def test_what_wrappers_change_is_not_passed_over(n_step):
    """A window or a reduction of one's own counts, inside of hindsight and around it."""
    for wrap in (Doubled, Negated):
        inside = goals_of(Field((2,)), wrap=wrap, n_step=n_step, ratio=0.5)
        plain = goals_of(Field((2,)), n_step=n_step, ratio=0.5)
        got, before = inside.sample(60), plain.sample(60)
        factor = np.where(before.relabelled, 1.0, 2.0) if wrap is Doubled else -1.0
        np.testing.assert_array_equal(got.reward, (before.reward * factor).astype(np.float32))
    around, plain = Negated(goals_of(Field((2,)), n_step=n_step)), goals_of(Field((2,)), n_step=n_step)
    np.testing.assert_array_equal(around.sample(60).reward, -plain.sample(60).reward)
