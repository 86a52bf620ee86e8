"""The order in which transitions were written. The CPU records it when lanes have different numbers of steps."""

import numpy as np

from replaykit.storage.base import Indices, stored_in


class WritingOrder:
    """When each slot was written. While all lanes have the same number of steps, the indices give the order.

    Parameters
    ----------
    capacity : int

    Attributes
    ----------
    stamps : ndarray of shape (C,), int64, or None
        The position of each slot in the order of writing. None if all lanes always had the same number of steps.
    split : int
        Smaller indices were written before recording began.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.forget()

    def forget(self) -> None:
        """Stop recording. All lanes must have the same number of steps."""
        self.set(0, None)

    def set(self, split: int, stamps: Indices | None) -> None:
        """Replace the recorded order."""
        self.split: int = split
        self.stamps: Indices | None = stamps

    def keep(self, bounds: Indices) -> None:
        """Record the order from now on. Call this before lanes get different numbers of steps."""
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
