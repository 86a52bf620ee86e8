"""Observations kept once: the next_obs of a step is the obs of the one after it, and stacks overlap."""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from replaykit._kernels import lazy
from replaykit.field import Leaf
from replaykit.memory import refuse_more_than_memory

kernels = lazy("frames")

Padding: TypeAlias = Literal["reset", "zero"]

_LARGEST_STACK = 16
"""A first axis that is longer is no stack of frames."""
_SLACK = 32
"""One frame in so many is set aside for episodes' first observations, which no step before has."""


@dataclass(slots=True)
class FramesPlan:
    """What :meth:`Frames.write` will do, with nothing left that could be refused."""

    indices: npt.NDArray[np.int64]
    obs: npt.NDArray[Any]
    next_obs: npt.NDArray[Any]
    links: npt.NDArray[np.int64]
    sources: npt.NDArray[np.int64]


@dataclass(slots=True)
class _Room:
    """What grows: the frames beyond the pool, and the numbers of all that are free, `count[0]` of them."""

    overflow: npt.NDArray[Any]
    free: npt.NDArray[np.int64]
    count: npt.NDArray[np.int64]


class Frames:
    """The observations of one field, as numbers of frames.

    A frame is what is stored once. With ``stack > 1`` it is one observation, and the batch has the last `stack` of
    the episode; without, an observation of shape (k, H, W) is taken for k frames, and any other for one. When a step is
    added, each of its frames is compared with those that it may share: the next_obs of the step before in its lane, and
    the other frames of its own. Only one that equals them bit for bit is shared, so what is read is what was written,
    whatever the stream.

    So a stream needs about one frame a step, and one more for each episode; that much is set aside. One that shares
    less, since the observations are changed on their way, makes the `overflow` grow.

    Parameters
    ----------
    capacity, num_envs : int
        Of the ring.
    leaf : Leaf
        The field, of obs.
    stack : int
        Observations in a batch's obs, k.
    padding : {"reset", "zero"}
        What fills a stack up at an episode's start: its first observation, or zeros.
    shares : bool
        Whether frames are compared and shared at all, apart from the overlap of stacks.
    """

    def __init__(
        self, capacity: int, num_envs: int, leaf: Leaf, stack: int, padding: Padding, shares: bool = True
    ) -> None:
        self._num_envs = num_envs
        self._leaf = leaf
        self._given = 1 if stack > 1 else _planes(leaf.shape)
        self._kept = stack * self._given
        self._shares = shares
        self._zero = 0 if stack > 1 and padding == "zero" else -1
        self._frame_shape = leaf.shape[1:] if self._given > 1 else leaf.shape
        self._frame_bytes = leaf.field.nbytes // self._given
        self._shape = (stack, *leaf.shape) if stack > 1 else leaf.shape
        new = (2 if not shares else 3 if self._given % 3 == 0 else 1) * capacity  # three: the planes of a colour image
        self._pool_size = new + new // _SLACK + 2 * self._kept * num_envs + 1
        self._capacity = capacity
        self._room = _Room(np.zeros((0, *self._frame_shape), leaf.dtype), np.zeros(0, np.int64), np.zeros(1, np.int64))

    @property
    def _total(self) -> int:
        """Frames that there is room for."""
        return self._pool_size + len(self._room.overflow)

    @property
    def nbytes(self) -> int:
        """Bytes of the frames, whether filled or not, and of their numbers."""
        return self._total * (self._frame_bytes + 8) + self._capacity * 2 * self._kept * 4

    def allocate(self) -> None:
        """Take the memory: `nbytes`, of which the system gives each page when it is first written."""
        self._table = np.zeros((self._capacity, 2 * self._kept), np.int32)
        self._pool = np.zeros((self._pool_size, *self._frame_shape), self._leaf.dtype)
        free = np.arange(self._pool_size)[::-1].copy()  # taken from the end
        self._room = _Room(self._room.overflow, free, np.array([self._pool_size - (self._zero == 0)]))

    def _as_words(self, frames: npt.NDArray[Any], *lead: int) -> npt.NDArray[Any]:
        """Contiguous frames as rows of words, to be compared and copied whatever their dtype is."""
        word = np.dtype(np.uint64 if self._frame_bytes % 8 == 0 else np.uint8)
        words: npt.NDArray[Any] = frames.reshape(-1).view(word).reshape(*lead, self._frame_bytes // word.itemsize)
        return words

    # -- Writing ---------------------------------------------------------------------------------------------

    def plan(
        self,
        indices: npt.NDArray[np.int64],
        obs: npt.NDArray[Any],
        next_obs: npt.NDArray[Any],
        ends: npt.NDArray[np.bool_],
        first: npt.NDArray[np.int64],
        cursor: npt.NDArray[np.int64],
        ended: npt.NDArray[np.bool_],
    ) -> FramesPlan:
        """Compare the frames of n steps with those that they may share, before anything is changed.

        Parameters
        ----------
        indices : ndarray of shape (n,), int64
            In the order of the steps, at most L of each lane.
        obs, next_obs : ndarray of shape (n, ...)
        ends : ndarray of shape (n,), bool
            Which of them end an episode.
        first, cursor, ended
            The ring's, as they are before.

        Raises
        ------
        MemoryError
            If more frames are new than there is room for, and than the machine has memory for.
        """
        count = indices.shape[0]
        given, given_next = (
            self._as_words(np.ascontiguousarray(values, self._leaf.dtype), count, self._given)
            for values in (obs, next_obs)
        )
        links = np.empty((count, 3), np.int64)
        sources = np.empty((count, 2 * self._given), np.int64)
        pool, room = self._as_words(self._pool, self._pool_size), self._room
        lacking = kernels.plan(
            indices, ends, given, given_next, self._shares, self._zero, first, cursor, ended,
            self._table, pool, self._as_words(room.overflow, len(room.overflow)), room.count, links, sources,
        )  # fmt: skip
        if lacking > 0:
            self._grow(room, lacking)
        return FramesPlan(indices, given, given_next, links, sources)

    def refuse_more_than_memory(self) -> None:
        """Raise MemoryError unless there is memory for whatever is written, shared or not."""
        worst = 2 * self._capacity * self._given + 2 * self._kept * self._num_envs
        if worst > self._total:
            self._refuse_to_grow(worst - self._pool_size, "at most ", worst - self._total)

    def _refuse_to_grow(self, overflow: int, most: str, more: int) -> None:
        refuse_more_than_memory(
            overflow * self._frame_bytes,
            f"{self._leaf.name}: the observations share fewer frames than a stream does in which each is the next_obs "
            f"of the step before; to store {most}{more} more frames",
        )

    def _grow(self, room: "_Room", lacking: int) -> None:
        """Make room for this many more frames at least, and so many that it is not for long."""
        old, total = len(room.overflow), self._total
        more = max(lacking, old, self._pool_size // 8)
        self._refuse_to_grow(old + more, "", more)
        overflow = np.zeros((old + more, *self._frame_shape), self._leaf.dtype)
        overflow[:old] = room.overflow
        free = np.empty(total + more, np.int64)
        count = int(room.count[0])
        free[:more] = np.arange(total, total + more)[::-1]
        free[more : more + count] = room.free[:count]
        self._room = _Room(
            overflow, free, room.count + more
        )  # at once, so that an interrupt finds the one or the other

    def write(self, plan: FramesPlan) -> None:
        """Store the frames of the steps, and free those of the steps whose slots they take."""
        room = self._room
        kernels.write(
            plan.indices, self._num_envs, plan.obs, plan.next_obs, plan.links, plan.sources, self._zero, self._table,
            self._as_words(self._pool, self._pool_size), self._as_words(room.overflow, len(room.overflow)),
            room.free, room.count,
        )  # fmt: skip

    def release(self, living: npt.NDArray[np.int64]) -> None:
        """Free every frame but those of the `living` slots. O(C), for after a reset or an interrupted write."""
        room = self._room
        unused = np.ones(self._total, np.bool_)
        unused[self._table[living]] = False
        if self._zero == 0:
            unused[0] = False
        numbers = np.flatnonzero(unused)[::-1]
        room.free[: numbers.size] = numbers
        room.count[0] = numbers.size

    # -- Reading ---------------------------------------------------------------------------------------------

    def gather(
        self, slots: npt.NDArray[np.int64], obs: bool, next_obs: bool
    ) -> tuple[npt.NDArray[Any] | None, npt.NDArray[Any] | None]:
        """The obs and the next_obs of filled slots, each (B, ...), or None where it is not asked for. O(B).

        Where stacks of both are asked for and overlap in every slot, both are views of one block (B, K + 1, ...).
        """
        kept = self._kept
        numbers = self._table.take(slots, axis=0)
        if obs and next_obs and kept > 1 and (numbers[:, 1:kept] == numbers[:, kept : 2 * kept - 1]).all():
            block = self._frames(np.concatenate((numbers[:, :kept], numbers[:, -1:]), axis=1))
            return block[:, :kept], block[:, 1:]
        shape = (slots.shape[0], *self._shape)
        return (
            self._frames(numbers[:, :kept]).reshape(shape) if obs else None,
            self._frames(numbers[:, kept:]).reshape(shape) if next_obs else None,
        )

    def _frames(self, numbers: npt.NDArray[np.int32]) -> npt.NDArray[Any]:
        """Fresh copies of the frames of these numbers."""
        out = np.empty(numbers.shape + self._frame_shape, self._leaf.dtype)
        np.take(self._pool, numbers, axis=0, out=out, mode="clip")
        if len(self._room.overflow):
            elsewhere = numbers >= self._pool_size
            out[elsewhere] = self._room.overflow[numbers[elsewhere] - self._pool_size]
        return out

    @property
    def arrays(self) -> tuple[npt.NDArray[Any], ...]:
        """What holds the observations."""
        return self._table, self._pool, self._room.overflow

    def check(self, living: npt.NDArray[np.int64]) -> None:
        """Verify that no frame of the `living` slots counts as free, and none is lost.

        Raises
        ------
        AssertionError
            Naming the broken invariant.
        """
        room, name, total = self._room, self._leaf.name, self._total
        used = np.unique(self._table[living])
        free = room.free[: room.count[0]]
        assert used.size == 0 or (used[0] >= 0 and used[-1] < total), f"{name}: a frame has no place"
        assert np.unique(free).size == free.size, f"{name}: a frame is free twice"
        assert not np.isin(free, used).any(), f"{name}: a frame in use counts as free"
        zero = np.array([0] if self._zero == 0 else [], np.int64)
        assert free.size + np.union1d(used, zero).size == total, f"{name}: a frame is neither in use nor free"
        assert self._zero < 0 or not self._as_words(self._pool[:1], 1).any(), f"{name}: the frame of zeros is not"


def _planes(shape: tuple[int, ...]) -> int:
    """Frames in an observation: the first axis of (k, H, W), if it is as short as that of a stack."""
    is_stack = len(shape) >= 3 and 1 < shape[0] <= min(_LARGEST_STACK, shape[1], shape[2])
    return shape[0] if is_stack else 1
