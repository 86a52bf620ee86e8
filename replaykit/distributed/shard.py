"""A shard: one of the buffers of a sharded replay, and what a learner and writers ask of it, wherever it lives."""

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
    """What all shards of a replay have in common, and how many there are."""

    settings: Settings
    shards: int
    label: str
    beta: Any
    """The exponent of weights, or its schedule."""
    weights: Weights | None
    """What weights are divided by, or None if all are 1."""
    largest_priority: float
    bytes_each: int
    has_sequences: bool


class Status(NamedTuple):
    """What a shard has at one moment.

    Attributes
    ----------
    generation : int or None
        How often the shard was started again, or None if it has not begun since.
    generations : tuple of int
        Those of all shards, as this one was told.
    batches : int
        Batches that the learner had sampled when it last asked.
    bounds : ndarray of shape (2, E), int64
        The oldest step of each lane and the one that comes next, in this generation.
    size, mass : int and float
        Transitions stored, and the sum that their probabilities are divided by.
    least : float or None
        The smallest positive probability of any, if weights are divided by it.
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
    """What a shard is asked for a batch of `size`: `rows` rows, where the numbers `chances` were possible."""

    rows: int
    size: int
    chances: list[tuple[int, float]]
    batches: int


class Piece(NamedTuple):
    """Steps of a writer: episodes of the lanes `ends` end before them; `steps` are the arguments of `extend`."""

    ends: npt.NDArray[np.bool_] | None
    steps: dict[str, Tree] | None


class Ledger:
    """The counts of a `RateLimit`, in the one place that the writers of all shards and the learner ask.

    Parameters
    ----------
    terms : tuple
        `samples_per_insert`, `min_size` and `tolerance`.
    inserted, sampled : int
        The counts to go on with.
    """

    def __init__(self, terms: tuple[float, int, float], inserted: int, sampled: int) -> None:
        self._corridor, self.inserted, self.sampled = Corridor(*terms), inserted, sampled

    def permit_insert(self, rows: int) -> bool:
        """Count an insert, if it is allowed now."""
        is_allowed = self._corridor.allows_insert(rows, self.inserted, self.sampled)
        self.inserted += rows * is_allowed
        return is_allowed

    def permit_sample(self, rows: int) -> bool:
        """Count a sample, if it is allowed now."""
        is_allowed = self._corridor.allows_sample(rows, self.inserted, self.sampled)
        self.sampled += rows * is_allowed
        return is_allowed


class Shard:
    """A buffer that answers a learner and writers. Every call takes and returns what can be pickled.

    A shard that has just started has no generation, and serves no rows, until the learner calls `begin`. So the learner
    notices that a shard was started again, and which of its indices are stale. Writers can add to it all the time.

    Parameters
    ----------
    make_buffer : callable
        Returns the buffer. If it raises, `describe` returns the error.
    number, shards : int
        Which shard this is, and of how many.
    """

    def __init__(self, make_buffer: Callable[[], Replay], number: int, shards: int) -> None:
        self.number, self.shards, self.failure = number, shards, ""
        self.generation: int | None = None
        self.generations: tuple[int, ...] = (0,) * shards
        self.batches = 0
        self.ledger: Ledger | None = None
        self.writers: dict[Lanes, tuple[str, Writer]] = {}
        self.claimed: set[int] = set()
        self.former: set[str] = set()
        try:
            self.replay = _checked(make_buffer())
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"

    def count(self) -> int:
        """How many shards there are."""
        return self.shards

    # -- Beginning -------------------------------------------------------------------------------------------

    def describe(self) -> Description | str:
        """What this shard is made of, or the error that `make_buffer` raised."""
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
        """Call one of the methods for the learner; the status after it, and what it returned, of one moment."""
        with self.replay.lock:
            result = getattr(self, method)(*args)
            return self.status(), result

    def begin(
        self, generations: tuple[int, ...], seed: np.random.SeedSequence, checkpoint: str | None, claimed: Lanes
    ) -> str:
        """Begin a generation, with these lanes of writers, other random numbers, and what a checkpoint has, if any.

        Returns why the checkpoint could not be loaded, if so.
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
        """Take the generations of all shards, and the number of batches."""
        self.generations, self.generation, self.batches = generations, generations[self.number], batches

    def status(self) -> Status:
        """What is here now."""
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
        """The fields of some rows, without weights; None if there are none to serve."""
        self.batches = request.batches
        if not request.rows or self.generation is None or not self._distribution.mass() > 0.0:
            return None
        fields = dict(self.replay.sample(request.rows).items())
        del fields["weights"]
        fields["probabilities"] = self._shares(fields["indices"], fields["probabilities"], request)
        return fields

    def _shares(self, indices: Indices, probabilities: Floats, request: Request) -> Floats:
        """The expected share of these rows in the whole batch, over the counts that were possible."""
        if len(request.chances) == 1 or self.replay.is_conditional:
            return probabilities * (sum(count * chance for count, chance in request.chances) / request.size)
        return self.probability(indices, request.chances, request.size)

    def update(self, indices: Indices, options: dict[str, Any]) -> int:
        """Update priorities; returns how many were applied."""
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
        """Replace fields of stored transitions; returns how many."""
        return self.replay.overwrite(indices, **fields)

    def clear(self) -> None:
        """Forget every transition."""
        self.replay.clear()

    def reseed(self, seed: np.random.SeedSequence) -> None:
        """Start the random numbers anew."""
        self.replay.reseed(seed)

    def stats(self) -> dict[str, float]:
        """Those of the buffer."""
        return self.replay.stats()

    def limit(self, terms: tuple[float, int, float] | None, inserted: int, sampled: int) -> None:
        """Keep the counts of a limit from now on, or of none."""
        self.ledger = None if terms is None else Ledger(terms, inserted, sampled)

    def permit_sample(self, rows: int) -> tuple[bool, int, int]:
        """Whether the learner may sample, and how many transitions were inserted and sampled."""
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
        """Take everything from a checkpoint. The episodes that writers are in end."""
        for _, writer in self.writers.values():
            writer.close()
        self.writers.clear()
        self.replay.load(path, exact=exact)

    # -- For writers -----------------------------------------------------------------------------------------

    def permit_insert(self, rows: int) -> bool:
        """Whether a writer may send so many transitions, to any shard."""
        return self.ledger is None or self.ledger.permit_insert(rows)

    def claim(self, lanes: Lanes) -> bool:
        """Note that these lanes have a writer; returns whether none of them had one."""
        if self.claimed.intersection(lanes):
            return False
        self.claimed.update(lanes)
        return True

    def release(self, session: str, lanes: Lanes) -> None:
        """Give the lanes of a writer back, unless another copy of it has taken them over."""
        if session in self.former:
            return
        if lanes in self.writers:
            current, writer = self.writers.pop(lanes)
            writer.close()
            self.former.add(current)
        self.claimed.difference_update(lanes)

    def add(self, session: str, lanes: Lanes, pieces: list[Piece]) -> None:
        """Store what a writer has gathered."""
        writer = self._writer(session, lanes)
        for ends, steps in pieces:
            if ends is not None:
                writer.end_episode(ends)
            if steps is not None:
                writer.extend(**steps)

    def _writer(self, session: str, lanes: Lanes) -> Writer:
        """The writer of these lanes for a session: for a new one, the episodes of the former end."""
        current = self.writers.get(lanes)
        if current is not None and current[0] == session:
            return current[1]
        if session in self.former:
            remedy = "use that copy, or make another writer"
            raise RuntimeError(f"another copy of this writer has taken over its lanes {list(lanes)}; {remedy}")
        if current is not None:
            current[1].close()
            self.former.add(current[0])
        writer = self.replay.writer(lanes)
        self.writers[lanes] = session, writer
        self.claimed.update(lanes)
        return writer


def _checked(replay: Any) -> Replay:
    """What `make_buffer` returned, if it can be a shard."""
    if not isinstance(replay, Replay) or replay.is_remote:
        raise TypeError(f"make_buffer returned a {type(replay).__name__}; expected a buffer, or a wrapper around one")
    if isinstance(replay.lock, Locks):
        raise ValueError("make_buffer returned a mixture; expected one buffer; mix what you add or learn from several")
    distribution = replay.parts()["distribution"]
    has_weights = type(distribution).weigh is not Distribution.weigh  # type: ignore[attr-defined]
    if has_weights and not isinstance(distribution, Prioritized):
        kind = type(distribution).__name__
        raise ValueError(f"make_buffer returned a buffer with a {kind}, whose weights cannot be computed from outside")
    return replay
