"""How the distribution of a batch differs from that of the buffer.

Each measure is compared with its expectation under uniform draws from the buffer.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from replaykit.diagnostics.arguments import Compared, features, lane_sizes, nonnegative, standardized, vector
from replaykit.field import as_indices


def mean_shift(batch: Any, reference: Any) -> float:
    """The squared difference between the means of batch and buffer, relative to its expectation under i.i.d. draws.

    The value is ``(mean(batch) - mean(reference))² / (s² (1/B + 1/M))``, averaged over features, where s² is the
    variance of batch and reference together. It is between 0 and B + M - 1. Its expectation for i.i.d. draws is exactly
    1, for every B, M and distribution. Both dependent draws and a difference in distribution increase
    it; :func:`batch_mean_error` separates the two. Average it over many batches, because a single value is noisy, with
    a standard deviation of 1.4 for one feature. Constant features are left out; nan if all are constant. O((B + M) D).

    Parameters
    ----------
    batch : array-like of shape (B, ...), or dict or tuple of such arrays
        States, or any other numbers that describe a transition.
    reference : the same of shape (M, ...)
        The same numbers for transitions drawn uniformly from the buffer, with replacement, or for all stored ones.

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> stored = rng.normal(size=(10_000, 4))
    >>> round(mean_shift(stored[rng.integers(10_000, size=64)], stored), 1)
    0.6
    >>> round(mean_shift(stored[:64] + 1.0, stored), 1)  # shifted by one deviation
    53.5
    """
    drawn, others = _alike(batch, reference)
    shift, noise = standardized_shift(drawn, others)
    shift = shift[np.isfinite(shift)]
    return float((shift**2).mean() / noise) if shift.size else float("nan")


def standardized_shift(
    batch: npt.NDArray[np.float64], reference: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], float]:
    """The difference of the means in standard deviations, for each feature, and its variance under i.i.d. draws.

    nan for a constant feature.
    """
    size, rest = batch.shape[0], reference.shape[0]
    both, varies = standardized(np.concatenate((batch, reference)))
    shift = np.full(batch.shape[1], np.nan)
    shift[varies] = both[:size].mean(axis=0) - both[size:].mean(axis=0)
    return shift, 1.0 / size + 1.0 / rest


def energy_distance(batch: Any, reference: Any) -> float:
    """The energy distance between the states of batch and buffer, which detects any difference in distribution.

    The distance is ``(2 E|X - Y| - E|X - X'| - E|Y - Y'|) / sqrt(2 D)``, with X, X' from the batch, Y, Y' from the
    reference, and D features that are standardized over both. Each expectation is a mean over pairs of different draws,
    so the estimate is unbiased: its expectation for i.i.d. draws is exactly 0, for every B, M and distribution, and it
    can be slightly below 0. The maximum is ``sqrt(2 / (p (1 - p)))`` with p = B/(B + M).

    As a guide, for 4 Gaussian features: a shift of every mean by one standard deviation gives 0.41, by half a standard
    deviation 0.11, and half the standard deviation 0.08. I.i.d. draws give 0 ± 0.007 at B = 64 and M = 256. Constant
    features are left out; 0 if all are constant. O((B + M)² D).

    Parameters
    ----------
    batch : array-like of shape (B, ...), or dict or tuple of such arrays, B >= 2
        States, or any other numbers that describe a transition.
    reference : the same of shape (M, ...), M >= 2
        The same numbers for transitions drawn uniformly from the buffer, with replacement. A few hundred are enough.

    References
    ----------
    Székely and Rizzo (2013), Energy statistics: A class of statistics based on distances, equation 2.5.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> stored = rng.normal(size=(10_000, 4))
    >>> reference = stored[rng.integers(10_000, size=500)]
    >>> abs(energy_distance(stored[rng.integers(10_000, size=64)], reference)) < 0.02
    True
    >>> round(energy_distance(stored[:64] + 1.0, reference), 1)
    0.4
    """
    drawn, others = _alike(batch, reference, 2)
    both, _ = standardized(np.concatenate((drawn, others)))
    if not both.shape[1]:
        return 0.0
    size, rest = drawn.shape[0], others.shape[0]
    x, y = both[:size], both[size:]
    between = _distances(x, y).mean()
    of_batch = _distances(x, x).sum() / (size * (size - 1.0))
    of_reference = _distances(y, y).sum() / (rest * (rest - 1.0))
    return float((2.0 * between - of_batch - of_reference) / np.sqrt(2.0 * both.shape[1]))


def _distances(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The Euclidean distances between all rows of `x` and all rows of `y`."""
    of_x, of_y = (x**2).sum(axis=1), (y**2).sum(axis=1)
    squares = of_x[:, None] + of_y - 2.0 * (x @ y.T)
    # A square near rounding error means that both points are equal; its root would be as large as 1e-8
    squares[squares < 1e-13 * (1.0 + of_x.max() + of_y.max())] = 0.0
    distances: npt.NDArray[np.float64] = np.sqrt(squares)
    return distances


def _alike(batch: Any, reference: Any, minimum: int = 1) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    drawn, others = features("batch", batch, minimum), features("reference", reference, minimum)
    if drawn.shape[1] != others.shape[1]:
        raise ValueError(f"batch has {drawn.shape[1]} features and reference {others.shape[1]}; expected the same")
    return drawn, others


def relative_age(ages: Any, sizes: Any) -> Compared:
    """The mean age of the transitions of a batch, in steps.

    The expected value is the mean age of all stored transitions, ``(N - 1) / 2`` for one lane of N steps. The ratio is
    1 for i.i.d. draws, 0 if only the newest transition is drawn, and 2 if only the oldest is. O(B).

    Parameters
    ----------
    ages : array-like of shape (B,), int
        Steps since each transition was added to its lane, 0 for the newest: ``(newest - indices) // num_envs``.
    sizes : int, or array-like of shape (E,)
        The number of stored steps, N; with several lanes, the number for each lane.

    Examples
    --------
    >>> relative_age([0, 1, 2, 3], sizes=101)
    Compared(value=1.5, expected=50.0)
    """
    steps, lanes = vector("ages", as_indices("ages", ages)), lane_sizes(sizes)
    return Compared(float(steps.mean()), float((lanes * (lanes - 1.0)).sum() / (2.0 * lanes.sum())))


def td_lift(td_errors: Any, reference: Any) -> float:
    """The mean of abs(δ) over a batch, divided by its mean over the buffer.

    It is 1 for i.i.d. draws. Above 1, the batch prefers transitions with large TD errors, as prioritized replay should.
    nan if all TD errors of the reference are 0. O(B + M).

    Parameters
    ----------
    td_errors : array-like of shape (B,), float
        The TD errors of the batch; finite.
    reference : array-like of shape (M,), float
        The TD errors, from the same network, of transitions drawn uniformly from the buffer, or of all stored ones.

    Examples
    --------
    >>> td_lift([4.0, -2.0], [1.0, -1.0, 2.0, 0.0])
    3.0
    """
    drawn = nonnegative("td_errors", np.abs(vector("td_errors", td_errors)))
    of_all = nonnegative("reference", np.abs(vector("reference", reference))).mean()
    return float(drawn.mean() / of_all) if of_all else float("nan")


def weighted_td_lift(td_errors: Any, probabilities: Any) -> float:
    """An estimate of :func:`td_lift` from the batch alone.

    The buffer's mean is estimated by weighting each transition with the inverse of its probability q. The lift is
    ``mean(abs(δ)) / (sum(abs(δ) / q) / sum(1 / q))``, which is exactly 1 if all probabilities are equal. Transitions
    that cannot be drawn are ignored. The estimate is noisy if the probabilities differ widely. nan if all TD errors are
    0. O(B).

    Parameters
    ----------
    td_errors : array-like of shape (B,), float
        The TD errors of the batch; finite.
    probabilities : array-like of shape (B,), float
        ``batch.probabilities``, positive.

    Examples
    --------
    >>> weighted_td_lift([4.0, 1.0], [0.4, 0.1])
    1.5625
    """
    errors = nonnegative("td_errors", np.abs(vector("td_errors", td_errors)))
    q = nonnegative("probabilities", probabilities)
    if errors.shape != q.shape:
        raise ValueError(f"probabilities has {q.size} entries; expected {errors.size}, the number of td_errors")
    if not q.min():
        raise ValueError("probabilities contains 0; expected those of drawn transitions, which are positive")
    inverse = q.min() / q
    of_all = (errors * inverse).sum() / inverse.sum()
    return float(errors.mean() / of_all) if of_all else float("nan")
