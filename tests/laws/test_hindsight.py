"""Hindsight replay: it commutes with other wrappers, and its fast path gives the same bits as the verbs."""

import copy

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
from replaykit.testing import bits_of
from tests.helpers import GOAL_SPEC, STRATEGIES, StepByStep, goal_episodes, reached, sparse


@given(
    n_step=st.integers(1, 4),
    lanes=st.integers(1, 3),
    strategy=st.sampled_from(STRATEGIES),
    terminates=st.booleans(),
    seed=st.integers(0, 99),
)
def test_wrappers_on_different_verbs_commute(n_step, lanes, strategy, terminates, seed):
    """Hindsight inside combined replay and around it gives the same bits."""
    batches = []
    for order in ((HindsightReplay, CombinedReplay), (CombinedReplay, HindsightReplay)):
        buffer = PrioritizedBuffer(12 * lanes, GOAL_SPEC, num_envs=lanes, n_step=n_step, seed=seed)
        for wrapper in order:
            if wrapper is CombinedReplay:
                buffer = CombinedReplay(buffer, latest=2)
            else:
                terminated_fn = reached if terminates else None
                buffer = HindsightReplay(buffer, sparse, strategy=strategy, terminated_fn=terminated_fn)
        goal_episodes(buffer, [5, 3, 8])
        batches.append([bits_of(buffer.sample(20)) for _ in range(3)])
    assert batches[0] == batches[1]


@given(n_step=st.integers(1, 4), strategy=st.sampled_from(STRATEGIES))
def test_a_ratio_of_0_changes_nothing(n_step, strategy):
    """With a ratio of 0, batches are the same bits, with an additional field `relabelled` that is False."""
    plain = PrioritizedBuffer(12, GOAL_SPEC, n_step=n_step, seed=4)
    goal_episodes(plain, [5, 3, 8])
    wrapped = HindsightReplay(copy.deepcopy(plain), sparse, strategy=strategy, ratio=0.0)
    for _ in range(3):
        expected, got = bits_of(plain.sample(9)), bits_of(wrapped.sample(9))
        assert got.pop("relabelled") == ("bool", (9,), bytes(9))
        assert got == expected


class Doubled(ReplayWrapper):
    """A wrapper that doubles the rewards when a window is opened, before goals are replaced."""

    def change(self, window):
        window.reward *= 2
        return window


class Negated(ReplayWrapper):
    """A wrapper that negates the rewards when a window is reduced."""

    def reduce(self, window):
        fields = self.inner.reduce(window)
        fields["reward"] = -fields["reward"]
        return fields


def goals_of(field, seed=0, make=ReplayBuffer, wrap=lambda buffer: buffer, n_step=1, **options):
    """A replay with goals of this field, and episodes of seven steps in a ring that has wrapped."""
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
    return HindsightReplay(wrap(buffer), tagged, **options)


def tagged(achieved_goal, desired_goal, info):
    """A reward that identifies both goals."""
    rows = achieved_goal.shape[0]
    achieved, desired = (goal.reshape(rows, -1).astype(np.float64) for goal in (achieved_goal, desired_goal))
    return achieved @ np.arange(1.0, achieved.shape[1] + 1) - 100.0 * desired.sum(axis=1)


def first_is_equal(achieved_goal, desired_goal, info):
    """An end that depends on a part of the goals."""
    return achieved_goal.reshape(len(achieved_goal), -1)[:, 0] == desired_goal.reshape(len(desired_goal), -1)[:, 0]


def assert_skips_the_verbs(replay):
    """Check that the fast path opens no window. Otherwise a comparison with `StepByStep` would prove nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HindsightReplay, "window", lambda *_: pytest.fail("a window was opened"))
        copy.deepcopy(replay).sample(5)


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
    """The fast path gives the same bits, for goals of every size, inside and outside CombinedReplay."""
    for terminated_fn in (None, first_is_equal):
        options = {"strategy": strategy, "ratio": 0.7, "terminated_fn": terminated_fn}
        fast = goals_of(field, make=make, **options)
        assert_skips_the_verbs(fast)
        replays = [fast, goals_of(field, make=make, wrap=StepByStep, **options)]
        outside = [
            CombinedReplay(goals_of(field, make=make, wrap=wrap, **options), 3) for wrap in (StepByStep, lambda b: b)
        ]
        inside = [goals_of(field, make=make, wrap=lambda b, w=w: w(CombinedReplay(b, 3)), **options)
                  for w in (StepByStep, lambda b: b)]  # fmt: skip
        for group in (replays, outside + inside):
            for batch_size in (1, 4, 50):
                if batch_size < 3 and group is not replays:
                    continue
                batches = [bits_of(replay.sample(batch_size)) for replay in group]
                assert all(batch == batches[0] for batch in batches)
                names = list(group[0].sample(5))
                assert all(list(replay.sample(5)) == names for replay in group[1:])


def test_the_discount_is_0_where_a_new_goal_terminates():
    """The discount is 0 where a new goal terminates. Elsewhere it is a power of gamma, for any stored flag."""
    batch = goals_of(Field((2,)), terminated_fn=first_is_equal, ratio=0.8).sample(200)
    assert set(batch.terminated.tolist()) == {True, False}
    np.testing.assert_array_equal(batch.discount, np.where(batch.terminated, 0.0, 0.99).astype(np.float32))


@pytest.mark.parametrize("n_step", [1, 3])
def test_what_wrappers_change_is_not_passed_over(n_step):
    """Overrides of `window` and `reduce` take effect, inside hindsight and around it."""
    for wrap in (Doubled, Negated):
        inside = goals_of(Field((2,)), wrap=wrap, n_step=n_step, ratio=0.5)
        plain = goals_of(Field((2,)), n_step=n_step, ratio=0.5)
        got, before = inside.sample(60), plain.sample(60)
        factor = np.where(before.relabelled, 1.0, 2.0) if wrap is Doubled else -1.0
        np.testing.assert_array_equal(got.reward, (before.reward * factor).astype(np.float32))
    around, plain = Negated(goals_of(Field((2,)), n_step=n_step)), goals_of(Field((2,)), n_step=n_step)
    np.testing.assert_array_equal(around.sample(60).reward, -plain.sample(60).reward)
