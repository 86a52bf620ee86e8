"""The statistics of the study, for arrays of numbers.

Runs of one seed are paired across replays, so seeds are resampled, within each task.

References
----------
Agarwal et al. (2021), Deep Reinforcement Learning at the Edge of the Statistical Precipice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Verdict: TypeAlias = Literal["supported", "refuted", "unresolved"]

RESAMPLES = 10_000
AT_ONCE = 100  # resamples of which a statistic is computed together: with 200 seeds, all would take gigabytes
SIGNS = np.array([1.0, 1.0, -1.0])  # signs of independence, identity and TD errors in the difference
MOST_ERRORS = 1e6  # maximum width of an interval in standard errors; it is then practically unbounded


class Interval(NamedTuple):
    """An estimate and its interval."""

    estimate: float
    low: float
    high: float


def interquartile_mean(scores: npt.ArrayLike) -> Floats:
    """The mean along the last axis without the lowest and the highest quarter, each rounded down."""
    ordered = np.sort(np.asarray(scores, np.float64), axis=-1)
    cut = ordered.shape[-1] // 4
    middle: Floats = ordered[..., cut : ordered.shape[-1] - cut].mean(axis=-1)
    return middle


def stratified_bootstrap(
    tasks: Sequence[Floats],
    statistic: Callable[[Sequence[Floats]], Floats],
    resamples: int = 2_000,
    level: float = 0.95,
) -> Interval:
    """The percentile interval of a statistic of all tasks' scores. Seeds are resampled within each task.

    Each task has an array of shape (seeds,), or (seeds, k) for k scores of the same seed. `statistic` takes R resamples
    at once, as arrays of shape (R, seeds) or (R, seeds, k), and returns R numbers.
    """
    rng = np.random.default_rng(0)
    drawn = [rng.integers(len(scores), size=(resamples, len(scores))) for scores in tasks]
    found = np.concatenate(
        [
            statistic([scores[seeds[part : part + AT_ONCE]] for scores, seeds in zip(tasks, drawn, strict=True)])
            for part in range(0, resamples, AT_ONCE)
        ]
    )
    low, high = np.quantile(found, [0.5 - level / 2, 0.5 + level / 2])
    estimate = statistic([scores[None] for scores in tasks])
    return Interval(float(estimate[0]), float(low), float(high))


def probability_of_improvement(pairs: Sequence[tuple[Floats, Floats]]) -> Floats:
    """The probability that a run of the first kind scores higher than one of the second, averaged over tasks.

    Ties count half.

    Runs are along the last axis.
    """
    each = [
        (np.sign(first[..., :, None] - second[..., None, :]) + 1.0).mean(axis=(-2, -1)) / 2.0 for first, second in pairs
    ]
    mean: Floats = np.mean(each, axis=0)
    return mean


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values. Rejecting those up to 0.05 limits the family-wise error rate to 0.05."""
    order = np.argsort(p_values, kind="stable")
    stepped = np.asarray(p_values, np.float64)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return [float(value) for value in adjusted]


def ranks(values: npt.ArrayLike) -> Floats:
    """Ranks from 1. Equal values get the mean of their ranks."""
    _, places, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean_rank: Floats = (last - (counts - 1) / 2.0)[places]
    return mean_rank


def partial_rank_correlation(x: npt.ArrayLike, y: npt.ArrayLike, given: npt.ArrayLike) -> float:
    """Spearman's partial correlation of x and y, controlling for the ranks of `given`; nan if constant."""
    table = np.stack([ranks(x), ranks(y), ranks(given)])
    if (table.std(axis=1) == 0.0).any():
        return float("nan")
    (_, xy, xz), (_, _, yz), _ = np.atleast_2d(np.corrcoef(table))
    rest = (1.0 - xz**2) * (1.0 - yz**2)
    return float((xy - xz * yz) / np.sqrt(rest)) if rest > 1e-12 else float("nan")


@dataclass(frozen=True)
class Comparison:
    """Whether ``|b_independence| + |b_identity|`` is larger than ``|b_td|``, with the three effects.

    The intervals of the three effects are simultaneous, at 95 %. The interval of `difference` follows from them: from
    the smallest sum minus the largest |b_td| to the reverse. It is conservative. `resampled` is the percentile interval
    of the difference itself. It is biased: noise makes magnitudes too large on average, and one side has two of them.
    The verdict does not use it.
    """

    independence: Interval
    identity: Interval
    td: Interval
    difference: Interval
    resampled: Interval
    p_value: float

    @property
    def verdict(self) -> Verdict:
        """The conclusion from the interval of the difference."""
        return "supported" if self.difference.low > 0.0 else "refuted" if self.difference.high < 0.0 else "unresolved"


def compare_effects(tasks: Sequence[Floats], resamples: int = RESAMPLES, level: float = 0.95) -> Comparison:
    """The comparison of three effects, from one array of shape (seeds, 3) for each task.

    The columns are the effects of independence, identity and TD errors for each seed. Effects are means over seeds,
    then over tasks. Their intervals are ``effect ± c x standard error``. A bootstrap determines c from the largest of
    the three deviations, each in standard errors of its resample. Seeds are resampled within tasks.

    `p_value` is one minus the highest level at which the difference is still significant.
    """
    rng = np.random.default_rng(0)
    effects = np.mean([task.mean(axis=0) for task in tasks], axis=0)
    if not np.isfinite(effects).all():  # a factor that did not vary
        independence, identity, td = (Interval(float(effect), -np.inf, np.inf) for effect in effects)
        unknown = Interval(float("nan"), -np.inf, np.inf)
        return Comparison(independence, identity, td, unknown, unknown, 1.0)
    errors = _standard_error([task[None] for task in tasks])[0]
    drawn = [task[rng.integers(len(task), size=(resamples, len(task)))] for task in tasks]  # (R, seeds, 3) each
    means = np.mean([task.mean(axis=1) for task in drawn], axis=0)  # (R, 3)
    deviation = np.abs(means - effects)
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.where(deviation > 0.0, deviation / _standard_error(drawn), 0.0)
    largest = scaled.max(axis=1)
    width = min(float(np.quantile(largest, level, method="higher")), MOST_ERRORS)
    estimate = float(np.abs(effects) @ SIGNS)
    bold = np.quantile(np.abs(means) @ SIGNS, [0.5 - level / 2, 0.5 + level / 2]).tolist()

    # The difference is significant below some width, which is found by bisection
    least, most = 0.0, MOST_ERRORS
    for _ in range(60):
        middle = (least + most) / 2.0
        low, high = _difference(effects, errors, middle)
        least, most = (middle, most) if low > 0.0 or high < 0.0 else (least, middle)
    p_value = (1.0 + float((largest >= least).sum())) / (1.0 + resamples)

    rows = np.stack([effects, *_bounds(effects, errors, width)], axis=1).tolist()
    independence, identity, td = (Interval(*row) for row in rows)
    difference = Interval(estimate, *_difference(effects, errors, width))
    return Comparison(independence, identity, td, difference, Interval(estimate, *bold), p_value)


def _standard_error(tasks: Sequence[Floats]) -> Floats:
    """The standard error of the mean over tasks of the means over seeds, axis 1: (R, 3)."""
    squares: Any = sum(task.var(axis=1, ddof=1) / task.shape[1] for task in tasks)
    error: Floats = np.sqrt(squares) / len(tasks)
    return error


def _bounds(effects: Floats, errors: Floats, width: float) -> tuple[Floats, Floats]:
    return effects - width * errors, effects + width * errors


def _difference(effects: Floats, errors: Floats, width: float) -> tuple[float, float]:
    """The minimum and the maximum of ``|a| + |b| - |c|`` within the bounds."""
    low, high = _bounds(effects, errors, width)
    most = np.maximum(np.abs(low), np.abs(high))
    least = np.where((low <= 0.0) & (high >= 0.0), 0.0, np.minimum(np.abs(low), np.abs(high)))
    return float(least[0] + least[1] - most[2]), float(most[0] + most[1] - least[2])
