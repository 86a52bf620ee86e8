"""Packed rows of bytes as tensors: the layout of the CPU's row, and views of its leaves."""

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
            f"{name} has dtype {dtype}, which a device cannot store; expected another in the spec"
        ) from error


class Rows:
    """The layout of a spec's packed rows in tensors of shape (rows, words), int64.

    Parameters
    ----------
    spec : Spec
    apart : sequence of int
        The positions of the leaves that are not in the rows.

    Attributes
    ----------
    nbytes : int
        Bytes of a row, a multiple of 8.
    end : int
        The place of the byte that is 1 where an episode ends.
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
        """The bytes (rows, nbytes) of rows, a view."""
        return rows.view(torch.uint8)

    def ended(self, rows: torch.Tensor) -> torch.Tensor:
        """Whether each row ends its episode, bool, in a new tensor."""
        return self.end_flags(rows) != 0

    def end_flags(self, rows: torch.Tensor) -> torch.Tensor:
        """The byte of each row that is 1 where an episode ends, a view."""
        return self.bytes_of(rows)[:, self.end]

    def column(self, rows: torch.Tensor, position: int) -> torch.Tensor:
        """The values (rows, ...) of a leaf, a view."""
        leaf, values = self._leaves[position], rows.view(self._dtypes[position])
        size, shape = leaf.dtype.itemsize, leaf.shape
        place = self._row.place[position] // size + values.storage_offset()
        strides = [math.prod(shape[k + 1 :]) for k in range(len(shape))]
        return torch.as_strided(values, (len(rows), *shape), (self.nbytes // size, *strides), place)

    def leaves(self, first: torch.Tensor, last: torch.Tensor) -> list[torch.Tensor]:
        """The value of each leaf, from the rows of the first or the last step of each window. Views.

        The places of leaves that are not in the rows are left for the caller to fill.
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
    flat = flat if flat.stride(0) == 1 else flat.new_empty(flat.shape).copy_(flat)  # of at most one element
    size = math.prod(values.shape[1:]) * values.element_size()
    return flat.view(torch.uint8).view(len(values), size)


def _refuse(*_arguments: Any) -> Any:
    raise AssertionError("a device packs its rows itself")
