"""Buffers: a storage, a distribution and a random generator."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from replaykit.backend import Backend
from replaykit.batch import Ahead, Draw, Look, Window
from replaykit.checks import check_count, check_seed, check_unit, prefixed
from replaykit.declared import Declared, Moment, read_only
from replaykit.distributions.base import Distribution
from replaykit.replay import Replay
from replaykit.settings import Settings
from replaykit.spec import REQUIRED, Spec
from replaykit.storage.base import Floats, Indices, Storage, refuse_other_lengths
from replaykit.storage.lock import Lock
from replaykit.trees import Tree
from replaykit.updates import leaves_at, one_of, refuse_other_shape
from replaykit.writer import Selection, refuse_lanes_of_writers

Kind = TypeVar("Kind", bound="Buffer")
Seed: TypeAlias = int | np.random.SeedSequence | np.random.Generator | None


class Buffer(Replay):
    """A buffer with any storage and any distribution.

    It cannot be subclassed: to change it, write a storage, a distribution or a wrapper. `ReplayBuffer`,
    `PrioritizedBuffer` and `LatestBuffer` are ready-made combinations. Wrong arguments raise TypeError or ValueError.

    Parameters
    ----------
    storage : Storage
        Holds the transitions.
    distribution : Distribution
        Draws transitions. It must use the same storage.
    n_step, gamma, seed
        As in `ReplayBuffer`.

    Examples
    --------
    >>> from replaykit import Buffer, Field, Spec
    >>> from replaykit.distributions import Proportional
    >>> from replaykit.storage import LocalStorage
    >>> storage = LocalStorage(1000, Spec(obs=Field((3,)), action=Field(())))
    >>> Buffer(storage, Proportional(storage, alpha=0.5), n_step=3, seed=0)
    Buffer(0 of 1000, num_envs=1, n_step=3)
    """

    storage: Storage = read_only("_storage", "The storage, which holds the transitions.")
    distribution: Distribution = read_only("_distribution", "The distribution, which draws transitions.")

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.__module__ != "replaykit.buffers":
            remedy = "write a ReplayWrapper, or join a Storage and a Distribution of your own in a Buffer"
            raise TypeError(f"{cls.__name__} is a subclass of a buffer, and buffers are final; {remedy}")

    def __init__(
        self, storage: Storage, distribution: Distribution, *, n_step: int = 1, gamma: float = 0.99, seed: Seed = None
    ) -> None:
        if not isinstance(storage, Storage):
            raise TypeError(f"storage is a {type(storage).__name__}; expected a Storage, such as a LocalStorage")
        if not isinstance(distribution, Distribution):
            raise TypeError(f"distribution is a {type(distribution).__name__}; expected a Distribution")
        if distribution.storage is not storage:
            raise ValueError("distribution draws from another storage; expected one that was built with this storage")
        self._storage, self._distribution = storage, distribution
        n_step, gamma = check_count("n_step", n_step), check_unit("gamma", gamma)
        self.settings: Settings = Settings(
            storage.spec, storage.capacity, storage.num_envs, n_step, gamma, storage.stack
        )
        self.successor: int = storage.num_envs
        self.backend: Backend = storage.backend
        self.rng: Any = storage.backend.generator(check_seed(seed))
        self.lock: Lock = storage.lock
        self.note_bytes(self.settings.bytes_each)
        self.has_least: bool = distribution.has_least
        self._stale_updates = 0
        self._has_priorities = type(distribution).update is not Distribution.update
        longest = min(n_step, storage.length)  # no window can be longer than a lane
        self._powers = np.array([gamma**k for k in range(longest + 1)])
        fused = storage.fuse(distribution, self._powers, self.rng)
        if fused is not None:
            self.serve, self.open = fused  # type: ignore[method-assign, assignment]
        self._encode_step, self._write = storage.encode_step, storage.write

    @classmethod
    def from_env(cls: type[Kind], env: Any, capacity: int, **options: Any) -> Kind:
        """A `ReplayBuffer`, `PrioritizedBuffer` or `LatestBuffer` for a Gymnasium environment, single or vector.

        Each environment gets its own lane. The options are those of the constructor. Raises TypeError if `env` is not a
        Gymnasium environment, and ValueError if `num_envs` differs from the number of environments.
        """
        num_envs = env.num_envs if hasattr(env, "single_observation_space") else 1
        if options.setdefault("num_envs", num_envs) != num_envs:
            raise ValueError(f"num_envs is {options['num_envs']}; expected {num_envs}, as many as env has")
        return cls(capacity, Spec.from_env(env), **options)  # type: ignore[arg-type]

    def add(
        self, obs: Tree, action: Tree, reward: Any, next_obs: Tree, terminated: Any = REQUIRED,
        truncated: Any = REQUIRED, *, mask: npt.ArrayLike | None = None, td_error: Any = None, **extras: Tree,
    ) -> Indices:  # fmt: skip
        if mask is not None or td_error is not None:
            values = (obs, action, reward, next_obs, terminated, truncated)
            return self._write_steps(None, values, extras, mask, td_error)
        block = self._encode_step(obs, action, reward, next_obs, terminated, truncated, extras)
        lock = self.lock
        with lock:
            if lock.sampling:
                lock.refuse_writing()
            if lock.writers:
                refuse_lanes_of_writers(lock.writers, self._storage.num_envs)
            return self._write(block, 1)

    def extend(
        self, obs: Tree, action: Tree, reward: Any, next_obs: Tree, terminated: Any = REQUIRED,
        truncated: Any = REQUIRED, *, mask: npt.ArrayLike | None = None, td_error: Any = None, **extras: Tree,
    ) -> Indices:  # fmt: skip
        values = (obs, action, reward, next_obs, terminated, truncated)
        shape = reward.shape if type(reward) is np.ndarray else self.backend.values("reward", reward).shape
        return self._write_steps(shape[0] if shape else -1, values, extras, mask, td_error)

    def _write_steps(
        self, steps: int | None, values: tuple[Tree, ...], extras: Mapping[str, Tree], mask: Any, td_error: Any
    ) -> Indices:
        """Store `steps` steps, or one step without a time axis if None. Entries outside the mask are ignored."""
        storage, distribution, lock = self._storage, self._distribution, self.lock
        writer, lanes, width = None, storage.lanes, storage.num_envs
        if type(mask) is Selection:
            writer, mask = mask
            lanes, width = writer.axes_of(steps), writer.num_envs
        if steps == -1:
            raise ValueError(f"reward has shape (); expected {('T', *lanes)}; use add for a single step")
        lead = lanes if steps is None else (steps, *lanes)
        try:
            chosen = None if mask is None else self._checked_mask(mask, lead, width)
            block = storage.encode(values, extras, lead, chosen)
        except ValueError:
            if steps is not None:
                refuse_other_lengths(storage.spec, values, extras, lead)
            raise
        errors = None if td_error is None else self._initial_errors(td_error, lead, chosen)
        count, flat = 1 if steps is None else steps, None if chosen is None else chosen.reshape(-1)
        if writer is not None:
            flat = writer.among_all(flat, count)
        with lock:
            if lock.sampling:
                lock.refuse_writing()
            if writer is not None or lock.writers:
                refuse_lanes_of_writers(lock.writers, width, flat, writer)
            if errors is not None:
                storage.refuse_block(block, len(errors))
                distribution.settle()  # so that earlier transitions do not get these priorities
            indices = storage.write(block, count, flat)
            if errors is not None:
                written = indices if flat is None else self.backend.chosen(indices, flat)
                largest, eps = distribution.largest_priority, distribution.eps
                distribution.update(*storage.select(written, errors, "td_errors", largest, eps))
        if writer is not None:
            indices = writer.own(indices, count)
        return indices.reshape(lead) if len(lead) > 1 else indices

    def _checked_mask(self, mask: Any, lead: tuple[int, ...], width: int) -> npt.NDArray[np.bool_] | None:
        """The mask, in the shape of the leading axes; None if it selects all entries."""
        array, lanes = self.backend.host("mask", mask), (width,)
        if array.dtype != np.bool_ or array.shape not in (lead, lanes):
            shapes = " or ".join(map(str, sorted({lead, lanes})))
            raise ValueError(f"mask has shape {array.shape} and dtype {array.dtype}; expected {shapes} and bool")
        array = array.reshape(()) if lead == () else np.broadcast_to(array, lead)
        return None if array.all() else array

    def _initial_errors(self, td_error: Any, lead: tuple[int, ...], mask: npt.NDArray[np.bool_] | None) -> Floats:
        """The TD errors of the entries to store, as a flat array. Raises ValueError for a wrong shape, NaN or inf."""
        errors: Floats = self.backend.float64("td_error", td_error)
        if errors.shape != lead and {lead, tuple(errors.shape)} != {(), (1,)}:
            refuse_other_shape("td_error", errors, lead, "a number for each step")
        errors = errors.reshape(lead)
        errors = errors.reshape(-1) if mask is None else self.backend.chosen(errors, mask.reshape(lead))
        self.backend.refuse_too_large("td_error", errors, self._distribution.largest_priority)
        return errors

    def end_episode(self, mask: npt.ArrayLike | None = None) -> None:
        storage = self._storage
        chosen = None if mask is None else self._checked_mask(mask, storage.lanes, storage.num_envs)
        with self.lock:
            if self.lock.sampling:
                self.lock.refuse_writing()
            storage.end_episode(np.arange(storage.num_envs) if chosen is None else np.flatnonzero(chosen))

    def clear(self) -> None:
        with self.lock:
            if self.lock.sampling:
                self.lock.refuse_writing()
            self._storage.clear()
            self._distribution.settle()

    def overwrite(self, indices: npt.ArrayLike, **fields: Tree) -> int:
        storage = self._storage
        entries, values = leaves_at(self.spec, indices, fields, self.backend, storage.coerce)
        storage.refuse_replacing(values)
        with self.lock:
            if self.lock.sampling:
                self.lock.refuse_writing()
            return storage.overwrite(entries, values)

    def count_batch(self) -> None:
        self._distribution.batches += 1

    def update_priorities(
        self, indices: npt.ArrayLike, td_errors: npt.ArrayLike | None = None, *, priorities: npt.ArrayLike | None = None
    ) -> int:
        name, given = one_of(td_errors, priorities)
        backend, distribution, lock = self.backend, self._distribution, self.lock
        entries, values = backend.indices("indices", indices, True), backend.float64(name, given, True)
        if values.shape != entries.shape:
            refuse_other_shape(name, values, entries.shape, "the shape of indices")
        with lock:
            if lock.sampling:
                lock.refuse_writing()
            largest, eps = distribution.largest_priority, distribution.eps
            slots, kept = self._storage.select(entries, values, name, largest, eps)
            if not self._has_priorities:
                return 0
            stale = entries.shape[0] - slots.shape[0]
            if stale:
                self._stale_updates += stale
            return distribution.update(slots, kept)

    def draw(self, batch_size: int) -> Draw:
        if type(batch_size) is not int or not 0 < batch_size <= self.large_batch:
            batch_size = self.checked_batch_size(batch_size)
        with self.lock:
            return self._distribution.draw(batch_size, self.rng)

    def probability(self, indices: npt.ArrayLike, batch_size: int = 1) -> npt.NDArray[np.float64]:
        if type(batch_size) is not int or batch_size < 1:
            check_count("batch_size", batch_size)
        entries = self.backend.indices("indices", indices)
        with self.lock:
            return self._distribution.probability(entries, batch_size)

    def window(self, indices: Indices) -> Window:
        indices = self.backend.window_starts(indices)
        with self.lock:
            return self._storage.window(indices, len(self._powers) - 1)

    def reduce(self, window: Window) -> dict[str, Any]:
        with self.lock:
            return self._storage.reduce(window, self._powers)

    def weigh(self, draw: Draw) -> npt.NDArray[np.float32]:
        with self.lock:
            return self._distribution.weigh(draw, len(self._storage))

    def serve(self, batch_size: int) -> dict[str, Any]:
        """All fields of a batch. A storage with a faster way replaces this method."""
        return self._draw_and_fetch(batch_size)

    def fetch(self, indices: Indices) -> dict[str, Any]:
        with self.lock:
            return self._storage.fetch(indices, self._powers)

    def look_ahead(self, window: Window, look: Look, uniforms: npt.NDArray[np.float64]) -> Ahead:
        with self.lock:
            return self._storage.look_ahead(window, look, uniforms)

    def least_probability(self, batch_size: int, without: Indices) -> float | Floats:
        with self.lock:
            return self._distribution.least_probability(batch_size, without)

    def parts(self) -> dict[str, Declared]:
        return {"storage": self._storage, "distribution": self._distribution, "buffer": self}

    def fits(self, built: dict[str, Any]) -> bool:
        return True

    def state(self) -> dict[str, Any]:
        batches, rng = self._distribution.batches, self.rng.bit_generator.state
        return {"batches": batches, "stale_updates": self._all_stale_updates, "rng": rng}

    @property
    def _all_stale_updates(self) -> int:
        """The number of priority updates whose transitions had already been overwritten."""
        in_storage = self._storage.stale_updates if self._has_priorities else 0
        return self._stale_updates + in_storage

    def check_state(self, state: dict[str, Any]) -> None:
        for name in ("batches", "stale_updates"):
            if type(state[name]) is not int or not 0 <= state[name] < 1 << 63:
                raise ValueError(f"{name} is {state[name]!r:.30}; expected an int of at least 0")
        self.backend.check_generator_state(self.rng, state["rng"])

    def restore(self, state: dict[str, Any]) -> None:
        self._distribution.batches = state["batches"]
        self._stale_updates += state["stale_updates"] - self._all_stale_updates
        self.backend.set_generator_state(self.rng, state["rng"])

    def __reduce__(self) -> Any:
        if type(self) is not Buffer:
            return super().__reduce__()
        with self.lock:  # the storage and the distribution are arguments of a `Buffer`, and copy themselves
            moment = Moment((self._storage, self._distribution))
            return *super().__reduce__(), moment

    def copied_arguments(self) -> tuple[type[Any], tuple[Any, ...], dict[str, Any]]:
        """The constructor and its arguments. A copy keeps its transitions in memory, not in files."""
        kind, args, options = super().copied_arguments()
        is_kept = {name: name != "storage" or isinstance(value, Storage) for name, value in options.items()}
        return kind, args, {name: value for name, value in options.items() if is_kept[name]}

    def copied_state(self) -> dict[str, Any]:
        """The states of all parts at one moment. A `Buffer` copies only its own state: its parts are arguments."""
        own: dict[str, Declared] = {"buffer": self} if type(self) is Buffer else self.parts()
        with self.lock:
            return {name: part.state() if part is self else part.copied_state() for name, part in own.items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        parts = self.parts()
        for name, values in state.items():
            parts[name].restore(values)

    @property
    def beta(self) -> float:
        """The exponent of the weights of the next batch. Set it to a number in [0, 1], or to a schedule."""
        return float(self._with_beta.beta)

    @beta.setter
    def beta(self, value: float | Callable[[int], float]) -> None:
        with self.lock:
            self._with_beta.beta = value

    @property
    def _with_beta(self) -> Any:
        """The distribution, which must have a beta."""
        if not hasattr(type(self._distribution), "beta"):
            raise AttributeError(f"{self!r} has no priorities, so it has no beta")
        return self._distribution

    @property
    def largest_priority(self) -> float:
        return self._distribution.largest_priority

    @property
    def nbytes(self) -> int:
        return self._storage.nbytes

    @property
    def bounds(self) -> Indices:
        return self._storage.bounds

    def __len__(self) -> int:
        with self.lock:
            return len(self._storage)

    def latest(self, count: int) -> Indices:
        if type(count) is not int or count < 1:
            check_count("count", count)
        with self.lock:
            return self._storage.latest(count)

    def episode(self, indices: npt.ArrayLike) -> tuple[Indices, Indices, Indices]:
        entries = self.backend.indices("indices", indices)
        with self.lock:
            return self._storage.episode(entries)

    def read(self, indices: npt.ArrayLike, field: str) -> npt.NDArray[Any]:
        entries = self.backend.indices("indices", indices)
        with self.lock:
            return self._storage.read(entries, field)

    def stats(self, prefix: str = "") -> dict[str, float]:
        storage, distribution = self._storage, self._distribution
        with self.lock:
            storage.raise_late()
            stats = {"size": len(storage), "capacity": storage.capacity, "added": storage.bounds[1].sum()}
            stats |= {"batches": distribution.batches, "nbytes": storage.nbytes}
            if self._has_priorities:
                stats["stale_updates"] = self._all_stale_updates
            return prefixed(stats | distribution.stats(), prefix)

    def check(self) -> None:
        with self.lock:
            self._storage.check()
            self._distribution.check()
            for message in self._storage.not_finite_observations():
                warnings.warn(message, RuntimeWarning, stacklevel=2)

    def __repr__(self) -> str:
        lanes = f"num_envs={self.num_envs}, n_step={self.n_step}"
        stack = f", stack={self.stack}" if self.stack > 1 else ""
        return f"{type(self).__name__}({len(self)} of {self.capacity}, {lanes}{stack})"
