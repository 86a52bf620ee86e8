"""Checks of the arguments of `update_priorities` and `overwrite`, shared by all replays."""

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from replaykit.backend import NUMPY, Backend
from replaykit.field import Array, Leaf
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


def leaves_at(
    spec: Spec, indices: npt.ArrayLike, fields: Mapping[str, Tree], backend: Backend = NUMPY, coerce: Any = Leaf.coerce
) -> tuple[Indices, dict[str, Array]]:
    """Flatten indices (B,) or (B, T) to int64 (M,), and the fields at these indices to leaves (M, ...) by name."""
    given = backend.values("indices", indices)
    entries = backend.indices("indices", given.reshape(-1))
    flat, shape = spec.flatten_fields(fields), tuple(given.shape)
    return entries, {leaf.name: coerce(leaf, value, shape).reshape(-1, *leaf.shape) for leaf, value in flat}
