"""Hindsight replay: the choice of goals, their effects, and invalid arguments."""

import copy

import numpy as np
import pytest

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
from replaykit.storage import LocalStorage
from replaykit.testing import assert_lawful, bits_of
from tests.helpers import FLAT, GOAL, GOAL_SPEC, UNREACHABLE, filled, goal_episodes, reached, sparse, state


def test_by_hand():
    """An example by hand: one episode of three steps, its last goal, and windows of two steps."""
    buffer = HindsightReplay(
        ReplayBuffer(10, GOAL_SPEC, n_step=2, gamma=0.5, seed=0), sparse, strategy="final", ratio=1.0
    )
    goal_episodes(buffer, [3])
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
    """A window that ended at the old goal continues if the new goal does not terminate it."""
    inner = ReplayBuffer(10, GOAL_SPEC, n_step=5, gamma=0.5, seed=0)
    buffer = HindsightReplay(inner, sparse, terminated_fn=reached, ratio=1.0)
    goal_episodes(buffer, [4], ends="terminated")
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
        ReplayBuffer(10, GOAL_SPEC, n_step=5, seed=0), sparse, terminated_fn=reached, strategy="future", ratio=1.0
    )
    goal_episodes(buffer, [4], ends="truncated")
    batch = buffer.sample(200)
    np.testing.assert_array_equal(batch.truncated, batch.obs["desired_goal"][:, 1] == 4)


def test_reward_fn_is_called_once_a_batch_with_rows_of_equal_shape():
    """It gets every step of every relabelled window, goals in their own dtype, and the extra fields as info."""
    calls = []

    def reward_fn(achieved_goal, desired_goal, info):
        calls.append((achieved_goal, desired_goal, info))
        assert achieved_goal.shape == desired_goal.shape == (*info["cost"].shape, 2)
        assert achieved_goal.dtype == desired_goal.dtype == np.float64
        assert info["deep"]["x"].shape == (*info["cost"].shape, 3)
        return info["cost"]

    spec = Spec(GOAL_SPEC["obs"], GOAL_SPEC["action"], cost=Field(()), deep={"x": Field((3,), np.int16)})
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


PAIRS = {"achieved_goal": ("place", "speed"), "desired_goal": ("target", "wish")}


def pairs(count=12, n_step=2, reward_fn=None, inner=ReplayBuffer, camera=False, **options):
    """Steps of a goal of two fields, in episodes of six; step i reaches the place (i + 1, 0) at speed -(i + 1)."""
    place, speed = Field((300,) if camera else (2,)), Field((), np.int16)
    fields = {"place": place, "target": place, "speed": speed, "wish": speed}
    spec = Spec(obs=fields, action=Field(()), cost=Field(()))
    replay = inner(50, spec, n_step=n_step, gamma=0.5, seed=0)
    replay = HindsightReplay(replay, reward_fn or both_reached, **({"ratio": 1.0} | PAIRS | options))
    for i in range(count):
        obs, next_obs = (
            {"place": np.eye(1, *place.shape)[0] * j, "target": np.full(place.shape, 99), "speed": -j, "wish": 99}
            for j in (i, i + 1)
        )
        replay.add(obs, 0, -1.0, next_obs, False, i % 6 == 5, cost=i)
    return replay


def both_reached(achieved_goal, desired_goal, info):
    (place, speed), (target, wish) = achieved_goal, desired_goal
    assert place.dtype == target.dtype == np.float32
    assert speed.dtype == wish.dtype == np.int16
    assert place.shape[1:] == target.shape[1:] in ((2,), (300,))
    assert len(place) == len(speed) == len(wish) == len(info["cost"])
    assert (place[:, 0] == info["cost"] + 1).all()
    assert (speed == -place[:, 0]).all()
    return ((place == target).all(axis=1) & (speed == wish)) - 1.0


@pytest.mark.parametrize("camera", [False, True])
@pytest.mark.parametrize("strategy", ["future", "final", "episode", "random"])
@pytest.mark.parametrize("inner", [ReplayBuffer, PrioritizedBuffer])
def test_goals_of_several_fields_come_from_one_step(strategy, camera, inner):
    """Goals of several fields come from one step, in the order of the keys, in rows or in columns."""
    batch = assert_lawful(pairs(strategy=strategy, camera=camera, inner=inner), 60)
    for obs in (batch.obs, batch.next_obs):
        assert (obs["wish"] == -obs["target"][:, 0]).all(), "of two steps"
    chosen = batch.obs["target"][:, 0]
    assert len(set(chosen.tolist())) > 1
    if strategy == "future":
        assert (chosen > batch.indices).all()
    if strategy == "final":
        assert (chosen == batch.indices // 6 * 6 + 6).all()
    for row, index in enumerate(batch.indices.tolist()):
        rewards = [float(chosen[row] == index + k + 1) - 1.0 for k in range(batch.length[row])]
        assert batch.reward[row] == sum(0.5**k * reward for k, reward in enumerate(rewards))


def test_ends_under_goals_of_several_fields():
    """A window ends where all goals are reached. Functions that are not vectorized are detected."""

    def at_both(achieved_goal, desired_goal, info):
        return both_reached(achieved_goal, desired_goal, info) == 0.0

    batch = assert_lawful(pairs(n_step=6, terminated_fn=at_both), 60)
    assert batch.terminated.all()
    assert (batch.length == batch.obs["target"][:, 0] - batch.indices).all()
    with pytest.raises(ValueError, match=r"not vectorized.*zip\(zip\(\*achieved\), zip\(\*desired\)\)"):
        pairs(terminated_fn=lambda a, d, i: np.full(len(a[0]), (a[1] == d[1]).any())).sample(30)

    def wrapped(achieved, desired, info):  # as the error says
        return np.array([bool((a[0] == d[0]).all()) for a, d in zip(zip(*achieved), zip(*desired))])  # noqa: B905

    assert bits_of(pairs(terminated_fn=wrapped).sample(30)) == bits_of(pairs(terminated_fn=at_both).sample(30))


def test_one_key_in_a_tuple_is_a_goal_of_one_field():
    """If one key is passed in a tuple, the functions get tuples, and the batch is the same."""
    batches = []
    functions = (lambda a, d, i: a - 1.0 * d), (lambda a, d, i: a[0] - 1.0 * d[0] if len(a) == len(d) == 1 else None)
    for reward_fn, keys in zip(functions, (("speed", "wish"), (("speed",), ("wish",))), strict=True):
        replay = pairs(reward_fn=reward_fn, achieved_goal=keys[0], desired_goal=keys[1])
        batches.append(bits_of(replay.sample(30)))
    assert batches[0] == batches[1]


def test_goals_of_several_fields_are_saved_by_their_keys(tmp_path):
    """A replay continues bit for bit from a checkpoint. Keys in another order raise an error."""
    replay = pairs()
    replay.save(tmp_path / "saved")
    again = pairs(0)
    again.load(tmp_path / "saved")
    copied = copy.deepcopy(replay)
    expected = bits_of(replay.sample(20))
    assert bits_of(again.sample(20)) == bits_of(copied.sample(20)) == expected
    others = {"achieved_goal": ("speed", "place"), "desired_goal": ("wish", "target")}
    with pytest.raises(ValueError, match=r"achieved_goal was \('place', 'speed'\), but is \('speed', 'place'\) here"):
        pairs(0, **others).load(tmp_path / "saved")


@pytest.mark.parametrize(
    ("achieved", "desired", "error", "match"),
    [
        (("place", "speed"), ("target",), ValueError, "two tuples of the same length"),
        (
            ("place",),
            "target",
            ValueError,
            r"achieved_goal is \('place',\) and desired_goal 'target'; expected one key",
        ),
        (("place", "pace"), ("target", "wish"), ValueError, "obs has no field 'pace'.*achieved_goal="),
        (("place", "speed"), ("target", "want"), ValueError, "obs has no field 'want'.*desired_goal="),
        (
            ("place", "speed"),
            ("wish", "target"),
            ValueError,
            r"obs.wish is Field\(\(\), int16\); expected Field\(\(2,\)",
        ),
        (("place", "place"), ("target", "wish"), ValueError, "name 'place' twice"),
        (("place", "speed"), ("target", "place"), ValueError, "name 'place' twice"),
        ((), (), TypeError, r"achieved_goal is \(\); expected a key of obs, or a tuple of keys"),
        (["place", "speed"], ["target", "wish"], TypeError, r"achieved_goal is \['place', 'speed'\]; expected a key"),
        ("place", 3, TypeError, "desired_goal is 3; expected a key of obs, or a tuple of keys"),
    ],
)
def test_wrong_keys_of_several_goals_are_refused(achieved, desired, error, match):
    """Keys that are unknown, repeated, of different fields or numbers, or not in a tuple raise an error."""
    with pytest.raises(error, match=match):
        pairs(0, achieved_goal=achieved, desired_goal=desired)


def test_a_wrong_reward_of_several_goals_is_refused():
    """The error describes every array that the function was given."""
    with pytest.raises(ValueError, match=r"of shapes \((\d+), 2\), float32; \(\1,\), int16; if it takes one goal"):
        pairs(reward_fn=lambda a, d, i: 0.0).sample(20)


def test_goal_keys_can_be_chosen():
    """The keys of goals can be chosen. Keys of nested observations contain dots."""
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
    """Goals that are stored as frames, with or without stacks, are read and replaced like any other goal."""
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
    """Around a LatestBuffer, the newest transitions are relabelled."""
    buffer = HindsightReplay(LatestBuffer(20, GOAL_SPEC, seed=0), sparse, strategy="final", ratio=1.0)
    goal_episodes(buffer, [4, 4])
    batch = assert_lawful(buffer, 4)
    assert batch.indices.tolist() == [4, 5, 6, 7]
    assert batch.reward.tolist() == [-1.0, -1.0, -1.0, 0.0]


def test_a_function_may_change_what_it_is_given():
    """A function can change its arguments. The goals of the batch and the stored values do not change."""

    def careless(achieved_goal, desired_goal, info):
        rewards = sparse(achieved_goal, desired_goal, info)
        achieved_goal[:] = 7.0
        desired_goal[:] = 8.0
        return rewards

    batches = []
    for reward_fn in (sparse, careless):
        buffer = HindsightReplay(ReplayBuffer(10, GOAL_SPEC, n_step=2, seed=0), reward_fn, terminated_fn=reached)
        goal_episodes(buffer, [8])
        batches.append([bits_of(assert_lawful(buffer, 20)) for _ in range(3)])
    assert batches[0] == batches[1]


# -- Invalid arguments -------------------------------------------------------------------------------------------


def goals(inner=None, reward_fn=sparse, **options):
    """A hindsight replay with stored transitions."""
    inner = PrioritizedBuffer(10, GOAL_SPEC, n_step=2, seed=5) if inner is None else inner
    goal_episodes(inner, [5, 9])
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
    "masked": (lambda a, d, i: np.ma.zeros(len(a)), TypeError, r"the result of reward_fn <lambda> is a masked array"),
    "nothing": (lambda a, d, i: None, ValueError, "returned shape"),
    "an error": (raises(KeyError("speed")), RuntimeError, "reward_fn raises.*reward_fn raised KeyError: 'speed'"),
    "an interrupt": (raises(KeyboardInterrupt()), KeyboardInterrupt, None),
}


@pytest.mark.parametrize("case", WRONG_REWARDS)
def test_a_wrong_reward_function_changes_nothing(case):
    """The error names the function, and the next batch is the same as without the error."""
    reward_fn, error, match = WRONG_REWARDS[case]
    twin = goals()
    buffer = goals(reward_fn=reward_fn)
    wrapped = CombinedReplay(buffer)
    for replay in (buffer, wrapped):
        before = copy.deepcopy(replay.rng.bit_generator.state)
        with pytest.raises(error, match=match):
            replay.sample(30)
        assert replay.rng.bit_generator.state == before
        assert replay.stats()["batches"] == 0
        replay.check()
    buffer = HindsightReplay(buffer.inner, sparse)
    assert bits_of(buffer.sample(30)) == bits_of(twin.sample(30))


NOT_VECTORIZED = "not vectorized; if it takes one goal at a time, wrap it"
WRONG_ENDS = {
    "the norm of all rows": (lambda a, d, i: bool(np.linalg.norm(a - d) < 0.5), ValueError, r"returned shape \(\)"),
    "one for all": (
        lambda a, d, i: np.full(len(a), np.array_equal(a, d)),
        ValueError,
        NOT_VECTORIZED,
    ),
    "any for all": (
        lambda a, d, i: np.full(len(a), (a == d).all(axis=1).any()),
        ValueError,
        NOT_VECTORIZED,
    ),
    "once, for ever": (lambda a, d, i: np.logical_or.accumulate((a == d).all(-1)), ValueError, NOT_VECTORIZED),
    "until once": (lambda a, d, i: np.logical_and.accumulate((a == d).all(-1)), ValueError, NOT_VECTORIZED),
    "numbers": (lambda a, d, i: np.zeros(len(a)), TypeError, "terminated_fn .* returned dtype float64; expected bool"),
    "an error": (raises(ValueError("no")), RuntimeError, "terminated_fn .* raised ValueError: no"),
}


@pytest.mark.parametrize("case", WRONG_ENDS)
def test_a_terminated_function_that_is_not_vectorized_is_detected(case):
    """It is detected by the shape of its result, or because a row's result depends on other rows."""
    terminated_fn, error, match = WRONG_ENDS[case]
    buffer = goals(terminated_fn=terminated_fn)
    with pytest.raises(error, match=match):
        buffer.sample(30)
    buffer = HindsightReplay(buffer.inner, sparse, terminated_fn=reached)
    assert bits_of(buffer.sample(30)) == bits_of(goals(terminated_fn=reached).sample(30))


def test_a_scalar_terminated_function_works_when_wrapped_as_the_error_says():
    """A function for one row works when it is wrapped as the error suggests."""

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
    """The error names the option, its value and the expected value."""
    with pytest.raises(error, match=match):
        HindsightReplay(ReplayBuffer(10, GOAL_SPEC), **({"reward_fn": sparse} | options))


def test_specs_without_goals_are_refused():
    """Observations without goals, with unequal or stacked goals, and a second HindsightReplay raise an error."""
    with pytest.raises(TypeError, match=r"obs is Field\(\(3,\), float32\); expected a dict with the goals"):
        HindsightReplay(filled(ReplayBuffer(9, FLAT), 3), sparse)
    for other in (Field((3,), np.float64), Field((2,), np.float32)):
        spec = Spec(obs={"achieved_goal": GOAL, "desired_goal": other}, action=Field(()))
        with pytest.raises(ValueError, match=r"obs.desired_goal is .*; expected Field\(\(2,\), float64\)"):
            HindsightReplay(ReplayBuffer(9, spec), sparse)
    image = Field((8, 8), np.uint8)
    spec = Spec(obs={"achieved_goal": image, "desired_goal": image}, action=Field(()))
    with pytest.raises(ValueError, match="stack is 2, so obs.achieved_goal would be a stack"):
        HindsightReplay(ReplayBuffer(9, spec, stack=2), sparse)
    with pytest.raises(ValueError, match="inner already contains a HindsightReplay"):
        HindsightReplay(CombinedReplay(goals()), sparse)
    with pytest.raises(TypeError, match="inner is a int"):
        HindsightReplay(3, sparse)


def test_a_wrapper_of_ones_own_around_or_inside():
    """A wrapper scales rewards. Inside, rewards of new goals are not scaled; outside, they are."""

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
    """Changes of info by reward_fn do not reach terminated_fn."""
    spec = Spec(GOAL_SPEC["obs"], GOAL_SPEC["action"], cost=Field((), np.int64))

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
    """The same key for both goals raises an error, because it must be a mistake."""
    with pytest.raises(ValueError, match="achieved_goal and desired_goal name 'desired_goal' twice"):
        HindsightReplay(ReplayBuffer(9, GOAL_SPEC), sparse, achieved_goal="desired_goal")


def test_a_batch_that_cannot_be_drawn_draws_nothing_at_random():
    """If a batch cannot be drawn, no random number is used, so the next batch is the same."""
    batches = []
    for wrap in (lambda b: b, lambda b: HindsightReplay(b, sparse, ratio=0.0)):
        buffer = PrioritizedBuffer(9, GOAL_SPEC, eps=0.0, seed=0)
        goal_episodes(buffer, [9])
        buffer.update_priorities(np.arange(9), np.zeros(9))
        with pytest.raises(ValueError, match="every priority is 0"):
            wrap(buffer).sample(4)
        buffer.update_priorities(np.arange(9), np.ones(9))
        batches.append(wrap(buffer).sample(6).indices.tolist())
    assert batches[0] == batches[1]


class Signs(ReplayWrapper):
    """A wrapper that replaces rewards by their signs."""

    def change(self, window):
        window.reward = np.sign(window.reward)
        return window


@pytest.mark.parametrize(
    "stack",
    [
        lambda buffer: HindsightReplay(CombinedReplay(buffer), sparse),
        lambda buffer: CombinedReplay(HindsightReplay(buffer, sparse)),
        lambda buffer: HindsightReplay(Signs(buffer), sparse),
        lambda buffer: Signs(CombinedReplay(HindsightReplay(buffer, sparse))),
    ],
)
def test_the_storage_looks_ahead_in_every_stack(stack, monkeypatch):
    """If another wrapper prevents the combined call, one kernel still finds the goals."""
    calls = []
    look_ahead = LocalStorage.look_ahead
    monkeypatch.setattr(LocalStorage, "look_ahead", lambda *given: calls.append(1) or look_ahead(*given))
    buffer = ReplayBuffer(20, GOAL_SPEC, n_step=2, seed=0)
    goal_episodes(buffer, [3, 4, 5])
    assert_lawful(stack(buffer), 6)
    assert len(calls) == 2  # for the batch, and for that of the verbs
