"""The interface of everything that replays, and the one way a batch is made."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from replaykit.batch import Ahead, Batch, Draw, Look, Window
from replaykit.checks import check_count, check_seed, nearest
from replaykit.declared import Declared, read_only
from replaykit.field import as_indices
from replaykit.passes import Passes
from replaykit.prefetching import Batching
from replaykit.saving.checkpoint import Checkpointed
from replaykit.settings import Settings
from replaykit.spec import Spec
from replaykit.storage.base import EMPTY, Floats, Indices, look_ahead, stored_in
from replaykit.storage.lock import Lock
from replaykit.storage.memory_limit import refuse_more_than_memory
from replaykit.trees import Tree
from replaykit.writer import Lanes, Writer

_new_batch = Batch.__new__
_PARTS = ("settings", "lock", "rng", "successor", "inner", "sources", "bytes_each", "large_batch", "is_conditional")
"""Attributes that are set once, by the constructor."""
_LARGE_BATCH, _LARGE_BATCH_BYTES = 1 << 16, 1 << 26
"""Batches of more rows or bytes are compared with the memory of the machine before anything is drawn."""


class Replay(Checkpointed, Batching, Passes, ABC):
    """Replayed experience: what a buffer and a wrapper around one have in common.

    A batch is a draw of indices, a window of stored steps at each, and a reduction of each window to one transition:
    ``sample(B) = reduce(window(draw(B)))``. A buffer holds data. A wrapper, a subclass of `ReplayWrapper`, overrides
    one of these verbs to change how they are replayed. `sample` is final, so that nothing can bypass a wrapper.

    Methods for writing: `add`, `extend`, `end_episode`, `clear`, `overwrite`, `writer`. For learning: `sample`,
    `batches`, `epoch`, `update_priorities`, `reseed`. The verbs: `draw`, `probability`, `window`, `reduce`, `weigh`.
    Several verbs at once, for which a buffer may have a faster way: `serve`, `open`, `fetch`, `look_ahead`. For
    keeping: `save`, `load`, `state_dict`, `load_state_dict`. For looking: `oldest`, `newest`, `latest`, `stored`,
    `episode`, `episodes`, `read`, `is_full`, `stats`, `check`. Public methods hold `lock`, so that threads can share a
    buffer: a batch is one moment of it.

    Attributes
    ----------
    settings : Settings
    lock : Lock
        The re-entrant lock of the storage.
    rng : numpy.random.Generator
        The generator of all randomness, shared by a buffer and its wrappers.
    successor : int
        The difference between the indices of successive steps of a lane.
    """

    settings: Settings
    lock: Lock
    rng: np.random.Generator
    successor: int
    bytes_each = 0
    """About how many bytes each row of a batch takes while it is made."""
    large_batch = 1
    """A larger batch is compared with the memory of the machine before anything is drawn."""
    has_sequences = False
    """Whether each row of a batch is a sequence of transitions."""
    is_conditional = False
    """Whether the probabilities of a draw depend on more than what is stored, so that `probability` raises an error."""
    rate_limit: Any = None
    """The `RateLimit` of a `RateLimitedReplay` in the stack, which adds and samples wait for; None without one."""
    may_raise = False
    """Whether a batch may fail after something random was drawn, since it calls functions of the user."""
    spec: Spec = read_only("settings.spec", "The fields of a transition.")
    capacity: int = read_only("settings.capacity", "Transitions that fit, C, a multiple of `num_envs`.")
    num_envs: int = read_only("settings.num_envs", "Environments stepped together, E, the leading axis of `add`.")
    n_step: int = read_only("settings.n_step", "Steps of a window, n.")
    gamma: float = read_only("settings.gamma", "Discount of a step.")
    stack: int = read_only("settings.stack", "Observations in each of a batch, k.")

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.sample is not Replay.sample:
            remedy = "override draw, window, reduce or weigh"
            raise TypeError(f"{cls.__name__} overrides sample, which wrappers around it would bypass; {remedy}")

    def note_bytes(self, bytes_each: int) -> None:
        """For a constructor: note how many bytes each row of a batch takes while it is made."""
        self.bytes_each = bytes_each
        self.large_batch = max(min(_LARGE_BATCH, _LARGE_BATCH_BYTES // bytes_each), 1)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse what would have no effect, or only half of it."""
        cls, is_ours = type(self), type(self).__module__.startswith("replaykit.")
        known = getattr(cls, name, self)
        if (isinstance(known, property) and known.fset is None) or (name in _PARTS and name in self.__dict__):
            raise AttributeError(f"{name} of a {cls.__name__} cannot be set later; build another {cls.__name__}")
        if is_ours and known is self and not name.startswith("_") and name not in _PARTS:
            properties = [each for each in dir(cls) if isinstance(getattr(cls, each), property)]
            raise AttributeError(f"a {cls.__name__} has no {name!r} that can be set{nearest(name, properties)}")
        super().__setattr__(name, value)

    @abstractmethod
    def add(
        self, obs: Tree, action: Tree, reward: Any, next_obs: Tree, terminated: Any, truncated: Any, *,
        mask: npt.ArrayLike | None = None, td_error: Any = None, **extras: Tree,
    ) -> Indices:  # fmt: skip
        """Store one step of every lane, or of those in `mask`. O(E).

        Returns the indices of the stored transitions, of shape (E,), int64; -1 where the mask is False. With
        ``num_envs > 1`` every argument has a leading axis E. With one lane none has, or all have one of length 1.

        Parameters
        ----------
        obs, action, reward, next_obs, terminated, truncated
            As the spec describes them. At an episode's end `next_obs` is the last observation, not the next episode's.
        mask : array-like of shape (E,), bool, optional
            Lanes that take part. The values of the other lanes are ignored.
        td_error : float or array-like of shape (E,), optional
            For the initial priority, if it is known. Every buffer checks it; a prioritized one uses it.
        **extras
            The spec's extra fields.

        Raises
        ------
        FieldNameError, ValueError, TypeError, OverflowError
            If a field is missing, unknown, of another shape, or out of its dtype's range. The buffer is then unchanged.
        """

    @abstractmethod
    def extend(
        self, obs: Tree, action: Tree, reward: Any, next_obs: Tree, terminated: Any, truncated: Any, *,
        mask: npt.ArrayLike | None = None, td_error: Any = None, **extras: Tree,
    ) -> Indices:  # fmt: skip
        """Store T steps at once, exactly as T calls of :meth:`add` would. O(T E).

        Parameters, errors and indices are those of :meth:`add`, with the leading axes (T, E), or (T,) with one lane. A
        mask may also have the shape (E,). If there are more steps than a lane holds, the oldest indices are stale.
        """

    @abstractmethod
    def end_episode(self, mask: npt.ArrayLike | None = None) -> None:
        """End the running episodes of the lanes, or of those in `mask`, as a reset in the middle of an episode does.

        Their next steps begin new episodes. Stored flags stay as they are, and windows do not cross the cut.
        """

    @abstractmethod
    def clear(self) -> None:
        """Forget every transition, episode and priority. Indices given out before are stale, and are never reused."""

    @abstractmethod
    def overwrite(self, indices: npt.ArrayLike, **fields: Tree) -> int:
        """Replace fields of stored transitions, such as recurrent states that were computed anew. O(B).

        Priorities stay as they are. Returns how many transitions were changed: those that are not stale.

        Parameters
        ----------
        indices : array-like of shape (B,) or (B, T), int
            As ``batch.indices``, ``batch.step_indices`` or :meth:`add` gave them. Stale ones are ignored, and so is -1,
            which stands for padding. Of duplicates the last counts.
        **fields
            Values of the shape of the indices, followed by that of the field. Of a nested field all entries are given.

        Raises
        ------
        FieldNameError, IndexError, TypeError, ValueError, OverflowError
            If an index was never given out; if a field is unknown; for `terminated` and `truncated`, which tell where
            episodes end; for an observation of which several transitions share one copy; or, for a wrong value, as
            :meth:`add` raises. The buffer is then unchanged.

        Examples
        --------
        >>> from replaykit import Field, ReplayBuffer, Spec
        >>> buffer = ReplayBuffer(2, Spec(obs=Field(()), action=Field(()), state=Field((2,))))
        >>> for step in range(3):
        ...     index = buffer.add(step, 0, 1.0, step + 1, False, False, state=[0.0, 0.0])
        >>> buffer.overwrite([0, 2], state=[[1.0, 2.0], [3.0, 4.0]])  # 0 was overwritten by 2
        1
        >>> buffer.read([1, 2], "state")
        array([[0., 0.],
               [3., 4.]], dtype=float32)
        """

    def writer(self, lanes: Lanes) -> Writer:
        """A :class:`~replaykit.writer.Writer` for some lanes: for a thread that acts in these alone.

        Their running episodes end. Until the writer is closed or forgotten, only it adds to them.

        Parameters
        ----------
        lanes : int, slice, range or list of int
            In ascending order. Steps have a leading axis for them, unless `lanes` is an int. TypeError or ValueError is
            raised if one of them is no lane, or has a writer.

        Examples
        --------
        >>> from replaykit import Field, ReplayBuffer, Spec
        >>> buffer = ReplayBuffer(40, Spec(obs=Field(()), action=Field(())), num_envs=4)
        >>> with buffer.writer([0, 2]) as writer:
        ...     writer.add([1.0, 2.0], [0, 0], [0.0, 0.0], [1.5, 2.5], [False] * 2, [False] * 2)
        array([0, 2])
        """
        return Writer(self, lanes)

    def reseed(self, seed: int | np.random.SeedSequence | None = None) -> None:
        """Start the random numbers anew, so that a copy draws other batches than its original.

        The generator continues as a new one of its kind with this seed does. Of several copies, each gets one of
        ``SeedSequence(...).spawn(count)``. Raises TypeError or ValueError for another seed, as the constructor does.

        Examples
        --------
        >>> import copy
        >>> import numpy as np
        >>> from replaykit import Field, ReplayBuffer, Spec
        >>> buffer = ReplayBuffer(10, Spec(obs=Field(()), action=Field(())), seed=0)
        >>> index = buffer.extend(np.arange(9), np.zeros(9), np.zeros(9), np.arange(9), [False] * 9, [False] * 9)
        >>> for seed in np.random.SeedSequence(1).spawn(2):
        ...     twin = copy.deepcopy(buffer)
        ...     twin.reseed(seed)
        ...     print(twin.sample(5).obs)
        [6. 1. 5. 2. 0.]
        [4. 5. 2. 2. 5.]
        """
        check_seed(seed, "None, a non-negative int or a SeedSequence", (np.random.SeedSequence,))
        generator = self.rng.bit_generator
        state = type(generator)(seed).state
        with self.lock:
            if self.lock.sampling:
                self.lock.refuse_writing()
            generator.state = state

    def sample(self, batch_size: int) -> Batch:
        """`batch_size` transitions, in fresh arrays. Final.

        Raises
        ------
        TypeError, ValueError, MemoryError
            If `batch_size` is not an int of at least 1, nothing is stored, or the batch is larger than memory.
        """
        if type(batch_size) is not int or not 0 < batch_size <= self.large_batch:
            batch_size = self.checked_batch_size(batch_size)
        lock = self.lock
        with lock:
            outer, state = lock.sampling, self.random_state() if self.may_raise else None
            try:
                if outer and lock.refusal:
                    raise RuntimeError(lock.refusal)
                lock.sampling = True
                fields = self.serve(batch_size)
                self.count_batch()
            except BaseException:
                if state is not None:  # the next batch is the one that this would have been
                    self.restore_random_state(state)
                raise
            finally:
                lock.sampling = outer
        batch = _new_batch(Batch)
        batch.__dict__ = fields
        return batch

    def random_state(self) -> Any:
        """The state of every generator that a batch draws from."""
        return self.rng.bit_generator.state

    def restore_random_state(self, state: Any) -> None:
        """Go back to what `random_state` returned."""
        self.rng.bit_generator.state = state

    @abstractmethod
    def count_batch(self) -> None:
        """Count a batch that was served, for schedules and `stats`."""

    @abstractmethod
    def update_priorities(
        self, indices: npt.ArrayLike, td_errors: npt.ArrayLike | None = None, *, priorities: npt.ArrayLike | None = None
    ) -> int:
        """Set the priorities of the transitions of a batch from what was learned about them. O(B log C).

        Every buffer checks the arguments. A buffer without priorities does nothing else. Returns how many entries were
        applied: those that were not stale, or 0 without priorities.

        Parameters
        ----------
        indices : array-like of shape (B,), int
            As ``batch.indices`` or :meth:`add` gave them. Stale ones are ignored. Of duplicates the last counts.
        td_errors : array-like of shape (B,), float
            With their sign; the priority is ``abs(td_error) + eps``.
        priorities : array-like of shape (B,), float
            Instead of `td_errors`: the priorities themselves, non-negative.

        Raises
        ------
        IndexError, TypeError, ValueError
            If an index was never given out or is not an integer, shapes differ, a value is NaN or infinite, or a
            priority is negative. The buffer is then unchanged.

        Examples
        --------
        >>> from replaykit import Field, PrioritizedBuffer, Spec
        >>> buffer = PrioritizedBuffer(2, Spec(obs=Field(()), action=Field(())))
        >>> for step in range(3):
        ...     index = buffer.add(step, 0, 1.0, step + 1, False, False)
        >>> buffer.update_priorities([0, 1, 2], td_errors=[0.5, -2.0, 1.0])  # 0 was overwritten by 2
        2
        """

    @abstractmethod
    def draw(self, batch_size: int) -> Draw:
        """Which transitions, and with what probability: a :class:`~replaykit.batch.Draw` of B stored indices."""

    @abstractmethod
    def probability(self, indices: npt.ArrayLike, batch_size: int = 1) -> npt.NDArray[np.float64]:
        """The expected share of each stored index in a batch of `batch_size`, of shape (B,), float64."""

    @abstractmethod
    def window(self, indices: Indices) -> Window:
        """What is there: a :class:`~replaykit.batch.Window` of up to `n_step` steps of one episode from each index on.

        Indices have the shape (B,), or (B, T) if T windows belong to each row of the batch. O(B n).
        """

    @abstractmethod
    def reduce(self, window: Window) -> dict[str, Any]:
        """One transition from each window, by field. O(B n)."""

    @abstractmethod
    def weigh(self, draw: Draw) -> npt.NDArray[np.float32]:
        """The importance-sampling weights of a draw: 1 unless the buffer corrects for its probabilities."""

    def least_probability(self, batch_size: int, without: Indices) -> float | Floats:
        """The smallest positive probability of any stored index but those in `without`; inf if there is none. O(N).

        Of a mixture, that of each source.
        """
        with self.lock:
            others = np.setdiff1d(self.stored(), without)
            return self.least_of(others, self.probability(others, batch_size))

    def least_of(self, indices: Indices, probabilities: Floats) -> float | Floats:
        """The smallest positive one of these probabilities of indices, inf if there is none; of a mixture, as above."""
        return float(probabilities.min(initial=np.inf, where=probabilities > 0.0))

    def serve(self, batch_size: int) -> dict[str, Any]:
        """`draw`, `window`, `reduce` and `weigh`: all fields of a batch."""
        draw, window = self.open(batch_size)
        return self._weighed(self.reduce(window), draw)

    def _draw_and_fetch(self, batch_size: int) -> dict[str, Any]:
        """`serve` where windows need not be seen: `draw`, `fetch` and `weigh`."""
        draw = self._checked_draw(batch_size)
        return self._weighed(self.fetch(draw.indices), draw)

    def open(self, batch_size: int, look: Look | None = None) -> tuple[Draw, Window]:
        """`draw` and `window`. If `look` is given, the answer of `look_ahead` may be in ``window.ahead``."""
        draw = self._checked_draw(batch_size)
        return draw, self.window(draw.indices)

    def fetch(self, indices: Indices) -> dict[str, Any]:
        """`window` and `reduce`."""
        return self.reduce(self.window(indices))

    def look_ahead(self, window: Window, look: Look, uniforms: npt.NDArray[np.float64]) -> Ahead:
        """`read` and `episode` of the steps that hindsight asks about."""
        return look_ahead(self, window, look, uniforms)

    def checked_batch_size(self, batch_size: Any) -> int:
        """`batch_size` as an int; raises MemoryError for a batch that is larger than memory."""
        size = check_count("batch_size", batch_size)
        if size > self.large_batch:
            each = self.bytes_each
            refuse_more_than_memory(size * each, f"batch_size {size} at {each} bytes each", "sample fewer at a time")
        return size

    def _checked_draw(self, batch_size: int) -> Draw:
        """`draw`, unless nothing is stored."""
        if not len(self):
            raise ValueError(EMPTY)
        draw = self.draw(batch_size)
        draw.indices = as_indices("indices", draw.indices)
        return draw

    def _weighed(self, fields: dict[str, Any], draw: Draw) -> dict[str, Any]:
        """The fields of a batch with what follows from the draw."""
        fields["weights"] = self.weigh(draw)
        fields["probabilities"], fields["indices"] = draw.probabilities, draw.indices
        return fields

    @property
    def inside(self) -> "tuple[Replay, ...]":
        """The replays that this one is around, which are none, one, or the sources of a mixture."""
        return ()

    @property
    def num_slots(self) -> int:
        """The size of the ring. No two stored indices have the same ``index % num_slots``."""
        return self.capacity

    @property
    @abstractmethod
    def largest_priority(self) -> float:
        """The largest magnitude that `update_priorities` takes."""

    @abstractmethod
    def parts(self) -> dict[str, Declared]:
        """Everything that has state, by name, in the order in which it must be loaded."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of all arrays, filled or not. They grow only if observations share few frames."""

    @property
    @abstractmethod
    def bounds(self) -> Indices:
        """The oldest step of each lane and the one that comes next, of shape (2, lanes)."""

    @property
    def oldest(self) -> Indices:
        """The oldest index of each lane, of shape (lanes,), int64; -1 for an empty lane."""
        with self.lock:
            return self._in_lanes(self.bounds[0])

    @property
    def newest(self) -> Indices:
        """The newest index of each lane, of shape (lanes,), int64; -1 for an empty lane."""
        with self.lock:
            return self._in_lanes(self.bounds[1] - 1)

    def _in_lanes(self, steps: Indices) -> Indices:
        return np.where(self.bounds[1] > self.bounds[0], steps * self.successor + np.arange(len(steps)), -1)

    def stored(self) -> Indices:
        """Every stored index, lane after lane, oldest first. O(N)."""
        with self.lock:
            return stored_in(self.bounds, self.successor)

    @abstractmethod
    def __len__(self) -> int:
        """Transitions stored, N."""

    @abstractmethod
    def latest(self, count: int) -> Indices:
        """The indices of the `count` transitions added last, or of all if fewer are stored, oldest first."""

    @abstractmethod
    def episode(self, indices: npt.ArrayLike) -> tuple[Indices, Indices, Indices]:
        """The number of each stored index's episode, and the indices of its first and its last step. O(1) each.

        No two episodes share a number. The first step may have been overwritten. The last step of a running episode is
        the newest. All three are -1 for the index -1, which stands for padding.
        """

    @abstractmethod
    def read(self, indices: npt.ArrayLike, field: str) -> npt.NDArray[Any]:
        """One field of stored transitions as it was added, in a fresh array of shape (B, ...). O(B).

        Wrappers do not change it. Frames are stacked as in a batch.

        Parameters
        ----------
        indices : array-like of shape (B,), int
            The index -1 stands for padding, and gives zeros.
        field : str
            Such as ``"reward"``, or ``"obs.position"`` of a nested one.

        Raises
        ------
        IndexError, FieldNameError
            If an index is stale or was never given out, or there is no such field.

        Examples
        --------
        >>> from replaykit import Field, ReplayBuffer, Spec
        >>> buffer = ReplayBuffer(10, Spec(obs={"x": Field(()), "y": Field((2,))}, action=Field(())))
        >>> for step in range(3):
        ...     obs = {"x": step, "y": [step, -step]}
        ...     index = buffer.add(obs, 0, 1.0 + step, obs, False, False)
        >>> buffer.read([2, 0, -1], "obs.y")
        array([[ 2., -2.],
               [ 0.,  0.],
               [ 0.,  0.]], dtype=float32)
        """

    @abstractmethod
    def stats(self, prefix: str = "") -> dict[str, float]:
        """Numbers for a logger, by name. :doc:`/how-to/log-metrics` shows loggers.

        - `size`: transitions stored; `capacity`: transitions that fit
        - `added`: transitions added so far; `batches`: batches sampled so far
        - `nbytes`: bytes of all arrays

        A prioritized buffer adds:

        - `stale_updates`: updates of priorities that came after the transition had been overwritten
        - `beta`: the exponent of the weights of the next batch
        - `scaled_priority_mean`, `scaled_priority_max`: of the scaled priorities ``p**alpha`` of what is stored; with
          ``variant="rank"`` instead `priority_max` and `priority_median`, of the priorities themselves

        Parameters
        ----------
        prefix : str
            Put before each name, such as ``"replay/"``.
        """

    @abstractmethod
    def check(self) -> None:
        """Verify every invariant; raises AssertionError naming the broken one. O(C)."""
