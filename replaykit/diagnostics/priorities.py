"""What importance sampling leaves of a batch, and whether prioritized draws are healthy."""

from typing import Any

import numpy as np

from replaykit.diagnostics.arguments import nonnegative
from replaykit.diagnostics.td_error import top_share


def effective_sample_size(weights: Any) -> float:
    """How many equally weighted draws a weighted batch is worth: ``sum(w)² / sum(w²)``.

    From 1, where one weight is everything, to B, where all are equal. nan if all are 0. O(B).

    Parameters
    ----------
    weights : array-like of shape (B,), float
        ``batch.weights``: finite, not negative. A common factor does not matter.

    References
    ----------
    Kong (1992), A note on importance sampling using standardized weights.

    Examples
    --------
    >>> effective_sample_size([1.0, 1.0, 1.0, 1.0]), effective_sample_size([1.0, 0.0, 0.0, 0.0])
    (4.0, 1.0)
    """
    w = nonnegative("weights", weights)
    if not w.max():
        return float("nan")
    w = w / w.max()
    return float(w.sum() ** 2 / (w**2).sum())


def weight_stats(weights: Any) -> dict[str, float]:
    """What the importance weights leave of a batch.

    O(B). A batch whose weights *collapse* learns from a few transitions only, or, where they are divided by the largest
    of the buffer, from none: then `mean` falls far below 1.

    Parameters
    ----------
    weights : array-like of shape (B,), float
        ``batch.weights``: finite, not negative.

    Returns
    -------
    dict of str to float
        `effective_share`, the effective sample size divided by B, in [1/B, 1], 1 where nothing is corrected for;
        `mean`, by which the step length of learning is scaled; `min` and `max`; and `collapsed_share`, of the
        weights below 1 % of the batch's largest, in [0, 1], 0 where healthy.

    Examples
    --------
    >>> stats = weight_stats([1.0, 1.0, 0.001, 0.001])
    >>> round(stats["effective_share"], 2), stats["collapsed_share"]
    (0.5, 0.5)
    """
    w = nonnegative("weights", weights)
    return {
        "effective_share": effective_sample_size(w) / w.size,
        "mean": float(w.mean()),
        "min": float(w.min()),
        "max": float(w.max()),
        "collapsed_share": float((w < 0.01 * w.max()).mean()),
    }


def draw_distribution(probabilities: Any) -> dict[str, float]:
    """How unequal the probabilities of the stored transitions are.

    O(N log N).

    Parameters
    ----------
    probabilities : array-like of shape (N,), float
        ``buffer.probability(indices, batch_size)`` of all that is stored, or of a uniform sample; a common factor
        does not matter.

    Returns
    -------
    dict of str to float
        `top_percent_share`, the mass of the most likely 1 %, in [0.01, 1], 0.01 where uniform; `entropy`, divided by
        log N, in [0, 1], 1 where uniform; `perplexity_share`, ``exp(entropy) / N``, in [1/N, 1]: the share of the
        buffer that the draws amount to; `largest`, N times the largest probability, in [1, N], 1 where uniform;
        and `undrawable_share`, of those with probability 0.

    Raises
    ------
    ValueError
        If all are 0, one is negative, NaN or infinite, or there is none.

    Examples
    --------
    >>> health = draw_distribution([0.25, 0.25, 0.25, 0.25])
    >>> health["top_percent_share"], health["entropy"], health["perplexity_share"]
    (0.01, 1.0, 1.0)
    >>> health = draw_distribution([1.0, 1.0, 0.0, 0.0])
    >>> health["perplexity_share"], health["undrawable_share"]
    (0.5, 0.5)
    """
    p = nonnegative("probabilities", probabilities)
    if not p.max():
        raise ValueError("probabilities are all 0; expected at least one transition that can be drawn")
    p = p / p.max()
    p = p / p.sum()
    positive = p[p > 0.0]
    entropy = float(-(positive * np.log(positive)).sum())
    return {
        "top_percent_share": top_share(p, 0.01),
        "entropy": min(entropy / float(np.log(p.size)), 1.0) if p.size > 1 else 1.0,
        "perplexity_share": min(float(np.exp(entropy)) / p.size, 1.0),
        "largest": float(p.size * p.max()),
        "undrawable_share": 1.0 - positive.size / p.size,
    }


def draw_count_stats(counts: Any, expected: Any) -> dict[str, float]:
    """How often each transition has been drawn, beside uniform draws.

    O(N). Uniform draws with replacement make the counts Poisson.

    Parameters
    ----------
    counts : array-like of shape (N,), int
        How often each stored transition was drawn so far.
    expected : float, or array-like of shape (N,)
        How often uniform draws would have drawn it since it was added: the sum of B/N over the batches since.

    Returns
    -------
    dict of str to float
        `mean` and `max` of the counts; `never_share`, of the transitions never drawn so far, and `never_expected`, the
        same under uniform draws, ``mean(exp(-expected))``; and `dispersion`, ``sum((c - e)²) / sum(e)``: 1 if
        uniform and independent, below where draws take turns, far above where a few are drawn again and again. nan
        if nothing is expected.

    Raises
    ------
    ValueError
        If shapes differ, or a number is negative or not finite.

    Examples
    --------
    >>> stats = draw_count_stats([0, 0, 0, 8], expected=2.0)
    >>> stats["never_share"], round(stats["never_expected"], 3), stats["dispersion"]
    (0.75, 0.135, 6.0)
    """
    c = nonnegative("counts", counts)
    shape = np.shape(expected)
    if shape not in ((), c.shape):
        raise ValueError(f"expected has shape {shape}; expected {c.shape}, that of counts, or a number")
    e = nonnegative("expected", np.broadcast_to(np.asarray(expected, np.float64), c.shape))
    total = e.sum()
    return {
        "mean": float(c.mean()),
        "max": float(c.max()),
        "never_share": float((c == 0.0).mean()),
        "never_expected": float(np.exp(-e).mean()),
        "dispersion": float(((c - e) ** 2).sum() / total) if total else float("nan"),
    }
