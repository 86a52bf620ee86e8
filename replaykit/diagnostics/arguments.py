"""Checks of the measures' arguments, and their conversion to float64 arrays."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from replaykit.field import as_array, as_float64, as_indices
from replaykit.trees import leaves_of


class Compared(NamedTuple):
    """A measured value and its expectation under independent uniform draws.

    Attributes
    ----------
    value : float
        The measured value.
    expected : float
        The exact expectation under independent uniform draws.

    Examples
    --------
    >>> measured = Compared(0.5, 0.25)
    >>> measured.ratio
    2.0
    """

    value: float
    expected: float

    @property
    def ratio(self) -> float:
        """``value / expected``, which is 1 on average for i.i.d. draws; nan if `expected` is 0."""
        return self.value / self.expected if self.expected > 0.0 else float("nan")


def vector(name: str, values: Any, minimum: int = 1) -> npt.NDArray[np.float64]:
    """`values` as float64 of shape (B,), with at least `minimum` entries."""
    array = as_float64(name, values)
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {array.shape}; expected one axis: reshape it with .reshape(-1)")
    if array.size < minimum:
        raise ValueError(f"{name} has {array.size} entries; expected at least {minimum}")
    return array


def nonnegative(name: str, values: Any) -> npt.NDArray[np.float64]:
    """`values` as float64 of shape (B,), finite, non-negative and not empty."""
    array = vector(name, values)
    wrong = ~((array >= 0.0) & (array < np.inf))
    if wrong.any():
        raise ValueError(f"{name} contains {array[wrong][0]}; expected finite numbers that are not negative")
    return array


def integers(name: str, values: Any) -> npt.NDArray[np.int64]:
    """`values` as int64 of shape (B,), not empty."""
    array = as_indices(name, values)
    if not array.size:
        raise ValueError(f"{name} is empty; expected at least one entry")
    return array


def count(name: str, value: Any, minimum: int = 1) -> int:
    """`value` as an int of at least `minimum`."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} is {value!r}; expected an int")
    if value < minimum:
        raise ValueError(f"{name} is {value}; expected at least {minimum}")
    return int(value)


def lane_sizes(sizes: Any) -> npt.NDArray[np.float64]:
    """The numbers of stored steps of each lane that is not empty, from a number or a list of numbers."""
    lanes = nonnegative("sizes", np.atleast_1d(as_float64("sizes", sizes)))
    if (lanes % 1.0).any() or not lanes.sum():
        raise ValueError(f"sizes is {sizes}; expected whole numbers of stored steps, with a sum of at least 1")
    return lanes[lanes > 0.0]


def features(name: str, states: Any, minimum: int = 1) -> npt.NDArray[np.float64]:
    """`states`, an array (B, ...) or a dict or tuple of such arrays, as a finite float64 array of shape (B, D)."""
    columns = flattened(name, states)
    if columns.shape[0] < minimum:
        raise ValueError(f"{name} has {columns.shape[0]} entries; expected at least {minimum}")
    if not np.isfinite(columns).all():
        row = int(np.flatnonzero(~np.isfinite(columns).all(axis=1))[0])
        raise ValueError(
            f"{name} has NaN or infinite numbers in entry {row}; expected finite states: leave that entry out"
        )
    return columns


def flattened(name: str, states: Any) -> npt.NDArray[np.float64]:
    """`states` as float64 of shape (B, D). A complex number becomes two real ones."""
    leaves = [(path, as_array(path, leaf)) for path, leaf in leaves_of(states, name)]
    if not leaves:
        raise ValueError(f"{name} holds no array; expected at least one")
    sizes = {path: array.shape[0] if array.ndim else -1 for path, array in leaves}
    if len(set(sizes.values())) > 1 or -1 in sizes.values():
        raise ValueError(f"{name} has leading axes {sizes}; expected the same number of entries in every array")
    return np.concatenate([_columns(path, array) for path, array in leaves], axis=1)


def _columns(name: str, array: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    if array.dtype.kind == "c":
        array = np.stack((array.real, array.imag), axis=-1)
    return as_float64(name, array).reshape(array.shape[0], -1 if array.size else int(np.prod(array.shape[1:])))


def standardized(states: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """The features that vary, scaled to mean 0 and variance 1, and a mask of which features vary."""
    varies: npt.NDArray[np.bool_] = states.max(axis=0) > states.min(axis=0)
    states = states[:, varies]
    states = states / np.abs(states).max(axis=0, initial=0.0)  # so that no square overflows or vanishes
    centered = states - states.mean(axis=0)
    return centered / np.sqrt((centered**2).sum(axis=0) / (states.shape[0] - 1.0)), varies
