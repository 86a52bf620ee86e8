"""A replay of several shards, independent of the engine that runs the shards."""

import json
import os
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from replaykit.batch import Draw, Window
from replaykit.checks import check_count, check_generator_state, check_number, check_seed, check_unit, prefixed
from replaykit.declared import Declared
from replaykit.distributed.generations import Generations
from replaykit.distributed.hosts import Hosts
from replaykit.distributed.limiting import RemoteLimit
from replaykit.distributed.shard import Request
from replaykit.distributed.shards import Shards, shard_path
from replaykit.distributed.writers import ShardWriter
from replaykit.distributions.prioritized import importance_weights
from replaykit.field import as_array, as_float64, as_indices, refuse_negative, refuse_too_large
from replaykit.mixing import Plan, planned
from replaykit.rate_limit import RateLimit
from replaykit.replay import Replay
from replaykit.saving.checkpoint import Path
from replaykit.schedules import check_schedule
from replaykit.settings import Settings
from replaykit.storage.base import EMPTY, Floats, Indices, refuse_not_stored
from replaykit.storage.lock import Lock
from replaykit.trees import Tree
from replaykit.updates import leaves_at, one_of

_MANIFEST, _FORMAT = "replay.json", 1


class ShardedReplay(Replay):
    """A replay of several shards. A subclass for each engine creates the `Hosts` and passes them to this class.

    Parameters
    ----------
    hosts : Hosts
    seed : None, int or SeedSequence
        Seed for the number of rows of each shard, and for the draws within the shards.
    block : int
        Number of steps that a writer collects before it sends them.
    patience : float
        Seconds to wait for a shard before the replay continues without it.
    is_new : bool
        True if the shards have just been created, False if another learner has used them before.
    limit : RateLimit, optional
        The rate limit. Shard 0 keeps its counts. If shard 0 dies, there is no limit until it is back.
    """

    is_remote = True

    def __init__(
        self, hosts: Hosts, seed: Any, block: int, patience: float, is_new: bool, limit: RateLimit | None = None
    ) -> None:
        self._seeds, self._block, self._patience = checked_options(seed, block, patience)
        self._all = Shards(hosts, self._seeds, self._patience)
        about = self._all.about
        each, count = about.settings, about.shards
        self.settings: Settings = Settings(
            each.spec, count * each.capacity, count * each.num_envs, each.n_step, each.gamma, each.stack
        )
        self.lock: Lock = Lock()
        self.successor: int = self._generations.successor
        self.rng: np.random.Generator = np.random.default_rng(self._seeds.spawn(1)[0])
        self.has_sequences: bool = about.has_sequences
        self._beta, self._batches = about.beta, 0
        self.note_bytes(about.bytes_each)
        self._limit = None if limit is None else RemoteLimit(limit, self._all, self._block, self.capacity)
        if is_new:
            self._all.begin()
            if self._limit is not None:
                self._limit.begin()
        else:
            self._batches = self._all.resume()

    @property
    def _generations(self) -> Generations:
        return self._all.generations

    # -- Writing ---------------------------------------------------------------------------------------------

    def writer(self, num_envs: int = 1) -> ShardWriter:  # type: ignore[override]
        """Return a :class:`ShardWriter` for a worker that steps `num_envs` environments. It can be pickled.

        The writer gets `num_envs` free lanes of one shard. A lane is free if it has no writer. The shard with the most
        free lanes is chosen. Among equals, the one with the fewest transitions is chosen. The number of lanes of a
        shard is the `num_envs` of the buffer that `make_buffer` returns.

        Raises
        ------
        ValueError
            If no shard has that many free lanes.
        """
        wanted, each = check_count("num_envs", num_envs), self._all.about.settings.num_envs
        with self.lock:
            self._all.ask_all("status")
            taken = {k: self._all.known[k].claimed for k in self._all.present}
            for k in sorted(taken, key=lambda k: (len(taken[k]), self._all.known[k].size)):
                free = [lane for lane in range(each) if lane not in taken[k]][:wanted]
                if len(free) == wanted and self._all.ask("claim", {k: (tuple(free),)}).get(k):
                    about, host = self._all.about, self._all.hosts.host(k)
                    made_of = host, about.settings.spec, k, tuple(free), self._block, about.largest_priority
                    return ShardWriter(*made_of, *(() if self._limit is None else self._limit.for_writers))
        remedy = "build buffers with a larger num_envs in make_buffer, or close() unused writers"
        raise ValueError(
            f"num_envs is {wanted}, but no shard has that many of its {each} lanes without a writer; {remedy}"
        )

    def clear(self) -> None:
        with self.lock:
            self._all.ask_all("clear")

    def overwrite(self, indices: npt.ArrayLike, **fields: Tree) -> int:
        entries, leaves = leaves_at(self.spec, indices, fields)
        with self.lock:
            self._refuse_unknown(entries[entries != -1])
            kept = np.flatnonzero((entries != -1) & ~self._generations.is_stale(entries))
            rows, names = self._generations.split(entries[kept]), tuple(fields)
            calls = {}
            for k in self._all.present:
                values = [leaf[kept[rows.of(k)]] for leaf in leaves.values()]
                calls[k] = rows.own[k], self.spec.unflatten(values, names)
            return sum(self._all.ask("overwrite", calls).values())

    def add(self, *_args: Any, **_options: Any) -> NoReturn:
        self._refuse("cannot be written to directly; add with a writer from writer()")

    extend = end_episode = add

    # -- Sampling --------------------------------------------------------------------------------------------

    def serve(self, batch_size: int) -> dict[str, Any]:
        """All fields of a batch. Takes one round trip, and another one for each shard that is lost meanwhile."""
        self._all.look_for_others()
        if self._limit is not None:
            self._limit.await_sample(batch_size, self.lock)
        while True:
            plan = self._plan(batch_size)
            counts = plan.most if plan.is_whole else plan.rounded(self.rng.random())
            calls = {k: (self._request(k, counts[k], batch_size, plan),) for k in self._all.present}
            parts = {k: part for k, part in self._all.ask("serve", calls).items() if part is not None}
            if all(k in parts for k, count in enumerate(counts) if count):
                return self._fields(plan, [parts.get(k) for k in range(len(counts))])

    def _request(self, k: int, count: int, size: int, plan: Plan) -> Request:
        return Request(count, size, plan.counts_of(k), self._batches)

    def _plan(self, size: int) -> Plan:
        """The number of rows of a batch from each shard, in proportion to the last known masses."""
        masses = self._all.masses()
        if not sum(masses) > 0.0:
            self._all.ask_all("status")
            masses = self._all.masses()
        if not sum(masses) > 0.0:
            if not self._all.present:
                raise RuntimeError(f"no shard answers: {self._all.warnings[-1]}")
            raise ValueError(
                "all priorities are 0; expected at least one positive priority" if self._all.size else EMPTY
            )
        return planned([mass / sum(masses) for mass in masses], size)

    def _fields(self, plan: Plan, parts: list[dict[str, Any] | None]) -> dict[str, Any]:
        """The fields of a batch, from the parts that the shards serve."""
        none = np.empty(0, np.int64)
        rows = self._generations.ring.together([none if part is None else part["indices"] for part in parts])
        served = [part for part in parts if part is not None]
        for k, part in enumerate(parts):
            for name in ("indices", "step_indices"):
                if part is not None and name in part:
                    part[name] = self._generations.mapped(k, part[name])
        fields = {name: rows.tree([part[name] for part in served]) for name in served[0]}
        weights = self._weights(Draw(fields["indices"], fields["probabilities"], self._all.least(plan.shares)))
        ends = {name: fields.pop(name) for name in ("probabilities", "indices")}
        return fields | {"weights": weights} | ends

    def _weights(self, draw: Draw) -> npt.NDArray[np.float32]:
        """The weights that a single buffer with all transitions would return for these probabilities."""
        kind = self._all.about.weights
        if kind is None:
            return np.ones(len(draw.indices), np.float32)
        return importance_weights(draw, self._all.size, self.beta, kind)

    def count_batch(self) -> None:
        self._batches += 1

    def probability(self, indices: npt.ArrayLike, batch_size: int = 1) -> Floats:
        """The expected share of each stored index in a batch, for the current contents of the shards."""
        entries, size = as_indices("indices", indices), check_count("batch_size", batch_size)
        with self.lock:
            refuse_not_stored(entries, self.bounds)
            plan, rows = self._plan(size), self._generations.split(entries)
            calls = {k: (rows.own[k], plan.counts_of(k), size) for k in self._all.present}
            answers = self._all.ask("probability", calls)
            return rows.joined([answers.get(k, np.zeros(len(own))) for k, own in enumerate(rows.own)])

    def reseed(self, seed: int | np.random.SeedSequence | None = None) -> None:
        check_seed(seed, "None, a non-negative int or a SeedSequence", (np.random.SeedSequence,))
        whole = np.random.SeedSequence(seed.entropy if isinstance(seed, np.random.SeedSequence) else seed)
        own, *seeds = whole.spawn(self._all.about.shards + 1)
        with self.lock:
            super().reseed(own)
            self._all.look_for_others()
            self._all.ask("reseed", {k: (seeds[k],) for k in self._all.present})

    # -- Learning --------------------------------------------------------------------------------------------

    def update_priorities(
        self, indices: npt.ArrayLike, td_errors: npt.ArrayLike | None = None, *,
        priorities: npt.ArrayLike | None = None, mask: npt.ArrayLike | None = None,
    ) -> int:  # fmt: skip
        """Set the priorities of the transitions of a batch, like :meth:`replaykit.Replay.update_priorities`.

        Transitions of a shard that died after they were sampled are stale. `mask` is for sequences; see
        `replaykit.SequenceReplay`. The call takes one round trip.
        """
        name, given = one_of(td_errors, priorities)
        entries, values = as_indices("indices", indices, True), as_float64(name, given, True)
        chosen = None if mask is None else as_array("mask", mask, True)
        self._refuse_shapes(name, entries, values, chosen)
        refuse_too_large(name, values if chosen is None else values[chosen], self.largest_priority)
        if priorities is not None:
            refuse_negative(values)
        with self.lock:
            self._all.look_for_others()
            self._refuse_unknown(entries)
            kept = np.flatnonzero(~self._generations.is_stale(entries))
            rows, calls = self._generations.split(entries[kept]), {}
            for k in self._all.present:
                if rows.own[k].size:
                    mine = kept[rows.of(k)]
                    calls[k] = rows.own[k], {name: values[mine]} | ({} if chosen is None else {"mask": chosen[mine]})
            return sum(self._all.ask("update", calls).values())

    def _refuse_shapes(self, name: str, entries: Indices, values: Floats, mask: Any) -> None:
        """Raise an error if the values or the mask do not fit the indices."""
        if self.has_sequences and name == "td_errors":
            if values.ndim != 2 or len(values) != len(entries):
                raise ValueError(f"td_errors has shape {values.shape}; expected (B, T), one row for each of indices")
            if mask is not None and (mask.shape != values.shape or mask.dtype != np.bool_):
                raise ValueError(
                    f"mask has shape {mask.shape} and dtype {mask.dtype}; expected {values.shape} and bool"
                )
        elif values.shape != entries.shape:
            raise ValueError(f"{name} has shape {values.shape}; expected {entries.shape}, that of indices")
        elif mask is not None:
            raise TypeError("mask was passed; it needs td_errors, and a make_buffer that returns a SequenceReplay")

    def _refuse_unknown(self, entries: Indices) -> None:
        """Raise IndexError for the first index that was never returned. Shards that do not answer are not checked."""
        wrong = self._generations.is_unknown(entries, self._all.cursors)
        away = [k for k in range(self._all.about.shards) if k not in self._all.present]
        wrong &= (entries < 0) | ~np.isin(self._generations.ring.owner[entries % self.successor], away)
        if wrong.any():
            raise IndexError(
                f"indices contains {entries[wrong][0]}, which the replay never returned; pass indices from sample"
            )

    @property
    def beta(self) -> float:
        """The exponent of the weights of the next batch. You can set it to a number in [0, 1] or to a schedule."""
        if self._all.about.weights is None:
            raise AttributeError(f"{self!r} has no priorities, so it has no beta")
        return check_unit("beta", self._beta(self._batches)) if callable(self._beta) else float(self._beta)

    @beta.setter
    def beta(self, value: float | Callable[[int], float]) -> None:
        if self._all.about.weights is None:
            raise AttributeError(f"{self!r} has no priorities, so it has no beta")
        with self.lock:
            self._beta = check_schedule("beta", value)

    @property
    def largest_priority(self) -> float:
        return self._all.about.largest_priority

    # -- Looking ---------------------------------------------------------------------------------------------

    @property
    def bounds(self) -> Indices:
        """The bounds of all lanes. Each access asks the shards."""
        with self.lock:
            self._all.ask_all("status")
            return self._all.bounds

    @property
    def num_slots(self) -> int:
        return self.capacity

    @property
    def nbytes(self) -> int:
        return int(self.stats()["nbytes"])

    def __len__(self) -> int:
        """The number of transitions in all shards. Each call asks the shards."""
        with self.lock:
            self._all.ask_all("status")
            return self._all.size

    def read(self, indices: npt.ArrayLike, field: str) -> npt.NDArray[Any]:
        entries = as_indices("indices", indices)
        with self.lock:
            refuse_not_stored(entries[entries != -1], self.bounds)
            rows = self._generations.split(entries)
            own = [np.where(entries[rows.of(k)] < 0, -1, each) for k, each in enumerate(rows.own)]
            answers = self._all.ask("read", {k: (own[k], field) for k in self._all.present})
            if any(each.size and k not in answers for k, each in enumerate(own)):
                raise IndexError(f"indices contains transitions of a shard that was lost: {self._all.warnings[-1]}")
            return rows.joined([answers[k] for k in sorted(answers)])

    def stats(self, prefix: str = "") -> dict[str, float]:
        """Numbers for a logger, for all shards together and for each shard, such as ``"shard0/size"``.

        - `shards`, `shards_present`: the number of shards, and of shards that answer
        - `losses`: number of times that a shard was lost
        - `inserted`, `sampled`: with a rate limit, its counts when the last batch was sampled
        - `batches`: batches sampled by this learner

        Counts of transitions and bytes are sums over the shards. `prefix` is put before each name.
        """
        with self.lock:
            each = self._all.ask_all("stats")
            total = ("size", "added", "nbytes", "stale_updates")
            stats = {name: sum(of.get(name, 0.0) for of in each.values()) for name in total}
            stats |= {"capacity": self.capacity, "batches": self._batches}
            stats |= {"shards": self._all.about.shards, "shards_present": len(each), "losses": self._all.losses}
            if self._limit is not None:
                stats |= dict(zip(("inserted", "sampled"), self._limit.counts, strict=True))
            if self._all.about.weights is not None:
                stats["beta"] = self.beta
            for k, of in each.items():
                stats |= {f"shard{k}/{name}": value for name, value in of.items() if name not in ("batches", "beta")}
            return prefixed(stats, prefix)

    def warnings(self) -> list[str]:
        """Messages about shards that were lost or came back, oldest first. Each was also issued as a warning."""
        with self.lock:
            return list(self._all.warnings)

    def check(self) -> None:
        with self.lock:
            self._all.ask_all("check")
            stored = self.stored()
            assert np.unique(stored % self.num_slots).size == stored.size, "two transitions share a slot"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._all.about.shards} shards of {self._all.about.label})"

    # -- Saving ----------------------------------------------------------------------------------------------

    def save(self, path: Path, *, progress: bool = False) -> None:
        """Write a checkpoint of each shard to a directory. All machines must share this directory.

        First each shard writes its own part, ``shard-0`` and so on, like a buffer. Then the state of the learner is
        written. After a crash during a save, some parts can therefore be newer than others. The part of a lost shard
        does not change. If a shard dies after the save, it is restarted with its part of this checkpoint.

        Parameters
        ----------
        path : str or path-like
        progress : bool
            Ignored, because the shards write at the same time.
        """
        where = os.path.abspath(os.fspath(path))
        with self.lock:
            os.makedirs(where, exist_ok=True)
            self._all.look_for_others()
            calls = {k: (shard_path(where, k),) for k in self._all.present}
            self._all.ask("save", calls, patience=None)
            content = {"format": _FORMAT, "shards": self._all.about.shards, "generations": self._generations.each}
            content |= {"batches": self._batches, "rng": self.rng.bit_generator.state}
            whole = os.path.join(where, _MANIFEST)
            with open(f"{whole}.new", "w", encoding="utf-8") as file:
                json.dump(content, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(f"{whole}.new", whole)
            self._all.checkpoint = where

    def load(self, path: Path, *, exact: bool = True, progress: bool = False) -> None:
        """Load a checkpoint. It replaces everything that is stored.

        The replay must have the same number of shards as the saved one. Each shard verifies its part before it changes.
        If a shard cannot load its part, the error names the shard. Other shards may have loaded their parts. Running
        episodes end.

        Parameters
        ----------
        path : str or path-like
        exact : bool
            As in :meth:`replaykit.Replay.load`.
        progress : bool
            Ignored.

        Raises
        ------
        OSError, ValueError
            As in :meth:`replaykit.Replay.load`, and if the number of shards differs.
        """
        where = os.path.abspath(os.fspath(path))
        with open(os.path.join(where, _MANIFEST), encoding="utf-8") as file:
            content = self._checked_manifest(where, file.read())
        with self.lock:
            self._all.look_for_others()
            calls = {k: (shard_path(where, k), exact) for k in self._all.present}
            self._all.ask("load", calls, patience=None)
            self._generations.each = content["generations"]
            self._batches, self.rng.bit_generator.state = content["batches"], content["rng"]
            self._all.ask_all("note", tuple(self._generations.each), self._batches)
            self._all.checkpoint = where

    def _checked_manifest(self, where: str, text: str) -> dict[str, Any]:
        """The manifest of a checkpoint. Raises ValueError if it is damaged or has another number of shards."""
        count = self._all.about.shards
        try:
            content: dict[str, Any] = json.loads(text)
            generations, is_known = content["generations"], content["format"] == _FORMAT
            check_generator_state(self.rng.bit_generator, content["rng"])
            check_count("batches", content["batches"], 0)
            if not is_known or content["shards"] != len(generations):
                raise ValueError("its format is unknown")
            for generation in generations:
                check_count("generation", generation, 0)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{where} is damaged: {_MANIFEST}: {error}") from error
        if content["shards"] != count:
            raise ValueError(
                f"{where} has {content['shards']} shards; expected {count}; build the replay with the "
                "same number of shards"
            )
        return content

    def close(self) -> None:
        """Shut down all shards. Their transitions are lost."""
        self._all.hosts.close()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError(f"a {type(self).__name__} cannot be copied or pickled; send a writer() to other processes")

    # -- Unsupported methods ---------------------------------------------------------------------------------

    def _refuse(self, reason: str) -> NoReturn:
        raise NotImplementedError(f"a {type(self).__name__} {reason}")

    def _refuse_verb(self, *_args: Any, **_options: Any) -> NoReturn:
        self._refuse("cannot be inside a wrapper; put wrappers around the buffer that make_buffer returns")

    draw = reduce = weigh = _refuse_verb

    def window(self, indices: Indices) -> Window:
        self._refuse_verb()

    def _refuse_pass(self, *_args: Any, **_options: Any) -> NoReturn:
        self._refuse(
            "has no common order of the transitions in its shards; load the checkpoint of a shard into a buffer"
        )

    latest = episode = episodes = epoch = _refuse_pass

    def parts(self) -> dict[str, Declared]:
        self._refuse("has no state of its own, since its shards hold it; use save() and load()")

    def state_dict(self) -> dict[str, Any]:
        self.parts()
        return {}

    def load_state_dict(self, state_dict: Any, *, exact: bool = True) -> None:
        self.parts()


def checked_options(seed: Any, block: Any, patience: Any) -> tuple[np.random.SeedSequence, int, float]:
    """Check the options of a sharded replay, and return them."""
    check_seed(seed, "None, a non-negative int or a SeedSequence", (np.random.SeedSequence,))
    seeds = np.random.SeedSequence(seed.entropy if isinstance(seed, np.random.SeedSequence) else seed)
    return seeds, check_count("block", block), check_number("patience", patience, 1e9, "a positive number of seconds")
