"""The large arrays of a state, in chunks. Between two chunks, other threads can use the buffer."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
CHUNK_BYTES = 1 << 22
"""Approximate number of bytes copied each time the lock is held."""
_GROUP = 1024
"""Number of slots that are marked together when a row is overwritten."""


class Slots:
    """The index stored in each of C slots at one moment.

    Parameters
    ----------
    bounds : array of shape (2, E), int64
        The oldest step of each lane and the next step to be written, at that moment.
    capacity : int
        Number of slots, C, a multiple of E.
    """

    def __init__(self, bounds: Array, capacity: int) -> None:
        self.bounds: npt.NDArray[Any] = bounds.copy()
        self.capacity: int = capacity
        self.num_envs: Any = bounds.shape[1]
        self.overwritten: set[int] = set()

    def overwrite(self, slots: npt.NDArray[np.int64]) -> None:
        """Record that rows in these slots have changed since this moment."""
        self.overwritten.update(np.unique(slots // _GROUP).tolist())

    def overwrite_all(self) -> None:
        """Record that any row may have changed since this moment."""
        self.overwritten.update(range(self.capacity // _GROUP + 1))

    def __len__(self) -> int:
        return int((self.bounds[1] - self.bounds[0]).sum())

    def all(self) -> npt.NDArray[np.int64]:
        """All indices, in the order of their slots. O(N log N)."""
        counts = self.bounds[1] - self.bounds[0]
        steps = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - self.bounds[1], counts)
        found = steps * self.num_envs + np.repeat(np.arange(self.num_envs), counts)
        return np.asarray(found[np.argsort(found % self.capacity, kind="stable")])

    def by_slot(self, begin: int, stop: int) -> npt.NDArray[np.int64]:
        """The index in each of these slots; -1 for an empty slot."""
        slots = np.arange(begin, stop)
        lanes = slots % self.num_envs
        first, newest = self.bounds[0] * self.num_envs, (self.bounds[1] - 1) * self.num_envs
        found = newest[lanes] + lanes
        found -= (found - slots) % self.capacity
        return np.where(found >= first[lanes] + lanes, found, -1)

    def select(self, begin: int, stop: int) -> Any:
        """An indexer of the occupied slots in ``[begin, stop)``: a slice if possible."""
        (first, cursor), is_in_step = self.bounds[:, 0].tolist(), (self.bounds == self.bounds[:, :1]).all()
        start, count = first * self.num_envs % self.capacity, (cursor - first) * self.num_envs
        if is_in_step and count == self.capacity:
            return slice(begin, stop)
        if is_in_step and start + count <= self.capacity:
            return slice(min(max(begin, start), stop), max(min(stop, start + count), begin))
        return begin + np.flatnonzero(self.by_slot(begin, stop) >= 0)

    def is_unchanged(self, former: "Slots", begin: int, stop: int) -> bool:
        """Whether the rows of these slots are the same as at a former moment of the same storage. O(E).

        A row is written once per index. `overwrite` can change it later, which `overwritten` records. The only other
        change is at the end of an episode: it can change the newest row of a lane.
        """
        groups = range(begin // _GROUP, stop // _GROUP + 1)
        if former.capacity != self.capacity or not former.overwritten.isdisjoint(groups):
            return False
        lanes, length = np.arange(self.num_envs), self.capacity // self.num_envs
        low, high = (-((lanes - slot) // self.num_envs) for slot in (begin, stop))  # places in the lanes
        (oldest, newest), (first, cursor) = former.bounds, self.bounds
        newer, retired = (np.maximum(newest, first), cursor), (oldest, np.minimum(first, newest))
        for start, end in ((newest - 1, newest), newer, retired):
            meets = ((low - start) % length < end - start) | ((start - low) % length < high - low)
            if (meets & (start < end) & (low < high)).any():
                return False
        return True


class Chunks(ABC):
    """The rows of a large array, in chunks. They replace the array in a state. Chunk k has slots ``[k S, (k + 1) S)``.

    Parameters
    ----------
    slots : Slots
        The occupied slots define the rows.
    span : int
        Number of slots in a chunk, S.
    """

    def __init__(self, slots: Slots, span: int) -> None:
        self.slots: Slots = slots
        self.span: int = span

    def __len__(self) -> int:
        return -(-self.slots.capacity // self.span)

    def range(self, k: int) -> tuple[int, int]:
        """The slots of chunk k."""
        return k * self.span, min((k + 1) * self.span, self.slots.capacity)

    def is_empty(self, k: int) -> bool:
        """Whether all slots of chunk k are empty."""
        chosen = self.slots.select(*self.range(k))
        return chosen.start == chosen.stop if isinstance(chosen, slice) else not chosen.size

    @abstractmethod
    def __getitem__(self, k: int) -> Array:
        """The rows of chunk k, which may be a view."""


class LiveChunks(Chunks):
    """Chunks of a storage's current data, copied one after another.

    Parameters
    ----------
    slots : Slots
    row_bytes : int
        Approximate size of a row.
    read : callable
        ``read(begin, stop)`` returns the rows of the occupied slots in this range.
    shortest : int
        The smallest number of slots in a chunk.
    """

    def __init__(self, slots: Slots, row_bytes: int, read: Callable[[int, int], Array], shortest: int = 1) -> None:
        super().__init__(slots, max(CHUNK_BYTES // max(row_bytes, 1), shortest))
        self._row_bytes, self._read = row_bytes, read

    @classmethod
    def of_array(cls, array: Array, slots: Slots) -> "LiveChunks":
        """The chunks of an array with a row for each slot."""
        return cls(slots, array[:1].nbytes, lambda begin, stop: np.asarray(array[slots.select(begin, stop)]))

    def __getitem__(self, k: int) -> Array:
        return self._read(*self.range(k))

    def copy(self) -> "CopiedChunks":
        """All chunks, copied now."""
        rows = [None if self.is_empty(k) else self[k].copy() for k in range(len(self))]
        return CopiedChunks(self.slots, self.span, rows)

    @property
    def nbytes(self) -> int:
        """Approximate size of all rows in bytes."""
        return len(self.slots) * self._row_bytes


class CopiedChunks(Chunks):
    """Chunks that have been copied. `rows` contains None for an empty chunk."""

    def __init__(self, slots: Slots, span: int, rows: list[Array | None]) -> None:
        super().__init__(slots, span)
        self._rows = rows

    def __getitem__(self, k: int) -> Array:
        rows = self._rows[k]
        if rows is None:
            raise IndexError(f"chunk {k} is empty")
        return rows


def pieces(chunks: Chunks) -> Iterator[tuple[npt.NDArray[np.int64], Array]]:
    """The chunks that are not empty: the indices of each, and its rows."""
    for k in range(len(chunks)):
        if not chunks.is_empty(k):
            found = chunks.slots.by_slot(*chunks.range(k))
            yield found[found >= 0], chunks[k]
