"""How often each stored transition has been drawn, and how often uniform draws would have drawn it."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from replaykit.replay import Replay

Indices = npt.NDArray[np.int64]


class Stored(NamedTuple):
    """Which indices a buffer holds, by lane; steps count from the lane's first, each of shape (E,), int64."""

    oldest: Indices
    newest: Indices  # oldest - 1 for an empty lane

    @classmethod
    def of(cls, buffer: Replay) -> "Stored":
        """Those that `buffer` holds now."""
        lanes = buffer.num_envs
        oldest, newest = buffer.oldest, buffer.newest
        return cls(np.where(oldest < 0, 0, oldest // lanes), np.where(newest < 0, -1, newest // lanes))

    @property
    def sizes(self) -> Indices:
        """Steps stored of each lane."""
        return self.newest - self.oldest + 1

    def has(self, indices: Indices) -> npt.NDArray[np.bool_]:
        """Which of `indices` are stored."""
        lanes, steps = indices % self.oldest.size, indices // self.oldest.size
        return (steps >= self.oldest[lanes]) & (steps <= self.newest[lanes])

    def ages(self, indices: Indices) -> Indices:
        """Steps of its lane since each index was added, 0 for the newest."""
        ages: Indices = self.newest[indices % self.oldest.size] - indices // self.oldest.size
        return ages

    def at(self, places: Indices) -> Indices:
        """The indices at `places` in [0, N), counted lane after lane, oldest first."""
        stops = np.cumsum(self.sizes)
        lanes = np.searchsorted(stops, places, side="right")
        steps = places - (stops - self.sizes)[lanes] + self.oldest[lanes]
        indices: Indices = steps * self.oldest.size + lanes
        return indices


class DrawLedger:
    """Draw counts by transition, brought up to date every few batches. 12 bytes for each slot of the buffer.

    `note` keeps what a batch drew and how many were stored then; `settle` enters all that was noted. A transition that
    has taken the slot of another starts at 0 again.

    `_exposure` is the sum of B/N over all batches settled: how often uniform draws would have drawn a transition that
    was there from the beginning. What it was when each transition came is kept in `_since`; those that came between
    two calls of `settle` are taken to have come at an even pace, since asking after each batch would cost more than
    all the rest.
    """

    def __init__(self, capacity: int, num_envs: int) -> None:
        self._counts = np.zeros(capacity, np.int32)
        self._since = np.zeros(capacity, np.float64)
        self._entered = np.full(num_envs, -1, np.int64)
        self._exposure = 0.0
        self._drawn: list[Indices] = []
        self._sizes: list[int] = []
        self._last: Indices | None = None

    def begin(self, stored: Stored) -> None:
        """What is stored now was there from the beginning."""
        self._entered = stored.newest

    def note(self, indices: Indices, size: int) -> None:
        """Keep the indices of a batch drawn from `size` transitions."""
        self._drawn.append(indices)
        self._sizes.append(size)

    @property
    def previous(self) -> Indices | None:
        """The indices of the batch noted before the last one."""
        return self._drawn[-2] if len(self._drawn) > 1 else self._last

    def settle(self, stored: Stored) -> None:
        """Enter what was noted, at least one batch. O(what was drawn and added)."""
        batches = len(self._drawn)
        shares = np.array([indices.size for indices in self._drawn]) / np.maximum(self._sizes, 1)
        exposures = self._exposure + np.concatenate(([0.0], np.cumsum(shares)))  # before each batch, and after all
        self._enter(stored, exposures[:batches])
        drawn = np.concatenate(self._drawn)
        drawn = drawn[stored.has(drawn)]
        np.add.at(self._counts, drawn % self._counts.size, 1)
        self._exposure = float(exposures[-1])
        self._last = self._drawn[-1]
        self._drawn, self._sizes = [], []

    def _enter(self, stored: Stored, exposures: npt.NDArray[np.float64]) -> None:
        """Start the counts of the transitions that are new, given the exposure before each batch since the last."""
        lanes = self._entered.size
        came = np.maximum(stored.newest - self._entered, 0)  # of each lane, even if they are gone already
        first = np.maximum(self._entered + 1, stored.oldest)
        stays = np.maximum(stored.newest - first + 1, 0)
        lane = np.repeat(np.arange(lanes), stays)
        steps = np.arange(lane.size) - np.repeat(np.cumsum(stays) - stays, stays) + first[lane]
        slots = (steps * lanes + lane) % self._counts.size
        self._counts[slots] = 0
        self._since[slots] = exposures[(steps - self._entered[lane] - 1) * exposures.size // came[lane]]
        self._entered = np.maximum(self._entered, stored.newest)

    def counts(self, indices: Indices) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]:
        """How often each of the stored `indices` was drawn, and how often uniform draws would have drawn it."""
        slots = indices % self._counts.size
        return self._counts[slots], self._exposure - self._since[slots]
