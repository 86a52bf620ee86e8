"""The indices of a sharded replay: one ring for all lanes, and a new range of steps after each restart of a shard."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from replaykit.mixing import Ring, Rows
from replaykit.storage.base import Indices

STEPS = 1 << 40
"""The number of steps that are reserved for each lane in one generation of a shard."""


class Generations:
    """One ring for the lanes of K shards with E lanes each. An index is never reused.

    Index i of shard k becomes ``(i // E + g 2**40) K E + k E + i % E``, where g is the number of times that the shard
    was restarted. After a restart, all earlier indices of the shard are stale, and the shard gets new ones.

    Parameters
    ----------
    shards, lanes : int
        The number of shards, K, and the number of lanes of each shard, E.

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
        self.ring: Ring = Ring([lanes] * shards)
        self.lanes: int = lanes
        self.successor: int = shards * lanes
        self.each: list[int] = [0] * shards
        self.most: int = (1 << 63) // (STEPS * self.successor) - 1

    def restart(self, k: int) -> None:
        """Begin the next generation of shard k. Raises OverflowError if no indices are left for it."""
        if self.each[k] >= self.most:
            raise OverflowError(
                f"shard {k} was restarted {self.each[k]} times, and no indices are left for it; build the replay again"
            )
        self.each[k] += 1

    def raise_to(self, generations: Sequence[int]) -> None:
        """Increase the generation of each shard to the given one, if the given one is larger."""
        self.each = [max(pair) for pair in zip(self.each, generations, strict=True)]

    def mapped(self, k: int, own: Indices) -> Indices:
        """Convert indices of shard k to indices of the whole replay. The entry -1 is padding and stays -1."""
        shift = self.each[k] * STEPS * self.successor
        indices = self.ring.placed(k, own)
        return np.where(own < 0, own, indices + shift) if shift else indices

    def _generation_of(self, indices: Indices) -> Indices:
        return indices // (self.successor * STEPS)

    def _now(self, indices: Indices) -> Indices:
        return np.array(self.each)[self.ring.owner[indices % self.successor]]

    def is_stale(self, indices: Indices) -> npt.NDArray[np.bool_]:
        """Whether each index is stale because its shard was restarted later."""
        stale: npt.NDArray[np.bool_] = self._generation_of(indices) < self._now(indices)
        return stale

    def is_unknown(self, indices: Indices, cursors: Indices) -> npt.NDArray[np.bool_]:
        """Whether each index was never returned. `cursors` (S,) are the next steps of all S lanes."""
        generation, now = self._generation_of(indices), self._now(indices)
        beyond = indices // self.successor % STEPS >= cursors[indices % self.successor]
        unknown: npt.NDArray[np.bool_] = (indices < 0) | (generation > now) | ((generation == now) & beyond)
        return unknown

    def split(self, indices: Indices) -> Rows:
        """The rows of each shard in indices (B,). No index may be stale."""
        return self.ring.split(indices % (self.successor * STEPS))

    def bounds(self, own: Sequence[Indices]) -> Indices:
        """The bounds (2, S) of all lanes, from the bounds (2, E) of each shard."""
        return np.concatenate([part + g * STEPS for part, g in zip(own, self.each, strict=True)], axis=1)
