"""The contents of a `LocalStorage`, for conversions from and to storages of another kind."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from replaykit._kernels import lazy
from replaykit.storage.base import Indices
from replaykit.storage.columns import Columns
from replaykit.storage.local import LocalStorage

kernels: Any = lazy("store")


class Contents(NamedTuple):
    """Everything that a storage contains.

    Attributes
    ----------
    bounds : ndarray of shape (2, E), int64
        As in `Storage`.
    is_over, numbers : ndarray of shape (E,)
        For each lane, whether its next step begins an episode, and the number of its newest episode.
    tables : ndarray of shape (3, C), int64
        The table of episodes: the number in each slot, and the first and the last index of each episode, at its number
        modulo C.
    leaves : mapping of str to ndarray of shape (N, ...)
        The values of all stored transitions as they were added, not stacked, in the order of `Storage.stored`.
    stacks : mapping of str to ndarray of shape (E, k, ...)
        For each stacked leaf of obs, the stack of the oldest step of each lane; zeros for an empty lane.
    ends : ndarray of shape (N,), uint8
        Whether each stored transition ends its episode.
    written : tuple of int and ndarray of shape (C,), or None
        If lanes hold different steps: the first stamp in the array, and when each slot was written.
    """

    bounds: Indices
    is_over: npt.NDArray[Any]
    numbers: Indices
    tables: Indices
    leaves: Mapping[str, npt.NDArray[Any]]
    stacks: Mapping[str, npt.NDArray[Any]]
    ends: npt.NDArray[np.uint8]
    written: tuple[int, Indices] | None


def contents_of(storage: LocalStorage) -> Contents:
    """The contents of a storage. Its arrays may be views."""
    lanes, stored, written = storage._lanes, storage.stored(), None
    if len(storage.tables) > kernels.STAMPS:
        written = int(storage.header[kernels.SPLIT]), storage.tables[kernels.STAMPS].copy()
    slots, oldest = stored % storage.capacity, oldest_stored(storage.bounds)
    leaves, stacks = dict[str, npt.NDArray[Any]](), dict[str, npt.NDArray[Any]]()
    for i, leaf in enumerate(storage.spec.leaves):
        columns = storage._column_of.get(i)
        leaves[leaf.name] = columns.added(slots, i) if columns else storage.read(stored, leaf.name)
        is_stacked = storage.stack > 1 and len(leaf.shape) >= 2 and leaf.name.partition(".")[0] == "obs"
        if is_stacked:
            stacks[leaf.name] = storage.read(oldest, leaf.name)
    ends = storage.rows[slots, storage.row.end]
    is_over, numbers, tables = lanes[kernels.OVER], lanes[kernels.EPISODE], storage.tables[: kernels.STAMPS]
    return Contents(storage.bounds, is_over, numbers, tables, leaves, stacks, ends, written)


def fill(storage: LocalStorage, contents: Contents) -> None:
    """Store these contents in an empty storage of the same size."""
    lanes = storage._lanes
    lanes[: kernels.PLACE] = np.stack((*contents.bounds, contents.is_over, contents.numbers))
    lanes[kernels.PLACE] = contents.numbers % storage.capacity
    storage.tables[:] = contents.tables
    if contents.written is not None:
        storage._keep_stamps()
        storage.header[kernels.SPLIT], storage.tables[kernels.STAMPS] = contents.written
    stored, leaves = storage.stored(), storage.spec.leaves
    slots = stored % storage.capacity
    for i in storage.row.packed:
        storage._columns_of_row[str(i)][slots] = contents.leaves[leaves[i].name]
    storage.rows[slots, storage.row.end] = contents.ends
    begins = stored == storage.episode(stored)[1]
    for columns in storage.columns:
        columns.reserve(len(stored))
        names = [leaves[i].name for i in columns.leaves]
        if names[0] in contents.stacks:
            _write_former_frames(storage, columns, contents.stacks[names[0]])
        columns.write([contents.leaves[name] for name in names], stored, begins)
    storage.header[kernels.STORED] = len(stored)


def oldest_stored(bounds: Indices) -> Indices:
    """The oldest index of each lane, -1 for an empty one."""
    first, cursor = bounds
    return np.where(first < cursor, first * len(first) + np.arange(len(first)), -1)


def _write_former_frames(storage: LocalStorage, columns: Columns, stacks: npt.NDArray[Any]) -> None:
    """Write the older frames in the stacks (E, k, ...) of the oldest steps, which belong to steps no longer stored."""
    oldest, length = oldest_stored(storage.bounds), stacks.shape[1]
    for age in range(length - 1, 0, -1):
        indices = oldest - age * storage.num_envs
        lanes = np.flatnonzero((oldest >= 0) & (indices >= 0))
        values = [stacks[lanes, place] for place in (length - 1 - age, length - age)]
        begins = (indices[lanes] < storage.num_envs) | (age == length - 1)
        columns.write(values, indices[lanes], begins)
