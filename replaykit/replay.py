"""The interface of everything that replays, and the one way a batch is made."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from replaykit._kernels import lazy
from replaykit.batch import Batch, Draw, Window, constant
from replaykit.field import as_array, as_float64, as_indices
from replaykit.spec import Spec
from replaykit.storage import Storage, Stretch, check_count
from replaykit.trees import Tree

kernels = lazy("lanes")
_INT64, _FLOAT64 = np.dtype(np.int64), np.dtype(np.float64)
_new_batch = Batch.__new__


class Replay(ABC):
    """Replayed experience: what a buffer and a wrapper around one have in common.

    A batch is a draw of indices, a window on the stored steps at each, and a reduction of each window to one
    transition: ``sample(B) = reduce(window(draw(B)))``. A buffer holds data; a wrapper changes how they are replayed by
    overriding one of the verbs: subclass `ReplayWrapper` for one of your own.

    Methods for writing: `add`, `extend`, `end_episode`, `reset`. For learning: `sample`, `update_priorities`. The
    verbs: `draw`, `probability`, `window`, `reduce`, `weigh`. For looking: `oldest`, `newest`, `latest`, `episode`,
    `read`, `stats`, `check`.
    """

    _largest_priority = float(np.finfo(np.float64).max)
    """TD errors and priorities above it are refused."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._is_plain = type(self).window is Replay.window and type(self).reduce is Replay.reduce

    # -- Writing ---------------------------------------------------------------------------------------------

    def add(
        self,
        obs: Tree,
        action: Tree,
        reward: Any,
        next_obs: Tree,
        terminated: Any,
        truncated: Any,
        *,
        mask: npt.ArrayLike | None = None,
        td_error: Any = None,
        **extras: Tree,
    ) -> npt.NDArray[np.int64]:
        """Store one step of every lane, or of those in `mask`.

        With ``num_envs > 1`` every argument has a leading axis E; with one lane none has. O(E).

        Parameters
        ----------
        obs, action, reward, next_obs, terminated, truncated
            As the spec has them. `next_obs` is the true last observation at an episode's end, not the first of the
            next.
        mask : array-like of shape (E,), bool, optional
            Lanes that take part; what the others are given is ignored.
        td_error : float or array-like of shape (E,), optional
            For the initial priority, where it is known. Checked by every buffer, used by a prioritized one.
        **extras
            The spec's extra fields.

        Returns
        -------
        ndarray of shape (E,), int64
            The indices of the stored transitions, -1 where the mask is False.

        Raises
        ------
        FieldNameError
            A KeyError and TypeError: a field is missing or unknown.
        ValueError, TypeError, OverflowError
            A field has another shape, or values that its dtype cannot hold. Whatever is raised, the buffer is
            unchanged.
        """
        storage = self._storage
        if mask is None and td_error is None and storage.num_envs == 1:
            row = storage.pack_row(obs, action, reward, next_obs, terminated, truncated, extras)
            if row is not None:
                ring = storage.ring
                if ring.clock >= ring.due:
                    storage.episodes.sync()
                return ring.append_row(row)
        values = (obs, action, reward, next_obs, terminated, truncated)
        if mask is None and td_error is None:
            if storage.num_envs == 1:
                return storage.add_one(values, extras)
            indices = storage.add_block(values, extras, storage.lanes)
            if indices is not None:
                return indices
        checked = storage.check_mask(mask, None)
        ready = storage.coerce(values, extras, None, checked)
        if td_error is None:
            return storage.write(ready)
        return self._write_prioritized(ready, self._initial_errors(td_error, (storage.num_envs,), checked))

    def extend(
        self,
        obs: Tree,
        action: Tree,
        reward: Any,
        next_obs: Tree,
        terminated: Any,
        truncated: Any,
        *,
        mask: npt.ArrayLike | None = None,
        td_error: Any = None,
        **extras: Tree,
    ) -> npt.NDArray[np.int64]:
        """Store T steps at once, exactly as T calls of :meth:`add` would. O(T E).

        Parameters
        ----------
        obs, action, reward, next_obs, terminated, truncated, **extras
            With the leading axes (T, E), or (T,) with one lane.
        mask : array-like of shape (T, E), (T,) with one lane, or (E,), bool, optional
            Steps that take part.
        td_error : array-like of shape (T, E), or (T,) with one lane, optional

        Returns
        -------
        ndarray of shape (T, E), or (T,) with one lane, int64
            The indices, -1 where the mask is False. Of more steps than a lane holds, the oldest are stale at once.

        Raises
        ------
        FieldNameError, ValueError, TypeError, OverflowError
            As :meth:`add`; the buffer is unchanged.
        """
        storage = self._storage
        values = (obs, action, reward, next_obs, terminated, truncated)
        shape = as_array("reward", reward).shape
        if not shape:
            raise ValueError(f"reward has shape (); expected {('T', *storage.lead(None))}; use add for a single step")
        if mask is None and td_error is None:
            indices = storage.add_block(values, extras, (shape[0], *storage.lanes))
            if indices is not None:
                return indices
        checked = storage.check_mask(mask, shape[0])
        ready = storage.coerce(values, extras, shape[0], checked)
        if td_error is None:
            return storage.write(ready)
        return self._write_prioritized(ready, self._initial_errors(td_error, storage.lead(shape[0]), checked))

    def _initial_errors(
        self, td_error: Any, lead: tuple[int, ...], mask: npt.NDArray[np.bool_] | None
    ) -> npt.NDArray[np.float64]:
        """The TD errors of what will be stored, in one row; refuses a wrong shape and what is not finite."""
        errors = as_float64("td_error", td_error)
        if errors.shape != lead and not (lead == (1,) and errors.shape == ()):
            raise ValueError(f"td_error has shape {errors.shape}; expected {lead}")
        errors = errors.reshape(lead)
        errors = errors.reshape(-1) if mask is None else errors[mask.reshape(lead)]
        wrong = ~(np.abs(errors) <= self._largest_priority)
        if wrong.any():
            raise ValueError(
                f"td_error contains {errors[wrong][0]}; expected finite numbers of at most "
                f"{self._largest_priority:.3g} in magnitude"
            )
        return errors

    def _write_prioritized(self, ready: Stretch, errors: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Write, and set the initial priorities where there are any."""
        return self._storage.write(ready)

    def end_episode(self, mask: npt.ArrayLike | None = None) -> None:
        """Say that the next step of the lanes (of those in `mask`) begins another episode, where no flag has said so.

        For an environment that was reset in the middle of an episode. The stored flags stay as they are; windows do not
        cross the cut.
        """
        self._storage.end_episode(mask)

    def reset(self) -> None:
        """Forget every transition, episode and priority. Indices go on: those given out before are stale."""
        self._storage.clear()

    # -- Learning --------------------------------------------------------------------------------------------

    def sample(self, batch_size: int) -> Batch:
        """`batch_size` transitions, in fresh arrays.

        Parameters
        ----------
        batch_size : int
            B, at least 1.

        Returns
        -------
        Batch

        Raises
        ------
        TypeError, ValueError
            If `batch_size` is not an int of at least 1, or nothing is stored.
        """
        if type(batch_size) is not int or batch_size < 1:
            batch_size = check_count("batch_size", batch_size)
        storage = self._storage
        if not len(storage.ring):
            raise ValueError("the buffer is empty, so nothing can be sampled; add a transition first")
        state = storage.rng.bit_generator.state if storage.is_fallible else None
        try:
            fields = self._fields(batch_size)
        except BaseException:
            if state is not None:  # the next batch is the one that this would have been
                storage.rng.bit_generator.state = state
            raise
        storage.batches += 1
        batch = _new_batch(Batch)
        batch.__dict__ = fields
        return batch

    def _fields(self, batch_size: int) -> dict[str, Any]:
        """The fields of a batch. A buffer may make the same in fewer steps, from windows that nobody changes."""
        draw = self.draw(batch_size)
        indices = draw.indices
        if type(indices) is not np.ndarray or indices.dtype is not _INT64 or indices.ndim != 1:
            indices = as_indices("indices", indices)
        fields = self._transitions(indices)
        fields["weights"] = self.weigh(draw)
        fields["probabilities"] = draw.probabilities
        fields["indices"] = indices
        return fields

    def _transitions(self, indices: npt.NDArray[np.int64]) -> dict[str, Any]:
        """``reduce(window(indices))``, in fewer steps where that can be."""
        packed = self._storage.packed
        if self._is_plain and packed is not None:
            return packed.at(indices)
        return self.reduce(self.window(indices))

    def update_priorities(
        self,
        indices: npt.ArrayLike,
        td_errors: npt.ArrayLike | None = None,
        *,
        priorities: npt.ArrayLike | None = None,
    ) -> int:
        """Tell the buffer what was learned about the transitions of a batch.

        Every buffer checks the arguments; where nothing is prioritized, nothing else happens.

        Parameters
        ----------
        indices : array-like of shape (B,), int
            As ``batch.indices`` or :meth:`add` gave them. Stale ones are ignored; of one named twice the last counts.
        td_errors : array-like of shape (B,), float
            With their sign; the priority is ``abs(td_error) + eps``.
        priorities : array-like of shape (B,), float
            Instead of `td_errors`: the priorities themselves, non-negative.

        Returns
        -------
        int
            How many entries were applied: those that were not stale, or 0 where nothing is prioritized.

        Raises
        ------
        IndexError
            If an index was never given out.
        TypeError, ValueError
            If indices are not integers, shapes differ, a value is NaN or infinite, or a priority negative. Whatever is
            raised, the buffer is unchanged.
        """
        self._checked_update(indices, td_errors, priorities, 0.0)
        return 0

    def _checked_update(
        self, indices: npt.ArrayLike, td_errors: npt.ArrayLike | None, priorities: npt.ArrayLike | None, eps: float
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], int]:
        """Slots and priorities of the entries that are not stale, and how many are."""
        if (td_errors is None) == (priorities is None):
            raise TypeError("pass either td_errors or priorities=")
        name, given = ("td_errors", td_errors) if priorities is None else ("priorities", priorities)
        entries = as_indices("indices", indices)
        values = as_float64(name, given)
        if values.shape != entries.shape:
            raise ValueError(f"{name} has shape {values.shape}; expected {entries.shape}, that of indices")
        ring = self._storage.ring
        size = len(entries)
        slots, kept = np.empty(size, _INT64), np.empty(size, _FLOAT64)
        limit = self._largest_priority
        eps = eps if priorities is None else 0.0
        count = kernels.living(entries, values, limit, eps, ring.bounds, ring.capacity, slots, kept)
        if count < 0:
            wrong = -1 - count
            if not abs(values[wrong]) <= limit:
                raise ValueError(
                    f"{name} contains {values[wrong]}; expected finite numbers of at most {limit:.3g} in magnitude"
                )
            raise IndexError(ring.why_not_stored(int(entries[wrong])))
        if priorities is not None and values.size and values.min() < 0.0:
            raise ValueError(f"priorities contains {values.min()}; expected non-negative numbers")
        return (slots, kept, 0) if count == size else (slots[:count], kept[:count], size - count)

    # -- The verbs -------------------------------------------------------------------------------------------

    @abstractmethod
    def draw(self, batch_size: int) -> Draw:
        """Which transitions, and with what probability: a :class:`~replaykit.batch.Draw` of B stored indices."""

    @abstractmethod
    def probability(self, indices: npt.ArrayLike, batch_size: int = 1) -> npt.NDArray[np.float64]:
        """The expected share of each stored index in a batch of `batch_size`, of shape (B,), float64."""

    def window(self, indices: npt.NDArray[np.int64]) -> Window:
        """What is there: a :class:`~replaykit.batch.Window` of up to `n_step` steps of one episode from each index."""
        if type(indices) is not np.ndarray or indices.dtype is not _INT64 or indices.ndim != 1:
            indices = as_indices("indices", indices)
        return self._storage.window(indices)

    def reduce(self, window: Window) -> dict[str, Any]:
        """One transition from each window, by field."""
        return self._storage.reduce(window)

    def weigh(self, draw: Draw) -> npt.NDArray[np.float32]:
        """The importance-sampling weights of a draw: 1 unless the buffer corrects for its probabilities."""
        return constant(draw.indices.shape[0], 1.0, np.float32)

    def least_probability(self, batch_size: int, without: npt.NDArray[np.int64]) -> float:
        """The smallest positive probability of any stored index but these; inf if there is none."""
        others = np.setdiff1d(self._storage.ring.living(), without)
        shares = self.probability(others, batch_size)
        return float(shares.min(initial=np.inf, where=shares > 0.0))

    # -- Looking ---------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Transitions stored, N."""
        return len(self._storage.ring)

    def __repr__(self) -> str:
        storage = self._storage
        lanes = f"num_envs={storage.num_envs}, n_step={storage.n_step}"
        stack = f", stack={storage.stack}" if storage.stack > 1 else ""
        return f"{type(self).__name__}({len(self)} of {self.capacity}, {lanes}{stack})"

    @property
    def spec(self) -> Spec:
        """The fields of a transition."""
        return self._storage.spec

    @property
    def rng(self) -> np.random.Generator:
        """The generator of all randomness, the buffer's and its wrappers'."""
        return self._storage.rng

    @property
    def capacity(self) -> int:
        """Transitions that fit, C, a multiple of `num_envs`."""
        return self._storage.ring.capacity

    @property
    def num_envs(self) -> int:
        """Lanes, E."""
        return self._storage.num_envs

    @property
    def n_step(self) -> int:
        """Steps of a window, n."""
        return self._storage.n_step

    @property
    def gamma(self) -> float:
        """Discount of a step."""
        return self._storage.gamma

    @property
    def stack(self) -> int:
        """Observations in each of a batch, k."""
        return self._storage.stack

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, whether filled or not. They grow only where observations share few frames."""
        return self._storage.nbytes

    @property
    def oldest(self) -> npt.NDArray[np.int64]:
        """The oldest index of each lane, of shape (E,), int64; -1 for an empty one."""
        return self._bound(self._storage.ring.first)

    @property
    def newest(self) -> npt.NDArray[np.int64]:
        """The newest index of each lane, of shape (E,), int64; -1 for an empty one."""
        return self._bound(self._storage.ring.cursor - 1)

    def _bound(self, steps: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        ring = self._storage.ring
        return np.where(ring.cursor > ring.first, steps * ring.num_envs + np.arange(ring.num_envs), -1)

    def latest(self, count: int) -> npt.NDArray[np.int64]:
        """The indices of the `count` transitions added last (all, if fewer are stored), oldest first."""
        return self._storage.ring.newest(check_count("count", count))

    def episode(
        self, indices: npt.ArrayLike
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The episode of each stored index: its number, and the indices of its first and its last step. O(1) each.

        Episodes are numbered so that no two share a number. The first step may have been overwritten; the last is the
        newest stored, if the episode is running.

        Returns
        -------
        number, first, last : ndarray of shape (B,), int64
        """
        entries = as_indices("indices", indices)
        episodes = self._storage.episodes
        return episodes.number(entries), episodes.start(entries), episodes.stop(entries)

    def read(self, indices: npt.ArrayLike, field: str) -> npt.NDArray[Any]:
        """One field of stored transitions as it was added, whatever wrappers make of it; stacked, if it is. O(B).

        Parameters
        ----------
        indices : array-like of shape (B,), int
        field : str
            Such as ``"reward"``, or ``"obs.position"`` of a nested one.

        Returns
        -------
        ndarray of shape (B, ...)
            A fresh array.

        Raises
        ------
        IndexError
            If an index is stale or was never given out.
        FieldNameError
            If there is no such field.

        Examples
        --------
        >>> from replaykit import Field, ReplayBuffer, Spec
        >>> buffer = ReplayBuffer(10, Spec(obs={"x": Field(()), "y": Field((2,))}, action=Field(())), n_step=3)
        >>> for step in range(3):
        ...     obs = {"x": step, "y": [step, -step]}
        ...     index = buffer.add(obs, 0, 1.0 + step, obs, False, False)
        >>> buffer.read([2, 0], "reward")
        array([3., 1.], dtype=float32)
        >>> buffer.read([1], "obs.y")
        array([[ 1., -1.]], dtype=float32)
        """
        return self._storage.read(as_indices("indices", indices), (field,))[0]

    def stats(self) -> dict[str, float]:
        """Numbers for a logger: `size`, `capacity`, `added` and `batches` so far, and `nbytes`."""
        ring = self._storage.ring
        return {
            "size": float(len(self)),
            "capacity": float(self.capacity),
            "added": float(ring.cursor.sum()),
            "batches": float(self._storage.batches),
            "nbytes": float(self.nbytes),
        }

    def check(self) -> None:
        """Verify every invariant. O(C).

        Raises
        ------
        AssertionError
            Naming the broken invariant.
        """
        self._storage.check()
