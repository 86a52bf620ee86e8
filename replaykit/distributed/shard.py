"""A shard: one of the buffers of a sharded replay. The learner and the writers call its methods."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from replaykit.distributions.base import Distribution
from replaykit.distributions.prioritized import Prioritized, Weights
from replaykit.mixing import Locks
from replaykit.rate_limit import Corridor
from replaykit.replay import Replay
from replaykit.settings import Settings
from replaykit.storage.base import Floats, Indices
from replaykit.trees import Tree
from replaykit.writer import Writer

Lanes = tuple[int, ...]


class Description(NamedTuple):
    """The properties that all shards of a replay share, and the number of shards."""

    settings: Settings
    shards: int
    label: str
    beta: Any
    """The exponent of the weights, or its schedule."""
    weights: Weights | None
    """How weights are normalized, or None if all weights are 1."""
    largest_priority: float
    bytes_each: int
    has_sequences: bool


class Status(NamedTuple):
    """The state of a shard at one moment.

    Attributes
    ----------
    generation : int or None
        Number of restarts of the shard, or None if the learner has not called `begin` since the last start.
    generations : tuple of int
        The generations of all shards, as the learner last sent them.
    batches : int
        Number of batches that the learner had sampled by its last request.
    bounds : ndarray of shape (2, E), int64
        The oldest step and the next step of each lane, counted in this generation.
    size, mass : int and float
        Number of stored transitions, and the sum that their probabilities are divided by.
    least : float or None
        The smallest positive probability of a transition, or None if the weights do not need it.
    claimed : tuple of int
        Lanes that have writers.
    """

    generation: int | None
    generations: tuple[int, ...]
    batches: int
    bounds: Indices
    size: int
    mass: float
    least: float | None
    claimed: Lanes


class Request(NamedTuple):
    """A request for `rows` rows of a batch of `size`. `chances`: the possible numbers of rows, with probabilities."""

    rows: int
    size: int
    chances: list[tuple[int, float]]
    batches: int


class Piece(NamedTuple):
    """Steps of a writer: the arguments of `extend`. `ends` marks the lanes whose episode ends before these steps."""

    ends: npt.NDArray[np.bool_] | None
    steps: dict[str, Tree] | None


class Ledger:
    """The counts of a `RateLimit`. The writers of all shards and the learner ask this one object for permission.

    Parameters
    ----------
    terms : tuple
        `samples_per_insert`, `min_size` and `tolerance`.
    inserted, sampled : int
        The initial counts.
    """

    def __init__(self, terms: tuple[float, int, float], inserted: int, sampled: int) -> None:
        self._corridor = Corridor(*terms)
        self.inserted: int = inserted
        self.sampled: int = sampled

    def permit_insert(self, rows: int) -> bool:
        """Whether an insert is allowed now. If it is, count it."""
        is_allowed = self._corridor.allows_insert(rows, self.inserted, self.sampled)
        self.inserted += rows * is_allowed
        return is_allowed

    def permit_sample(self, rows: int) -> bool:
        """Whether a sample is allowed now. If it is, count it."""
        is_allowed = self._corridor.allows_sample(rows, self.inserted, self.sampled)
        self.sampled += rows * is_allowed
        return is_allowed


class Shard:
    """A buffer that a learner and writers use from other processes. Arguments and results can be pickled.

    A shard that has started has no generation, and serves no rows until the learner calls `begin`. This is how the
    learner detects a restart, and which indices are stale. Writers can add to a shard at any time.

    Parameters
    ----------
    make_buffer : callable
        Returns the buffer. If it raises an error, `describe` returns the error.
    number, shards : int
        The number of this shard, and the number of all shards.
    """

    def __init__(self, make_buffer: Callable[[], Replay], number: int, shards: int) -> None:
        self.number: int = number
        self.shards: int = shards
        self.failure: str = ""
        self.generation: int | None = None
        self.generations: tuple[int, ...] = (0,) * shards
        self.batches: int = 0
        self.ledger: Ledger | None = None
        self.writers: dict[Lanes, tuple[str, Writer]] = {}
        self.claimed: set[int] = set()
        self.former: set[str] = set()
        try:
            self.replay: Replay = _checked(make_buffer())
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"

    def count(self) -> int:
        """The number of shards."""
        return self.shards

    # -- Beginning -------------------------------------------------------------------------------------------

    def describe(self) -> Description | str:
        """The description of this shard, or the error that `make_buffer` raised."""
        if self.failure:
            return self.failure
        replay, distribution = self.replay, self._distribution
        beta, weights = None, None
        if isinstance(distribution, Prioritized):
            beta, weights = distribution.built_with()["beta"], distribution.weights
        label, sequences = repr(replay), replay.has_sequences
        most = replay.largest_priority
        return Description(replay.settings, self.shards, label, beta, weights, most, replay.bytes_each, sequences)

    def call(self, method: str, *args: Any) -> tuple[Status, Any]:
        """Call a method for the learner. Returns the status after the call, and the result, under one lock."""
        with self.replay.lock:
            result = getattr(self, method)(*args)
            return self.status(), result

    def begin(
        self, generations: tuple[int, ...], seed: np.random.SeedSequence, checkpoint: str | None, claimed: Lanes
    ) -> str:
        """Begin a generation: load the checkpoint if there is one, reseed, and reserve these lanes for their writers.

        If the checkpoint cannot be loaded, returns the reason, otherwise an empty string.
        """
        problem = ""
        if checkpoint is not None and os.path.isdir(checkpoint):
            try:
                self.load(checkpoint)
            except (OSError, ValueError) as error:
                problem = str(error)
        self.replay.reseed(seed)
        self.claimed.update(claimed)
        self.note(generations, self.batches)
        return problem

    def note(self, generations: tuple[int, ...], batches: int) -> None:
        """Set the generations of all shards, and the number of batches."""
        self.generations, self.generation, self.batches = generations, generations[self.number], batches

    def status(self) -> Status:
        """The current state of the shard."""
        replay, distribution = self.replay, self._distribution
        with replay.lock:
            size, least = len(replay), None
            if size and isinstance(distribution, Prioritized) and distribution.weights == "buffer":
                least = float(replay.least_probability(1, np.empty(0, np.int64)))
            mass = distribution.mass() if size else 0.0
            bounds, claimed = replay.bounds.copy(), tuple(sorted(self.claimed))
        return Status(self.generation, self.generations, self.batches, bounds, size, mass, least, claimed)

    @property
    def _distribution(self) -> Distribution:
        found: Any = self.replay.parts()["distribution"]
        return found  # type: ignore[no-any-return]

    # -- For the learner -------------------------------------------------------------------------------------

    def serve(self, request: Request) -> dict[str, Any] | None:
        """The fields of the requested rows, without weights. None if no rows are requested, or none can be drawn."""
        self.batches = request.batches
        if not request.rows or self.generation is None or not self._distribution.mass() > 0.0:
            return None
        fields = dict(self.replay.sample(request.rows).items())
        del fields["weights"]
        fields["probabilities"] = self._shares(fields["indices"], fields["probabilities"], request)
        return fields

    def _shares(self, indices: Indices, probabilities: Floats, request: Request) -> Floats:
        """The expected share of these rows in the whole batch, averaged over the possible numbers of rows."""
        if len(request.chances) == 1 or self.replay.is_conditional:
            return probabilities * (sum(count * chance for count, chance in request.chances) / request.size)
        return self.probability(indices, request.chances, request.size)

    def update(self, indices: Indices, options: dict[str, Any]) -> int:
        """Update priorities. Returns the number of applied updates."""
        return self.replay.update_priorities(indices, **options) if self.generation is not None else 0

    def probability(self, indices: Indices, chances: list[tuple[int, float]], size: int) -> Floats:
        """The expected share of each index in a batch of all shards."""
        shares = np.zeros(len(indices))
        for count, chance in chances:
            shares += self.replay.probability(indices, count) * (chance * count / size)
        return shares

    def read(self, indices: Indices, field: str) -> npt.NDArray[Any]:
        """One field of stored transitions."""
        return self.replay.read(indices, field)

    def overwrite(self, indices: Indices, fields: dict[str, Tree]) -> int:
        """Replace fields of stored transitions. Returns the number of transitions."""
        return self.replay.overwrite(indices, **fields)

    def clear(self) -> None:
        """Remove all transitions."""
        self.replay.clear()

    def reseed(self, seed: np.random.SeedSequence) -> None:
        """Reseed the random generator."""
        self.replay.reseed(seed)

    def stats(self) -> dict[str, float]:
        """The `stats` of the buffer."""
        return self.replay.stats()

    def limit(self, terms: tuple[float, int, float] | None, inserted: int, sampled: int) -> None:
        """Set the limit whose counts this shard keeps, or None for no limit."""
        self.ledger = None if terms is None else Ledger(terms, inserted, sampled)

    def permit_sample(self, rows: int) -> tuple[bool, int, int]:
        """Whether the learner may sample now, and the numbers of transitions inserted and sampled so far."""
        if self.ledger is None:
            return True, 0, 0
        return self.ledger.permit_sample(rows), self.ledger.inserted, self.ledger.sampled

    def check(self) -> None:
        """Verify every invariant."""
        self.replay.check()

    def save(self, path: str) -> None:
        """Write a checkpoint of this shard."""
        self.replay.save(path)

    def load(self, path: str, exact: bool = True) -> None:
        """Replace everything with a checkpoint. The running episodes of the writers end."""
        for _, writer in self.writers.values():
            writer.close()
        self.writers.clear()
        self.replay.load(path, exact=exact)

    # -- For writers -----------------------------------------------------------------------------------------

    def permit_insert(self, rows: int) -> bool:
        """Whether a writer of any shard may send `rows` transitions now."""
        return self.ledger is None or self.ledger.permit_insert(rows)

    def claim(self, lanes: Lanes) -> bool:
        """Reserve lanes for a writer. Returns False, and reserves none, if one of them already has a writer."""
        if self.claimed.intersection(lanes):
            return False
        self.claimed.update(lanes)
        return True

    def release(self, session: str, lanes: Lanes) -> None:
        """Release the lanes of a writer, unless another copy of the writer has taken them over."""
        if session in self.former:
            return
        if lanes in self.writers:
            current, writer = self.writers.pop(lanes)
            writer.close()
            self.former.add(current)
        self.claimed.difference_update(lanes)

    def add(self, session: str, lanes: Lanes, pieces: list[Piece]) -> None:
        """Store the steps that a writer has collected."""
        writer = self._writer(session, lanes)
        for ends, steps in pieces:
            if ends is not None:
                writer.end_episode(ends)
            if steps is not None:
                writer.extend(**steps)

    def _writer(self, session: str, lanes: Lanes) -> Writer:
        """The writer of these lanes for a session. A new session ends the episodes of the previous one."""
        current = self.writers.get(lanes)
        if current is not None and current[0] == session:
            return current[1]
        if session in self.former:
            remedy = "use that copy, or create another writer"
            raise RuntimeError(f"another copy of this writer has taken over its lanes {list(lanes)}; {remedy}")
        if current is not None:
            current[1].close()
            self.former.add(current[0])
        writer = self.replay.writer(lanes)
        self.writers[lanes] = session, writer
        self.claimed.update(lanes)
        return writer


def _checked(replay: Any) -> Replay:
    """Return the result of `make_buffer`, or raise an error if it cannot be a shard."""
    if not isinstance(replay, Replay) or replay.is_remote:
        raise TypeError(f"make_buffer returned a {type(replay).__name__}; expected a buffer, or a wrapper around one")
    if isinstance(replay.lock, Locks):
        raise ValueError("make_buffer returned a mixture; expected a single buffer, or a wrapper around one")
    distribution = replay.parts()["distribution"]
    has_weights = type(distribution).weigh is not Distribution.weigh  # type: ignore[attr-defined]
    if has_weights and not isinstance(distribution, Prioritized):
        kind = type(distribution).__name__
        raise ValueError(f"make_buffer returned a buffer with a {kind}, whose weights cannot be computed across shards")
    return replay
