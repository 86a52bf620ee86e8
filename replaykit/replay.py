"""`Replay`: the interface that buffers and wrappers share, and the only implementation of `sample`."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from replaykit.backend import NUMPY, Backend
from replaykit.batch import Ahead, Batch, Draw, Look, Window
from replaykit.checks import check_count, check_seed, nearest
from replaykit.declared import Declared, read_only
from replaykit.passes import Passes
from replaykit.prefetching import Batching
from replaykit.saving.checkpoint import Checkpointed
from replaykit.settings import PARTS, Settings
from replaykit.spec import Spec
from replaykit.storage.base import EMPTY, Floats, Indices, stored_in
from replaykit.storage.lock import Lock
from replaykit.storage.memory_limit import refuse_more_than_memory
from replaykit.trees import Tree
from replaykit.writer import Lanes, Writer

_new_batch = Batch.__new__
_LARGE_BATCH, _LARGE_BATCH_BYTES = 1 << 16, 1 << 26


class Replay(Checkpointed, Batching, Passes, ABC):
    """The interface of replay buffers and of the wrappers around them.

    A batch is ``reduce(window(draw(B)))``: draw B indices, take a window of stored steps at each index, and reduce each
    window to one transition. A wrapper overrides one of these verbs. `sample` cannot be overridden.

    For writing: `add`, `extend`, `end_episode`, `clear`, `overwrite`, `writer`. For learning: `sample`, `batches`,
    `epoch`, `update_priorities`, `reseed`. The verbs: `draw`, `probability`, `window`, `reduce`, `weigh`. Several verbs
    at once: `serve`, `open`, `fetch`, `look_ahead`. For saving: `save`, `load`, `state_dict`, `load_state_dict`. For
    inspection: `oldest`, `newest`, `latest`, `stored`, `episode`, `episodes`, `read`, `is_full`, `stats`, `check`.

    Attributes
    ----------
    settings : Settings
    lock : Lock
        The re-entrant lock of the storage. Every public method holds it.
    rng : numpy.random.Generator
        The only random generator, shared by a buffer and its wrappers.
    backend : Backend
        The array operations: those of NumPy, or of torch.
    successor : int
        The difference between the indices of consecutive steps in a lane.
    """

    settings: Settings
    lock: Lock
    rng: Any
    backend: Backend = NUMPY
    successor: int
    bytes_each: int = 0
    """Approximate memory in bytes for each row of a batch while the batch is made."""
    large_batch: int = 1
    """Batches with more rows than this are compared with the machine's memory before anything is drawn."""
    has_sequences = False
    """Whether each row of a batch is a sequence of transitions."""
    is_conditional = False
    """Whether the probabilities of a draw depend on more than the stored data. If so, `probability` raises an error."""
    has_least = False
    """Whether weights are divided by the largest weight of all stored transitions. Draws then contain `least`."""
    rate_limit: Any = None
    """The `RateLimit` that adds and samples wait for: that of a `RateLimitedReplay` among the wrappers, or None."""
    may_raise = False
    """Whether a user's function may raise an error in the middle of a batch, after random numbers were drawn."""
    spec: Spec = read_only("settings.spec", "The fields of a transition.")
    capacity: int = read_only("settings.capacity", "Maximum number of transitions, C, a multiple of `num_envs`.")
    num_envs: int = read_only("settings.num_envs", "Number of parallel environments, E, the leading axis of `add`.")
    n_step: int = read_only("settings.n_step", "Number of steps in a window, n.")
    gamma: float = read_only("settings.gamma", "Discount per step.")
    stack: int = read_only("settings.stack", "Number of observations in each stack of a batch, k.")

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.sample is not Replay.sample:
            remedy = "override draw, window, reduce or weigh"
            raise TypeError(f"{cls.__name__} overrides sample, which wrappers around it would bypass; {remedy}")

    def note_bytes(self, bytes_each: int) -> None:
        """Set `bytes_each` and `large_batch`. For constructors only."""
        self.bytes_each = bytes_each
        self.large_batch = max(min(_LARGE_BATCH, _LARGE_BATCH_BYTES // bytes_each), 1)

    def __setattr__(self, name: str, value: Any) -> None:
        """Raise an error for an attribute that is unknown, or that cannot be set after construction."""
        cls, is_ours = type(self), type(self).__module__.startswith("replaykit.")
        known = getattr(cls, name, self)
        if (isinstance(known, property) and known.fset is None) or (name in PARTS and name in self.__dict__):
            raise AttributeError(f"{name} of a {cls.__name__} cannot be set later; build another {cls.__name__}")
        if is_ours and known is self and not name.startswith("_") and name not in PARTS:
            properties = [each for each in dir(cls) if isinstance(getattr(cls, each), property)]
            raise AttributeError(f"a {cls.__name__} has no {name!r} that can be set{nearest(name, properties)}")
        super().__setattr__(name, value)

    @abstractmethod
    def add(
        self, obs: Tree, action: Tree, reward: Any, next_obs: Tree, terminated: Any, truncated: Any, *,
        mask: npt.ArrayLike | None = None, td_error: Any = None, **extras: Tree,
    ) -> Indices:  # fmt: skip
        """Store one step of every lane, or of the lanes in `mask`. O(E).

        Returns the indices of the stored transitions, of shape (E,), int64; -1 where the mask is False. With
        ``num_envs > 1`` every argument has a leading axis E. With one lane, omit this axis or give it length 1.

        Parameters
        ----------
        obs, action, reward, next_obs, terminated, truncated
            As declared in the spec. At an episode's end `next_obs` is the last observation, before any reset.
        mask : array-like of shape (E,), bool, optional
            The lanes to store. The values of the other lanes are ignored.
        td_error : float or array-like of shape (E,), optional
            The TD error, if known. It sets the initial priority. A buffer without priorities only checks it.
        **extras
            The spec's extra fields.

        Raises
        ------
        FieldNameError, ValueError, TypeError, OverflowError
            If a field is missing or unknown, or its shape, dtype or range is wrong. The buffer is then unchanged.
        RuntimeError
            If a lane belongs to a `writer`, or if the call comes from a function that is called for a batch.
        """

    @abstractmethod
    def extend(
        self, obs: Tree, action: Tree, reward: Any, next_obs: Tree, terminated: Any, truncated: Any, *,
        mask: npt.ArrayLike | None = None, td_error: Any = None, **extras: Tree,
    ) -> Indices:  # fmt: skip
        """Store T steps at once. The result equals that of T calls of :meth:`add`. O(T E).

        Parameters, errors and indices are those of :meth:`add`, with the leading axes (T, E), or (T,) with one lane. A
        mask may also have the shape (E,). If T is larger than a lane, the oldest of the returned indices are stale.
        """

    @abstractmethod
    def end_episode(self, mask: npt.ArrayLike | None = None) -> None:
        """End the running episodes of all lanes, or of those in `mask`. Call it when you reset an unfinished episode.

        The next step of these lanes begins a new episode. No window contains steps of both episodes. Stored flags do
        not change. Raises ValueError if `mask` has the wrong shape or dtype.
        """

    @abstractmethod
    def clear(self) -> None:
        """Remove every transition, episode and priority. All earlier indices become stale and are never reused."""

    @abstractmethod
    def overwrite(self, indices: npt.ArrayLike, **fields: Tree) -> int:
        """Replace fields of stored transitions in place, for example with recomputed recurrent states. O(B).

        Priorities do not change. Returns the number of changed transitions. Stale indices do not count.

        Parameters
        ----------
        indices : array-like of shape (B,) or (B, T), int
            From ``batch.indices``, ``batch.step_indices`` or :meth:`add`. Stale indices and -1, the index of padding,
            are ignored. If an index occurs twice, its last value is stored.
        **fields
            The new values, of shape ``indices.shape`` followed by the field's shape. Pass all parts of a nested field.

        Raises
        ------
        FieldNameError, IndexError, TypeError, ValueError, OverflowError
            If an index was never returned by the buffer, a field is unknown, a field is `terminated` or `truncated`
            (they define the episodes), several transitions share one copy of an observation, or a value is invalid for
            :meth:`add`. The buffer is then unchanged.

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
        """A :class:`~replaykit.writer.Writer` for some lanes, for a thread that acts in these lanes only.

        Running episodes of these lanes end. While the writer is open, only the writer can add to them.

        Parameters
        ----------
        lanes : int, slice, range or list of int
            In ascending order. Steps have a leading axis for the lanes, unless `lanes` is an int. TypeError or
            ValueError is raised if a lane does not exist or already has a writer.

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
        """Restart the random generator from a new seed, so that a copy draws different batches than its original.

        Give each copy its own seed of ``SeedSequence(...).spawn(count)``. Invalid seeds raise TypeError or ValueError.

        Examples
        --------
        >>> import copy
        >>> import numpy as np
        >>> from replaykit import Field, ReplayBuffer, Spec
        >>> buffer = ReplayBuffer(10, Spec(obs=Field(()), action=Field(())), seed=0)
        >>> _ = buffer.extend(np.arange(9), *np.zeros((2, 9)), np.arange(9), *np.zeros((2, 9), bool))
        >>> for seed in np.random.SeedSequence(1).spawn(2):
        ...     twin = copy.deepcopy(buffer)
        ...     twin.reseed(seed)
        ...     print(twin.sample(5).obs)
        [6. 1. 5. 2. 0.]
        [4. 5. 2. 2. 5.]
        """
        check_seed(seed, "None, a non-negative int or a SeedSequence", (np.random.SeedSequence,))
        with self.lock:
            if self.lock.sampling:
                self.lock.refuse_writing()
            self.rng.bit_generator.state = self.backend.seeded_state(self.rng, seed)

    def sample(self, batch_size: int) -> Batch:
        """A batch of `batch_size` transitions in new arrays. Subclasses cannot override it.

        Raises
        ------
        TypeError, ValueError, MemoryError
            If `batch_size` is not an int of at least 1, the buffer is empty, or the batch does not fit in memory.
        """
        if type(batch_size) is not int or not 0 < batch_size <= self.large_batch:
            batch_size = self.checked_batch_size(batch_size)
        if self.rate_limit is not None and not self.rate_limit.is_sampling:
            return self.rate_limit.sample(self, batch_size)  # type: ignore[no-any-return]
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
                if state is not None:  # so that the next batch draws the same random numbers
                    self.restore_random_state(state)
                raise
            finally:
                lock.sampling = outer
        batch = _new_batch(Batch)
        batch.__dict__ = fields
        return batch

    def random_state(self) -> Any:
        """The state of every generator that a batch uses."""
        return self.rng.bit_generator.state

    def restore_random_state(self, state: Any) -> None:
        """Restore a state that `random_state` returned."""
        self.rng.bit_generator.state = state

    @abstractmethod
    def count_batch(self) -> None:
        """Count one more sampled batch, for schedules and `stats`."""

    @abstractmethod
    def update_priorities(
        self, indices: npt.ArrayLike, td_errors: npt.ArrayLike | None = None, *, priorities: npt.ArrayLike | None = None
    ) -> int:
        """Set the priorities of the transitions in a batch. O(B log C).

        Returns the number of updated entries. Stale indices do not count. A buffer without priorities only checks the
        arguments and returns 0.

        Parameters
        ----------
        indices : array-like of shape (B,), int
            From ``batch.indices`` or :meth:`add`. Stale ones are ignored. If one occurs twice, its last value counts.
        td_errors : array-like of shape (B,), float
            TD errors with either sign. The priority is ``abs(td_error) + eps``.
        priorities : array-like of shape (B,), float
            The priorities themselves, instead of `td_errors`. They must not be negative.

        Raises
        ------
        IndexError, TypeError, ValueError
            If an index is not an integer or was never returned by the buffer, shapes differ, a value is NaN or
            infinite, a priority is negative, or both kinds of values or none are passed. The buffer is then unchanged.

        Examples
        --------
        >>> from replaykit import Field, PrioritizedBuffer, Spec
        >>> buffer = PrioritizedBuffer(2, Spec(obs=Field(()), action=Field(())))
        >>> for step in range(3):
        ...     index = buffer.add(step, 0, 1.0, step + 1, False, False)
        >>> buffer.update_priorities([0, 1, 2], td_errors=[0.5, -2.0, 1.0])  # 0 is stale
        2
        """

    @abstractmethod
    def draw(self, batch_size: int) -> Draw:
        """A :class:`~replaykit.batch.Draw` of B stored indices and their probabilities."""

    @abstractmethod
    def probability(self, indices: npt.ArrayLike, batch_size: int = 1) -> npt.NDArray[np.float64]:
        """The expected fraction of a batch for each index, of shape (B,). Raises IndexError if one is not stored."""

    @abstractmethod
    def window(self, indices: Indices) -> Window:
        """A :class:`~replaykit.batch.Window` of up to `n_step` steps of one episode, starting at each index. O(B n).

        Indices have the shape (B,), or (B, T) for rows of T windows. Raises IndexError for an index that is not stored.
        """

    @abstractmethod
    def reduce(self, window: Window) -> dict[str, Any]:
        """Reduce each window to one transition. Returns the fields by name. O(B n)."""

    @abstractmethod
    def weigh(self, draw: Draw) -> npt.NDArray[np.float32]:
        """The importance-sampling weights of a draw; 1 if the buffer does not correct for its probabilities."""

    def least_probability(self, batch_size: int, without: Indices) -> float | Floats:
        """`least_of` all stored indices except those in `without`: their smallest positive probability. O(N)."""
        with self.lock:
            others = self.backend.difference(self.backend.indices("indices", self.stored()), without)
            return self.least_of(others, self.probability(others, batch_size))

    def least_of(self, indices: Indices, probabilities: Floats) -> float | Floats:
        """The smallest positive value in `probabilities`, or inf. A mixture returns one value for each source."""
        return self.backend.least_positive(probabilities)  # type: ignore[no-any-return]

    def serve(self, batch_size: int) -> dict[str, Any]:
        """All fields of a batch: `draw`, `window`, `reduce` and `weigh` in one call."""
        draw, window = self.open(batch_size)
        return self._weighed(self.reduce(window), draw)

    def _draw_and_fetch(self, batch_size: int) -> dict[str, Any]:
        """`serve` for a replay that does not change windows: `draw`, `fetch` and `weigh`."""
        draw = self._checked_draw(batch_size)
        return self._weighed(self.fetch(draw.indices), draw)

    def open(self, batch_size: int, look: Look | None = None) -> tuple[Draw, Window]:
        """`draw` and `window` in one call. If `look` is given, ``window.ahead`` may contain the answer to it."""
        draw = self._checked_draw(batch_size)
        return draw, self.window(draw.indices)

    def fetch(self, indices: Indices) -> dict[str, Any]:
        """The fields of the transitions at these indices: `window` and `reduce` in one call."""
        return self.reduce(self.window(indices))

    def look_ahead(self, window: Window, look: Look, uniforms: npt.NDArray[np.float64]) -> Ahead:
        """The goals that hindsight gives to windows, found with `read` and `episode` in one call."""
        return self.backend.look_ahead(self, window, look, uniforms)

    def checked_batch_size(self, batch_size: Any) -> int:
        """`batch_size` as an int. Raises MemoryError for a batch that does not fit in memory."""
        size = check_count("batch_size", batch_size)
        if size > self.large_batch:
            each = self.bytes_each
            refuse_more_than_memory(size * each, f"batch_size {size} at {each} bytes each", "sample fewer at a time")
        return size

    def _checked_draw(self, batch_size: int) -> Draw:
        """`draw`. Raises ValueError if the buffer is empty."""
        if not len(self):
            raise ValueError(EMPTY)
        draw = self.draw(batch_size)
        draw.indices = self.backend.indices("indices", draw.indices)
        return draw

    def _weighed(self, fields: dict[str, Any], draw: Draw) -> dict[str, Any]:
        """`fields`, with the weights, probabilities and indices of the draw added."""
        fields["weights"] = self.weigh(draw)
        fields["probabilities"], fields["indices"] = draw.probabilities, draw.indices
        return fields

    @property
    def inside(self) -> "tuple[Replay, ...]":
        """The replays inside this one. A buffer has none, a wrapper one, and a mixture its sources."""
        return ()

    @property
    def num_slots(self) -> int:
        """The size of the ring. No two stored indices have the same ``index % num_slots``."""
        return self.capacity

    @property
    @abstractmethod
    def largest_priority(self) -> float:
        """The largest magnitude that `update_priorities` accepts."""

    @abstractmethod
    def parts(self) -> dict[str, Declared]:
        """Every object with state, by name, in the order in which they must be loaded."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """The size of all allocated arrays in bytes. It grows only if observations share few frames."""

    @property
    @abstractmethod
    def bounds(self) -> Indices:
        """For each lane, the number of its oldest step and of the next step to be added, of shape (2, lanes)."""

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
        """Every stored index, lane by lane, oldest first. O(N)."""
        with self.lock:
            return stored_in(self.bounds, self.successor)

    @abstractmethod
    def __len__(self) -> int:
        """The number of stored transitions, N."""

    @abstractmethod
    def latest(self, count: int) -> Indices:
        """The indices of the `count` newest transitions, oldest first; of all transitions if fewer are stored."""

    @abstractmethod
    def episode(self, indices: npt.ArrayLike) -> tuple[Indices, Indices, Indices]:
        """The episode number of each stored index, and the indices of the episode's first and last step. O(1) each.

        Each episode has its own number. The first step may have been overwritten. The last step of a running episode is
        its newest step. For padding, the index -1, all three are -1. Raises IndexError for a stale or unknown index.
        """

    @abstractmethod
    def read(self, indices: npt.ArrayLike, field: str) -> npt.NDArray[Any]:
        """One field of stored transitions, as it was added, in a new array of shape (B, ...). O(B).

        Wrappers do not change the values. Frames are stacked as in a batch.

        Parameters
        ----------
        indices : array-like of shape (B,), int
            The index -1 stands for padding and returns zeros.
        field : str
            The name of a field, such as ``"reward"``, or ``"obs.position"`` for a nested field.

        Raises
        ------
        IndexError, FieldNameError
            If an index is stale or was never returned by the buffer, or the field does not exist.

        Examples
        --------
        >>> from replaykit import Field, ReplayBuffer, Spec
        >>> buffer = ReplayBuffer(10, Spec(obs={"x": Field(), "y": Field((2,))}, action=Field()))
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
        """Metrics for a logger, by name. :doc:`/how-to/log-metrics` shows how to log them.

        - `size`: stored transitions; `capacity`: their maximum number; `nbytes`: size of all arrays in bytes
        - `added`: transitions added so far; `batches`: batches sampled so far

        A prioritized buffer adds:

        - `stale_updates`: priority updates whose transition had already been overwritten
        - `beta`: the exponent of the weights of the next batch
        - `scaled_priority_mean`, `scaled_priority_max`: mean and maximum of the stored scaled priorities ``p**alpha``;
          with ``variant="rank"`` instead `priority_max` and `priority_median` of the priorities themselves

        Parameters
        ----------
        prefix : str
            A prefix for each name, such as ``"replay/"``.
        """

    @abstractmethod
    def check(self) -> None:
        """Verify every invariant. Raises AssertionError, and warns of observations that are not finite. O(C)."""
