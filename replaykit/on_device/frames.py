"""Observations stored once on a device: the next_obs of a step is usually the obs of the following step."""

import math
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from replaykit.on_device.later import Later
from replaykit.on_device.rows import torch_dtype
from replaykit.storage.base import Indices
from replaykit.storage.columns import Padding, Share

_SPARE = 16
"""`others` starts with one place for this many transitions."""
_PART = 4096
"""Number of frames copied from the CPU at a time."""
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Frames:
    """An observation and its next_obs on a device. Each frame is stored once.

    The ring holds one observation for each step of a lane, and then the next_obs of the lane's newest step. The obs of
    the next step overwrites this next_obs. If their bits differ, as at the end of an episode, next_obs moves to
    `others`. The ring is a few steps longer than the lane, so the stacks of the oldest steps are complete.

    `free`, a stack on the device, holds the free places of `others`. The CPU knows an upper limit of the number of used
    places: the last reported number, plus one for each step written since. Only if this limit exceeds the size of
    `others` does the CPU wait for the true number. It enlarges `others` if more than half of the places are used.

    Parameters
    ----------
    storage : DeviceStorage
    leaves : tuple of int
        The positions of obs and next_obs in the spec.
    stack : int
        The number of frames in a stack, k.
    padding, share
        As in `replaykit.ReplayBuffer`. If `share` is "none", `others` has room for every next_obs from the start.

    Attributes
    ----------
    is_stacked : bool
        Whether k is larger than 1.
    nbytes : int
        Size of the tensors in bytes when they are allocated.
    ring : tensor of shape ((L + k) * E + 1, ...)
        The last frame is all zeros.
    others : tensor of shape (P + 1, ...)
        Place 0 takes values that are not needed.
    places : tensor of shape (C,), int32
        For each slot, the place of its next_obs in `others`, or 0 if next_obs is the following frame in the ring.
    free, count : tensors of shape (P + 1,), int32, and (), int64
        The first `count` entries of `free` are the free places.
    """

    def __init__(self, storage: Any, leaves: tuple[int, int], stack: int, padding: Padding, share: Share) -> None:
        self.leaves: tuple[int, int] = leaves
        self._storage = weakref.proxy(storage)  # which refers to its frames
        self._leaf = leaf = storage.spec.leaves[leaves[0]]
        self._dtype = torch_dtype(leaf.dtype, leaf.name)
        self.is_stacked: bool = stack > 1
        self._stack, self._pads_with_zeros = stack, padding == "zero"
        self._size: int = (storage.length + stack) * storage.num_envs
        capacity = storage.capacity
        self._spare = capacity if share == "none" else min(max(4 * storage.num_envs, capacity // _SPARE), capacity)
        self.nbytes: int = (self._size + self._spare + 2) * leaf.field.nbytes + 4 * (capacity + self._spare + 1) + 8

    def allocate(self) -> None:
        """Allocate the memory."""
        self.ring: torch.Tensor = self._make("ring", (self._size + 1, *self._leaf.shape), self._dtype)
        self.places: torch.Tensor = self._make("places", (self._storage.capacity,), torch.int32)
        self.count: torch.Tensor = self._make("count", (), torch.int64)
        self._ages = torch.arange(self._stack - 1, -1, -1, device=self.ring.device) * self._storage.num_envs
        self._used = Later(self.ring.device)
        self._allocate_others(self._spare)
        self.clear()

    def _make(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        made: torch.Tensor = self._storage.make(f"frames.{self._leaf.name}.{name}", shape, dtype)
        return made

    def _allocate_others(self, size: int) -> None:
        others = self._make("others", (size + 1, *self._leaf.shape), self._dtype)
        free = self._make("free", (size + 1,), torch.int32)
        self.others: torch.Tensor = others
        self.free: torch.Tensor = free

    def clear(self) -> None:
        """Free every place, since no step is stored."""
        size = len(self.others) - 1
        self.places.zero_()
        self.free[:size] = torch.arange(1, size + 1, device=self.free.device)
        self.count.fill_(size)
        self._know(0)

    # Writing

    def moved(self, indices: torch.Tensor, obs: torch.Tensor, next_obs: torch.Tensor) -> torch.Tensor:
        """Whether each step's obs differs from the next_obs of its lane's previous step, as bool of shape (T K,).

        `indices` (T, K) are T consecutive steps of K lanes. `obs` and `next_obs` (T K, ...) are their values.
        """
        lanes = indices.shape[1]
        parts = [_differ(self.ring[indices[:1].reshape(-1) % self._size], obs[:lanes])]
        if len(indices) > 1:
            parts.append(_differ(next_obs[:-lanes], obs[lanes:]))
        return torch.cat(parts)

    def reserve(self, steps: int, moved: torch.Tensor | None = None) -> None:
        """Make room for `steps` more steps. Only those in `moved` need a place.

        Raises MemoryError if the device has no room, and RuntimeError if a graph of the user reads the places.
        """
        size, capacity = len(self.others) - 1, self._storage.capacity
        if min(self._limit + steps, capacity) <= size:
            return
        used = size - int(self.count)
        self._know(used)
        needed = min(used + (steps if moved is None else int(moved.sum())), capacity)
        if needed > size // 2:
            self._grow(needed)

    def _grow(self, needed: int) -> None:
        """Double the size of `others`, or more if more places are needed."""
        size = len(self.others) - 1
        larger = min(max(2 * size, needed), self._storage.capacity)
        try:
            reason = f"{self._leaf.name}: next_obs is often not the obs of the next step, so more frames must be stored"
            self._storage.graphs.refuse_moving(reason)
            self._storage.refuse_size(larger * (self._leaf.field.nbytes + 4), f"{reason}; room for {larger} frames")
        except (MemoryError, RuntimeError):
            if needed > size:
                raise
            return
        others, free, count = self.others, self.free, int(self.count)
        self._allocate_others(larger)
        self.others[: size + 1] = others
        self.free[:count] = free[:count]
        self.free[count : count + larger - size] = torch.arange(size + 1, larger + 1, device=free.device)
        self.count += larger - size
        self._storage.graphs.forget()

    def write(self, indices: torch.Tensor, lanes: Any, obs: Any, next_obs: Any, moved: torch.Tensor) -> None:
        """Write T steps of K lanes, T at most L. The steps that they overwrite must be retired before.

        `obs` and `next_obs` are the arguments of the method `moved`, and `moved` is its result.
        """
        num_envs, capacity, count = self._storage.num_envs, self._storage.capacity, indices.shape[1]
        self._release(indices.reshape(-1) % capacity)
        former = indices - num_envs
        is_stored = former >= self._storage.device_bounds[0, lanes] * num_envs
        places = self._take((moved.view_as(former) & is_stored).view(-1))
        self.places[former.reshape(-1) % capacity] = places
        at, chosen = indices.reshape(-1) % self._size, places.long()
        self.others[chosen[:count]] = self.ring[at[:count]]
        if len(indices) > 1:
            self.others[chosen[count:]] = next_obs[:-count]
        self.ring[at] = obs
        self.ring[(indices[-1] + num_envs) % self._size] = next_obs[len(next_obs) - count :]
        self._note(len(at))

    def _release(self, slots: torch.Tensor) -> None:
        """Free the places of these slots."""
        places = self.places[slots]
        is_used = places > 0
        at = torch.where(is_used, self.count + is_used.cumsum(0) - 1, len(self.free) - 1)
        self.free[at] = places
        self.count += is_used.sum()
        self.places[slots] = 0

    def _take(self, needed: torch.Tensor) -> torch.Tensor:
        """A free place for each entry that needs one, and 0 for the others."""
        at = torch.where(needed, self.count - needed.cumsum(0), 0)
        self.count -= needed.sum()
        return torch.where(needed, self.free[at], 0)

    # The number of used places, as far as the CPU knows it

    def _know(self, used: int) -> None:
        """Note that exactly `used` places are used."""
        self._limit, self._since = used, 0
        self._used.forget()

    def _note(self, steps: int) -> None:
        """Count steps that were written, and ask the device for the number of used places from time to time."""
        size = len(self.others) - 1
        self._limit += steps
        self._since += steps
        used = self._used.answer()
        if used is not None:
            self._limit = used + self._since
        if size < self._storage.capacity and self._since > size // 8 and not self._used.is_asked:
            self._used.ask(size - self.count)
            self._since = 0

    # Reading

    def obs(self, indices: torch.Tensor) -> torch.Tensor:
        """The observations (B, ...) of these steps, or their stacks (B, k, ...), in a new tensor."""
        return self.ring[self._stacked(indices) if self.is_stacked else indices % self._size]

    def next_obs(self, indices: torch.Tensor) -> torch.Tensor:
        """The next observations, or their stacks."""
        newest = self._next_frame(indices)
        if not self.is_stacked:
            return newest
        return torch.cat((self.ring[self._stacked(indices)[:, 1:]], newest[:, None]), dim=1)

    def _stacked(self, indices: torch.Tensor) -> torch.Tensor:
        """The places (B, k) of the frames of each stack in the ring, oldest first."""
        begin: torch.Tensor = self._storage.starts_of(indices)[:, None]
        steps = indices[:, None] - self._ages
        if self._pads_with_zeros:
            return torch.where(steps < begin, self._size, steps % self._size)
        return torch.maximum(steps, begin) % self._size

    def _next_frame(self, indices: torch.Tensor) -> torch.Tensor:
        places = self.places[indices % self._storage.capacity].long()
        following = self.ring[(indices + self._storage.num_envs) % self._size]
        is_apart = (places > 0).view(-1, *(1 for _ in self._leaf.shape))
        return torch.where(is_apart, self.others[places], following)

    def read(self, position: int, indices: torch.Tensor) -> torch.Tensor:
        """The leaf at this position of the spec."""
        return self.obs(indices) if position == self.leaves[0] else self.next_obs(indices)

    def added(self, position: int, indices: torch.Tensor) -> torch.Tensor:
        """The leaf as it was added, that is, a single frame and no stack."""
        return self.ring[indices % self._size] if position == self.leaves[0] else self._next_frame(indices)

    # Saving

    def restore(self, obs: npt.NDArray[Any], next_obs: npt.NDArray[Any], stacks: npt.NDArray[Any] | None) -> None:
        """Restore the values (N, ...) of all stored steps, and the stacks (E, k, ...) of each lane's oldest step."""
        self.clear()
        storage, put, stored = self._storage, self._storage.backend.array, self._storage.stored()
        has_next = np.append(stored[1:] == stored[:-1] + storage.num_envs, np.zeros(min(len(stored), 1), np.bool_))
        followed, last = np.flatnonzero(has_next), np.flatnonzero(~has_next)
        shape = len(stored), math.prod(self._leaf.shape)
        bits = [array.reshape(shape).view(np.uint8) for array in (next_obs, obs)]
        apart = followed[(bits[0][followed] != bits[1][followed + 1]).any(axis=1)]
        if len(apart) > (len(self.others) - 1) // 2:
            self._grow(len(apart))
        size = len(self.others) - 1
        places = np.arange(size - len(apart) + 1, size + 1)  # the last places in `free`
        self.count -= len(apart)
        self._know(len(apart))
        self.places[put(stored[apart] % storage.capacity)] = put(places.astype(np.int32))
        self._copy(self.others, places, next_obs[apart])
        self._copy(self.ring, stored % self._size, obs)
        self._copy(self.ring, (stored[last] + storage.num_envs) % self._size, next_obs[last])
        if stacks is not None:
            lanes = np.flatnonzero(storage.bounds[0] < storage.bounds[1])
            oldest = storage.bounds[0, lanes] * storage.num_envs + lanes
            former = (oldest[:, None] - self._ages[:-1].cpu().numpy()) % self._size
            self._copy(self.ring, former.reshape(-1), stacks[lanes, :-1].reshape(-1, *self._leaf.shape))

    def _copy(self, target: torch.Tensor, places: Indices, values: npt.NDArray[Any]) -> None:
        put = self._storage.backend.array
        for begin in range(0, len(places), _PART):
            part = slice(begin, begin + _PART)
            target[put(places[part])] = put(values[part])

    def check(self) -> None:
        """Verify that every place of `others` is either free or belongs to a stored step. Waits for the device."""
        storage, name, size = self._storage, self._leaf.name, len(self.others) - 1
        places, free, count = self.places.cpu().numpy(), self.free.cpu().numpy(), int(self.count)
        assert 0 <= count <= size, f"{name}: more places are free than exist"
        assert size - count <= self._limit, f"{name}: more places are used than the CPU's upper limit"
        used = places[places > 0]
        every = np.concatenate((free[:count], used))
        assert np.array_equal(np.sort(every), np.arange(1, size + 1)), f"{name}: a place is lost or used twice"
        stored, (first, cursor) = storage.stored(), storage.bounds
        slots = np.setdiff1d(np.arange(storage.capacity), stored % storage.capacity)
        assert not places[slots].any(), f"{name}: a step that is not stored has a place"
        newest = ((cursor - 1) * storage.num_envs + np.arange(storage.num_envs))[first < cursor]
        assert not places[newest % storage.capacity].any(), f"{name}: a newest step has a place"
        assert not self.ring[-1].any(), f"{name}: the last frame of the ring is not all zeros"


def _differ(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Whether the bits of each row differ."""
    kind, shape = _BITS[one.element_size()], (len(one), math.prod(one.shape[1:]))
    differs = one.reshape(shape).view(kind) != other.reshape(shape).view(kind)
    return differs.any(dim=1)
