"""Checks of the arguments of `update_priorities` and `overwrite`, shared by all replays."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from replaykit.field import Array, as_array, as_indices
from replaykit.spec import Spec
from replaykit.storage.base import Floats, Indices
from replaykit.trees import Tree


def one_of(td_errors: Any, priorities: Any) -> tuple[str, Any]:
    """The name and the value of the argument that was passed. Raises TypeError unless exactly one was passed."""
    if (td_errors is None) == (priorities is None):
        raise TypeError("pass either td_errors or priorities=")
    return ("td_errors", td_errors) if priorities is None else ("priorities", priorities)


def refuse_other_shape(name: str, values: Floats, shape: tuple[int, ...], whose: str) -> None:
    """Raise ValueError unless `values` have this shape. For a column, the error suggests ``squeeze(-1)``."""
    if values.shape != shape:
        remedy = f"; drop the last axis: {name}.squeeze(-1)" if values.shape == (*shape, 1) else ""
        raise ValueError(f"{name} has shape {values.shape}; expected {shape}, {whose}{remedy}")


def refuse_too_large(name: str, values: Floats, limit: float) -> None:
    """Raise ValueError if a TD error or priority is NaN, or larger than `limit` in magnitude."""
    wrong = ~(np.abs(values) <= limit)
    if wrong.any():
        expected = f"finite numbers of at most {limit:.3g} in magnitude"
        raise ValueError(f"{name} contains {values[wrong][0]}; expected {expected}")


def refuse_negative(priorities: Floats) -> None:
    """Raise ValueError if a priority is negative."""
    if priorities.size and priorities.min() < 0.0:
        raise ValueError(f"priorities contains {priorities.min()}; expected non-negative numbers")


def leaves_at(spec: Spec, indices: npt.ArrayLike, fields: Mapping[str, Tree]) -> tuple[Indices, dict[str, Array]]:
    """Flatten indices (B,) or (B, T) to int64 (M,), and the fields at these indices to leaves (M, ...) by name."""
    given = as_array("indices", indices, True)
    entries = as_indices("indices", given.reshape(-1))
    flat = spec.flatten_fields(fields)
    return entries, {leaf.name: leaf.coerce(value, given.shape).reshape(-1, *leaf.shape) for leaf, value in flat}
