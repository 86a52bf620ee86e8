"""Values of a step as tensors in the shape and dtype of their leaf."""

from typing import Any

import numpy as np
import torch

from replaykit.field import Leaf
from replaykit.on_device.backend import TorchBackend
from replaykit.on_device.errors import LateErrors
from replaykit.on_device.rows import torch_dtype
from replaykit.storage.base import Flags


def coerced(
    backend: TorchBackend, late: LateErrors, leaf: Leaf, value: Any, lead: tuple[int, ...], mask: Flags | None
) -> torch.Tensor:
    """The value of a leaf as a tensor, on the device if it was already there, otherwise on the CPU.

    Raises an error for a value that does not fit. Errors that only the device can detect are recorded in `late`.
    """
    is_tensor = isinstance(value, torch.Tensor)
    if not is_tensor or (value.device.type == "cpu" and backend.device.type != "cpu"):
        return torch.from_numpy(np.ascontiguousarray(leaf.coerce(value, lead, mask)))
    backend.is_here(leaf.name, value)
    if value.requires_grad:
        raise TypeError(f"{leaf.name} is a tensor that requires grad; expected plain values: pass .detach()")
    if tuple(value.shape) != lead + leaf.shape:
        raise ValueError(leaf.wrong_shape(tuple(value.shape), lead))
    wanted = torch_dtype(leaf.dtype, leaf.name)
    if value.dtype != wanted:
        value = _cast(late, leaf, value, wanted)
    if mask is not None:
        value = value.reshape(-1, *leaf.shape)[backend.array(np.flatnonzero(mask))]
    return value  # type: ignore[no-any-return]


def _cast(late: LateErrors, leaf: Leaf, value: torch.Tensor, wanted: torch.dtype) -> torch.Tensor:
    """A tensor in another dtype. If a value changes by more than rounding, an error is recorded and raised later."""
    if not torch.can_cast(value.dtype, wanted):
        raise TypeError(f"{leaf.name} has dtype {value.dtype}; expected {wanted}, or one that casts to it safely")
    cast = value.to(wanted)
    if wanted.is_floating_point:
        late.note("too large", torch.isinf(cast) & torch.isfinite(value))
    elif not wanted.is_complex:
        late.note("too large", cast.to(value.dtype) != value)
    return cast
