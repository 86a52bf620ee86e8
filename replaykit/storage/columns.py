"""Columns: leaves of a transition that are stored outside its row."""

import math
import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, NoReturn, TypeAlias

import numpy as np

from replaykit.checks import check_choice, check_count
from replaykit.chunks import LiveChunks, Slots, pieces
from replaykit.field import Array, Leaf
from replaykit.spec import Spec
from replaykit.storage.base import Flags, Indices
from replaykit.storage.saved_state import check_rows

Padding: TypeAlias = Literal["reset", "zero"]
Share: TypeAlias = Literal["large", "all", "none"]
LARGE_FIELD_BYTES = 1024
"""Fields larger than this are not in the packed row."""


class Columns(ABC):
    """Some leaves of the transitions in all slots, in arrays that the storage allocates.

    A storage calls `write` between retiring the replaced steps and publishing the new ones. If the new steps are never
    published, the next `write` overwrites them.
    """

    name: str
    """Unique in the storage."""
    leaves: tuple[int, ...]
    """The positions in the spec of the leaves in these columns."""
    nbytes: int
    """Size in bytes of the arrays when they are allocated."""

    @abstractmethod
    def allocate(self) -> None:
        """Allocate the memory."""

    def reserve(self, count: int) -> None:  # noqa: B027
        """Raise MemoryError unless there is memory for `count` more steps."""

    @abstractmethod
    def write(self, values: Sequence[Array], indices: Indices, begins: Flags) -> None:
        """Write the values (n, ...) of each leaf, or (...) for one step, at indices (n,). Some begin an episode."""

    def store(self, values: Sequence[Array], data: bytes, steps: int, state: Sequence[Array], indices: Indices) -> bool:
        """Retire, write and publish in one call, if the storage has no other columns. Returns False if it cannot."""
        return False

    @abstractmethod
    def gather(self, indices: Indices, length: Indices) -> list[Array]:
        """Each leaf at stored indices (B,), in new arrays. If it `is_of_last`, from the last of the `length` steps."""

    @abstractmethod
    def read(self, slots: Indices, leaf: int) -> Array:
        """One leaf in filled slots, in a new array."""

    def added(self, slots: Indices, leaf: int) -> Array:
        """One leaf in filled slots, as it was added: not stacked."""
        return self.read(slots, leaf)

    def refuse_replacing(self, name: str) -> None:  # noqa: B027
        """Raise ValueError if the values of the leaf `name` cannot be replaced."""

    @abstractmethod
    def replace(self, slots: Indices, leaf: int, values: Array) -> None:
        """Overwrite one leaf (B, ...) in filled slots."""

    def part_of(self, state: dict[str, Any]) -> dict[str, Any]:
        """The entries of the storage's state that belong to these columns."""
        prefix = f"{self.name}."
        return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}

    @abstractmethod
    def state(self, slots: Slots) -> dict[str, Any]:
        """The contents of these slots, as `Chunks`."""

    @abstractmethod
    def check_state(self, state: dict[str, Any]) -> None:
        """Raise ValueError for a state that columns of this kind cannot have."""

    @abstractmethod
    def restore(self, state: dict[str, Any], oldest: Indices) -> None:
        """Restore the state of other columns: the steps of each lane from `oldest` (E,) on."""

    def recover(self) -> None:  # noqa: B027
        """Remove unpublished steps from files that another process has left."""

    def restart(self) -> None:  # noqa: B027
        """Empty the columns and undo a failed `restore`."""

    def check(self) -> None:  # noqa: B027
        """Verify every invariant."""


def refuse_replacing_frames(name: str) -> NoReturn:
    """Raise the ValueError for an observation whose frames are shared."""
    remedy = "build the buffer with share='none' and stack=1"
    raise ValueError(f"{name} cannot be overwritten, since its frames are shared by several transitions; {remedy}")


class Arrays(Columns):
    """Large leaves, each in its own array."""

    name = "large"

    def __init__(self, storage: Any, leaves: Sequence[int]) -> None:
        self.leaves: tuple[int, ...] = tuple(leaves)
        self._storage = weakref.proxy(storage)  # which refers to its columns
        self._spec: list[Leaf] = [storage.spec.leaves[i] for i in leaves]
        self._bytes = sum(leaf.field.nbytes for leaf in self._spec)
        self.nbytes: int = self._bytes * storage.capacity

    def allocate(self) -> None:
        allocate, capacity = self._storage.allocate, self._storage.capacity
        self._arrays = [allocate(f"large.{leaf.name}", (capacity, *leaf.shape), leaf.dtype) for leaf in self._spec]

    def write(self, values: Sequence[Array], indices: Indices, begins: Flags) -> None:
        slots = indices % self._storage.capacity
        for array, value in zip(self._arrays, values, strict=True):
            array[slots] = value

    def gather(self, indices: Indices, length: Indices) -> list[Array]:
        """See `Columns.gather`. The arrays share one block of memory: freeing several costs page faults."""
        capacity, count, found = self._storage.capacity, len(indices), dict[int, Array]()
        last = (indices + (length - 1) * self._storage.num_envs) % capacity
        memory, start = np.empty(count * self._bytes, np.uint8), 0
        for k in sorted(range(len(self._arrays)), key=lambda k: -self._arrays[k].dtype.itemsize):  # so all are aligned
            array = self._arrays[k]
            out: Array = np.ndarray((count, *array.shape[1:]), array.dtype, memory, start)
            start += out.nbytes
            found[k] = np.take(
                array, last if self._spec[k].is_of_last else indices % capacity, axis=0, out=out, mode="clip"
            )
        return [found[k] for k in range(len(self._arrays))]

    def read(self, slots: Indices, leaf: int) -> Array:
        return np.asarray(self._arrays[self.leaves.index(leaf)].take(slots, axis=0))

    def replace(self, slots: Indices, leaf: int, values: Array) -> None:
        self._arrays[self.leaves.index(leaf)][slots] = values

    def state(self, slots: Slots) -> dict[str, Any]:
        arrays = zip(self._spec, self._arrays, strict=True)
        return {leaf.name: LiveChunks.of_array(array, slots) for leaf, array in arrays}

    def check_state(self, state: dict[str, Any]) -> None:
        for leaf in self._spec:
            for indices, rows in pieces(state[leaf.name]):
                check_rows(leaf.name, rows, len(indices), leaf.shape, leaf.dtype)

    def restore(self, state: dict[str, Any], oldest: Indices) -> None:
        num_envs, capacity = self._storage.num_envs, self._storage.capacity
        for leaf, array in zip(self._spec, self._arrays, strict=True):
            for indices, rows in pieces(state[leaf.name]):
                is_kept = indices // num_envs >= oldest[indices % num_envs]
                array[indices[is_kept] % capacity] = rows[is_kept]


def columns_for(storage: Any, stack: int, padding: Padding, share: Share) -> list[Columns]:
    """The columns of a storage: frames for large observations and their next_obs, arrays for other large leaves."""
    from replaykit.storage.frames import Frames

    leaves, framed = storage.spec.leaves, framed_pairs(storage.spec, stack, padding, share)
    made: list[Columns] = [Frames(storage, pair, frames, padding, share != "none") for pair, frames in framed.items()]
    large = {i for i, leaf in enumerate(leaves) if leaf.field.nbytes > LARGE_FIELD_BYTES and leaf.name != "reward"}
    large -= {i for columns in made for i in columns.leaves}
    return [*made, Arrays(storage, sorted(large))] if large else made


def framed_pairs(spec: Spec, stack: int, padding: Padding, share: Share) -> dict[tuple[int, int], int]:
    """The observations to store as frames: the positions of obs and next_obs in the spec, and the length of a stack.

    Raises ValueError or TypeError for invalid options.
    """
    stack = check_count("stack", stack)
    check_choice("padding", padding, Padding)
    check_choice("share", share, Share)
    positions = {leaf.name: i for i, leaf in enumerate(spec.leaves)}
    observations = [leaf for leaf in spec.leaves if leaf.name.partition(".")[0] == "obs"]
    if stack > 1 and all(len(leaf.shape) < 2 for leaf in observations):
        found = ", ".join(f"{leaf.name} has shape {leaf.shape}" for leaf in observations)
        remedy = "stack vectors in the environment, with gymnasium.wrappers.FrameStackObservation"
        raise ValueError(f"stack is {stack}, but {found}; expected frames with at least two axes; {remedy}")
    smallest, pairs = {"large": LARGE_FIELD_BYTES, "all": 0, "none": math.inf}[share], dict[tuple[int, int], int]()
    for leaf in observations:
        frames = stack if len(leaf.shape) >= 2 else 1
        if frames > 1 or leaf.field.nbytes > smallest:
            pairs[positions[leaf.name], positions[f"next_{leaf.name}"]] = frames
    return pairs
