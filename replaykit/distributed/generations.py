"""The indices of a sharded replay: the lanes of all shards in one ring, and a new stretch of steps for each restart."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from replaykit.mixing import Ring, Rows
from replaykit.storage.base import Indices

STEPS = 1 << 40
"""Steps of a lane in one generation of a shard."""


class Generations:
    """One ring of the lanes of K shards with E lanes each, in which no index is given twice.

    Index i of shard k is ``(i // E + g 2**40) K E + k E + i % E`` here, where g is how often the shard was started
    again. So the indices of a shard that has died are stale, and those of the one in its place are new.

    Parameters
    ----------
    shards, lanes : int
        K and E.

    Examples
    --------
    >>> ring = Generations(shards=2, lanes=1)
    >>> index = ring.mapped(1, np.array([5]))
    >>> index
    array([11])
    >>> ring.restart(1)
    >>> ring.mapped(1, np.array([0])) == 2 * 2**40 + 1
    array([ True])
    >>> ring.is_stale(index)
    array([ True])
    """

    def __init__(self, shards: int, lanes: int) -> None:
        self.ring, self.lanes = Ring([lanes] * shards), lanes
        self.successor = shards * lanes
        self.each = [0] * shards
        self.most = (1 << 63) // (STEPS * self.successor) - 1

    def restart(self, k: int) -> None:
        """Begin another generation of shard k; raises OverflowError if there are no more indices for one."""
        if self.each[k] >= self.most:
            raise OverflowError(f"shard {k} was started again {self.each[k]} times, and no indices are left for it")
        self.each[k] += 1

    def raise_to(self, generations: Sequence[int]) -> None:
        """Take those numbers that are larger."""
        self.each = [max(pair) for pair in zip(self.each, generations, strict=True)]

    def mapped(self, k: int, own: Indices) -> Indices:
        """The indices here of those of shard k. The entry -1, which is padding, stays."""
        shift = self.each[k] * STEPS * self.successor
        indices = self.ring.placed(k, own)
        return np.where(own < 0, own, indices + shift) if shift else indices

    def _generation_of(self, indices: Indices) -> Indices:
        return indices // (self.successor * STEPS)

    def _now(self, indices: Indices) -> Indices:
        return np.array(self.each)[self.ring.owner[indices % self.successor]]

    def is_stale(self, indices: Indices) -> npt.NDArray[np.bool_]:
        """Which indices are of a shard that has died since."""
        stale: npt.NDArray[np.bool_] = self._generation_of(indices) < self._now(indices)
        return stale

    def is_unknown(self, indices: Indices, cursors: Indices) -> npt.NDArray[np.bool_]:
        """Which indices were never given out, where `cursors` (S,) are the next steps of all lanes."""
        generation, now = self._generation_of(indices), self._now(indices)
        beyond = indices // self.successor % STEPS >= cursors[indices % self.successor]
        unknown: npt.NDArray[np.bool_] = (indices < 0) | (generation > now) | ((generation == now) & beyond)
        return unknown

    def split(self, indices: Indices) -> Rows:
        """The rows of each shard in indices (B,), none of which is stale."""
        return self.ring.split(indices % (self.successor * STEPS))

    def bounds(self, own: Sequence[Indices]) -> Indices:
        """The bounds (2, S) of all lanes, from those (2, E) of each shard."""
        return np.concatenate([part + g * STEPS for part, g in zip(own, self.each, strict=True)], axis=1)
