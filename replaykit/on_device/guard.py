"""`Guard`: prevents the CPU from overwriting rows that a device may still read."""

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from replaykit.storage.base import Indices


class Guard:
    """Keeps track of the retired steps that no queued operation of a device can still read.

    A device executes operations some time after the CPU has queued them. An operation may read every step that was
    stored when the operation was queued. Therefore a step is first retired. Then an event is queued after all
    operations that may read the step. When the device has reached the event, the step can be overwritten. Steps are
    retired long before they are overwritten, so the CPU rarely waits.

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
        """Wait until the steps before `stop` (E,) can be overwritten. `stop` must not exceed `retired`."""
        while (self.free < stop).any():
            event, retired = self._marks.popleft()
            event.synchronize()
            self.free = retired

    def reset(self, first: Indices) -> None:
        """Start again: the steps before `first` (E,) can be overwritten. The device must have no queued operations."""
        self._marks.clear()
        self.retired = self.free = first.copy()


class _Reached:
    """The event of a device that executes each operation immediately."""

    def record(self) -> None:
        """Do nothing."""

    def synchronize(self) -> None:
        """Do nothing."""
