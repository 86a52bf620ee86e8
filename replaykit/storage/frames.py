"""Observations that are stored once, although next_obs is the obs of the next step, and stacks overlap."""

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from replaykit._kernels import lazy
from replaykit.chunks import LiveChunks, Slots, pieces
from replaykit.field import Array
from replaykit.storage.base import Flags, Indices
from replaykit.storage.columns import Columns, Padding, refuse_replacing_frames

kernels: Any = lazy("frames")

_UINT8 = np.dtype(np.uint8)
_LARGEST_STACK = 16
"""A longer first axis is not a stack of frames."""
_SLACK = 32
"""One frame in this many is reserved for first observations of episodes, which are not the next_obs of any step."""


class Frames(Columns):
    """An observation and its next_obs, stored as numbers of frames.

    With ``stack > 1``, a frame is one observation, and a batch has the last `stack` of an episode. With ``stack=1``,
    an observation of shape (k, H, W) counts as k frames, and any other as one. Each frame of a new step is compared
    with the frames of the previous step in its lane and with the other frames of its step. It is shared only if all
    bits are equal, so reading returns what was written. If `shares` is False, only overlapping stacks share frames.

    A lane needs about one frame per step and one more per episode. This number is reserved. If fewer frames are shared,
    for example because observations are modified between steps, the `overflow` grows.

    `leaves` are the positions of obs and next_obs in the spec, `kept` is the number of frames in a stack, and `shape`
    its shape. At an episode's start, the first observation pads a stack if `padding` is "reset", and zeros if "zero".
    """

    def __init__(self, storage: Any, leaves: tuple[int, int], stack: int, padding: Padding, shares: bool) -> None:
        self.leaves: tuple[int, int] = leaves
        self._storage = weakref.proxy(storage)  # which refers to its columns
        self._arrays: dict[str, Array] = storage.arrays
        leaf = self._leaf = storage.spec.leaves[leaves[0]]
        self.name: str = f"frames.{leaf.name}"
        shape = leaf.shape
        is_stack = stack == 1 and len(shape) >= 3 and 1 < shape[0] <= min(_LARGEST_STACK, shape[1], shape[2])
        self._given = shape[0] if is_stack else 1  # frames in an observation
        self.kept: int = stack * self._given
        self._frame_shape = shape[1:] if is_stack else shape
        self._size = leaf.field.nbytes // self._given
        self.shape: tuple[int, ...] = (stack, *shape) if stack > 1 else shape
        capacity, num_envs = storage.capacity, storage.num_envs
        new = (2 if not shares else 3 if self._given % 3 == 0 else 1) * capacity  # three: color channels
        self._pool_frames = new + new // _SLACK + 2 * (self.kept * num_envs + self._given) + 1
        self.nbytes: int = self._pool_frames * (self._size + 4) + capacity * 2 * self.kept * 4
        is_zero = stack > 1 and padding == "zero"
        self._numbers = np.array([num_envs, capacity, self._given, self.kept, self._size, is_zero, shares], np.int64)

    def allocate(self) -> None:
        self._allocate("written", (self._storage.num_envs,), np.int64)
        self._allocate("table", (self._storage.capacity, 2 * self.kept), np.int32)
        self._allocate("pool", (self._pool_frames, self._size), np.uint8)
        self._allocate("overflow", (0, self._size), np.uint8)
        self._allocate("free", (kernels.NUMBERS + self._pool_frames,), np.int32)
        self._bind()

    def _allocate(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        self._storage.allocate(f"{self.name}.{name}", shape, dtype)

    def _array(self, name: str) -> Array:
        return self._arrays[f"{self.name}.{name}"]

    def _bind(self) -> tuple[Any, ...]:
        """The arguments of the kernels. Allocated frames that are not recorded in `free` yet become free."""
        written, table, pool, overflow, free = map(self._array, ("written", "table", "pool", "overflow", "free"))
        total = min(len(pool) + len(overflow), len(free) - kernels.NUMBERS)
        if free[kernels.KNOWN] < total:
            kernels.add_free_frames(free, total)
        flat = self._numbers, written, table.reshape(-1), pool.reshape(-1), overflow.reshape(-1), free
        self._bound: tuple[Any, ...] | None = flat
        return flat

    def reserve(self, count: int) -> None:
        more = 2 * self._given * (count + 1)  # if no frame is shared
        if (self._bound or self._bind())[-1].item(kernels.COUNT) < more:
            reason = "next_obs is not the obs of the next step, so more frames must be stored"
            purpose = f"{self._leaf.name}: {reason}; room for {more} more frames"
            self._storage.refuse_size((len(self._array("overflow")) + more) * self._size, purpose)

    def store(self, values: Sequence[Array], data: bytes, steps: int, state: Sequence[Array], indices: Indices) -> bool:
        pair = map(_bytes_of, values)
        return bool(kernels.store_at_once(data, steps, *state, indices, *pair, *(self._bound or self._bind())))

    def write(self, values: Sequence[Array], indices: Indices, begins: Flags) -> None:
        pair, done = [_bytes_of(value) for value in values], 0
        while (done := kernels.write(done, *pair, indices, begins, *(self._bound or self._bind()))) < len(indices):
            self._grow()

    def _grow(self, frames: int = 0) -> None:
        """Make room for `frames` more frames or twice the overflow, or finish an interrupted growth."""
        self._bound, overflow = None, len(self._array("overflow"))
        if len(self._array("free")) >= kernels.NUMBERS + self._pool_frames + overflow:  # else finish that growth
            overflow += max(overflow, self._pool_frames // 8, 4 * self._given, frames)
            self._allocate("overflow", (overflow, self._size), np.uint8)
        self._allocate("free", (kernels.NUMBERS + self._pool_frames + overflow,), np.int32)
        self._bind()

    def gather(self, indices: Indices, length: Indices) -> list[Array]:
        """See `Columns.gather`. If stacks overlap in all rows, both are views of one block (B, K + 1, ...)."""
        table, kept, capacity = self._array("table"), self.kept, self._storage.capacity
        last = indices + (length - 1) * self._storage.num_envs
        obs, next_obs = table.take(indices % capacity, axis=0)[:, :kept], table.take(last % capacity, axis=0)[:, kept:]
        if kept > 1 and (obs[:, 1:] == next_obs[:, :-1]).all():
            block = self._frames(np.concatenate((obs, next_obs[:, -1:]), axis=1))
            return [block[:, :kept], block[:, 1:]]
        shape = (len(indices), *self.shape)
        return [self._frames(obs).reshape(shape), self._frames(next_obs).reshape(shape)]

    def _frames(self, numbers: npt.NDArray[np.int32]) -> Array:
        """Copies of the frames with these numbers (B, K)."""
        pool, overflow = self._array("pool"), self._array("overflow")
        out = np.take(pool, numbers, axis=0, out=np.empty((*numbers.shape, self._size), np.uint8), mode="clip")
        if len(overflow):
            elsewhere = numbers >= len(pool)
            out[elsewhere] = overflow[numbers[elsewhere] - len(pool)]
        return np.asarray(out.reshape(-1).view(self._leaf.dtype).reshape(*numbers.shape, *self._frame_shape))

    def read(self, slots: Indices, leaf: int) -> Array:
        return self._last_frames(slots, leaf, self.kept).reshape(len(slots), *self.shape)

    def added(self, slots: Indices, leaf: int) -> Array:
        return self._last_frames(slots, leaf, self._given).reshape(len(slots), *self._leaf.shape)

    def _last_frames(self, slots: Indices, leaf: int, count: int) -> Array:
        stop = self.kept if leaf == self.leaves[0] else 2 * self.kept
        return self._frames(self._array("table").take(slots, axis=0)[:, stop - count : stop])

    def refuse_replacing(self, name: str) -> None:
        refuse_replacing_frames(name)

    def replace(self, slots: Indices, leaf: int, values: Array) -> None:
        refuse_replacing_frames(self._leaf.name)

    def state(self, slots: Slots) -> dict[str, Any]:
        """See `Columns.state`: for each chunk of rows, the codes of their frames, and then the frames.

        A chunk contains each frame once, for the first row that has it. The codes of the other rows refer to that row.
        A chunk therefore needs no other chunk. See the kernel `encode_rows`.
        """
        table = self._array("table")

        def read(begin: int, stop: int) -> Array:
            found = slots.by_slot(begin, stop)
            indices = found[found >= 0]
            codes = np.empty((len(indices), 2 * self.kept), np.int16)
            kernels.encode_rows(table, begin, indices, slots.bounds[0], slots.num_envs, slots.capacity, codes)
            numbers = table.take(indices % slots.capacity, axis=0)[codes == 1]
            frames = self._frames(numbers[:, None]).reshape(-1)
            return np.concatenate((codes.reshape(-1).view(np.uint8), frames.view(np.uint8)))

        return {"frames": LiveChunks(slots, self._given * self._size, read, shortest=8 * slots.num_envs)}

    def _decoded(self, indices: Indices, chunk: Array) -> tuple[npt.NDArray[np.int32], Array]:
        """The frame numbers in the rows of a chunk, from 1 on, and its frames. Raises ValueError for invalid data."""
        begin = 4 * self.kept * len(indices)
        if chunk.ndim != 1 or chunk.dtype != np.uint8 or len(chunk) < begin or (len(chunk) - begin) % self._size:
            raise ValueError(f"a chunk has shape {chunk.shape} and dtype {chunk.dtype}")
        codes, frames = chunk[:begin].view(np.int16).reshape(len(indices), -1), chunk[begin:].reshape(-1, self._size)
        numbers = np.empty(codes.shape, np.int32)
        if kernels.decode_rows(codes, indices, self._storage.num_envs, numbers) != len(frames):
            raise ValueError("the rows of a chunk have other frames than the chunk")
        return numbers, frames

    def check_state(self, state: dict[str, Any]) -> None:
        for indices, chunk in pieces(state["frames"]):
            _, frames = self._decoded(indices, chunk)
            if self._leaf.dtype == np.bool_ and frames.max(initial=0) > 1:
                raise ValueError("a frame of bool has other bytes than 0 and 1")

    def restore(self, state: dict[str, Any], oldest: Indices) -> None:
        num_envs, capacity, known = self._storage.num_envs, self._storage.capacity, 1
        self._forget(1)
        table = list[tuple[Indices, Array]]()
        for indices, chunk in pieces(state["frames"]):
            is_kept = indices // num_envs >= oldest[indices % num_envs]
            rows, frames = self._decoded(indices, chunk)
            used = np.unique(rows[is_kept])
            used = used[used > 0]
            numbers = np.zeros(len(frames) + 1, np.int32)
            numbers[used] = np.arange(known, known + len(used))
            table.append((indices[is_kept] % capacity, numbers[rows[is_kept]]))
            self._place(known, frames[used - 1])
            known += len(used)
        self._forget(known)
        for slots, rows in table:
            self._array("table")[slots] = rows
        self._array("written")[:] = state["frames"].slots.bounds[1]

    def restart(self) -> None:
        self._forget(1)
        self._array("written")[:] = self._storage.bounds[1]

    def _forget(self, known: int) -> None:
        """Empty the table. Frames from number `known` on become free."""
        self._array("table")[:] = 0
        free = self._array("free")
        free[kernels.COUNT], free[kernels.KNOWN] = 0, known
        self._bind()

    def _place(self, number: int, frames: Array) -> None:
        """Write frames from this number on. Makes room if needed."""
        while number + len(frames) > len(self._array("pool")) + len(self._array("overflow")):
            self._grow(number + len(frames) - len(self._array("pool")) - len(self._array("overflow")))
        pool, overflow = self._array("pool"), self._array("overflow")
        split, begin = min(max(len(pool) - number, 0), len(frames)), max(number - len(pool), 0)
        pool[number : number + split] = frames[:split]
        overflow[begin : begin + len(frames) - split] = frames[split:]

    def recover(self) -> None:
        """See `Columns.recover`: frames outside stored rows become free."""
        table, free = self._array("table"), self._array("free")
        is_stored = Slots(self._storage.bounds, self._storage.capacity).by_slot(0, len(table)) >= 0
        table[np.flatnonzero(~is_stored & table.any(axis=1))] = 0
        total = min(len(self._array("pool")) + len(self._array("overflow")), len(free) - kernels.NUMBERS)
        if table.min() < 0 or table.max() >= total:
            raise ValueError(f"{self.name}.table is damaged: it has numbers of frames that do not exist")
        is_used = np.zeros(total, np.bool_)
        is_used[table], is_used[0] = True, True
        numbers = np.flatnonzero(~is_used)[::-1]
        free[kernels.NUMBERS : kernels.NUMBERS + len(numbers)] = numbers
        free[[kernels.COUNT, kernels.KNOWN]] = len(numbers), total
        self._array("written")[:] = self._storage.bounds[1]
        self._bind()

    def check(self) -> None:
        """Verify that every frame except the first is either free or in a row."""
        table, free, name = self._array("table"), self._array("free"), self._leaf.name
        used = np.unique(table)
        idle = free[kernels.NUMBERS : kernels.NUMBERS + free[kernels.COUNT]]
        assert np.unique(idle).size == idle.size, f"{name}: a frame is free twice"
        assert not np.isin(idle, used).any(), f"{name}: a frame in use counts as free"
        assert np.union1d(idle, used[used > 0]).size == free[kernels.KNOWN] - 1, f"{name}: a frame is lost"
        assert not self._array("pool")[0].any(), f"{name}: the frame of zeros is not"


def _bytes_of(value: Array) -> npt.NDArray[np.uint8]:
    """The bytes of an array, row by row. Copied only if it is not contiguous."""
    flat = value.ravel()
    return flat if flat.dtype is _UINT8 else flat.view(_UINT8)
