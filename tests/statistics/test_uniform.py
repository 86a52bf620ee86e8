"""Uniform draws, alone and in combined replay: each stored transition equally often."""

import numpy as np
import pytest

from replaykit import CombinedReplay, ReplayBuffer
from tests.helpers import FLAT, filled, stretch


def test_uniform_draws_are_uniform():
    """Chi-square over all transitions of lanes that are out of step; false alarm once in 10,000 seeds."""
    stats = pytest.importorskip("scipy.stats")

    buffer = ReplayBuffer(30, FLAT, num_envs=3, seed=1)
    buffer.extend(**stretch(8, 3), mask=np.array([[True, True, False]] * 5 + [[False, True, True]] * 3))
    indices = np.concatenate([buffer.sample(64).indices for _ in range(300)])
    counts = np.unique(indices, return_counts=True)[1]
    assert counts.size == len(buffer) == 16
    assert stats.chisquare(counts).pvalue > 1e-4


def test_expected_counts_over_uniform():
    """(B-1)/N for every transition and 1 more for the newest, after wrap-around too."""
    buffer = CombinedReplay(filled(ReplayBuffer(10, FLAT, seed=0), 24))
    counts = np.zeros(24)
    for _ in range(4000):
        np.add.at(counts, buffer.sample(6).indices, 1)
    assert (counts[:14] == 0).all()
    assert counts[23] - 4000 == pytest.approx(2000, abs=5 * np.sqrt(2000))
    np.testing.assert_allclose(counts[14:23], 2000, atol=5 * np.sqrt(2000))
    assert (buffer.sample(6).weights == 1.0).all()
