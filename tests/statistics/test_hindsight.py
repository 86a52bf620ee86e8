"""Hindsight replay: the distribution of the goals, and the share of rewritten rows."""

from fractions import Fraction

import numpy as np
import pytest

from replaykit import HindsightReplay, ReplayBuffer
from tests.helpers import GOAL_SPEC, STRATEGIES, UNREACHABLE, goal_episodes, sparse, stored_indices


def allowed_outcomes(buffer, index, strategy):
    """The (lane, moment) of each outcome that may be the goal of `index`, from the stored flags alone."""
    stored = stored_indices(buffer)
    outcome = dict(zip(stored.tolist(), map(tuple, buffer.read(stored, "next_obs.achieved_goal")), strict=True))
    if strategy == "random":
        return list(outcome.values())
    ended = dict(
        zip(stored.tolist(), buffer.read(stored, "terminated") | buffer.read(stored, "truncated"), strict=True)
    )
    run, runs = [], []
    for i in [i for i in stored.tolist() if i % buffer.num_envs == index % buffer.num_envs]:
        run.append(i)
        if ended[i]:
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
        ReplayBuffer(length * lanes, GOAL_SPEC, num_envs=lanes, seed=1), sparse, strategy=strategy, ratio=1
    )
    goal_episodes(buffer, lengths, ends)
    counts = {}
    for _ in range(40):
        batch = buffer.sample(500)
        for index, goal in zip(batch.indices.tolist(), map(tuple, batch.obs["desired_goal"]), strict=True):
            counts.setdefault(index, {}).setdefault(goal, 0)
            counts[index][goal] += 1
    assert sorted(counts) == sorted(stored_indices(buffer).tolist())
    for index, found in counts.items():
        allowed = allowed_outcomes(buffer, index, strategy)
        assert set(found) <= set(allowed)
        (present,) = map(tuple, buffer.read([index], "obs.achieved_goal"))
        if strategy in ("future", "final"):
            assert present not in found
        if len(allowed) > 1:
            observed = [found.get(goal, 0) for goal in allowed]
            assert stats.chisquare(observed).pvalue > 1e-6


@pytest.mark.parametrize("strategy", ["future", "final", "episode"])
def test_share_of_successes(strategy):
    """With distinct goals, the share of successes is H_T / T for future, and 1 / T for final and episode."""
    stats = pytest.importorskip("scipy.stats")
    steps = 10
    buffer = HindsightReplay(ReplayBuffer(steps, GOAL_SPEC, seed=0), sparse, strategy=strategy, ratio=1.0)
    goal_episodes(buffer, [steps])
    count = 60_000
    batch = buffer.sample(count)
    expected = {"future": float(sum(Fraction(1, k) for k in range(1, steps + 1)) / steps)}.get(strategy, 1 / steps)
    success = batch.reward == 0.0
    assert stats.binomtest(int(success.sum()), count, expected).pvalue > 1e-6
    if strategy == "future":
        assert success[batch.indices == steps - 1].all()


@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.8, 1.0])
def test_the_share_of_relabelled_rows_is_binomial(ratio):
    """Each row is relabelled with probability `ratio`, independent of the transition. Others are unchanged."""
    stats = pytest.importorskip("scipy.stats")
    buffer = HindsightReplay(ReplayBuffer(50, GOAL_SPEC, seed=3), sparse, ratio=ratio)
    goal_episodes(buffer, [20, 30])
    batch = buffer.sample(40_000)
    assert stats.binomtest(int(batch.relabelled.sum()), 40_000, ratio).pvalue > 1e-6
    assert (batch.obs["desired_goal"][~batch.relabelled] == UNREACHABLE).all()
    assert (batch.next_obs["desired_goal"][~batch.relabelled] == UNREACHABLE).all()
    assert (batch.obs["desired_goal"][batch.relabelled] != UNREACHABLE).all()
    assert (batch.reward[~batch.relabelled] == -1.0).all()
    if 0.0 < ratio < 1.0:
        table = [np.bincount(batch.indices[batch.relabelled == flag], minlength=50) for flag in (False, True)]
        assert stats.chi2_contingency(table).pvalue > 1e-6
