"""Whether the transitions of a batch, and of successive batches, are independent of each other.

Each measure is compared with its expectation under independent uniform draws.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from replaykit.diagnostics.arguments import Compared, count, features, integers, lane_sizes, nonnegative, standardized
from replaykit.field import as_float64, as_indices


def duplicates(indices: Any, size: int) -> Compared:
    """The share of a batch that repeats other transitions of the batch: ``1 - unique / B``.

    The value is between 0 and 1 - 1/B. The expected value, for draws with replacement, is
    ``1 - N (1 - (1 - 1/N)**B) / B``. The ratio is 0 for draws without replacement, and above 1 if a few transitions are
    drawn again and again. O(B log B).

    Parameters
    ----------
    indices : array-like of shape (B,), int
        The indices of one batch.
    size : int
        The number of transitions that could be drawn, N.

    Examples
    --------
    >>> duplicates([3, 3, 7, 3], size=4)
    Compared(value=0.5, expected=0.31640625)
    """
    drawn, stored = integers("indices", indices), count("size", size)
    value = 1.0 - np.unique(drawn).size / drawn.size
    distinct = -stored * np.expm1(drawn.size * np.log1p(-1.0 / stored)) if stored > 1 else 1.0
    return Compared(float(value), float(max(1.0 - distinct / drawn.size, 0.0)))


def overlap(indices: Any, previous: Any, size: int) -> Compared:
    """The share of a batch that was also in the previous batch.

    The value is between 0 and 1. The expected value is ``1 - (1 - 1/N)**B``, where B is the size of the previous batch.
    The ratio is above 1 if successive batches contain the same transitions. O(B log B).

    Parameters
    ----------
    indices, previous : array-like of shape (B,), int
        The indices of two successive batches.
    size : int
        The number of transitions that could be drawn, N.

    Examples
    --------
    >>> overlap([1, 2, 3, 4], [3, 4, 5, 6], size=2)
    Compared(value=0.5, expected=0.9375)
    """
    drawn, before, stored = integers("indices", indices), integers("previous", previous), count("size", size)
    missed = (1.0 - 1.0 / stored) ** before.size
    return Compared(float(np.isin(drawn, before).mean()), 1.0 - missed)


def same_episode_pairs(episodes: Any, lengths: Any) -> Compared:
    """The share of the pairs of transitions in a batch that come from the same episode.

    Steps of one episode are similar, so such a pair carries less information than two steps of different episodes. The
    value is between 0 and 1. The expected value, for draws with replacement, is ``sum((L / N)**2)`` over the stored
    episodes, where L is the number of steps of an episode and N is the sum of all L. The ratio is 1 for i.i.d. draws
    and 1 / expected for a batch of consecutive steps. nan for a batch of one. O(B log B).

    Parameters
    ----------
    episodes : array-like of shape (B,), int
        The episode number of each transition, from ``buffer.episode(batch.indices)[0]``.
    lengths : array-like of shape (K,), int or float
        The number of stored steps of each episode.

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
    """The share of the pairs of `labels` that are equal; nan for fewer than two labels."""
    size = labels.size
    if size < 2:
        return float("nan")
    counts = np.unique(labels, return_counts=True)[1]
    return float((counts * (counts - 1)).sum() / (size * (size - 1)))


def temporal_distance(ages: Any, sizes: Any) -> Compared:
    """The mean number of steps between two transitions of a batch, over all pairs.

    The expected value, for draws with replacement from N consecutive steps, is ``(N² - 1) / (3 N)``, about N/3. The
    ratio is 1 for i.i.d. draws, near 0 for a batch of consecutive steps, and above 1 if the batch is more spread out
    than i.i.d. draws. The distance between steps of different lanes is the difference of their ages. nan for a batch of
    one. O(B log B + E²).

    Parameters
    ----------
    ages : array-like of shape (B,), int
        Steps since each transition was added to its lane, 0 for the newest. Only differences matter, so with one lane
        you can pass ``batch.indices``.
    sizes : int, or array-like of shape (E,)
        The number of stored steps, N; with several lanes, the number for each lane.

    Examples
    --------
    >>> temporal_distance([0, 1, 2, 3], sizes=100).ratio < 0.1
    True
    """
    steps, lanes = integers("ages", ages), lane_sizes(sizes)
    steps = steps - steps.min()  # subtract as integers: floats are not exact for large ones
    total = lanes.sum()
    between = [(a, b) for a in np.unique(lanes) for b in np.unique(lanes)]
    counts = {size: int((lanes == size).sum()) for size in np.unique(lanes)}
    expected = sum(counts[a] * counts[b] * _distances_between(min(a, b), max(a, b)) for a, b in between) / total**2
    return Compared(mean_distance(steps.astype(np.float64)), float(expected))


def mean_distance(values: npt.NDArray[np.float64]) -> float:
    """The mean absolute difference over all pairs of `values`; nan for fewer than two."""
    size = values.size
    if size < 2:
        return float("nan")
    places = 2.0 * np.arange(size) - size + 1.0
    return float((places * np.sort(values)).sum() * 2.0 / (size * (size - 1)))


def _distances_between(short: float, long: float) -> float:
    """The sum of abs(i - j) over 0 <= i < short and 0 <= j < long."""
    below = (short - 1.0) * short * (short + 1.0) / 6.0  # sum over j < i, for each i: i (i + 1) / 2
    above = (
        long * (long - 1.0) * (long + 1.0) / 6.0 - (long - short) * (long - short - 1.0) * (long - short + 1.0) / 6.0
    )
    return below + above


def autocorrelation(series: Any, lag: int = 1) -> float:
    """The correlation of a series with itself `lag` entries earlier, corrected for the length of the series.

    The correlation is ``sum((x[t] - m) (x[t+lag] - m)) / sum((x[t] - m)²)`` with the mean m. For independent entries,
    its mean is not 0 but ``-(K - lag) / (K (K - 1))``. This bias is subtracted, so i.i.d. entries give 0 on average,
    for every K and distribution. Values near 1 mean that successive batches are similar; values below 0 mean that they
    alternate. The result is averaged over features. Constant features are left out; nan if all are constant. O(K D).

    Parameters
    ----------
    series : array-like of shape (K,) or (K, D)
        One number, or D, for each of K successive batches, such as the means of their states. Draw all batches from the
        same contents of the buffer: if the buffer changes in between, the means change for that reason alone.
    lag : int
        At least 1 and less than K.

    Examples
    --------
    >>> autocorrelation([0.0, 1.0] * 50) < -0.9, autocorrelation(np.arange(100.0)) > 0.9
    (True, True)
    """
    values = features("series", series, 2)
    shift, size = count("lag", lag), values.shape[0]
    if shift >= size:
        raise ValueError(f"lag is {shift}; expected less than the {size} entries of series")
    values, _ = standardized(values)
    if not values.shape[1]:
        return float("nan")
    products = (values[:-shift] * values[shift:]).sum(axis=0)
    return float((products.mean() + (size - shift) / size) / (size - 1.0))


def design_effect(batches: Any) -> float:
    """The variance of a batch's mean, relative to that of a batch of independent draws.

    The design effect is ``B Var(batch mean) / Var(one draw)``. Its expectation for i.i.d. draws is exactly 1, for every
    K, B and distribution. It is B if all draws of a batch are equal, and below 1 if draws balance each other, as
    stratified draws do. It is 0 for a sampler that always returns the same batch.

    ``B / design_effect`` is the *effective batch size*: the number of independent draws whose mean has the same
    variance. The design effect does not show a difference between the distributions of batch and buffer;
    :func:`batch_mean_error` does. If the draws within each batch are equal, the estimate is too low by up to 1 part in
    K. The result is averaged over features. Constant features are left out; nan if all are constant. O(K B D).

    Parameters
    ----------
    batches : array-like of shape (K, B) or (K, B, D)
        One number, or D, for each of B draws in each of K >= 2 batches. Draw all batches from the same contents of the
        buffer.

    References
    ----------
    Kish (1965), Survey Sampling, section 8.2.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> draws = rng.normal(size=(5000, 64))
    >>> runs = np.repeat(draws[:, ::8], 8, axis=1)
    >>> round(design_effect(draws), 1), round(design_effect(runs), 1)
    (1.0, 8.0)
    """
    values = _batches(batches)
    size = values.shape[1]
    draws, _ = standardized(values.reshape(-1, values.shape[2]))
    if not draws.shape[1]:
        return float("nan")
    means = draws.reshape(-1, size, draws.shape[1]).mean(axis=1)
    return float(size * _variance(means))


def _variance(means: npt.NDArray[np.float64]) -> float:
    """The variance of the rows, averaged over features; exactly 0 if all rows are equal."""
    return float((means - means[0]).var(axis=0, ddof=1).mean())


def _batches(batches: Any) -> npt.NDArray[np.float64]:
    values = as_float64("batches", batches)
    if values.ndim not in (2, 3) or values.shape[0] < 2 or not values.size:
        raise ValueError(f"batches has shape {values.shape}; expected (K, B) or (K, B, D) with K of at least 2")
    if not np.isfinite(values).all():
        raise ValueError("batches contains NaN or infinite numbers; expected finite ones: leave these batches out")
    return values.reshape(*values.shape[:2], -1)


class BatchMeanError(NamedTuple):
    """The mean squared error of batch means as estimates of the buffer's mean, relative to independent uniform draws.

    Attributes
    ----------
    variance : float
        The variance of the batch means; 1 for i.i.d. draws. It is the design effect, relative to the variance in the
        buffer.
    squared_bias : float
        The squared difference between the average batch mean and the buffer's mean; 0 for i.i.d. draws. The estimate is
        unbiased, so it can be slightly below 0.
    batch_size : int
        The batch size, B.
    """

    variance: float
    squared_bias: float
    batch_size: int

    @property
    def total(self) -> float:
        """The mean squared error, ``variance + squared_bias``; 1 for i.i.d. draws."""
        return self.variance + self.squared_bias

    @property
    def variance_share(self) -> float:
        """``variance / (variance + squared_bias)``: 1 for i.i.d. draws, 0 if the whole error is bias."""
        return self.variance / self.total if self.total > 0.0 else float("nan")

    @property
    def effective_batch_size(self) -> float:
        """The number of independent uniform draws that estimate the buffer's mean as well as a batch, ``B / total``."""
        return self.batch_size / self.total if self.total > 0.0 else float("inf")


def batch_mean_error(batches: Any, population: Any) -> BatchMeanError:
    """The error of batch means as estimates of the buffer's mean. Dependence and distribution shift both increase it.

    With the mean m and variance s² of the population and K batch means, ``variance = B Var(batch mean) / s²`` and
    ``squared_bias = B (average batch mean - m)² / s² - variance / K``. Both are averaged over the features that vary. A
    sampler that always returns the same batch has variance 0, but its bias is large. O(K B D + N D).

    Parameters
    ----------
    batches : array-like of shape (K, B) or (K, B, D)
        One number, or D, for each of B draws in each of K >= 2 batches. Draw all batches from the same contents of the
        buffer.
    population : array-like of shape (N,) or (N, D)
        The same numbers for all stored transitions.

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
        raise ValueError(
            f"population has {stored.shape[1]} features; expected {values.shape[2]}, the number of features of batches"
        )
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
