"""The order in which transitions were written, which the CPU records once lanes are out of step."""

import numpy as np

from replaykit.storage.base import Indices, stored_in


class WritingOrder:
    """When each slot was written. While lanes are in step, the indices show it.

    Parameters
    ----------
    capacity : int

    Attributes
    ----------
    stamps : ndarray of shape (C,), int64, or None
        When each slot was written. None if lanes were always in step.
    split : int
        Smaller indices were written when lanes were in step.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.forget()

    def forget(self) -> None:
        """All lanes are in step."""
        self.set(0, None)

    def set(self, split: int, stamps: Indices | None) -> None:
        """Replace what was recorded."""
        self.split: int = split
        self.stamps: Indices | None = stamps

    def keep(self, bounds: Indices) -> None:
        """From now on, record the order, since lanes are getting out of step."""
        if self.stamps is None:
            self.set(int(bounds[1].sum()), np.zeros(self._capacity, np.int64))

    def note(self, entries: Indices, bounds: Indices) -> None:
        """Record that these indices are written next, if the order is recorded."""
        if self.stamps is not None:
            self.stamps[entries % self._capacity] = bounds[1].sum() + np.arange(len(entries))

    def latest(self, count: int, bounds: Indices) -> Indices:
        """The indices of the `count` newest transitions, oldest first."""
        assert self.stamps is not None
        first, cursor = bounds
        tails = stored_in(np.stack((np.maximum(first, cursor - count), cursor)), len(first))
        stamps = np.where(tails < self.split, tails, self.stamps[tails % self._capacity])
        return tails[np.argsort(stamps)[-count:]]
