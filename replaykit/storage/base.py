"""`Storage`: the interface of everything that holds transitions. Buffers do not depend on the data layout."""

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from replaykit._kernels import lazy
from replaykit.backend import NUMPY, Backend
from replaykit.batch import Ahead, Draw, Look, Window
from replaykit.checks import check_count
from replaykit.chunks import Slots
from replaykit.declared import Declared
from replaykit.field import Leaf, refuse_negative, refuse_too_large
from replaykit.spec import Spec
from replaykit.storage.lock import Lock
from replaykit.storage.memory_limit import refuse_more_than_memory
from replaykit.trees import Tree

kernels: Any = lazy("lanes")
Indices: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]
Flags: TypeAlias = npt.NDArray[np.bool_]
Serve: TypeAlias = Callable[[int], dict[str, Any]]
Open: TypeAlias = Callable[..., tuple[Draw, Window]]
_READ = 4096
"""Number of transitions read at a time when searching for NaN and infinity."""
EMPTY = "the buffer is empty, so nothing can be sampled; add a transition first"


class Storage(Declared, ABC):
    """Base class of storages, which hold transitions. Subclass it to store transitions in another way.

    To change only where the arrays are placed, subclass `LocalStorage`. A storage has E lanes of L slots, and the
    capacity C = L x E. A transition's index is ``step * E + lane``, where `step` counts the steps of its lane. An index
    is never reused. The next step of the lane has the index plus E. An index is stored in slot ``index % C``. Lane e
    holds the steps in ``[bounds[0, e], bounds[1, e])``, at most its last L.

    A subclass calls ``super().__init__``, sets `bounds`, and writes the abstract methods. Their arguments are already
    checked, and the buffer holds `lock` during each call, except for `encode`.

    Parameters
    ----------
    capacity : int
        Maximum number of transitions, C, rounded up to a multiple of `num_envs`.
    spec : Spec
        The fields of a transition.
    num_envs : int
        Number of lanes, E.

    Attributes
    ----------
    length : int
        Number of slots in each lane, L.
    bounds : ndarray of shape (2, E), int64
        The oldest step of each lane and the next step to be written. The subclass keeps it up to date.
    lock : Lock
        Held by every public method of a buffer and its wrappers.
    arrays : dict of str to ndarray
        The arrays that `allocate` returned, by name.
    moments : dict of str to Slots
        The indices that were stored at the last saves and loads, by the token of the checkpoint.
    """

    bounds: Indices
    backend: Backend = NUMPY
    """The operations on the arrays that this storage serves."""
    stack = 1
    """Number of frames in each observation of a batch, k."""
    stale_updates = 0
    """The number of stale indices that `select` has replaced instead of leaving them out."""
    is_reopened = False
    """Whether the arrays already contain transitions from another process."""
    restored: Slots | None = None
    """The indices stored at the time of the last restored state, if it had `Chunks <replaykit.chunks.Chunks>`."""

    def __init__(self, capacity: int, spec: Spec, num_envs: int = 1) -> None:
        if isinstance(capacity, Spec):
            raise TypeError("capacity is a Spec; expected an int of at least 1: the order is (capacity, spec)")
        capacity = check_count("capacity", capacity)
        if not isinstance(spec, Spec):
            remedy = "the order is (capacity, spec), with Spec.from_spaces(observation_space, action_space) or from_env"
            raise TypeError(f"spec is a {type(spec).__name__}; expected a Spec: {remedy}")
        self.spec: Spec = spec
        self.num_envs: int = check_count("num_envs", num_envs)
        self.lanes: tuple[int, ...] = (self.num_envs,) if self.num_envs > 1 else ()
        self.length: int = -(-capacity // self.num_envs)
        self.capacity: int = self.length * self.num_envs
        self._reward = [leaf.name for leaf in spec.leaves].index("reward")
        self.lock: Any = Lock()
        self.arrays: dict[str, npt.NDArray[Any]] = dict[str, npt.NDArray[Any]]()
        self.moments: dict[str, Slots] = {}

    def allocate(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """An array of zeros for the storage or its distribution. Override it, for example to keep arrays in files.

        If `name` was allocated before with fewer rows, the new array begins with the old rows.
        """
        array = np.zeros(shape, dtype)
        if name in self.arrays:
            array[: len(self.arrays[name])] = self.arrays[name]
        self.arrays[name] = array
        return array

    def refuse_size(self, needed: int, purpose: str) -> None:
        """Raise MemoryError if there is no room for arrays of `needed` bytes where `allocate` places them."""
        refuse_more_than_memory(needed, purpose)

    def claim(self, name: str, value: Any) -> None:
        """Record a value that a distribution's arrays depend on. Raises ValueError if it was different before."""

    def encode(
        self, values: tuple[Tree, ...], extras: Mapping[str, Tree], lead: tuple[int, ...], mask: Flags | None = None
    ) -> Any:
        """Check the values of steps and convert them to a block for `write`. Changes nothing.

        `values` are obs, action, reward, next_obs, terminated and truncated. `extras` are the extra fields. Their
        leading axes are `lead`: (T, E), or (E,) for one step; without E for one lane. If `lead` is ``()``, all values
        may have a leading axis of length 1. With a `mask` of this shape, only the selected entries are converted.

        Returns a list with an array of shape (entries, ...) for each of ``spec.leaves``, ordered by step, then by lane.
        A subclass may return any other object for its `write`. Raises FieldNameError, ValueError, TypeError or
        OverflowError. The error names the first field of the spec with an invalid value.
        """
        flat = list(zip(self.spec.leaves, self.spec.flatten(values, extras), strict=True))
        if not lead and _has_leading_axis(flat, *flat[self._reward]):
            lead, mask = (1,), None if mask is None else mask.reshape(1)
        count = math.prod(lead) if mask is None else int(mask.sum())
        block = [self.coerce(leaf, value, lead, mask).reshape(count, *leaf.shape) for leaf, value in flat]
        self.check_rewards(block[self._reward])
        return block

    def coerce(self, leaf: Leaf, value: Any, lead: tuple[int, ...], mask: Flags | None = None) -> Any:
        """The value of a leaf in its shape and dtype. Raises an error for a value that does not fit."""
        return leaf.coerce(value, lead, mask)

    def refuse_block(self, block: Any, entries: int) -> None:
        """Raise the error that `write` would raise for a block of `entries` entries that `encode` did not check."""

    def check_rewards(self, rewards: Any) -> None:
        """Call `refuse_rewards`. A storage that cannot see the values yet may raise the error later."""
        self.refuse_rewards(rewards)

    @staticmethod
    def refuse_rewards(rewards: npt.NDArray[Any]) -> None:
        """Raise ValueError for the first reward that is NaN or infinite."""
        if rewards.size == 1 and math.isfinite(rewards.item()):
            return
        finite = np.isfinite(rewards)
        if not finite.all():
            wrong = f"reward contains {rewards[~finite][0]}; expected finite {rewards.dtype} numbers"
            raise ValueError(f"{wrong}; look for a division by 0 or an overflow in what computes it")

    def encode_step(self, *values: Any) -> Any:
        """`encode` for one step of every lane: the six core fields, and the extras as a dict."""
        return self.encode(values[:-1], values[-1], self.lanes)

    @abstractmethod
    def write(self, block: Any, steps: int, mask: Flags | None = None) -> Indices:
        """Store T = `steps` steps: retire the steps that they replace, write the new ones, and publish them.

        With a mask (T E,) of bool, the block has only the selected entries: `encode` got the same mask, or a `lead` of
        a writer's lanes. T may exceed L. Returns the indices (T E,), -1 where the mask is False.
        """

    @abstractmethod
    def end_episode(self, lanes: Indices) -> None:
        """Begin a new episode with the next step of each of these lanes. Stored flags do not change."""

    @abstractmethod
    def clear(self) -> None:
        """Retire every transition: ``bounds[0]`` becomes ``bounds[1]``. All episodes end."""

    def refuse_replacing(self, values: Mapping[str, npt.NDArray[Any]]) -> None:
        """Raise ValueError for leaves or values that `replace` does not accept."""
        for name in values.keys() & {"terminated", "truncated"}:
            remedy = "end episodes with end_episode, or add the steps again"
            raise ValueError(f"{name} cannot be overwritten, since it defines the episodes; {remedy}")
        if "reward" in values:
            self.check_rewards(values["reward"])

    def overwrite(self, entries: Indices, values: Mapping[str, npt.NDArray[Any]]) -> int:
        """Overwrite these leaves of the transitions that are still stored. Returns their number.

        Raises the IndexError of `refuse` for an index that was never returned. The index -1 is ignored.
        """
        step, lanes = np.divmod(entries, self.num_envs)
        self.refuse(entries[(entries < -1) | (step >= self.bounds[1, lanes])])
        stored = np.flatnonzero((entries >= 0) & (step >= self.bounds[0, lanes]))
        slots = entries[stored] % self.capacity
        for former in self.moments.values():
            former.overwrite(slots)
        self.replace(entries[stored], {name: value[stored] for name, value in values.items()})
        return len(stored)

    def replace(self, indices: Indices, values: Mapping[str, npt.NDArray[Any]]) -> None:
        """Overwrite these leaves (B, ...) of stored transitions. If an index occurs twice, its last value counts."""
        raise NotImplementedError(f"a {type(self).__name__} cannot overwrite stored fields; it needs a method replace")

    @abstractmethod
    def window(self, indices: Indices, n: int) -> Window:
        """Windows of up to `n` steps that start at indices (B,) or (B, T) and end with the episode or the newest step.

        Call `refuse` to raise IndexError for an index that is not stored.
        """

    @abstractmethod
    def reduce(self, window: Window, powers: Floats) -> dict[str, Any]:
        """One transition from each window, by field, nested as in the spec.

        `next_obs`, and every leaf that `is_of_last`, comes from the last step of the window, with the index ``first +
        (length - 1) * E``. The other fields come from the first step. The reward is the sum of ``powers[k] *
        window.reward[:, k]`` over the length, in float64, rounded to the dtype of the field. `discount` is a scalar of
        this dtype. It is 0 where ``window.terminated``, and ``powers[length]`` elsewhere. `terminated`, `truncated` and
        `length` are the window's. Its `rewrites` are applied in order, and the fields in `added` come last.
        """

    @abstractmethod
    def read(self, indices: Indices, name: str) -> npt.NDArray[Any]:
        """One leaf of stored transitions, in a new array of shape (B, ...); zeros for the index -1."""

    @abstractmethod
    def episode(self, indices: Indices) -> tuple[Indices, Indices, Indices]:
        """The episode number of each index, and the indices of the episode's first and last step.

        Each episode has its own number. The first step may have been overwritten. All three are -1 for the index -1.
        """

    @abstractmethod
    def latest(self, count: int) -> Indices:
        """The indices of the `count` newest transitions, oldest first; of all transitions if fewer are stored."""

    def fetch(self, indices: Indices, powers: Floats) -> dict[str, Any]:
        """`window` and `reduce`. Override it if one call can be faster."""
        return self.reduce(self.window(indices, len(powers) - 1), powers)

    def look_ahead(self, window: Window, look: Look, uniforms: Floats) -> Ahead:
        """The goals that hindsight gives to windows: `look_ahead <replaykit.backend.Backend.look_ahead>`."""
        return self.backend.look_ahead(self, window, look, uniforms)

    def fuse(self, distribution: Any, powers: Floats, rng: np.random.Generator) -> tuple[Serve, Open] | None:
        """Faster functions for ``serve`` and ``open`` of a buffer, with bitwise equal results, or None."""
        return None

    def raise_late(self) -> None:
        """Raise the error that a storage recorded earlier, when it could not see the values yet."""

    def __len__(self) -> int:
        """The number of stored transitions, N."""
        return int((self.bounds[1] - self.bounds[0]).sum())

    @property
    def nbytes(self) -> int:
        """The size of all allocated arrays in bytes."""
        return sum(array.nbytes for array in self.arrays.values())

    def restart(self) -> None:
        """Remove everything. Called if `restore` has failed."""
        self.clear()

    def stored(self) -> Indices:
        """Every stored index, lane by lane, oldest first. O(N)."""
        return stored_in(self.bounds, self.num_envs)

    def slots(self, indices: Indices) -> Indices:
        """The slot of each stored index. Raises the IndexError of `refuse`."""
        slots = np.empty(indices.shape[0], np.int64)
        if kernels.slots_of(indices, self.bounds, self.capacity, slots) >= 0:
            self.refuse(indices)
        return slots

    def select(self, indices: Indices, values: Floats, name: str, largest: float, eps: float) -> tuple[Indices, Floats]:
        """The slots and the priorities ``abs(value) + eps`` of the indices that are still stored, in order.

        `name` is "td_errors" or "priorities"; `eps` is not added to priorities. Raises IndexError for an index that was
        never returned, and ValueError for a value that is NaN or above `largest`, or a negative priority.
        """
        size, added = indices.shape[0], 0.0 if name == "priorities" else eps
        slots, kept = np.empty(size, np.int64), np.empty(size)
        count = kernels.select_stored(indices, values, largest, added, self.bounds, self.capacity, slots, kept)
        if count < 0:
            wrong = slice(-1 - count, -count)
            refuse_too_large(name, values[wrong], largest)
            self.refuse(indices[wrong])
        if name == "priorities":
            refuse_negative(values)
        return (slots, kept) if count == size else (slots[:count], kept[:count])

    def refuse(self, indices: Indices) -> None:
        """Raise IndexError for the first index that is not stored. The error shows whether it is stale."""
        refuse_not_stored(indices, self.bounds)

    def not_finite_observations(self) -> Iterator[str]:
        """A message for each leaf of the observations that contains NaN or infinite numbers. O(N)."""
        stored = self.stored()
        for leaf in self.spec.leaves:
            if leaf.name.partition(".")[0] in ("obs", "next_obs") and leaf.dtype.kind in "fc":
                parts = (stored[begin : begin + _READ] for begin in range(0, stored.size, _READ))
                found = np.concatenate([part[_has_others(self.read(part, leaf.name))] for part in parts] or [stored])
                if found.size:
                    share = f"{found.size} of {stored.size} stored transitions, the first with index {found[0]}"
                    yield f"{leaf.name} contains NaN or infinite numbers in {share}; look at the environment"

    def check(self) -> None:
        """Verify every invariant. If one is broken, raises an AssertionError that names it."""
        first, cursor = self.bounds
        assert (first <= cursor).all(), "a lane's oldest step is newer than its newest"
        assert (cursor - first <= self.length).all(), "a lane holds more than capacity / num_envs transitions"
        slots = self.stored() % self.capacity
        assert np.unique(slots).size == slots.size == len(self), "two transitions share a slot"


def _has_others(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Whether each row of values contains a number that is not finite."""
    return np.asarray((~np.isfinite(values)).reshape(len(values), -1).any(axis=1))


def refuse_other_lengths(
    spec: Spec, values: tuple[Tree, ...], extras: Mapping[str, Tree], lead: tuple[int, ...]
) -> None:
    """Raise ValueError for the first field whose length differs from most others. `lead` has the reward's length."""
    flat = list(zip(spec.leaves, spec.flatten(values, extras), strict=True))
    shapes = [_shape_of(value) for _, value in flat]
    (common, _), *_ = Counter(shape[:1] for shape in shapes if shape is not None).most_common(1)
    for (leaf, _), shape in zip(flat, shapes, strict=True):
        if shape is None:  # not an array: the error that is being handled is the right one
            return
        if common and common != lead[:1] and shape[:1] != common:
            raise ValueError(leaf.wrong_shape(shape, common + lead[1:]))


def _has_leading_axis(flat: list[tuple[Leaf, Any]], of_reward: Leaf, reward: Any) -> bool:
    """Whether most values have an axis of length 1 before the shape of their leaf."""
    leaf, value = flat[0]
    is_one = type(value) is np.ndarray and value.shape == leaf.shape
    if is_one and (type(reward) is float or _shape_of(reward) == of_reward.shape):
        return False
    return 2 * sum(_shape_of(value) == (1, *leaf.shape) for leaf, value in flat) > len(flat)


def _shape_of(value: Any) -> tuple[int, ...] | None:
    """The shape of a value, or None if it is not an array. `Leaf.coerce` raises the error that names its field."""
    try:
        shape: tuple[int, ...] = np.shape(value)
        return shape
    except (ValueError, TypeError, RuntimeError):
        return None


def refuse_not_stored(indices: Indices, bounds: Indices) -> None:
    """Raise IndexError for the first index outside the bounds of its lane. The error shows whether it is stale."""
    successor = bounds.shape[1]
    steps, lanes = np.divmod(indices, successor)
    wrong = (indices < 0) | (steps < bounds[0, lanes]) | (steps >= bounds[1, lanes])
    if not wrong.any():
        return
    index = int(indices[wrong][0])
    lane = index % successor
    oldest, stop = (bounds[:, lane] * successor + lane).tolist()
    if 0 <= index < stop:
        stale = "which is stale: its transition is no longer stored"
        raise IndexError(f"indices contains {index}, {stale}; the oldest stored index of lane {lane} is {oldest}")
    newest = f"the newest index of lane {lane} is {stop - successor}" if stop > lane else f"lane {lane} is empty"
    reason = f"which the buffer never returned; {newest}; pass indices from add or sample"
    raise IndexError(f"indices contains {index}, {reason}")


def stored_in(bounds: Indices, successor: int) -> Indices:
    """Every index in the bounds of some lanes: lane by lane, oldest first."""
    counts = bounds[1] - bounds[0]
    steps = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - bounds[1], counts)
    return np.asarray(steps * successor + np.repeat(np.arange(len(counts)), counts))
