"""The contents of a `LocalStorage`, which a storage of another kind takes over or provides."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from replaykit._kernels import lazy
from replaykit.storage.base import Indices
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
        The values of all stored transitions, in the order of `Storage.stored`.
    ends : ndarray of shape (N,), uint8
        Whether each of these ends its episode.
    written : tuple of int and ndarray of shape (C,), or None
        If lanes are out of step: the first stamp in the array, and when each slot was written.
    """

    bounds: Indices
    is_over: npt.NDArray[Any]
    numbers: Indices
    tables: Indices
    leaves: Mapping[str, npt.NDArray[Any]]
    ends: npt.NDArray[np.uint8]
    written: tuple[int, Indices] | None


def contents_of(storage: LocalStorage) -> Contents:
    """The contents of a storage. Its arrays may be views."""
    lanes, stored, written = storage._lanes, storage.stored(), None
    if len(storage.tables) > kernels.STAMPS:
        written = int(storage.header[kernels.SPLIT]), storage.tables[kernels.STAMPS].copy()
    leaves = {leaf.name: storage.read(stored, leaf.name) for leaf in storage.spec.leaves}
    ends = storage.rows[stored % storage.capacity, storage.row.end]
    is_over, numbers, tables = lanes[kernels.OVER], lanes[kernels.EPISODE], storage.tables[: kernels.STAMPS]
    return Contents(storage.bounds, is_over, numbers, tables, leaves, ends, written)


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
    first, lane = storage.episode(stored)[1], stored % storage.num_envs
    begins = stored == np.maximum(first, storage.bounds[0, lane] * storage.num_envs + lane)
    for columns in storage.columns:
        columns.reserve(len(stored))
        columns.write([contents.leaves[leaves[i].name] for i in columns.leaves], stored, begins)
    storage.header[kernels.STORED] = len(stored)
