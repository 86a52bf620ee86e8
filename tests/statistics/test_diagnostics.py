"""The measures: their expectation under i.i.d. draws, exactly, and what they show of real buffers.

Where a test says "on average exactly", it averages over every possible outcome, so no statistics are needed: over all
batches that can be drawn from a small buffer, or over all orders in which given values could have been drawn.
"""

import itertools

import numpy as np
import pytest

from replaykit import LatestBuffer, PrioritizedBuffer, ReplayBuffer
from replaykit.diagnostics import (
    autocorrelation,
    batch_mean_error,
    design_effect,
    duplicates,
    energy_distance,
    mean_shift,
    overlap,
    relative_age,
    same_episode_pairs,
    td_lift,
    temporal_distance,
    weighted_td_lift,
)
from tests.helpers import FLAT, random_walk

# -- Expectations, exactly -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[4], [1, 4], [1, 1, 2]])
def test_expectations_are_the_average_over_every_batch_that_can_be_drawn(sizes):
    """Duplicates, overlap, pairs, distances and ages have exact expectations, averaged over all N**B batches."""
    stored = [(lane, age) for lane, size in enumerate(sizes) for age in range(size)]
    size, lengths = len(stored), sizes  # each lane is an episode
    measured = {name: [] for name in ("duplicates", "overlap", "episode", "distance", "age")}
    for draw in itertools.product(range(size), repeat=3):
        lanes, ages = np.array([stored[i] for i in draw]).T
        measured["duplicates"].append(duplicates(draw, size))
        measured["overlap"].append(overlap([0, 0, 1], draw, size))
        measured["episode"].append(same_episode_pairs(lanes, lengths))
        measured["distance"].append(temporal_distance(ages, sizes))
        measured["age"].append(relative_age(ages, sizes))
    for name, found in measured.items():
        assert np.mean([each.value for each in found]) == pytest.approx(found[0].expected, rel=1e-12), name
        assert np.mean([each.ratio for each in found]) == pytest.approx(1.0, rel=1e-12), name


def test_expectations_hold_for_any_values_on_average_exactly():
    """Design effect, autocorrelation, mean shift and energy distance have exact expectations over all orders."""
    values = np.array([[0.0, 1.0], [1.0, 1.0], [5.0, -2.0], [2.0, 0.0], [-3.0, 1.0], [1.0, 8.0]])
    orders = np.array(list(itertools.permutations(range(6))))
    effects = [design_effect(values[order].reshape(3, 2, 2)) for order in orders]
    assert np.mean(effects) == pytest.approx(1.0, rel=1e-12)
    for lag in (1, 2):
        assert np.mean([autocorrelation(values[order], lag) for order in orders]) == pytest.approx(0.0, abs=1e-12)
    shifts = [mean_shift(values[order[:2]], values[order[2:]]) for order in orders]
    assert np.mean(shifts) == pytest.approx(1.0, rel=1e-12)
    distances = [energy_distance(values[order[:2]], values[order[2:]]) for order in orders]
    assert np.mean(distances) == pytest.approx(0.0, abs=1e-12)
    assert np.ptp(effects) > 1.0 and np.ptp(distances) > 0.5  # what averages to it is not always it


def test_the_error_of_batch_means_is_unbiased_exactly():
    """Over every way to draw two batches of two from three, the variance is 1 and the squared bias 0."""
    stored = np.array([1.0, 2.0, 6.0])
    errors = [
        batch_mean_error(stored[list(draws)].reshape(2, 2), stored) for draws in itertools.product(range(3), repeat=4)
    ]
    assert np.mean([error.variance for error in errors]) == pytest.approx(1.0, rel=1e-12)
    assert np.mean([error.squared_bias for error in errors]) == pytest.approx(0.0, abs=1e-12)


# -- Real buffers: i.i.d. and correlated streams -------------------------------------------------------------


def measures_of(buffer, batches):
    """Every measure of many batches of 32, as arrays of what is 1, or 0, if i.i.d.; and states for whole-run ones."""
    stored = buffer.read(np.arange(2000), "obs").astype(float)
    rng = np.random.default_rng(11)
    found, previous = {}, None
    for batch in batches:
        values = {
            "duplicates": duplicates(batch, 2000).ratio,
            "episode": same_episode_pairs(batch // 50, np.full(40, 50)).ratio,
            "distance": temporal_distance(batch, 2000).ratio,
            "age": relative_age(1999 - batch, 2000).ratio,
            "shift": mean_shift(stored[batch], stored[rng.integers(2000, size=100)]),
            "energy": 1.0 + energy_distance(stored[batch], stored[rng.integers(2000, size=100)]),
            "overlap": 1.0 if previous is None else overlap(batch, previous, 2000).ratio,
        }
        previous = batch
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    states = np.array([stored[batch] for batch in batches])
    return {name: np.array(values) for name, values in found.items()}, states, stored


def test_every_measure_of_uniform_draws_is_that_of_iid_draws():
    """The mean of each measure over 1,500 batches is within 4.5 standard errors of 1 (error rate 1e-4)."""
    buffer = random_walk(ReplayBuffer(2000, FLAT, seed=1), 2000, seed=7)
    found, states, stored = measures_of(buffer, [buffer.sample(32).indices for _ in range(1500)])
    for name, values in found.items():
        assert abs(values.mean() - 1.0) < 4.5 * values.std() / np.sqrt(values.size), name
    # The variance of 1,500 means, of three features: a relative standard error below sqrt(2 / 1500) each
    assert abs(design_effect(states) - 1.0) < 4.5 * np.sqrt(2.0 / 1500)
    error = batch_mean_error(states, stored)
    assert abs(error.total - 1.0) < 4.5 * np.sqrt(2.0 / 1500) and abs(error.squared_bias) < 4.5 * 2.0 / 1500
    assert error.effective_batch_size == pytest.approx(32 / error.total) and 0.99 < error.variance_share < 1.01
    assert abs(autocorrelation(states.mean(axis=1))) < 4.5 / np.sqrt(1500)


def test_every_measure_of_a_correlated_stream_says_so():
    """Runs of 32 neighbors from uniform starts are not independent, but have the right distribution."""
    buffer = random_walk(ReplayBuffer(2000, FLAT, seed=1), 2000, seed=7)
    rng = np.random.default_rng(2)
    runs = [np.arange(start, start + 32) % 2000 for start in rng.integers(2000, size=400)]
    found, states, stored = measures_of(buffer, runs)
    assert found["duplicates"].mean() == 0.0
    assert found["episode"].mean() > 10.0
    assert found["distance"].mean() < 0.2  # (B + 1) / 3 steps, but for the runs around the end
    assert abs(found["age"].mean() - 1.0) < 0.2
    assert found["shift"].mean() > 10.0 and found["energy"].mean() > 1.3
    error = batch_mean_error(states, stored)
    assert 10.0 < design_effect(states) < 32.0 and error.variance > 10.0 and error.squared_bias < 1.0
    assert error.effective_batch_size < 3.2
    inner = temporal_distance(np.arange(100, 132), 2000)
    assert inner.value == pytest.approx(33 / 3)


def test_every_measure_of_the_newest_transitions_says_so():
    """Batches of a LatestBuffer repeat each other. Their variance is 0, and their bias is large."""
    buffer = random_walk(LatestBuffer(2000, FLAT), 2000, seed=7)
    batches = [np.arange(1900 + 8 * (k // 4), 1932 + 8 * (k // 4)) for k in range(32)]
    found, states, stored = measures_of(buffer, batches)
    assert found["age"].mean() < 0.1 and found["overlap"].mean() > 10.0
    assert autocorrelation(states.mean(axis=1)) > 0.5
    same = np.tile(stored[buffer.sample(32).indices], (10, 1, 1))
    assert design_effect(same) == 0.0
    error = batch_mean_error(same, stored)
    bias = 32 * np.mean(((stored[-32:].mean(axis=0) - stored.mean(axis=0)) / stored.std(axis=0)) ** 2)
    assert error.variance == 0.0 and error.variance_share == 0.0
    assert error.total == pytest.approx(bias) and error.effective_batch_size == pytest.approx(32 / bias)


def test_draws_by_priority_lift_the_td_error():
    """The lift is Σ P abs(δ) / mean abs(δ), from the buffer and from the batch's own probabilities."""
    buffer = random_walk(PrioritizedBuffer(2000, FLAT, alpha=1.0, eps=0.0, seed=0), 2000, seed=7)
    errors = np.random.default_rng(5).exponential(size=2000) + 0.1
    buffer.update_priorities(np.arange(2000), errors)
    batch = buffer.sample(20_000)
    expected = (errors**2).sum() / errors.sum() / errors.mean()
    # A standard error of 0.5 % each; stratified draws have less
    assert td_lift(errors[batch.indices], errors) == pytest.approx(expected, rel=0.02)
    assert weighted_td_lift(errors[batch.indices], batch.probabilities) == pytest.approx(expected, rel=0.03)
