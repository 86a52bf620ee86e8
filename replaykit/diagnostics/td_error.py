"""The size and spread of the TD errors of a batch."""

from typing import Any

import numpy as np
import numpy.typing as npt

from replaykit.diagnostics.arguments import nonnegative, vector

QUANTILES = {"q10": 0.1, "q25": 0.25, "q75": 0.75, "q90": 0.9}


def td_error_stats(td_errors: Any) -> dict[str, float]:
    """Mean, spread and concentration of abs(δ) over a batch.

    NaN and infinite TD errors are counted in `nonfinite` and left out of all other numbers. If no TD error is finite,
    all other numbers are nan. O(B log B).

    Parameters
    ----------
    td_errors : array-like of shape (B,), float
        The signed TD errors.

    Returns
    -------
    dict of str to float
        - `mean`, `median`, `max` and `std` (dividing by B) of abs(δ).
        - ``q10``, ``q25``, ``q75`` and ``q90``: quantiles of abs(δ).
        - `bias`: the mean of δ itself, near 0 if predictions are right on average.
        - `top_decile_share`: the share of the largest tenth, see :func:`top_share`.
        - `nonfinite`: the number of TD errors that were left out.

    Raises
    ------
    ValueError, TypeError
        If `td_errors` is empty, has more than one axis, or does not hold real numbers.

    Examples
    --------
    >>> stats = td_error_stats([1.0, -1.0, 4.0, float("nan")])
    >>> stats["mean"], stats["median"], stats["max"], stats["nonfinite"]
    (2.0, 1.0, 4.0, 1.0)
    """
    errors = vector("td_errors", td_errors)
    finite = errors[np.isfinite(errors)]
    missing = float(errors.size - finite.size)
    if not finite.size:
        names = ("mean", "median", "max", "std", *QUANTILES, "bias", "top_decile_share")
        return dict.fromkeys(names, float("nan")) | {"nonfinite": missing}
    sizes = np.abs(finite)
    unit = float(sizes.max()) or 1.0  # so that no sum or square overflows
    quantiles = np.quantile(sizes, [0.5, *QUANTILES.values()])
    return {
        "mean": float((sizes / unit).mean()) * unit,
        "median": float(quantiles[0]),
        "max": float(sizes.max()),
        "std": float((sizes / unit).std()) * unit,
        **dict(zip(QUANTILES, quantiles[1:].tolist(), strict=True)),
        "bias": float((finite / unit).mean()) * unit,
        "top_decile_share": top_share(sizes, 0.1),
        "nonfinite": missing,
    }


def top_share(values: Any, top: float = 0.1) -> float:
    """The largest values' share of the total, where `top` is the proportion of values that count as the largest.

    The result is `top` if all values are equal, and 1 if all other values are 0. For the top tenth, Gaussian TD errors
    give 0.26 and exponential ones 0.33. If ``top * B`` is not a whole number, the last value counts in part, so equal
    values give `top` for every B. The result is `top` if all values are 0. O(B log B).

    Parameters
    ----------
    values : array-like of shape (B,), float
        Non-negative values, such as abs(δ), priorities or probabilities.
    top : float
        In (0, 1].

    Raises
    ------
    ValueError, TypeError
        If a value is negative, NaN or infinite, there are no values, or `top` is outside (0, 1].

    Examples
    --------
    >>> top_share([1.0] * 9 + [11.0])
    0.55
    """
    if not 0.0 < top <= 1.0:
        raise ValueError(f"top is {top}; expected a share in (0, 1]")
    ordered: npt.NDArray[np.float64] = np.sort(nonnegative("values", values))[::-1]
    if not ordered[0]:
        return top
    ordered = ordered / ordered[0]  # so that no sum overflows
    room = top * ordered.size
    counted = np.clip(room - np.arange(ordered.size), 0.0, 1.0)
    return float((counted * ordered).sum() / ordered.sum())
