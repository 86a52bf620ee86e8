"""Mixtures: batches drawn from several replays in fixed or scheduled shares."""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, cast, final

import numpy as np
import numpy.typing as npt

from replaykit._kernels import LazyModule
from replaykit.backend import Backend
from replaykit.batch import Draw, Window
from replaykit.buffer import Seed
from replaykit.checks import check_count, check_seed, prefixed
from replaykit.declared import Declared, Moment, read_only
from replaykit.mixing import Locks, Plan, Ring, Rows, Share, Shares, refuse_shared, refuse_wrong_sources
from replaykit.replay import Replay
from replaykit.schedules import check_schedule
from replaykit.settings import Settings
from replaykit.spec import REQUIRED
from replaykit.storage.base import Floats, Indices, refuse_not_stored
from replaykit.storage.lock import Lock
from replaykit.trees import Tree, map_tree
from replaykit.updates import leaves_at, one_of, refuse_other_shape

on_device: Any = LazyModule("replaykit.on_device")
_ENDS = "length", "terminated", "truncated"


@final
class MixedReplay(Replay):
    """Several replays as one: each source contributes its share of every batch.

    A source is a buffer or a wrapper around one. It draws with its own distribution and generator and computes its own
    weights, exactly as it would alone. A batch contains the rows of the first source, then those of the second, and so
    on. Its fields are those of the sources, and `source`, (B,) int64: the number of each row's source in the order of
    the dict. If only some sources have a field, such as `relabelled`, it is 0 or False in the rows of the others.

    If ``batch_size * share`` is an integer, the source contributes exactly that many rows. Otherwise the number is
    rounded down or up at random, so that its expected value is ``batch_size * share``. A transition with probability P
    in its source has the probability ``share * P`` in the mixture.

    The weights of a source's rows are computed from P and normalized within the source. With ``weights="batch"`` the
    largest weight of each source in the batch is 1. Weights do not correct for the shares.

    A transition's index in the mixture differs from its index in the source. The mixture has S lanes, those of all
    sources. Take a source with E lanes, the first of which is lane k of the mixture. Its index i becomes
    ``i // E * S + k + i % E``. All methods of the mixture, such as `update_priorities`, take these indices.

    `add`, `extend`, `end_episode` and `writer` write to the source `add_to` only, and `latest` returns transitions of
    this source only. `clear` empties all sources; ``mixture.sources["online"].clear()`` empties one. Each batch counts
    as a batch of every source, for the schedule of its `beta`. Setting `beta` sets it in all sources that have one. You
    can also use the sources directly at any time, even from other threads.

    A batch takes as long as the batches of its sources, plus O(B) to join them. It takes O(N) if a source has
    ``weights="buffer"`` and its number of rows is random.

    The sources can be on a device, all on the same one. Batches are then tensors. Nothing waits for the device, except
    with a `CombinedReplay` around sources with ``weights="buffer"``.

    Parameters
    ----------
    sources : dict of str to Replay
        Names and replays, with equal `spec`, `n_step`, `gamma` and, for frames, `stack`. `num_envs` may differ.
    shares : dict of str to float or callable
        The share of each source in [0, 1]: a number, or a function of the number of batches sampled so far. The sum
        is 1. A source with a positive share must not be empty when a batch is drawn.
    add_to : str
        The name of the source that new transitions are added to.
    seed : int, SeedSequence or Generator, optional
        Seed of the random rounding and of wrappers around the mixture.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid, the sources differ in a setting that must be equal or in their device, or two of them
        share a storage or a generator. When sampling, if a source with a positive share is empty or cannot draw its
        rows. The mixture is then unchanged.

    References
    ----------
    Vecerik et al. (2017), Leveraging Demonstrations for Deep Reinforcement Learning on Robotics Problems with Sparse
    Rewards. Ball et al. (2023), Efficient Online Reinforcement Learning with Offline Data, section 4.1: half of each
    batch.

    Examples
    --------
    Demonstrations with rewards of 1, and the agent's own steps with rewards of 0:

    >>> import numpy as np
    >>> from replaykit import Field, MixedReplay, PrioritizedBuffer, ReplayBuffer, Spec
    >>> spec = Spec(obs=Field(()), action=Field(()))
    >>> demos, online = ReplayBuffer(50, spec, seed=0), PrioritizedBuffer(1000, spec, seed=1)
    >>> zeros, flags = np.zeros(50), np.zeros(50, bool)
    >>> index = demos.extend(zeros, zeros, np.ones(50), zeros, flags, flags)
    >>> sources = {"demos": demos, "online": online}
    >>> replay = MixedReplay(sources, shares={"demos": 0.25, "online": 0.75}, add_to="online", seed=2)
    >>> for step in range(100):
    ...     index = replay.add(step, 0, 0.0, step + 1, False, False)
    >>> batch = replay.sample(8)
    >>> batch.source
    array([0, 0, 1, 1, 1, 1, 1, 1])
    >>> batch.reward
    array([1., 1., 0., 0., 0., 0., 0., 0.], dtype=float32)
    >>> batch.probabilities  # 0.25 / 50 and 0.75 / 100
    array([0.005 , 0.005 , 0.0075, 0.0075, 0.0075, 0.0075, 0.0075, 0.0075])
    >>> replay.update_priorities(batch.indices, td_errors=np.ones(8))  # those of `online`; `demos` has no priorities
    6
    """

    add_to: str = read_only("_add_to", "The name of the source that new transitions are added to.")

    def __init__(
        self, sources: Mapping[str, Replay], *, shares: Mapping[str, Share], add_to: str, seed: Seed = None
    ) -> None:
        refuse_wrong_sources(sources, add_to)
        self.sources: Mapping[str, Replay] = MappingProxyType(dict(sources))
        self._each, self._names, self._add_to = tuple(sources.values()), tuple(sources), add_to
        self._added_to = sources[add_to]
        self.backend: Backend = self._added_to.backend
        self.rng: Any = self.backend.generator(check_seed(seed))
        refuse_shared(sources, self.rng)
        locks = [lock for source in self._each for lock in source.lock.each]
        self.lock: Lock = cast(Lock, Locks(locks, self._added_to.lock.written))
        lanes = [source.successor for source in self._each]
        first, capacity = self._added_to.settings, sum(source.capacity for source in self._each)
        self.settings: Settings = Settings(first.spec, capacity, first.num_envs, first.n_step, first.gamma, first.stack)
        self._ring = Ring(lanes) if self.backend.is_numpy else on_device.DeviceRing(self._each, self.backend)
        self.successor: int = self._ring.successor
        self._last = len(lanes) - 1
        self.note_bytes(max(source.bytes_each for source in self._each))
        self.may_raise: bool = any(source.may_raise for source in self._each)
        self.has_least: bool = any(source.has_least for source in self._each)
        self._batches = 0
        self._shares = Shares(self._names, shares)

    # -- Shares ----------------------------------------------------------------------------------------------

    @property
    def shares(self) -> dict[str, float]:
        """The share of each source in the next batch. Set it to a dict of numbers in [0, 1] or schedules."""
        return dict(zip(self._names, self._shares.after(self._batches), strict=True))

    @shares.setter
    def shares(self, shares: Mapping[str, Share]) -> None:
        given = Shares(self._names, shares)
        with self.lock:
            self._shares = given

    def _plan(self, batch_size: int) -> Plan:
        """The number of rows of each source in the next batch."""
        return self._shares.plan(batch_size, self._batches)

    # -- Adding ----------------------------------------------------------------------------------------------

    def add(
        self, obs: Tree, action: Tree, reward: Any, next_obs: Tree, terminated: Any = REQUIRED,
        truncated: Any = REQUIRED, *, mask: npt.ArrayLike | None = None, td_error: Any = None, **extras: Tree,
    ) -> Indices:  # fmt: skip
        values = obs, action, reward, next_obs, terminated, truncated
        return self._of_added(self._added_to.add(*values, mask=mask, td_error=td_error, **extras))

    def extend(
        self, obs: Tree, action: Tree, reward: Any, next_obs: Tree, terminated: Any = REQUIRED,
        truncated: Any = REQUIRED, *, mask: npt.ArrayLike | None = None, td_error: Any = None, **extras: Tree,
    ) -> Indices:  # fmt: skip
        values = obs, action, reward, next_obs, terminated, truncated
        return self._of_added(self._added_to.extend(*values, mask=mask, td_error=td_error, **extras))

    def _of_added(self, own: Indices) -> Indices:
        return self._ring.placed(self._names.index(self._add_to), own)

    def end_episode(self, mask: npt.ArrayLike | None = None) -> None:
        self._added_to.end_episode(mask)

    def clear(self) -> None:
        with self.lock:
            if self.lock.sampling:
                self.lock.refuse_writing()
            for source in self._each:
                source.clear()

    def overwrite(self, indices: npt.ArrayLike, **fields: Tree) -> int:
        backend = self.backend
        entries, leaves = leaves_at(self.spec, indices, fields, backend, backend.coerce)
        with self.lock:
            if self.lock.sampling:
                self.lock.refuse_writing()
            self._refuse_never_given(entries, padded=True)
            rows, values = self._ring.split(entries), leaves.values()
            parts = [
                self.spec.unflatten([v[rows.of(k)] for v in values], tuple(fields)) for k in range(len(self._each))
            ]
            for source, own, part in zip(self._each, rows.own, parts, strict=True):
                source.overwrite(own * 0 - 1, **part)  # only checks the values
            return sum(s.overwrite(own, **part) for s, own, part in zip(self._each, rows.own, parts, strict=True))

    def _refuse_never_given(self, indices: Indices, padded: bool = False) -> None:
        """Raise IndexError for the first index that was never returned. On a device, the sources record it."""
        if self.backend.is_numpy:
            given = indices[indices != -1] if padded else indices
            self._refuse(given[(given < 0) | (given // self.successor >= self.bounds[1, given % self.successor])][:1])

    def begins_row(self, indices: Indices) -> npt.NDArray[np.bool_]:
        rows = self._ring.split(indices)
        return rows.joined([source.begins_row(own) for source, own in zip(self._each, rows.own, strict=True)])

    # -- Indices ---------------------------------------------------------------------------------------------

    def _refuse(self, indices: Indices, padded: bool = False) -> None:
        """Raise IndexError for the first index that is not stored. On a device, the sources record it."""
        if self.backend.is_numpy:
            refuse_not_stored(indices[indices != -1] if padded else indices, self.bounds)

    # -- Sampling --------------------------------------------------------------------------------------------

    def draw(self, batch_size: int) -> Draw:
        size = self.checked_batch_size(batch_size)
        with self.lock:
            return self._draws(size)[1]

    def _draws(self, size: int) -> tuple[Rows, Draw]:
        """Draw from each source. Returns its own indices and the combined draw."""
        plan = self._plan(size)
        for name, source, most in zip(self._names, self._each, plan.most, strict=True):
            if most and not len(source):
                raise ValueError(
                    f"source {name!r} is empty, but its share is not 0; add to it first, or set its share to 0"
                )
        states: list[tuple[Replay, Any]] = []
        own_state = None if plan.is_whole else self.rng.bit_generator.state
        try:
            counts = plan.most if plan.is_whole else plan.rounded(self.rng.random())
            draws: list[Draw | None] = []
            for k, count in enumerate(counts):
                source = self._each[k]
                if k < self._last:  # the last source raises before it draws anything
                    states.append((source, source.random_state()))
                draws.append(self._asked(k, count, size, source.draw) if count else None)
            return self._together(draws, plan, size)
        except BaseException:
            for source, state in states:
                source.restore_random_state(state)
            if own_state is not None:
                self.rng.bit_generator.state = own_state
            raise

    def _together(self, draws: list[Draw | None], plan: Plan, size: int) -> tuple[Rows, Draw]:
        backend, owns, indices, probabilities = self.backend, list[Indices](), [], []
        least: list[Any] = [np.nan] * len(draws)
        for k, draw in enumerate(draws):
            if draw is None:
                owns.append(_NONE)
                if self._each[k].has_least:  # needed if a wrapper adds rows of this source
                    least[k] = self._least(k, size, backend.array(_NONE))
                continue
            own = backend.indices("indices", draw.indices)
            owns.append(own)
            indices.append(self._ring.mapped(k, own))
            count, is_whole = len(own), not plan.chances[k]
            probabilities.append(draw.probabilities * (count / size) if is_whole else self._shares_of(k, own, size))
            if draw.least is not None:
                least[k] = draw.least * (count / size) if is_whole else self._least(k, size, backend.array(_NONE))
        is_known = self.has_least or any(draw is not None and draw.least is not None for draw in draws)
        joined, shares = map(backend.xp.concatenate, (indices, probabilities))
        return self._ring.together(owns, joined), Draw(joined, shares, backend.numbers(least) if is_known else None)

    def _asked(self, k: int, count: int, size: int, ask: Callable[[int], Any]) -> Any:
        """The result of source k for `count` of `size` rows. An error names the source."""
        try:
            return ask(count)
        except ValueError as error:
            raise ValueError(f"source {self._names[k]!r}, asked for {count} of {size} rows: {error}") from error

    def probability(self, indices: npt.ArrayLike, batch_size: int = 1) -> Floats:
        """The expected fraction of a batch for each index: its source's share times its probability in this source."""
        entries, size = self.backend.indices("indices", indices), check_count("batch_size", batch_size)
        with self.lock:
            self._refuse(entries)
            rows = self._ring.split(entries, True)
            return rows.joined([self._shares_of(k, own, size) for k, own in enumerate(rows.own)])

    def _shares_of(self, k: int, own: Indices, size: int) -> Floats:
        """The expected fraction of a batch of `size` for each index of source k, over its possible numbers of rows."""
        source = self._each[k]
        shares: Floats = self.backend.full(len(own), 0.0)
        if len(own):
            for count, chance in self._plan(size).counts_of(k):
                of_source = self._asked(k, count, size, lambda count: source.probability(own, count))
                shares += of_source * (chance * count / size)
        return shares

    def least_probability(self, batch_size: int, without: Indices) -> Floats:
        """The smallest positive probability of the stored indices of each source except those in `without`, (K,)."""
        size = check_count("batch_size", batch_size)
        with self.lock:
            rows = self._ring.split(without)
            least: Floats = self.backend.numbers([self._least(k, size, own) for k, own in enumerate(rows.own)])
            return least

    def _least(self, k: int, size: int, without: Indices) -> Any:
        counts = self._plan(size).counts_of(k)
        source = self._each[k]
        if not counts or not len(source):
            return np.inf
        if len(counts) == 1:
            ((count, chance),) = counts
            least = self._asked(k, count, size, lambda count: source.least_probability(count, without))
            return least * (chance * count / size)
        backend, stored = self.backend, self.backend.array(source.stored())
        shares = self._shares_of(k, stored, size)
        return backend.least_positive(backend.xp.where(backend.is_in(stored, without), 0.0, shares))

    def least_of(self, indices: Indices, probabilities: Floats) -> Floats:
        backend, owner = self.backend, self._ring.owner_of(indices)
        each = [backend.xp.where(owner == k, probabilities, 0.0) for k in range(len(self._each))]
        least: Floats = backend.numbers([backend.least_positive(of_source) for of_source in each])
        return least

    def weigh(self, draw: Draw) -> npt.NDArray[np.float32]:
        """The weights that each source computes for its rows, from their probabilities divided by its share."""
        with self.lock:
            return self._weights(self._ring.split(draw.indices, True), draw)

    def _weights(self, rows: Rows, draw: Draw) -> npt.NDArray[np.float32]:
        shares = self._plan(1).shares
        return rows.joined(
            [  # rows of a source with share 0 come from a wrapper
                self._each[k].weigh(rows.alone(k, draw, shares[k] or 1.0)) for k, own in enumerate(rows.own) if len(own)
            ]
        )

    def serve(self, batch_size: int) -> dict[str, Any]:
        rows, draw = self._draws(batch_size)
        parts = [self._each[k].fetch(own) for k, own in enumerate(rows.own)]
        fields = self._fields(rows, parts)
        fields["weights"] = self._weights(rows, draw)
        fields["probabilities"], fields["indices"] = draw.probabilities, draw.indices
        return fields

    def fetch(self, indices: Indices) -> dict[str, Any]:
        with self.lock:
            rows = self._split(indices)
            return self._fields(rows, [s.fetch(own) for s, own in zip(self._each, rows.own, strict=True)])

    def _split(self, indices: Any) -> Rows:
        """The rows of each source in the indices at which windows are opened."""
        indices = self.backend.window_starts(indices)
        self._refuse(indices.reshape(-1), padded=indices.ndim == 2)
        return self._ring.split(indices, True)

    def _fields(self, rows: Rows, parts: list[dict[str, Any]]) -> dict[str, Any]:
        """Join the fields of all sources."""
        first = parts[0]
        if any(part.keys() != first.keys() for part in parts):
            self._complete(rows, parts)
        if rows.order is None and self.spec.is_flat:
            fields = {name: np.concatenate([part[name] for part in parts]) for name in first}
        else:
            fields = {name: rows.tree([part[name] for part in parts]) for name in first}
        fields["source"] = rows.owner
        return fields

    def _complete(self, rows: Rows, parts: list[dict[str, Any]]) -> None:
        """Add zeros for fields that only some sources have."""
        for name in dict.fromkeys(name for part in parts for name in part):
            like = next(part[name] for part in parts if name in part)
            for k, part in enumerate(parts):
                if name not in part:
                    if name in self.spec or name in ("discount", "length"):
                        raise ValueError(
                            f"batches of source {self._names[k]!r} have no {name!r}, but those of other sources have"
                        )
                    part[name] = self._zeros_like(like, len(rows.own[k]))

    def _zeros_like(self, tree: Tree, rows: int) -> Tree:
        """Zeros with the structure of `tree` and with `rows` rows."""
        return map_tree(lambda array, _path: self.backend.zeros(array, rows), tree)

    def window(self, indices: Indices) -> Window:
        with self.lock:
            rows = self._split(indices)
            parts = [source.window(own) for source, own in zip(self._each, rows.own, strict=True)]
        shapes = {part.shape[1:] for part in parts}
        if len(shapes) > 1:
            raise ValueError(
                f"the windows of the sources have different shapes per row: {shapes}; expected the same shape"
            )
        shape = len(rows.owner), *shapes.pop()
        rows = rows.widened(int(np.prod(shape[1:])))
        own = [self._ring.placed(k, part.indices) for k, part in enumerate(parts)]
        reward = rows.rewards([part.reward for part in parts])
        length, terminated, truncated = (rows.joined([getattr(part, name) for part in parts]) for name in _ENDS)
        window = Window(rows.joined(own), shape, self.successor, reward, length, terminated, truncated, (rows, parts))
        for name in dict.fromkeys(name for part in parts for name in part.added):
            like = next(part.added[name] for part in parts if name in part.added)
            values = [part.added.get(name, self._zeros_like(like, part.shape[0])) for part in parts]
            window.added[name] = rows.tree(values)
        window.added["source"] = rows.owner
        return window

    def reduce(self, window: Window) -> dict[str, Any]:
        rows, parts = window.opened
        known = {name for part in parts for name in part.added}
        reduced = []
        begin = 0
        for k, (source, part) in enumerate(zip(self._each, parts, strict=True)):
            count, reward = len(part.indices), window.reward[:, : part.reward.shape[1]]
            changed = dataclasses.replace(
                part,
                reward=self.backend.contiguous(rows.given_to(k, reward, part.reward)),
                **{name: rows.given_to(k, getattr(window, name), getattr(part, name)) for name in _ENDS},
                added={name: window.added[name][rows.of(k)] for name in known if name in window.added},
                rewrites=[*part.rewrites, *rows.rewrites_of(window.rewrites, begin, count)],
            )
            begin += count
            reduced.append(source.reduce(changed))
        with self.lock:
            fields = self._fields(rows, reduced)
        return fields | {name: value for name, value in window.added.items() if name not in known}

    def count_batch(self) -> None:
        self.__dict__["_batches"] += 1  # without __setattr__
        for source in self._each:
            source.count_batch()

    def random_state(self) -> Any:
        return self.rng.bit_generator.state, [source.random_state() for source in self._each]

    def restore_random_state(self, state: Any) -> None:
        self.rng.bit_generator.state, states = state
        for source, own in zip(self._each, states, strict=True):
            source.restore_random_state(own)

    def reseed(self, seed: int | np.random.SeedSequence | None = None) -> None:
        """Restart the random generators of the mixture and of all sources from new seeds. See :meth:`Replay.reseed`."""
        check_seed(seed, "None, a non-negative int or a SeedSequence", (np.random.SeedSequence,))
        if isinstance(seed, np.random.SeedSequence):
            whole = np.random.SeedSequence(seed.entropy, spawn_key=seed.spawn_key, pool_size=seed.pool_size)
        else:
            whole = np.random.SeedSequence(seed)
        own, *seeds = whole.spawn(len(self._each) + 1)
        with self.lock:
            if self.lock.sampling:
                self.lock.refuse_writing()
            super().reseed(own)
            for source, each in zip(self._each, seeds, strict=True):
                source.reseed(each)

    # -- Learning --------------------------------------------------------------------------------------------

    def update_priorities(
        self, indices: npt.ArrayLike, td_errors: npt.ArrayLike | None = None, *, priorities: npt.ArrayLike | None = None
    ) -> int:
        backend, (name, given) = self.backend, one_of(td_errors, priorities)
        entries, values = backend.indices("indices", indices, True), backend.float64(name, given, True)
        if values.shape != entries.shape:
            refuse_other_shape(name, values, entries.shape, "the shape of indices")
        with self.lock:
            if self.lock.sampling:
                self.lock.refuse_writing()
            self._refuse_never_given(entries)
            rows, applied = self._ring.split(entries), 0
            given_to = [values[rows.of(k)] for k in range(len(self._each))]
            for source, part in zip(self._each, given_to, strict=True):
                backend.refuse_too_large(name, part, source.largest_priority)
                if priorities is not None:
                    backend.refuse_negative(part)
            for source, own, part in zip(self._each, rows.own, given_to, strict=True):
                applied += source.update_priorities(own, **{name: part}) if len(own) else 0
            return applied

    @property
    def beta(self) -> float:
        """The exponent of the weights of the next batch. Setting it changes all sources that have a `beta`."""
        found = {name: float(source.beta) for name, source in self.sources.items() if hasattr(source, "beta")}
        if not found:
            raise AttributeError(f"{self!r} has no priorities, so it has no beta")
        if len(set(found.values())) > 1:
            raise ValueError(
                f"beta is {found}; expected the same in all sources; read it from one source, such as "
                f"sources[{next(iter(found))!r}]"
            )
        return next(iter(found.values()))

    @beta.setter
    def beta(self, value: float | Callable[[int], float]) -> None:
        with self.lock:
            having = [source for source in self._each if hasattr(source, "beta")]
            if not having:
                raise AttributeError(f"{self!r} has no priorities, so it has no beta")
            check_schedule("beta", value)
            for source in having:
                source.beta = value

    @property
    def largest_priority(self) -> float:
        return min(source.largest_priority for source in self._each)

    # -- Looking ---------------------------------------------------------------------------------------------

    @property
    def inside(self) -> tuple[Replay, ...]:
        return self._each

    @property
    def num_slots(self) -> int:
        return self.successor * max(-(-source.num_slots // source.successor) for source in self._each)

    @property
    def bounds(self) -> Indices:
        return np.concatenate([source.bounds for source in self._each], axis=1)

    @property
    def nbytes(self) -> int:
        return sum(source.nbytes for source in self._each)

    def __len__(self) -> int:
        with self.lock:
            return sum(map(len, self._each))

    def latest(self, count: int) -> Indices:
        """The indices of the `count` newest transitions of the source `add_to`, oldest first."""
        return self._of_added(self._added_to.latest(count))

    def episode(self, indices: npt.ArrayLike) -> tuple[Indices, Indices, Indices]:
        entries = self.backend.indices("indices", indices)
        with self.lock:
            self._refuse(entries, padded=True)
            rows = self._ring.split(entries)
            found = [source.episode(own) for source, own in zip(self._each, rows.own, strict=True)]
        numbers = [self.backend.xp.where(part[0] < 0, -1, part[0] * len(found) + k) for k, part in enumerate(found)]
        first, last = ([self._ring.placed(k, part[side]) for k, part in enumerate(found)] for side in (1, 2))
        return rows.joined(numbers), rows.joined(first), rows.joined(last)

    def read(self, indices: npt.ArrayLike, field: str) -> npt.NDArray[Any]:
        entries = self.backend.indices("indices", indices)
        with self.lock:
            self._refuse(entries, padded=True)
            rows = self._ring.split(entries)
            return rows.joined([source.read(own, field) for source, own in zip(self._each, rows.own, strict=True)])

    def stats(self, prefix: str = "") -> dict[str, float]:
        """Metrics for a logger, of the mixture and of each source, such as ``"demos/size"`` and ``"demos/share"``.

        `prefix` is added before each name.
        """
        with self.lock:
            each = [source.stats() for source in self._each]
            total = ("size", "capacity", "added", "nbytes", "stale_updates")
            stats = {name: sum(of.get(name, 0.0) for of in each) for name in total if any(name in of for of in each)}
            stats["batches"] = self._batches
            for name, of, share in zip(self._names, each, self.shares.values(), strict=True):
                stats |= {f"{name}/{key}": value for key, value in of.items()} | {f"{name}/share": share}
            return prefixed(stats, prefix)

    def check(self) -> None:
        with self.lock:
            for source in self._each:
                source.check()
            assert self.bounds.shape == (2, self.successor), "the lanes are not those of the sources"
            stored = self.stored()
            assert np.unique(stored % self.num_slots).size == stored.size == len(self), "two transitions share a slot"

    def __repr__(self) -> str:
        sources = ", ".join(f"{name!r}: {source!r}" for name, source in self.sources.items())
        return f"{type(self).__name__}({{{sources}}}, add_to={self._add_to!r})"

    # -- Saving ----------------------------------------------------------------------------------------------

    def parts(self) -> dict[str, Declared]:
        """The parts of the sources, prefixed with the source's name, and the mixture itself."""
        parts = {f"{name}.{key}": part for name, source in self.sources.items() for key, part in source.parts().items()}
        return parts | {"mixture": self}

    def state(self) -> dict[str, Any]:
        shares = {f"share of {name}": share for name, share in zip(self._names, self._shares.given, strict=True)}
        return {"batches": self._batches, "rng": self.rng.bit_generator.state} | shares

    def check_state(self, state: dict[str, Any]) -> None:
        batches = state["batches"]
        if type(batches) is not int or not 0 <= batches < 1 << 63:
            raise ValueError(f"batches is {batches!r:.30}; expected an int of at least 0")
        self.backend.check_generator_state(self.rng, state["rng"])
        Shares(self._names, self._shares_in(state))

    def _shares_in(self, state: dict[str, Any]) -> dict[str, Share]:
        """The shares in a state. Functions are not saved."""
        given = zip(self._names, self._shares.given, strict=True)
        return {name: state.get(f"share of {name}", share) for name, share in given}

    def restore(self, state: dict[str, Any]) -> None:
        self.shares = self._shares_in(state)
        self._batches = state["batches"]
        self.backend.set_generator_state(self.rng, state["rng"])

    def __reduce__(self) -> Any:
        with self.lock:  # the sources are arguments and copy themselves, at the same moment
            moment = Moment(self.made_of())
            return *super().__reduce__(), moment


_NONE: Indices = np.empty(0, np.int64)
_NONE.flags.writeable = False
