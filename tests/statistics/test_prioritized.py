"""Prioritized replay: how often transitions are drawn, and where a whole learning loop ends."""

import numpy as np
import pytest
from numba import config

from replaykit import PrioritizedBuffer
from tests.helpers import FLAT, prioritized, stretch


@pytest.mark.parametrize("draws", ["stratified", "iid"])
def test_frequencies_follow_the_probabilities(draws):
    """Chi-square (conservative for the schemes of lower variance); false alarm at most once in 10,000 seeds."""
    stats = pytest.importorskip("scipy.stats")

    values = np.array([1.0, 0.0, 5.0, 0.5, 2.0, 1e-9])
    buffer = prioritized(values, draws=draws)
    counts = np.bincount(np.concatenate([buffer.sample(16).indices for _ in range(2000)]), minlength=6)
    assert counts[1] == 0
    chosen = [0, 2, 3, 4]
    assert stats.chisquare(counts[chosen], values[chosen] / values[chosen].sum() * counts[chosen].sum()).pvalue > 1e-4


@pytest.mark.parametrize("draws", ["stratified", "iid"])
def test_frequencies_of_ranks_follow_the_power_law(draws):
    """Chi-square; false alarm at most once in 10,000 seeds. Priorities change between the batches, ranks do not."""
    stats = pytest.importorskip("scipy.stats")
    values = np.array([3.0, 1.0, 0.0, 9.0, 2.0, 2.0, 7.0])
    buffer = prioritized(values, draws=draws, variant="rank", alpha=0.7)
    counts = np.zeros(7)
    for scale in np.random.default_rng(0).uniform(0.1, 10.0, 2000):
        buffer.update_priorities(np.arange(7), priorities=values * scale)
        np.add.at(counts, buffer.sample(16).indices, 1)
    ranks = np.array([3, 6, 7, 1, 5, 4, 2])
    assert stats.chisquare(counts, ranks**-0.7 / (ranks**-0.7).sum() * counts.sum()).pvalue > 1e-4


@pytest.mark.skipif(config.DISABLE_JIT, reason="40,000 updates take minutes without compilation")
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (0.6, 0.0), (0.6, 0.4), (0.6, 1.0)])
def test_the_whole_loop_reaches_its_closed_form(alpha, beta):
    """Rewards 0 and R = 10 of terminal transitions, q = 0.1: Q* = R / (1 + ((1-q)/q)**(1 / (1 + alpha (1 - beta))))."""
    rng = np.random.default_rng(0)
    count, q, high = 1000, 0.1, 10.0
    values = stretch(count, terminated=np.ones(count, np.bool_))
    values["reward"] = rng.permutation(np.where(np.arange(count) < q * count, high, 0.0)).astype(np.float32)
    buffer = PrioritizedBuffer(count, FLAT, alpha=alpha, beta=beta, eps=0.01, weights="none", seed=1)
    buffer.extend(**values)
    estimate, total = 0.0, 0.0
    for update in range(40_000):
        batch = buffer.sample(32)
        errors = batch.reward + batch.discount * 0.0 - estimate
        estimate += 0.005 * float((batch.weights * errors).mean())
        buffer.update_priorities(batch.indices, errors)
        total += estimate if update >= 20_000 else 0.0
    expected = high / (1 + ((1 - q) / q) ** (1 / (1 + alpha * (1 - beta))))
    assert total / 20_000 == pytest.approx(expected, abs=0.02)
