"""A number on a device that the CPU learns later, without waiting for it."""

from typing import Any

import torch


class Later:
    """The last number that was asked for.

    Parameters
    ----------
    device : torch.device

    Attributes
    ----------
    is_asked : bool
        Whether a number was asked for, but not yet returned by `answer`.
    """

    def __init__(self, device: torch.device) -> None:
        is_cuda = device.type == "cuda"
        self.is_asked: bool = False
        self._copy: torch.Tensor = torch.zeros(1, dtype=torch.int64, pin_memory=is_cuda)
        self._number = self._copy.numpy()
        event: Any = torch.cuda.Event
        self._event: Any = event() if is_cuda else None

    def ask(self, number: torch.Tensor) -> None:
        """Copy a number, int64, as soon as the device has computed it."""
        self._copy.copy_(number, non_blocking=self._event is not None)
        if self._event is not None:
            self._event.record(torch.cuda.current_stream(number.device))
        self.is_asked = True

    def answer(self) -> int | None:
        """The number, or None if there is none yet."""
        if not self.is_asked or not (self._event is None or self._event.query()):
            return None
        self.is_asked = False
        return int(self._number[0])

    def forget(self) -> None:
        """Ignore the number that was asked for."""
        self.is_asked = False
