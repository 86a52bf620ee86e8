"""How much importance weights reduce a batch, and how unequally transitions are drawn."""

from typing import Any

import numpy as np

from replaykit.diagnostics.arguments import nonnegative
from replaykit.diagnostics.td_error import top_share


def effective_sample_size(weights: Any) -> float:
    """The number of equally weighted draws that a weighted batch corresponds to: ``sum(w)² / sum(w²)``.

    It is 1 if only one weight is positive, and B if all weights are equal. nan if all weights are 0. O(B).

    Parameters
    ----------
    weights : array-like of shape (B,), float
        ``batch.weights``: finite and non-negative. A common factor has no effect.

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
    """Statistics of the importance weights of a batch.

    If the weights *collapse*, most of them are close to 0, and the update depends on a few transitions. If weights are
    divided by the largest in the buffer, all weights of a batch can be close to 0. `mean` is then far below 1. O(B).

    Parameters
    ----------
    weights : array-like of shape (B,), float
        ``batch.weights``: finite and non-negative.

    Returns
    -------
    dict of str to float
        - `effective_share`: the effective sample size divided by B, in [1/B, 1]; 1 if all weights are equal.
        - `mean`: the factor by which the weights scale the step size.
        - `min` and `max`.
        - `collapsed_share`: the share of weights below 1 % of the batch's largest, in [0, 1]; 0 is healthy.

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
    """How unequal the probabilities of the stored transitions are. O(N log N).

    Parameters
    ----------
    probabilities : array-like of shape (N,), float
        ``buffer.probability(indices, batch_size)`` for all stored transitions, or for a uniform sample of them. A
        common factor has no effect.

    Returns
    -------
    dict of str to float
        - `top_percent_share`: the probability of the most likely 1 % together, in [0.01, 1]; 0.01 if uniform.
        - `entropy`: the entropy divided by log N, in [0, 1]; 1 if uniform.
        - `perplexity_share`: ``exp(entropy) / N`` with the undivided entropy, in [1/N, 1]. It is the effective share of
          the buffer that is drawn.
        - `largest`: N times the largest probability, in [1, N]; 1 if uniform.
        - `undrawable_share`: the share of transitions whose probability is 0.

    Raises
    ------
    ValueError
        If all probabilities are 0, one is negative, NaN or infinite, or there are none.

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
    """How often transitions have been drawn, compared with uniform draws. O(N).

    Under uniform draws with replacement, the counts follow a Poisson distribution.

    Parameters
    ----------
    counts : array-like of shape (N,), int
        The number of draws of each stored transition so far.
    expected : float, or array-like of shape (N,)
        The expected number under uniform draws: the sum of B/N over all batches since the transition was added.

    Returns
    -------
    dict of str to float
        - `mean` and `max` of the counts.
        - `never_share`: the share of transitions that have never been drawn.
        - `never_expected`: the same share under uniform draws, ``mean(exp(-expected))``.
        - `dispersion`: ``sum((c - e)²) / sum(e)`` for counts c and expected counts e; 1 for i.i.d. uniform draws. It is
          below 1 if transitions are drawn in turn, and far above 1 if a few are drawn again and again. nan if all
          expected counts are 0.

    Raises
    ------
    ValueError
        If the shapes differ, or a number is negative or not finite.

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
