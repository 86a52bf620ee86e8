"""`HostStorage`: the CPU memory to which a `PinnedStorage` writes, and its views on the device."""

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
    """A `LocalStorage` whose arrays are also tensors on a device. It holds fewer transitions than it has slots.

    Parameters
    ----------
    capacity : int
        The number of slots.
    spec, num_envs, options
        As in `LocalStorage`.
    length : int
        Maximum number of stored steps of each lane.
    device : torch.device

    Attributes
    ----------
    seen : dict of str to tensor
        The tensors over the arrays, by name. Rows and large leaves have an additional entry for writes to ignore.
    before_moving, after_moving : callable
        Called before and after an array moves because it becomes larger. The first takes the reason.
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
        """The reader of each leaf that is stored outside the rows, by its position in the spec."""
        made: dict[int, Any] = {}
        for columns in self.columns:
            reader = SeenFrames(self, columns) if isinstance(columns, Frames) else SeenArrays(self, columns)
            made |= dict.fromkeys(columns.leaves, reader)
        return made


class SeenArrays:
    """Reads large leaves of a `HostStorage` on a device."""

    def __init__(self, host: HostStorage, columns: Columns) -> None:
        self._host, self._names = host, {i: f"large.{host.spec.leaves[i].name}" for i in columns.leaves}

    def column(self, position: int) -> torch.Tensor:
        """The leaf in all slots, as a writable view."""
        return self._host.seen[self._names[position]]

    def read(self, position: int, indices: torch.Tensor) -> torch.Tensor:
        """The leaf of these steps, in a new tensor."""
        return self.column(position)[indices % self._host.capacity]


class SeenFrames:
    """Reads an observation and its next_obs from the frames of a `HostStorage` on a device."""

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
