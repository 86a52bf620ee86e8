"""`Guard`: rows that a device may still be reading are not overwritten."""

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from replaykit.storage.base import Indices


class Guard:
    """Knows which retired steps no queued operation of a device can read any more.

    A device executes operations some time after the CPU has queued them. An operation may read every step that was
    stored when it was queued. So a step is retired first, then an event is queued behind all operations that may read
    it, and the step may be overwritten once the device has reached that event. Between the two lie many steps, so that
    the CPU hardly ever waits.

    Parameters
    ----------
    num_envs : int
        Number of lanes, E.
    device : torch.device
    """

    def __init__(self, num_envs: int, device: torch.device) -> None:
        self.new_event: Callable[[], Any] = torch.cuda.Event if device.type == "cuda" else _Reached
        self._marks: deque[tuple[Any, Indices]] = deque()
        self.retired: Indices = np.zeros(num_envs, np.int64)
        self.free: Indices = np.zeros(num_envs, np.int64)

    def mark(self, first: Indices) -> None:
        """Queue an event after the steps before `first` (E,) were retired on the device."""
        if np.array_equal(first, self.retired):
            return
        event = self.new_event()
        event.record()
        self.retired = first.copy()
        self._marks.append((event, self.retired))

    def wait_for(self, stop: Indices) -> None:
        """Wait until the steps before `stop` (E,) can be overwritten. They must be among those `retired`."""
        while (self.free < stop).any():
            event, retired = self._marks.popleft()
            event.synchronize()
            self.free = retired

    def reset(self, first: Indices) -> None:
        """Begin again with the steps from `first` (E,) on. The device must have nothing queued."""
        self._marks.clear()
        self.retired = self.free = first.copy()


class _Reached:
    """The event of a device that executes everything at once."""

    def record(self) -> None:
        """Nothing."""

    def synchronize(self) -> None:
        """Nothing."""
