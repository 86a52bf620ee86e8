"""`Writer`: adds to some lanes of a buffer, for one of several threads."""

import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeAlias, final

import numpy as np
import numpy.typing as npt

from replaykit.spec import REQUIRED, Spec
from replaykit.storage.base import Indices
from replaykit.storage.lock import Lock
from replaykit.trees import Tree

Lanes: TypeAlias = int | slice | Iterable[int]
Flags: TypeAlias = npt.NDArray[np.bool_]


class Writing(ABC):
    """The interface with which `record` and actors write to some lanes. A lane has one writer at a time.

    Attributes
    ----------
    num_envs : int
        Number of lanes, k. The values of a step have a leading axis k, which is optional with one lane.
    """

    num_envs: int
    recorder: object = None
    """A token of the recorder that `record` made last for these lanes."""

    @property
    def rate_limit(self) -> Any:
        """The `RateLimit` that each add waits for, or None."""
        return None

    @property
    @abstractmethod
    def spec(self) -> Spec:
        """The fields of a transition."""

    @property
    @abstractmethod
    def lock(self) -> Lock:
        """The lock that a recorder holds while it writes."""

    @abstractmethod
    def add(
        self, obs: Tree, action: Tree, reward: Any, next_obs: Tree, terminated: Any = REQUIRED,
        truncated: Any = REQUIRED, *, mask: npt.ArrayLike | None = None, td_error: Any = None, **extras: Tree,
    ) -> Any:  # fmt: skip
        """Store one step of every lane, or of those in `mask`."""

    @abstractmethod
    def extend(
        self, obs: Tree, action: Tree, reward: Any, next_obs: Tree, terminated: Any = REQUIRED,
        truncated: Any = REQUIRED, *, mask: npt.ArrayLike | None = None, td_error: Any = None, **extras: Tree,
    ) -> Any:  # fmt: skip
        """Store T steps of every lane, or of those in `mask`."""

    @abstractmethod
    def end_episode(self, mask: npt.ArrayLike | None = None) -> None:
        """End the running episodes of the lanes, or of those in `mask`."""


@final
class Writer(Writing):
    """Adds to some lanes of a buffer, from one thread. Created by :meth:`replaykit.Replay.writer`.

    A writer adds like a buffer with `num_envs` lanes. Writers may add at different rates: give each thread its own.

    While a writer is open, nothing else can add to its lanes: their episodes would be mixed. It is closed by `close`,
    by the end of a ``with`` block, or when the last reference to it is gone. It cannot be copied or pickled.

    Methods for writing: `add`, `extend`, `end_episode`. To release the lanes: `close`.

    Parameters
    ----------
    replay : Replay
        A buffer, or a wrapper around one.
    lanes : int, slice, range or list of int
        See :meth:`replaykit.Replay.writer`.

    Attributes
    ----------
    replay : Replay
    lanes : tuple of int
        The lanes of the buffer that belong to the writer.
    num_envs : int
        The number of these lanes, k.
    """

    def __init__(self, replay: Any, lanes: Lanes) -> None:
        every = replay.num_envs
        self.replay: Any = replay
        self.lanes: tuple[int, ...] = _checked_lanes(lanes, every)
        self.num_envs: int = len(self.lanes)
        self._has_axis = not isinstance(lanes, int | np.integer)
        self._is_closed, self._columns = False, np.array(self.lanes)
        self._selected = np.zeros(every, np.bool_)
        self._selected[self._columns] = True
        writers = self.lock.written.writers
        with self.lock:
            for lane in self.lanes:
                if _is_owned(writers, lane):
                    wanted = "expected lanes without a writer; close() that writer first"
                    raise ValueError(f"lanes contains {lane}, which already has a writer; {wanted}")
            replay.end_episode(self._selected)
            writers.update(dict.fromkeys(self.lanes, weakref.ref(self)))

    # -- Writing ---------------------------------------------------------------------------------------------

    def add(
        self, obs: Tree, action: Tree, reward: Any, next_obs: Tree, terminated: Any = REQUIRED,
        truncated: Any = REQUIRED, *, mask: npt.ArrayLike | None = None, td_error: Any = None, **extras: Tree,
    ) -> Indices:  # fmt: skip
        """Store one step of every lane of the writer, or of those in `mask`. See :meth:`replaykit.Replay.add`.

        The values have a leading axis k, which is optional with one lane. Returns the indices, of shape (k,).

        Raises
        ------
        RuntimeError
            If the writer is closed.
        """
        values = obs, action, reward, next_obs, terminated, truncated
        indices: Indices = self.replay.add(*values, mask=Selection(self, mask), td_error=td_error, **extras)
        return indices

    def extend(
        self, obs: Tree, action: Tree, reward: Any, next_obs: Tree, terminated: Any = REQUIRED,
        truncated: Any = REQUIRED, *, mask: npt.ArrayLike | None = None, td_error: Any = None, **extras: Tree,
    ) -> Indices:  # fmt: skip
        """Store T steps at once. See :meth:`replaykit.Replay.extend`. RuntimeError is raised if the writer is closed.

        The leading axes of the arguments and of the result are (T, k), or (T,) if the lane was given as an int.
        """
        values = obs, action, reward, next_obs, terminated, truncated
        indices: Indices = self.replay.extend(*values, mask=Selection(self, mask), td_error=td_error, **extras)
        return indices

    def end_episode(self, mask: npt.ArrayLike | None = None) -> None:
        """End the running episodes of the lanes, or of those in `mask` (k,). Errors are those of `add`."""
        chosen = self._selected
        if mask is not None:
            array = np.asarray(mask)
            if array.dtype != np.bool_ or array.shape != (self.num_envs,):
                wanted = f"expected ({self.num_envs},) and bool"
                raise ValueError(f"mask has shape {array.shape} and dtype {array.dtype}; {wanted}")
            chosen = np.zeros_like(self._selected)
            chosen[self._columns] = array
        with self.lock:
            self.refuse_closed()
            self.replay.end_episode(chosen)

    def close(self) -> None:
        """Release the lanes and end their running episodes. A second call has no effect."""
        with self.lock:
            if not self._is_closed:
                self.replay.end_episode(self._selected)
                self._is_closed = True
                for lane in self.lanes:
                    del self.lock.written.writers[lane]

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    # -- For the buffer --------------------------------------------------------------------------------------

    def axes_of(self, steps: int | None) -> tuple[int, ...]:
        """The leading axes for the lanes: of a single step if `steps` is None, or of several steps."""
        has_axis = self.num_envs > 1 if steps is None else self._has_axis
        return (self.num_envs,) if has_axis else ()

    def among_all(self, mask: Flags | None, steps: int) -> Flags | None:
        """Expand a mask (T k,) of the writer's lanes to a mask (T E,) of all lanes. None selects all entries."""
        if mask is None and self.num_envs == len(self._selected):
            return None
        if mask is None and steps == 1:
            return self._selected
        chosen = np.zeros((steps, len(self._selected)), np.bool_)
        chosen[:, self._columns] = True if mask is None else mask.reshape(steps, self.num_envs)
        return chosen.reshape(-1)

    def own(self, indices: Indices, steps: int) -> Indices:
        """The indices (T k,) of the writer's lanes, taken from the indices (T E,) of all lanes."""
        own: Indices = indices.reshape(steps, len(self._selected))[:, self._columns].reshape(-1)
        return own

    def refuse_closed(self) -> None:
        """Raise RuntimeError if the writer is closed."""
        if self._is_closed:
            raise RuntimeError(f"the writer is closed; make another one with writer({list(self.lanes)})")

    # -- Looking ---------------------------------------------------------------------------------------------

    @property
    def spec(self) -> Spec:
        """The fields of a transition."""
        spec: Spec = self.replay.spec
        return spec

    @property
    def lock(self) -> Lock:
        """The lock of the buffer."""
        lock: Lock = self.replay.lock
        return lock

    @property
    def rate_limit(self) -> Any:
        """The `RateLimit` of the buffer, or None."""
        return self.replay.rate_limit

    def __reduce__(self) -> Any:
        raise TypeError("a Writer cannot be copied or pickled, since it adds to this buffer; call writer() of the copy")

    def __repr__(self) -> str:
        return f"Writer(lanes {list(self.lanes)} of {self.replay!r}{', closed' * self._is_closed})"


class Selection(NamedTuple):
    """A writer and the mask of its add, which selects some of the writer's lanes."""

    writer: Writer
    mask: npt.ArrayLike | None


def refuse_lanes_of_writers(
    writers: "dict[int, weakref.ref[Writer]]", num_envs: int, mask: Flags | None = None, writer: Writer | None = None
) -> None:
    """Raise RuntimeError if an add would write to a lane of another writer, or if `writer` itself is closed.

    `mask` (T E,) selects the entries to write; None selects all.
    """
    if writer is not None:
        writer.refuse_closed()
        return
    for lane in list(writers):
        if _is_owned(writers, lane) and (mask is None or mask[lane::num_envs].any()):
            raise RuntimeError(
                f"lane {lane} has a writer, whose episodes would be mixed with what you add; add with the writer, "
                "close() it, or leave its lanes out with mask="
            )


def _is_owned(writers: "dict[int, weakref.ref[Writer]]", lane: int) -> bool:
    """Whether an open writer has the lane. Removes the entry of a writer that no longer exists."""
    if lane in writers and writers[lane]() is None:
        del writers[lane]
    return lane in writers


def _checked_lanes(lanes: Any, num_envs: int) -> tuple[int, ...]:
    """The lanes as ascending ints. Raises TypeError or ValueError for invalid lanes."""
    wanted = f"an int in [0, {num_envs}), or several in ascending order"
    if isinstance(lanes, slice):
        lanes = range(num_envs)[lanes]
    try:
        entries = [lanes] if isinstance(lanes, int | np.integer) else list(lanes)
    except TypeError:
        raise TypeError(f"lanes is {lanes!r}; expected {wanted}") from None
    for lane in entries:
        if isinstance(lane, bool) or not isinstance(lane, int | np.integer):
            raise TypeError(f"lanes contains {lane!r}; expected {wanted}")
        if not 0 <= lane < num_envs:
            raise ValueError(f"lanes contains {lane}; expected {wanted}, since the buffer has num_envs={num_envs}")
    found = tuple(map(int, entries))
    if not found:
        raise ValueError(f"lanes is {lanes!r}, which is empty; expected {wanted}")
    if list(found) != sorted(set(found)):
        raise ValueError(f"lanes is {list(found)}; expected {wanted}: {sorted(set(found))}")
    return found
