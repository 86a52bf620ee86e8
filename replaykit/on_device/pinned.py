"""`PinnedStorage`: transitions in CPU memory, written by the CPU, drawn and read by a device."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from replaykit.on_device.guard import Guard
from replaykit.on_device.host import HostStorage
from replaykit.on_device.rows import Rows
from replaykit.on_device.storage import DeviceStorage
from replaykit.spec import Spec
from replaykit.storage.base import Flags, Indices
from replaykit.storage.columns import Padding, Share
from replaykit.storage.local import LocalStorage
from replaykit.trees import Tree

_ROWS_TO_SPARE, _STEPS_TO_SPARE = 1024, 8
"""The minimum number of spare rows, and of spare steps in each lane, between retiring and overwriting."""
_MARKS = 4
"""Number of events that are queued while all spare slots are filled once."""


class PinnedStorage(DeviceStorage):
    """Stores transitions in CPU memory that a device reads directly.

    Write as to a `LocalStorage <replaykit.storage.LocalStorage>`: pass arrays, and get indices as an array. Read as
    from a `DeviceStorage`. The memory is page-locked, so the device gathers a batch through the bus without help from
    the CPU. Only the priorities are on the device. This suits environments that run on the CPU: the capacity is limited
    by the CPU's memory, and the batch is already on the device.

    Each lane has some spare slots. A step is retired before its slot is needed. Its slot is overwritten when the device
    has executed all operations that were queued before it was retired. The bounds are sent to the device before each
    read, and every few hundred steps. A graph that the user recorded therefore sees new transitions a little later. All
    operations must be queued on one CUDA stream, or the program must order them.

    Parameters
    ----------
    capacity, spec, num_envs, stack, padding, share, device
        As in `DeviceStorage`.
    """

    def __init__(
        self, capacity: int, spec: Spec, num_envs: int = 1, *, stack: int = 1, padding: Padding = "reset",
        share: Share = "large", device: Any = "cuda",
    ) -> None:  # fmt: skip
        super().__init__(capacity, spec, num_envs, stack=stack, padding=padding, share=share, device=device)
        self.host.before_moving = self.graphs.refuse_moving
        self.host.after_moving = self.graphs.forget
        self.encode_step = self.host.encode_step  # type: ignore[method-assign]

    def place_rows(self, pairs: dict[tuple[int, int], int]) -> None:
        self._spare: int = max(_STEPS_TO_SPARE, -(-_ROWS_TO_SPARE // self.num_envs))
        self.row_slots: int = self.capacity + self._spare * self.num_envs
        self.host: HostStorage = HostStorage(
            self.row_slots, self.spec, self.num_envs, length=self.length, device=self.device, **self.frame_options
        )
        self.apart: dict[int, Any] = self.host.readers()
        self.rows: Rows = Rows(self.spec, list(self.apart))
        assert self.rows.nbytes == self.host.row.nbytes, "the layout of the rows differs between the CPU and the device"
        self.bounds: Indices = self.host.bounds
        self.data: torch.Tensor = self.host.seen["rows"].view(torch.int64)
        self.guard: Guard = Guard(self.num_envs, self.device)
        self._sent: Indices = self.bounds.copy()
        self._quiet = 0  # number of steps that can be written before the guard is checked again

    # What the device sees

    @property
    def device_bounds(self) -> torch.Tensor:
        """The bounds on the device. They are up to date, unless the program is recording a graph."""
        self.refresh()
        return self._device_bounds

    @device_bounds.setter
    def device_bounds(self, tensor: torch.Tensor) -> None:
        self._device_bounds = tensor

    @property
    def tables(self) -> torch.Tensor:  # type: ignore[override]
        """The table of episodes. It grows when lanes have different numbers of steps."""
        return self.host.seen["tables"]

    def refresh(self) -> None:
        if not np.array_equal(self._sent, self.bounds) and not self._is_recording():
            self._sent[:] = self.bounds
            self._device_bounds.copy_(self.backend.array(self.bounds.copy()))

    def _is_recording(self) -> bool:
        """Whether the program is recording a graph. A recorded copy would always send the same values."""
        return self.device.type == "cuda" and torch.cuda.is_current_stream_capturing()

    # Writing

    def encode(
        self, values: tuple[Tree, ...], extras: Mapping[str, Tree], lead: tuple[int, ...], mask: Flags | None = None
    ) -> Any:
        return self.host.encode(values, extras, lead, mask)

    def refuse_block(self, block: Any, entries: int) -> None:
        self.host.refuse_block(block, entries)

    def write(self, block: Any, steps: int, mask: Flags | None = None) -> Any:
        if steps > self._quiet:
            count = steps * self.num_envs if mask is None else int(mask.sum())
            self.host.refuse_block(block, count)  # before anything is retired
            self._prepare(steps if mask is None else mask.reshape(steps, -1).sum(axis=0))
        self._quiet -= steps
        return self.host.write(block, steps, mask)

    def _prepare(self, steps: Any) -> None:
        """Wait until `steps` steps of each lane can be written, and compute how many more can follow."""
        guard, cursor, slots = self.guard, self.bounds[1], self.row_slots // self.num_envs
        overwritten = cursor + steps - slots
        if (overwritten > self.bounds[0]).any():  # there are more steps than spare slots
            self.host.retire(np.minimum(cursor + steps - self.length, cursor))
        self._mark()
        guard.wait_for(np.minimum(overwritten, guard.retired))
        room = int((guard.free + slots - cursor).min())
        self._quiet = max(int(np.max(steps)), min(room, self._spare // _MARKS))

    def _mark(self) -> None:
        """Send the bounds to the device, and mark the retired steps, which later operations cannot read."""
        self.refresh()
        self.call_followers()
        self.guard.mark(self.bounds[0])

    def end_episode(self, lanes: Indices) -> None:
        self.host.end_episode(lanes)

    def clear(self) -> None:
        self.host.clear()
        self._mark()

    # Reading

    def select(self, indices: Any, values: Any, name: str, largest: float, eps: float) -> tuple[Any, Any]:
        return super().select(self.backend.indices("indices", indices), values, name, largest, eps)

    def episode(self, indices: Any) -> tuple[Any, Any, Any]:
        number, first, last = super().episode(indices)
        newest = (self.device_bounds[1, indices % self.num_envs] - 1) * self.num_envs + indices % self.num_envs
        return number, first, torch.minimum(last, newest)  # the CPU may have written more since

    def refuse_replacing(self, values: Mapping[str, Any]) -> None:
        self.host.refuse_replacing({name: value for name, value in values.items() if name != "reward"})
        super().refuse_replacing({name: value for name, value in values.items() if name == "reward"})

    def column(self, position: int) -> torch.Tensor:
        return self.apart[position].column(position) if position in self.apart else super().column(position)

    def latest(self, count: int) -> Any:
        return self.backend.array(self.host.latest(count))

    @property
    def nbytes(self) -> int:
        """The size of all arrays in bytes, in the memory of the CPU and on the device."""
        return super().nbytes + self.host.nbytes

    # Saving

    def on_host(self) -> LocalStorage:
        self.raise_late()
        return self.host

    def complete_state(self, state: dict[str, Any]) -> None:
        self.host.complete_state(state)

    def restore(self, state: dict[str, Any]) -> None:
        self._finish()
        self.host.restore(state)
        self.restored = self.host.restored
        self._begin_again()

    def restart(self) -> None:
        self._finish()
        self.host.restart()
        self._begin_again()

    def _finish(self) -> None:
        """Wait until the device has executed all queued operations."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _begin_again(self) -> None:
        self._quiet = 0
        self.refresh()
        self.guard.reset(self.bounds[0])
