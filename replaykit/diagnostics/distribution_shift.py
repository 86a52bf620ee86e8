"""Is what a batch shows distributed as what is stored?

The second half of i.i.d. Each measure is compared with uniform draws from the buffer.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from replaykit.diagnostics.arguments import Compared, features, nonnegative, standardised, vector
from replaykit.diagnostics.independence import _lane_sizes
from replaykit.field import as_indices


def mean_shift(batch: Any, reference: Any) -> float:
    """How far the mean of a batch lies from the buffer's, squared, in units of what chance makes of it.

    ``(mean(batch) - mean(reference))² / (s² (1/B + 1/M))`` with the variance s² of both together, averaged over
    features. 1 if i.i.d., on average exactly, for every B, M and distribution; from 0 to B + M - 1. A batch of
    neighbours, an unrepresentative one and a small one that is both all raise it: it is one batch's share of
    :func:`batch_mean_error`. Average it over batches, for one alone it is noisy: its standard deviation is 1.4 with
    one feature. Constant features are left out; nan if all are. O((B + M) D).

    Parameters
    ----------
    batch : array-like of shape (B, ...), or dict or tuple of such
        States, or whatever describes a transition.
    reference : the same of shape (M, ...)
        Of transitions drawn uniformly from the buffer, with replacement; or of all that is stored.

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> stored = rng.normal(size=(10_000, 4))
    >>> round(mean_shift(stored[rng.integers(10_000, size=64)], stored), 1)
    0.6
    >>> round(mean_shift(stored[:64] + 1.0, stored), 1)  # every feature shifted by one standard deviation
    53.5
    """
    drawn, others = _alike(batch, reference)
    shift, noise = standardised_shift(drawn, others)
    shift = shift[np.isfinite(shift)]
    return float((shift**2).mean() / noise) if shift.size else float("nan")


def standardised_shift(
    batch: npt.NDArray[np.float64], reference: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], float]:
    """Each feature's shift of the mean in standard deviations, nan if constant, and the variance that is chance's."""
    size, rest = batch.shape[0], reference.shape[0]
    both, varies = standardised(np.concatenate((batch, reference)))
    shift = np.full(batch.shape[1], np.nan)
    shift[varies] = both[:size].mean(axis=0) - both[size:].mean(axis=0)
    return shift, 1.0 / size + 1.0 / rest


def energy_distance(batch: Any, reference: Any) -> float:
    """How different the states of a batch are from the buffer's, in any respect: place, spread, shape, clusters.

    ``(2 E|X - Y| - E|X - X'| - E|Y - Y'|) / sqrt(2 D)`` with X, X' from the batch, Y, Y' from the reference and D
    features standardised over both together, estimated without bias: each expectation over pairs of different draws.
    So 0 is i.i.d., on average exactly, for every B, M and distribution, and values a little below 0 occur; the largest
    possible is ``sqrt(2 / (p (1 - p)))`` with p = B/(B + M). With 4 Gaussian features a shift of every mean by one
    standard deviation gives 0.41, by half of one 0.11, and half the spread 0.08; chance alone is ± 0.007 at B = 64,
    M = 256. Constant features are left out; 0 if all are. O((B + M)² D).

    Parameters
    ----------
    batch : array-like of shape (B, ...), or dict or tuple of such, B >= 2
        States, or whatever describes a transition.
    reference : the same of shape (M, ...), M >= 2
        Of transitions drawn uniformly from the buffer, with replacement. A few hundred will do.

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
    both, _ = standardised(np.concatenate((drawn, others)))
    if not both.shape[1]:
        return 0.0
    size, rest = drawn.shape[0], others.shape[0]
    x, y = both[:size], both[size:]
    between = _distances(x, y).mean()
    of_batch = _distances(x, x).sum() / (size * (size - 1.0))
    of_reference = _distances(y, y).sum() / (rest * (rest - 1.0))
    return float((2.0 * between - of_batch - of_reference) / np.sqrt(2.0 * both.shape[1]))


def _distances(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Euclidean distances of all pairs."""
    of_x, of_y = (x**2).sum(axis=1), (y**2).sum(axis=1)
    squares = of_x[:, None] + of_y - 2.0 * (x @ y.T)
    # What cancels to rounding error is the same point; a root would make 1e-8 of it
    squares[squares < 1e-13 * (1.0 + of_x.max() + of_y.max())] = 0.0
    distances: npt.NDArray[np.float64] = np.sqrt(squares)
    return distances


def _alike(batch: Any, reference: Any, minimum: int = 1) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    drawn, others = features("batch", batch, minimum), features("reference", reference, minimum)
    if drawn.shape[1] != others.shape[1]:
        raise ValueError(f"batch has {drawn.shape[1]} features and reference {others.shape[1]}; expected the same")
    return drawn, others


def relative_age(ages: Any, sizes: Any) -> Compared:
    """How old the transitions of a batch are, on average.

    Expected: ``(N - 1) / 2`` for N consecutive steps; over lanes of several sizes, the mean of all that is stored. A
    ratio of 1 is i.i.d., 0 the newest only, 2 the oldest only. O(B).

    Parameters
    ----------
    ages : array-like of shape (B,), int
        Steps since each transition was added to its lane, 0 for the newest: ``(newest - indices) // num_envs``.
    sizes : int, or array-like of shape (E,)
        How many steps are stored, N; of each lane, if there are several.

    Examples
    --------
    >>> relative_age([0, 1, 2, 3], sizes=101)
    Compared(value=1.5, expected=50.0)
    """
    steps, lanes = vector("ages", as_indices("ages", ages)), _lane_sizes(sizes)
    return Compared(float(steps.mean()), float((lanes * (lanes - 1.0)).sum() / (2.0 * lanes.sum())))


def td_lift(td_errors: Any, reference: Any) -> float:
    """How much larger the TD errors of a batch are than those of the buffer: ``mean abs(δ) / mean abs(δ)``.

    1 is i.i.d.; above 1 the batch has what is most wrongly predicted, which is what prioritized replay is for. nan
    if every error of the reference is 0. O(B + M).

    Parameters
    ----------
    td_errors : array-like of shape (B,), float
        Of the batch; finite.
    reference : array-like of shape (M,), float
        Of transitions drawn uniformly from the buffer, or of all; by the same network.

    Examples
    --------
    >>> td_lift([4.0, -2.0], [1.0, -1.0, 2.0, 0.0])
    3.0
    """
    drawn = nonnegative("td_errors", np.abs(vector("td_errors", td_errors)))
    of_all = nonnegative("reference", np.abs(vector("reference", reference))).mean()
    return float(drawn.mean() / of_all) if of_all else float("nan")


def weighted_td_lift(td_errors: Any, probabilities: Any) -> float:
    """:func:`td_lift` from the batch alone: its probabilities tell what the buffer's mean would be.

    ``mean abs(δ) / (sum(abs(δ) / q) / sum(1 / q))``. Exactly 1 where all are drawn alike. What cannot be drawn at all
    counts on neither side, and with widely different probabilities it is noisy. nan if every error is 0. O(B).

    Parameters
    ----------
    td_errors : array-like of shape (B,), float
        Of the batch; finite.
    probabilities : array-like of shape (B,), float
        ``batch.probabilities``, positive.

    Examples
    --------
    >>> weighted_td_lift([4.0, 1.0], [0.4, 0.1])  # ten times as many of the second kind as are drawn of the first
    1.5625
    """
    errors = nonnegative("td_errors", np.abs(vector("td_errors", td_errors)))
    q = nonnegative("probabilities", probabilities)
    if errors.shape != q.shape:
        raise ValueError(f"probabilities has {q.size} entries; expected {errors.size}, as td_errors has")
    if not q.min():
        raise ValueError("probabilities contains 0; expected those of drawn transitions, which are positive")
    inverse = q.min() / q
    of_all = (errors * inverse).sum() / inverse.sum()
    return float(errors.mean() / of_all) if of_all else float("nan")
