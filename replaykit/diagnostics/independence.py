"""Are the transitions of a batch, and of successive batches, independent of each other?

The first half of i.i.d. Each measure stands beside its expectation under independent uniform draws.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from replaykit.diagnostics.arguments import Compared, count, features, nonnegative, standardised, whole
from replaykit.field import as_float64, as_indices


def duplicates(indices: Any, size: int) -> Compared:
    """The share of a batch that repeats a transition already in it: ``1 - unique / B``.

    From 0 to 1 - 1/B. Expected: ``1 - N (1 - (1 - 1/N)**B) / B``, for draws with replacement; the ratio is 0 for
    draws without, and above 1 where few transitions are drawn again and again. O(B log B).

    Parameters
    ----------
    indices : array-like of shape (B,), int
        Of one batch.
    size : int
        Transitions that could be drawn, N.

    Examples
    --------
    >>> duplicates([3, 3, 7, 3], size=4)
    Compared(value=0.5, expected=0.31640625)
    """
    drawn, stored = whole("indices", indices), count("size", size)
    value = 1.0 - np.unique(drawn).size / drawn.size
    distinct = -stored * np.expm1(drawn.size * np.log1p(-1.0 / stored)) if stored > 1 else 1.0
    return Compared(float(value), float(max(1.0 - distinct / drawn.size, 0.0)))


def overlap(indices: Any, previous: Any, size: int) -> Compared:
    """The share of a batch that was in the batch before, too.

    From 0 to 1. Expected: ``1 - (1 - 1/N)**B`` with the B of the previous batch; the ratio is above 1 where batches
    hold on to the same transitions. O(B log B).

    Parameters
    ----------
    indices, previous : array-like of shape (B,), int
        Of two successive batches.
    size : int
        Transitions that could be drawn, N.

    Examples
    --------
    >>> overlap([1, 2, 3, 4], [3, 4, 5, 6], size=2)
    Compared(value=0.5, expected=0.9375)
    """
    drawn, before, stored = whole("indices", indices), whole("previous", previous), count("size", size)
    missed = (1.0 - 1.0 / stored) ** before.size
    return Compared(float(np.isin(drawn, before).mean()), 1.0 - missed)


def same_episode_pairs(episodes: Any, lengths: Any) -> Compared:
    """The share of the pairs of a batch that come from the same episode.

    Steps of one episode resemble each other, so such pairs carry less news than others. From 0 to 1. Expected:
    ``sum((L / N)**2)`` over the stored episodes of L steps, N in all, for draws with replacement. A ratio of 1 is
    i.i.d.; a batch of consecutive steps reaches 1 / expected. nan for a batch of one. O(B log B).

    Parameters
    ----------
    episodes : array-like of shape (B,), int
        The number of the episode of each transition, as ``buffer.episode(batch.indices)[0]`` gives it.
    lengths : array-like of shape (K,), int or float
        How many steps of each episode are stored.

    Examples
    --------
    >>> same_episode_pairs([0, 0, 1, 2], lengths=[10, 10, 20])
    Compared(value=0.16666666666666666, expected=0.375)
    """
    numbers, stored = as_indices("episodes", episodes), nonnegative("lengths", lengths)
    if not stored.sum():
        raise ValueError("lengths are all 0; expected at least one stored step")
    shares = stored / stored.sum()
    return Compared(share_of_equal_pairs(numbers), float((shares**2).sum()))


def share_of_equal_pairs(labels: npt.NDArray[np.int64]) -> float:
    """The share of the pairs that have the same label; nan for less than two."""
    size = labels.size
    if size < 2:
        return float("nan")
    counts = np.unique(labels, return_counts=True)[1]
    return float((counts * (counts - 1)).sum() / (size * (size - 1)))


def temporal_distance(ages: Any, sizes: Any) -> Compared:
    """How many steps lie between two transitions of a batch, on average over its pairs.

    Expected for draws with replacement from N consecutive steps: ``(N² - 1) / (3 N)``, about N/3. A ratio of 1 is
    i.i.d.; near 0, the batch is a run of neighbours; above 1, it is spread further than chance would. Between
    steps of parallel lanes the difference of their ages counts. nan for a batch of one. O(B log B + E²).

    Parameters
    ----------
    ages : array-like of shape (B,), int
        Steps since each transition was added to its lane, 0 for the newest. With one lane any numbering of steps will
        do, such as ``batch.indices``, since only differences count.
    sizes : int, or array-like of shape (E,)
        How many steps are stored, N; of each lane, if there are several.

    Examples
    --------
    >>> temporal_distance([0, 1, 2, 3], sizes=100).ratio < 0.1
    True
    """
    steps, lanes = whole("ages", ages), _lane_sizes(sizes)
    steps = steps - steps.min()  # as integers, of which floats hold only the small ones exactly
    total = lanes.sum()
    between = [(a, b) for a in np.unique(lanes) for b in np.unique(lanes)]
    counts = {size: int((lanes == size).sum()) for size in np.unique(lanes)}
    expected = sum(counts[a] * counts[b] * _distances_between(min(a, b), max(a, b)) for a, b in between) / total**2
    return Compared(mean_distance(steps.astype(np.float64)), float(expected))


def mean_distance(values: npt.NDArray[np.float64]) -> float:
    """Mean difference of the pairs of `values`, in magnitude; nan for less than two."""
    size = values.size
    if size < 2:
        return float("nan")
    places = 2.0 * np.arange(size) - size + 1.0
    return float((places * np.sort(values)).sum() * 2.0 / (size * (size - 1)))


def _distances_between(short: float, long: float) -> float:
    """Sum of abs(i - j) over 0 <= i < short and 0 <= j < long."""
    below = (short - 1.0) * short * (short + 1.0) / 6.0  # over j < i, for each i: i (i + 1) / 2
    above = (
        long * (long - 1.0) * (long + 1.0) / 6.0 - (long - short) * (long - short - 1.0) * (long - short + 1.0) / 6.0
    )
    return below + above


def _lane_sizes(sizes: Any) -> npt.NDArray[np.float64]:
    lanes = nonnegative("sizes", np.atleast_1d(as_float64("sizes", sizes)))
    if (lanes % 1.0).any() or not lanes.sum():
        raise ValueError(f"sizes is {sizes}; expected whole numbers of stored steps, at least 1 in all")
    return lanes[lanes > 0.0]


def autocorrelation(series: Any, lag: int = 1) -> float:
    """How much each entry of a series resembles the one `lag` before, corrected for the series' length.

    ``sum((x[t] - m) (x[t+lag] - m)) / sum((x[t] - m)²)``, plus ``(K - lag) / (K (K - 1))``, which is what independent
    entries fall below 0 on average: so 0 is i.i.d. on average, for every K and distribution. Towards 1, successive
    batches tell the same; below 0, they alternate. Averaged over features; those that never change are left out, and
    it is nan if all are. O(K D).

    Parameters
    ----------
    series : array-like of shape (K,) or (K, D)
        One number, or D, for each of K successive batches, such as the means of their states. From one state of the
        buffer: while the buffer itself changes, so do the means, however batches are drawn.
    lag : int
        At least 1 and below K.

    Examples
    --------
    >>> autocorrelation([0.0, 1.0] * 50) < -0.9, autocorrelation(np.arange(100.0)) > 0.9
    (True, True)
    """
    values = features("series", series, 2)
    shift, size = count("lag", lag), values.shape[0]
    if shift >= size:
        raise ValueError(f"lag is {shift}; expected less than the {size} entries of series")
    values, _ = standardised(values)
    if not values.shape[1]:
        return float("nan")
    products = (values[:-shift] * values[shift:]).sum(axis=0)
    return float((products.mean() + (size - shift) / size) / (size - 1.0))


def design_effect(batches: Any) -> float:
    """By what factor the mean of a batch varies more than that of independent draws.

    ``B Var(batch mean) / Var(one draw)``: 1 is i.i.d., on average exactly, for every K, B and distribution; B if
    all draws of a batch are equal; below 1 where draws balance each other, as stratified ones do, down to 0 for a
    deterministic sampler. ``B / design_effect`` is the *effective batch size*: how many independent draws would be
    worth as much. It says nothing about *what* is drawn, see :func:`batch_mean_error` for both together. With few
    batches that each are all alike it is too low by up to 1 part in K. Averaged over features; constant ones are
    left out, and it is nan if all are. O(K B D).

    Parameters
    ----------
    batches : array-like of shape (K, B) or (K, B, D)
        One number, or D, of each of B draws in each of K >= 2 batches; from one state of the buffer.

    References
    ----------
    Kish (1965), Survey Sampling, section 8.2.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> draws = rng.normal(size=(5000, 64))
    >>> round(design_effect(draws), 1), round(design_effect(np.repeat(draws[:, ::8], 8, axis=1)), 1)
    (1.0, 8.0)
    """
    values = _batches(batches)
    size = values.shape[1]
    draws, _ = standardised(values.reshape(-1, values.shape[2]))
    if not draws.shape[1]:
        return float("nan")
    means = draws.reshape(-1, size, draws.shape[1]).mean(axis=1)
    return float(size * _variance(means))


def _variance(means: npt.NDArray[np.float64]) -> float:
    """The variance of the rows, averaged over features: 0 exactly, if they are equal."""
    return float((means - means[0]).var(axis=0, ddof=1).mean())


def _batches(batches: Any) -> npt.NDArray[np.float64]:
    values = as_float64("batches", batches)
    if values.ndim not in (2, 3) or values.shape[0] < 2 or not values.size:
        raise ValueError(f"batches has shape {values.shape}; expected (K, B) or (K, B, D) with K of at least 2")
    if not np.isfinite(values).all():
        raise ValueError("batches contains NaN or infinite numbers; expected finite ones: leave these batches out")
    return values.reshape(*values.shape[:2], -1)


class BatchMeanError(NamedTuple):
    """How far batch means lie from the buffer's mean, in units of what independent uniform draws have.

    Attributes
    ----------
    variance : float
        Of batch means, 1 if i.i.d.: the design effect, but measured by the variance in the buffer.
    squared_bias : float
        Of their average from the buffer's mean, 0 if i.i.d.; may be a little below, as it is unbiased.
    batch_size : int
        B.
    """

    variance: float
    squared_bias: float
    batch_size: int

    @property
    def total(self) -> float:
        """``variance + squared_bias``: the mean squared error, 1 if i.i.d."""
        return self.variance + self.squared_bias

    @property
    def variance_share(self) -> float:
        """``variance / (variance + squared_bias)``: 1 if i.i.d., 0 for a deterministic sampler that is off the mean."""
        return self.variance / self.total if self.total > 0.0 else float("nan")

    @property
    def effective_batch_size(self) -> float:
        """How many independent uniform draws estimate the buffer's mean as well as a batch does, ``B / total``."""
        return self.batch_size / self.total if self.total > 0.0 else float("inf")


def batch_mean_error(batches: Any, population: Any) -> BatchMeanError:
    """How well batches estimate the mean of what is stored: both halves of i.i.d. in one number.

    With the mean m and variance s² of the population, and K batch means: ``variance = B Var(batch mean) / s²`` and
    ``squared_bias = B (average batch mean - m)² / s² - variance / K``, averaged over features that vary. A sampler
    that always draws the same has variance 0 and yet is not better than chance: its bias shows. O(K B D + N D).

    Parameters
    ----------
    batches : array-like of shape (K, B) or (K, B, D)
        Of K >= 2 batches, from one state of the buffer.
    population : array-like of shape (N,) or (N, D)
        The same of all that is stored.

    Returns
    -------
    BatchMeanError

    Examples
    --------
    >>> stored = np.arange(1000.0)
    >>> rng = np.random.default_rng(0)
    >>> error = batch_mean_error(rng.choice(stored, (500, 64)), stored)
    >>> round(error.total, 1), round(error.effective_batch_size)
    (0.9, 73)
    >>> newest = batch_mean_error(np.tile(stored[-64:], (500, 1)), stored)
    >>> newest.variance, round(newest.squared_bias), round(newest.effective_batch_size, 2)
    (0.0, 168, 0.38)
    """
    values, stored = _batches(batches), features("population", population)
    if values.shape[2] != stored.shape[1]:
        raise ValueError(f"population has {stored.shape[1]} features; expected {values.shape[2]}, as batches has")
    varies = stored.max(axis=0) > stored.min(axis=0)
    values, stored = values[:, :, varies], stored[:, varies]
    size = values.shape[1]
    if not stored.shape[1]:
        return BatchMeanError(float("nan"), float("nan"), size)
    largest = np.abs(stored).max(axis=0)
    stored, values = stored / largest, values / largest  # so that no square overflows or vanishes
    means = (values.mean(axis=1) - stored.mean(axis=0)) / stored.std(axis=0)
    variance = size * _variance(means)
    bias = float(size * (means.mean(axis=0) ** 2).mean())
    return BatchMeanError(variance, bias - variance / means.shape[0], size)
