"""Copies the contents of a `DeviceStorage` to a storage on the CPU, and back."""

import functools
from collections.abc import Callable
from typing import Any

import numpy.typing as npt
import torch

from replaykit.storage.contents import Contents, oldest_stored

_PART = 4096
"""Number of transitions copied at a time."""


def contents_on_device(storage: Any) -> Contents:
    """The contents of a storage on a device. Waits for the device."""
    stored, rows, order = storage.stored(), storage.rows, storage.order
    put, leaves, stacks = storage.backend.array, dict[str, npt.NDArray[Any]](), dict[str, npt.NDArray[Any]]()

    def in_parts(read: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """The result of a function of all stored indices, as one tensor on the CPU."""
        parts = [stored[begin : begin + _PART] for begin in range(0, len(stored), _PART)] or [stored]
        return torch.cat([read(put(part)).cpu() for part in parts])

    packed = in_parts(lambda indices: storage.data[indices % storage.capacity])
    for name, position in rows.positions.items():
        frames = storage.apart.get(position)
        if frames is None:
            leaves[name] = rows.column(packed, position).numpy()
            continue
        leaves[name] = in_parts(functools.partial(frames.added, position)).numpy()
        if frames.is_stacked and position == frames.leaves[0]:
            stacks[name] = frames.obs(put(oldest_stored(storage.bounds))).cpu().numpy()
    lanes = storage.bounds, storage.is_over.cpu().numpy(), storage.numbers.cpu().numpy()
    written = None if order.stamps is None else (order.split, order.stamps)
    ends = rows.end_flags(packed).numpy()
    return Contents(*lanes, storage.tables[:, :-1].cpu().numpy(), leaves, stacks, ends, written)


def restore_contents(storage: Any, contents: Contents) -> None:
    """Replace the contents of a storage on a device."""
    storage.set_lanes(contents.bounds, contents.is_over, contents.numbers)
    storage.order.set(*(contents.written or (0, None)))
    put, spec, rows = storage.backend.array, storage.spec, storage.rows
    storage.tables[:, :-1] = put(contents.tables)
    slots = storage.stored() % storage.capacity
    for begin in range(0, len(slots), _PART):
        part = slice(begin, begin + _PART)
        packed = rows.pack([torch.from_numpy(contents.leaves[leaf.name][part]) for leaf in spec.leaves])
        rows.end_flags(packed).copy_(torch.from_numpy(contents.ends[part]))
        storage.data[put(slots[part])] = storage.backend.send(packed)
    for frames in storage.frames:
        obs, next_obs = (spec.leaves[i].name for i in frames.leaves)
        frames.restore(contents.leaves[obs], contents.leaves[next_obs], contents.stacks.get(obs))
