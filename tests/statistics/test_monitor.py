"""ReplayMonitor: its numbers for uniform draws are those of i.i.d. draws."""

import numpy as np
import pytest

from replaykit import ReplayBuffer
from replaykit.diagnostics import ReplayMonitor
from replaykit.diagnostics.state_features import MeanShift, summarise_shifts
from tests.helpers import FLAT, random_walk


@pytest.mark.parametrize("size", [2000, 6000])
@pytest.mark.parametrize("lanes", [1, 4])
def test_uniform_draws_are_iid(size, lanes):
    """Each measure of uniform draws is within 4.5 standard errors of its expectation, with and without sampling."""
    buffer = ReplayBuffer(size, FLAT, num_envs=lanes, seed=3)
    if lanes == 1:
        random_walk(buffer, size)
    else:
        parts = [random_walk(ReplayBuffer(size, FLAT), size // lanes, seed=lane) for lane in range(lanes)]
        columns = [part.read(np.arange(size // lanes), "obs") for part in parts]
        ends = np.tile(np.arange(size // lanes) % 50 == 49, (lanes, 1)).T
        states, nothing = np.stack(columns, axis=1), np.zeros((size // lanes, lanes))
        buffer.extend(states, nothing.astype(int), nothing, states, ends, nothing.astype(bool))
    watcher = ReplayMonitor(buffer, every=2, window=400)
    for _ in range(800):
        batch = buffer.sample(32)
        watcher.record(batch, td_errors=np.ones(32))
    stats = watcher.stats()

    def standard_error(name):
        """The standard error of the mean over all batches, from the cumulative means in the history."""
        means = np.array([row[name] for row in watcher.history])
        return np.diff(np.arange(1, 401) * means, prepend=0.0).std() / np.sqrt(400)

    for name in ("duplicates", "overlap", "same_episode", "temporal_distance", "relative_age"):
        assert abs(stats[name] - 1.0) < 4.5 * standard_error(name), name
    assert abs(stats["energy_distance"]) < 4.5 * standard_error("energy_distance")
    for name in ("mean_shift", "design_effect"):
        assert abs(stats[name] - 1.0) < 4.5 * np.sqrt(2 / 400), name
    assert abs(stats["successive_correlation"]) < 4.5 * np.sqrt(1 / 400)
    assert abs(stats["squared_bias"]) < 4.5 * np.sqrt(2) / 400
    assert abs(stats["draws_dispersion"] - 1.0) < 4.5 * np.sqrt(2 / min(size, 4096)) + 0.02
    assert stats["draws_never_share"] == pytest.approx(stats["draws_never_expected"], abs=0.01)
    assert stats["probability_entropy"] == pytest.approx(1.0)
    assert stats["probability_perplexity_share"] == pytest.approx(1.0)
    assert stats["probability_largest"] == pytest.approx(1.0)
    assert stats["probability_top_percent_share"] == pytest.approx(0.01)
    assert (stats["weight_mean"], stats["weight_effective_share"], stats["td_lift"]) == (1.0, 1.0, 1.0)
    assert watcher.warnings() == []


def test_successive_batches_are_compared_as_if_with_all_that_is_stored():
    """Independent batches do not look correlated, although both are compared with the same few states."""
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(2000, 96, 2))
    shifts = [MeanShift.between(draw[:32], draw[32:64], draw[64:]) for draw in draws]
    assert abs(summarise_shifts(shifts, 32.0)["successive_correlation"]) < 4.5 / np.sqrt(2 * 2000)  # without it 0.5
    same = [MeanShift.between(draw[:32], draw[:32], draw[64:]) for draw in draws]
    assert summarise_shifts(same, 32.0)["successive_correlation"] == pytest.approx(1.0)
