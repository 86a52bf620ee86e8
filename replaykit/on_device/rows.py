"""Packed rows as tensors of bytes. The layout is that of the rows on the CPU. Leaves are views."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from replaykit.spec import Spec
from replaykit.storage.row import Row

_WORD = 8


def torch_dtype(dtype: np.dtype[Any], name: str) -> torch.dtype:
    """The torch dtype of a NumPy dtype of at most 8 bytes. Raises TypeError if there is none."""
    try:
        if dtype.itemsize > _WORD:
            raise TypeError
        return torch.from_numpy(np.empty(0, dtype)).dtype
    except TypeError as error:
        raise TypeError(
            f"{name} has dtype {dtype}, which a device cannot store; choose a dtype of at most 8 bytes that torch has"
        ) from error


class Rows:
    """The layout of a spec's packed rows in tensors of shape (rows, words), int64.

    Parameters
    ----------
    spec : Spec
    apart : sequence of int
        The positions of the leaves that are stored outside the rows.

    Attributes
    ----------
    nbytes : int
        Bytes of a row, a multiple of 8.
    end : int
        The position of the byte that is 1 where an episode ends.
    positions : dict of str to int
        The position of each leaf in the spec, by name.
    reward, flags : int, and tuple of int
        The positions of the reward, and of `terminated` and `truncated`.
    """

    def __init__(self, spec: Spec, apart: Sequence[int] = ()) -> None:
        row = Row(spec, [apart] if apart else [], _refuse)
        self._row, self._leaves = row, spec.leaves
        self.nbytes: int = row.nbytes
        self.end: int = row.end
        self.positions: dict[str, int] = {leaf.name: i for i, leaf in enumerate(spec.leaves)}
        self.reward: int = self.positions["reward"]
        self.flags: tuple[int, int] = self.positions["terminated"], self.positions["truncated"]
        self.name_transitions: Callable[..., dict[str, Any]] = row.name_transitions
        self._dtypes = [torch_dtype(leaf.dtype, leaf.name) for leaf in spec.leaves]

    def pack(self, leaves: list[torch.Tensor]) -> torch.Tensor:
        """The rows (N, words) of N entries, from the values (N, ...) of each leaf, all on one device."""
        parts = [_bytes_of(leaves[i]) for i in self._row.packed]
        ended = leaves[self.flags[0]] | leaves[self.flags[1]]
        padding = ended.new_zeros((len(ended), self.nbytes - self.end - 1), dtype=torch.uint8)
        return torch.cat((*parts, _bytes_of(ended), padding), dim=1).view(torch.int64)

    def bytes_of(self, rows: torch.Tensor) -> torch.Tensor:
        """The bytes of rows, as a view of shape (rows, nbytes)."""
        return rows.view(torch.uint8)

    def ended(self, rows: torch.Tensor) -> torch.Tensor:
        """Whether each row ends its episode, as a new bool tensor."""
        return self.end_flags(rows) != 0

    def end_flags(self, rows: torch.Tensor) -> torch.Tensor:
        """A view of the byte of each row that is 1 where an episode ends."""
        return self.bytes_of(rows)[:, self.end]

    def column(self, rows: torch.Tensor, position: int) -> torch.Tensor:
        """The values (rows, ...) of a leaf, as a view."""
        leaf, values = self._leaves[position], rows.view(self._dtypes[position])
        size, shape = leaf.dtype.itemsize, leaf.shape
        place = self._row.place[position] // size + values.storage_offset()
        strides = [math.prod(shape[k + 1 :]) for k in range(len(shape))]
        return torch.as_strided(values, (len(rows), *shape), (self.nbytes // size, *strides), place)

    def leaves(self, first: torch.Tensor, last: torch.Tensor) -> list[torch.Tensor]:
        """Views of the value of each leaf, from the rows of the first or the last step of each window.

        The caller fills in the leaves that are stored outside the rows.
        """
        found = list[torch.Tensor]([first] * len(self._leaves))
        for i in self._row.packed:
            found[i] = self.column(last if self._leaves[i].is_of_last else first, i)
        return found


def _bytes_of(values: torch.Tensor) -> torch.Tensor:
    """The bytes (N, size) of values (N, ...)."""
    if values.is_complex():
        values = torch.view_as_real(values)
    flat = values.reshape(-1)
    flat = flat if flat.stride(0) == 1 else flat.new_empty(flat.shape).copy_(flat)  # at most one element
    size = math.prod(values.shape[1:]) * values.element_size()
    return flat.view(torch.uint8).view(len(values), size)


def _refuse(*_arguments: Any) -> Any:
    raise AssertionError("a device packs its rows itself")
