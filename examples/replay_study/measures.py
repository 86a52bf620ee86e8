"""Measures of a replay's batches, for one state of the buffer and the networks.

Nothing here learns, and all batches come from a copy, so measuring does not change a run.
"""

import copy
from functools import cache
from typing import Any

import numpy as np

from replaykit import Batch, Replay
from replaykit import diagnostics as look

from .learner import Floats, Network, targets
from .settings import Settings

BATCHES = 100  # number drawn at each snapshot, K
POINTS = 400  # number on each side of an energy distance


def features_of(obs: Any, settings: Settings) -> Floats:
    """The network's input: the scaled observation, with its goal if it has one."""
    if isinstance(obs, dict):
        obs = np.concatenate((obs["observation"], obs["desired_goal"]), -1)
    scaled: Floats = obs * _array(settings.scales) if settings.scales else obs
    return scaled


@cache
def _array(scales: tuple[float, ...]) -> Floats:
    return np.array(scales, np.float32)


def state_of(obs: Any) -> Floats:
    """The states that the measures compare: the observation without its goal."""
    state: Floats = obs["observation"] if isinstance(obs, dict) else obs
    return state


def fresh_td_errors(network: Network, target: Network, batch: Any, settings: Settings) -> Floats:
    """The TD errors of transitions under the current networks: (B,)."""
    values = network(features_of(batch.obs, settings))
    wanted = targets(network, target, batch, features_of(batch.next_obs, settings), settings.double)
    errors: Floats = wanted - values[np.arange(len(values)), batch.action]
    return errors


def everything(replay: Replay) -> Batch:
    """All stored transitions as they were added, oldest first."""
    while hasattr(replay, "inner"):  # wrappers may change them
        replay = replay.inner
    indices = replay.latest(len(replay))
    return Batch(indices=indices, **replay.reduce(replay.window(indices)))


def correlation_count(states: Floats, threshold: float = 0.8) -> int:
    """The number of pairs of states whose correlation, across their features, exceeds `threshold` in magnitude.

    The original study used it as a measure of independence. Do not judge a sampler by it: it correlates the features of
    two states, not two draws. With two features, every pair has a correlation of 1 or -1, so the count is B(B-1)/2 for
    every batch; with one feature it is 0. For the four features of CartPole, 64 independent draws give
    1449 ± 133 of 2016 pairs, and 64 consecutive steps 1467 ± 181. `replaykit.diagnostics.design_effect` and
    `same_episode_pairs` measure independence instead.

    `states` has the shape (B, D). A state with NaN or infinite features, or whose features are all equal, correlates
    with no other.
    """
    if not 0.0 <= threshold < 1.0:
        raise ValueError(f"threshold is {threshold}; expected a correlation in [0, 1)")
    rows = np.asarray(states, np.float64)
    rows = rows[np.isfinite(rows).all(axis=1)]
    if not rows.size:
        return 0
    largest = np.abs(rows).max(axis=1, keepdims=True)
    rows = rows / np.where(largest > 0.0, largest, 1.0)  # so that no square overflows, and equal features are all 1
    centered = rows - rows.mean(axis=1, keepdims=True)
    norms = np.sqrt((centered**2).sum(axis=1, keepdims=True))
    centered = centered / np.where(norms > 0.0, norms, 1.0)
    correlations = np.abs(centered @ centered.T)
    return int((correlations[np.triu_indices(len(rows), 1)] > threshold).sum())


def of_batch(states: Floats, td_errors: Floats) -> dict[str, float]:
    """The original study's statistics of a batch: those of abs(δ), and the count of correlated states."""
    sizes = look.td_error_stats(td_errors)
    return {f"td_{name}": sizes[name] for name in ("mean", "median", "max", "std")} | {
        "correlation_count": float(correlation_count(states))
    }


def of_replay(replay: Replay, network: Network, target: Network, settings: Settings) -> dict[str, float]:
    """The independence of batches, their similarity to the buffer, and the size of their TD errors.

    Returns
    -------
    dict of str to float
        `design_effect` and `td_design_effect`, of states and of TD errors; `effective_batch_size` and `variance_share`
        by the mean of the states; `energy_distance`, `relative_age`, `same_episode_ratio`, `duplicate_ratio`, each
        compared with uniform draws; `td_lift`; of all draws `td_mean`, `td_median`, `td_max`, `td_std`, and of one
        batch `correlation_count`; `perplexity_share` of the draw probabilities; and `weight_share`, the effective
        sample size of the weights over B.
    """
    replay = copy.deepcopy(replay)
    rng = np.random.default_rng(0)  # only for the choice of the compared points
    stored = everything(replay)
    size, batch_size = len(stored.indices), settings.batch_size
    batches = [replay.sample(batch_size) for _ in range(BATCHES)]
    of_stored = fresh_td_errors(network, target, stored, settings)
    drawn = np.stack([fresh_td_errors(network, target, batch, settings) for batch in batches])  # (K, B)
    states = np.stack([state_of(batch.obs) for batch in batches])  # (K, B, D)
    error = look.batch_mean_error(states, state_of(stored.obs))
    points = rng.integers(drawn.size, size=POINTS), rng.integers(size, size=POINTS)
    indices = np.concatenate([batch.indices for batch in batches])
    lengths = np.unique(replay.episode(stored.indices)[0], return_counts=True)[1]
    pairs = [look.same_episode_pairs(replay.episode(batch.indices)[0], lengths).ratio for batch in batches]
    twice = [look.duplicates(batch.indices, size).ratio for batch in batches]
    weights = [look.effective_sample_size(batch.weights) / batch_size for batch in batches]
    drawing = look.draw_distribution(replay.probability(stored.indices, batch_size))
    return {
        "design_effect": look.design_effect(states),
        "td_design_effect": look.design_effect(drawn),
        "effective_batch_size": error.effective_batch_size,
        "variance_share": error.variance_share,
        "energy_distance": look.energy_distance(
            states.reshape(drawn.size, -1)[points[0]], state_of(stored.obs)[points[1]]
        ),
        "relative_age": look.relative_age(replay.newest[0] - indices, size).ratio,
        "same_episode_ratio": float(np.mean(pairs)),
        "duplicate_ratio": float(np.mean(twice)),
        "td_lift": look.td_lift(drawn.reshape(-1), of_stored),
        **of_batch(states[0], drawn.reshape(-1)),
        "perplexity_share": drawing["perplexity_share"],
        "weight_share": float(np.mean(weights)),
    }
