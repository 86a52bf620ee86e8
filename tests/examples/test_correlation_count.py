"""The original study's count of correlated states, and why the study no longer relies on it."""

import itertools
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))  # as when its script is run

from replay_study.measures import correlation_count


@given(
    rows=st.lists(st.lists(st.sampled_from([0.0, 0.1, 0.3, -2.0, 7.5]), min_size=4, max_size=4), max_size=12),
    threshold=st.sampled_from([0.0, 0.5, 0.8, 0.95]),
)
def test_correlation_count_is_that_of_the_original_study(rows, threshold):
    """The count equals a loop over pairs with the correlation of the standard library."""
    expected = 0
    for x, y in itertools.combinations(rows, 2):
        if len(set(x)) > 1 and len(set(y)) > 1:
            r = abs(statistics.correlation(x, y))
            assume(abs(r - threshold) > 1e-9)
            expected += r > threshold
    assert correlation_count(np.reshape(rows, (-1, 4)), threshold) == expected


def test_correlation_count_is_the_same_for_every_batch_of_one_or_two_features():
    """Every pair of two-feature states counts, even of independent noise. States of one feature never count."""
    rng = np.random.default_rng(0)
    assert correlation_count(rng.normal(size=(64, 2))) == 64 * 63 // 2 == 2016
    assert correlation_count(rng.normal(size=(64, 1))) == 0
    assert correlation_count(np.full((64, 3), 0.1)) == correlation_count(np.full((1, 3), 0.1)) == 0
    states = rng.normal(size=(9, 4))
    extended = np.concatenate((states, np.full((2, 4), np.nan), np.full((2, 4), 0.7)))
    assert correlation_count(extended) == correlation_count(states) == correlation_count(states * 1e-200)


def test_correlation_count_does_not_distinguish_consecutive_states_of_cartpole_from_independent_ones():
    """The counts measured for the study: 1449 ± 133 and 1467 ± 181 of 2016, and 403 for noise of four features."""
    gymnasium = pytest.importorskip("gymnasium")
    env = gymnasium.make("CartPole-v1")
    env.action_space.seed(0)
    states = [env.reset(seed=0)[0]]
    while len(states) < 6400:
        obs, _, terminated, truncated, _ = env.step(env.action_space.sample())
        states.append(obs if not (terminated or truncated) else env.reset()[0])
    states = np.array(states)
    rng = np.random.default_rng(0)
    together = [correlation_count(states[i : i + 64]) for i in range(0, 6400, 64)]
    apart = [correlation_count(states[rng.integers(6400, size=64)]) for _ in range(100)]
    assert 1400 < np.mean(apart) < 1500 and 1400 < np.mean(together) < 1540  # standard errors 13 and 18
    noise = [correlation_count(rng.normal(size=(64, 4))) for _ in range(100)]
    assert 390 < np.mean(noise) < 416


def test_a_threshold_of_1_is_refused():
    """A threshold of 1 raises an error, because rounding would decide."""
    with pytest.raises(ValueError, match=r"threshold is 1.0; expected a correlation in \[0, 1\)"):
        correlation_count(np.eye(3), 1.0)
