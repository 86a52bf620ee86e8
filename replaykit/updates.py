"""The arguments of `update_priorities` and `overwrite`, which every kind of replay takes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from replaykit.field import Array, as_array, as_indices
from replaykit.spec import Spec
from replaykit.storage.base import Floats, Indices
from replaykit.trees import Tree


def one_of(td_errors: Any, priorities: Any) -> tuple[str, Any]:
    """The name and the value of the argument that was given; raises TypeError unless it is just one."""
    if (td_errors is None) == (priorities is None):
        raise TypeError("pass either td_errors or priorities=")
    return ("td_errors", td_errors) if priorities is None else ("priorities", priorities)


def refuse_other_shape(name: str, values: Floats, shape: tuple[int, ...], whose: str) -> None:
    """Raise ValueError unless TD errors or priorities have this shape; a column gets its own remedy."""
    if values.shape != shape:
        remedy = f"; drop the last axis: {name}.squeeze(-1)" if values.shape == (*shape, 1) else ""
        raise ValueError(f"{name} has shape {values.shape}; expected {shape}, {whose}{remedy}")


def refuse_too_large(name: str, values: Floats, limit: float) -> None:
    """Raise ValueError for the first TD error or priority that is NaN, or larger than `limit` in magnitude."""
    wrong = ~(np.abs(values) <= limit)
    if wrong.any():
        expected = f"finite numbers of at most {limit:.3g} in magnitude"
        raise ValueError(f"{name} contains {values[wrong][0]}; expected {expected}")


def refuse_negative(priorities: Floats) -> None:
    """Raise ValueError if a priority is negative."""
    if priorities.size and priorities.min() < 0.0:
        raise ValueError(f"priorities contains {priorities.min()}; expected non-negative numbers")


def leaves_at(spec: Spec, indices: npt.ArrayLike, fields: Mapping[str, Tree]) -> tuple[Indices, dict[str, Array]]:
    """Indices (B,) or (B, T) and the fields at them as int64 (M,) and, by name, leaves (M, ...)."""
    given = as_array("indices", indices, True)
    entries = as_indices("indices", given.reshape(-1))
    flat = spec.flatten_fields(fields)
    return entries, {leaf.name: leaf.coerce(value, given.shape).reshape(-1, *leaf.shape) for leaf, value in flat}
