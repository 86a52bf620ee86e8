"""`HostStorage`: the memory of the CPU that a `PinnedStorage` writes, and how a device reads it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from replaykit._kernels import lazy
from replaykit.on_device.registered import as_seen_by
from replaykit.on_device.rows import torch_dtype
from replaykit.spec import Spec
from replaykit.storage.base import Indices
from replaykit.storage.columns import Columns
from replaykit.storage.frames import Frames
from replaykit.storage.local import LocalStorage

kernels: Any = lazy("store")


class HostStorage(LocalStorage):
    """A `LocalStorage` whose arrays are also tensors on a device, and which holds less than its slots.

    Parameters
    ----------
    capacity : int
        The number of slots.
    spec, num_envs, options
        As in `LocalStorage`.
    length : int
        The most steps that a lane holds.
    device : torch.device

    Attributes
    ----------
    seen : dict of str to tensor
        The tensors over the arrays, by name. The rows and large leaves have one more, which is for nothing.
    before_moving, after_moving : callable
        Called when an array becomes larger, the first with the reason.
    """

    saved_kind: str | None = "LocalStorage"

    def __init__(
        self, capacity: int, spec: Spec, num_envs: int, *, length: int, device: torch.device, **options: Any
    ) -> None:
        self._device = device
        self.seen: dict[str, torch.Tensor] = {}
        self.before_moving: Callable[[str], Any] = lambda reason: None
        self.after_moving: Callable[[], Any] = lambda: None
        super().__init__(capacity, spec, num_envs, **options)
        self.length = self.header[kernels.LENGTH] = length

    def allocate(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        is_read = name != "header" and not name.endswith((".free", ".written"))
        if is_read and name in self.seen and name != "tables":  # no batch needs the table of episodes
            self.before_moving(f"{name} must become larger")
        more = int(name == "rows" or name.startswith("large."))
        array = super().allocate(name, (shape[0] + more, *shape[1:]), dtype)
        if is_read:
            is_moved = name in self.seen
            self.seen[name] = as_seen_by(self._device, array)
            if is_moved:
                self.after_moving()
        return array[: shape[0]]

    def retire(self, first: Indices) -> None:
        """Retire the steps of each lane before `first` (E,)."""
        bounds = self.bounds
        np.maximum(bounds[0], first, out=bounds[0])
        self.header[kernels.STORED] = (bounds[1] - bounds[0]).sum()

    def readers(self) -> dict[int, Any]:
        """What reads each leaf that is not in the rows, by its position in the spec."""
        made: dict[int, Any] = {}
        for columns in self.columns:
            reader = SeenFrames(self, columns) if isinstance(columns, Frames) else SeenArrays(self, columns)
            made |= dict.fromkeys(columns.leaves, reader)
        return made


class SeenArrays:
    """Large leaves of a `HostStorage`, as a device sees them."""

    def __init__(self, host: HostStorage, columns: Columns) -> None:
        self._host, self._names = host, {i: f"large.{host.spec.leaves[i].name}" for i in columns.leaves}

    def column(self, position: int) -> torch.Tensor:
        """The leaf in all slots, a view that can be written."""
        return self._host.seen[self._names[position]]

    def read(self, position: int, indices: torch.Tensor) -> torch.Tensor:
        """The leaf of these steps, in a new tensor."""
        return self.column(position)[indices % self._host.capacity]


class SeenFrames:
    """An observation and its next_obs in the frames of a `HostStorage`, as a device sees them."""

    def __init__(self, host: HostStorage, frames: Frames) -> None:
        leaf = host.spec.leaves[frames.leaves[0]]
        self._host, self._frames, self._dtype = host, frames, torch_dtype(leaf.dtype, leaf.name)

    def read(self, position: int, indices: torch.Tensor) -> torch.Tensor:
        """The leaf of these steps, or their stacks, in a new tensor."""
        frames, seen = self._frames, self._host.seen
        table, pool, overflow = (seen[f"{frames.name}.{name}"] for name in ("table", "pool", "overflow"))
        numbers = table[indices % self._host.capacity].long()
        numbers = numbers[:, : frames.kept] if position == frames.leaves[0] else numbers[:, frames.kept :]
        if len(overflow):
            is_in_pool, elsewhere = (numbers < len(pool))[..., None], (numbers - len(pool)).clamp(min=0)
            found = torch.where(is_in_pool, pool[numbers.clamp(max=len(pool) - 1)], overflow[elsewhere])
        else:
            found = pool[numbers]
        return found.view(len(indices), -1).view(self._dtype).view(len(indices), *frames.shape)
