"""How often each stored transition has been drawn, and how often uniform draws would have drawn it."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from replaykit.replay import Replay

Indices = npt.NDArray[np.int64]


class StoredSteps(NamedTuple):
    """The range of steps that each lane of a buffer stores. Steps are counted from 0 in each lane.

    Attributes
    ----------
    oldest : ndarray of shape (E,), int64
        The oldest step of each lane; 0 for a lane that is empty.
    newest : ndarray of shape (E,), int64
        The newest step of each lane; -1 for a lane that is empty.
    """

    oldest: Indices
    newest: Indices

    @classmethod
    def of(cls, buffer: Replay) -> "StoredSteps":
        """The range of steps that `buffer` stores now."""
        lanes = buffer.successor
        oldest, newest = buffer.oldest, buffer.newest
        return cls(np.where(oldest < 0, 0, oldest // lanes), np.where(newest < 0, -1, newest // lanes))

    @property
    def sizes(self) -> Indices:
        """The number of steps that each lane stores."""
        return self.newest - self.oldest + 1

    def contains(self, indices: Indices) -> npt.NDArray[np.bool_]:
        """Whether each index is stored."""
        lanes, steps = indices % self.oldest.size, indices // self.oldest.size
        return (steps >= self.oldest[lanes]) & (steps <= self.newest[lanes])

    def ages(self, indices: Indices) -> Indices:
        """The number of steps added to the index's lane after it; 0 for the newest."""
        ages: Indices = self.newest[indices % self.oldest.size] - indices // self.oldest.size
        return ages

    def indices_at(self, positions: Indices) -> Indices:
        """The indices at `positions` in [0, N). Positions count lane after lane, and the oldest step first."""
        stops = np.cumsum(self.sizes)
        lanes = np.searchsorted(stops, positions, side="right")
        steps = positions - (stops - self.sizes)[lanes] + self.oldest[lanes]
        indices: Indices = steps * self.oldest.size + lanes
        return indices


class DrawCounts:
    """The number of draws of each stored transition.

    Call `start` once, `record` with the indices of every batch, and `update` before reading `counts`. A transition that
    overwrites another starts with 0 draws. Memory: 12 bytes for each slot of the buffer.

    Notes
    -----
    Under uniform draws, a batch of B from N transitions adds B/N to the expected count of each of them.
    `_uniform_draws` is the sum of B/N over all batches so far. `_uniform_draws_at_add` holds, for each slot, the sum at
    the time its transition was added; the difference is the expected count. The exact time of each add is unknown,
    because asking the buffer after every batch would be expensive. Transitions that were added between two calls of
    `update` are assumed to be spread evenly over the batches between them.
    """

    def __init__(self, slots: int, lanes: int) -> None:
        self._counts = np.zeros(slots, np.int32)
        self._uniform_draws = 0.0
        self._uniform_draws_at_add = np.zeros(slots, np.float64)
        self._newest = np.full(lanes, -1, np.int64)  # of each lane, the last step whose count has been started
        self._recorded: list[Indices] = []  # batches since the last update, and the buffer's size at each
        self._sizes: list[int] = []
        self._last: Indices | None = None  # the last batch before the last update

    def start(self, stored: StoredSteps) -> None:
        """Treat all currently stored transitions as present from the beginning."""
        self._newest = stored.newest

    def record(self, indices: Indices, size: int) -> None:
        """Note the indices of a batch that was drawn from `size` transitions."""
        self._recorded.append(indices)
        self._sizes.append(size)

    @property
    def previous(self) -> Indices | None:
        """The indices of the second-to-last batch; None if there is no such batch."""
        return self._recorded[-2] if len(self._recorded) > 1 else self._last

    def update(self, stored: StoredSteps) -> None:
        """Count the recorded batches. There must be at least one. O(draws and adds since the last update)."""
        batches = len(self._recorded)
        shares = np.array([indices.size for indices in self._recorded]) / np.maximum(self._sizes, 1)
        uniform_draws = self._uniform_draws + np.concatenate(([0.0], np.cumsum(shares)))
        self._start_new(stored, uniform_draws[:batches])
        drawn = np.concatenate(self._recorded)
        drawn = drawn[stored.contains(drawn)]
        np.add.at(self._counts, drawn % self._counts.size, 1)
        self._uniform_draws = float(uniform_draws[-1])
        self._last = self._recorded[-1]
        self._recorded, self._sizes = [], []

    def _start_new(self, stored: StoredSteps, uniform_draws: npt.NDArray[np.float64]) -> None:
        """Set the counts of new transitions to 0; `uniform_draws` are the sums of B/N before each recorded batch."""
        lanes = self._newest.size
        added = np.maximum(stored.newest - self._newest, 0)  # steps of each lane, also overwritten ones
        first = np.maximum(self._newest + 1, stored.oldest)
        stays = np.maximum(stored.newest - first + 1, 0)
        lane = np.repeat(np.arange(lanes), stays)
        steps = np.arange(lane.size) - np.repeat(np.cumsum(stays) - stays, stays) + first[lane]
        slots = (steps * lanes + lane) % self._counts.size
        batch = (steps - self._newest[lane] - 1) * uniform_draws.size // added[lane]  # the first batch after the add
        self._counts[slots] = 0
        self._uniform_draws_at_add[slots] = uniform_draws[batch]
        self._newest = np.maximum(self._newest, stored.newest)

    def counts(self, indices: Indices) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]:
        """The draws of each stored index so far, and their expected number under uniform draws."""
        slots = indices % self._counts.size
        return self._counts[slots], self._uniform_draws - self._uniform_draws_at_add[slots]
