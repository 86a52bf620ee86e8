"""A number from a device that the CPU reads later, without waiting for it."""

from typing import Any

import torch


class Later:
    """Requests a number from a device, and returns it when it has arrived.

    Parameters
    ----------
    device : torch.device

    Attributes
    ----------
    is_asked : bool
        Whether a number was requested that `answer` has not returned yet.
    """

    def __init__(self, device: torch.device) -> None:
        is_cuda = device.type == "cuda"
        self.is_asked: bool = False
        self._copy: torch.Tensor = torch.zeros(1, dtype=torch.int64, pin_memory=is_cuda)
        self._number = self._copy.numpy()
        event: Any = torch.cuda.Event
        self._event: Any = event() if is_cuda else None

    def ask(self, number: torch.Tensor) -> None:
        """Request a copy of an int64 tensor with one number. It is copied when the device has computed it."""
        self._copy.copy_(number, non_blocking=self._event is not None)
        if self._event is not None:
            self._event.record(torch.cuda.current_stream(number.device))
        self.is_asked = True

    def answer(self) -> int | None:
        """The requested number, or None if it has not arrived or none was requested."""
        if not self.is_asked or not (self._event is None or self._event.query()):
            return None
        self.is_asked = False
        return int(self._number[0])

    def forget(self) -> None:
        """Cancel the request."""
        self.is_asked = False
