"""The array operations of a replay on a device."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from replaykit.backend import Backend
from replaykit.field import as_array, as_float64, as_indices
from replaykit.on_device.generator import DeviceGenerator

_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)


class TorchBackend(Backend):
    """Operations on tensors on one device. None of them waits for the device, except where it says so.

    Parameters
    ----------
    device : torch.device
    """

    is_numpy = False

    def __init__(self, device: torch.device) -> None:
        self.device: torch.device = device

    def array(self, array: npt.NDArray[Any]) -> torch.Tensor:
        """A NumPy array as a tensor on the device."""
        array = array if array.flags.writeable and array.flags.c_contiguous else array.copy()
        return torch.from_numpy(array).to(self.device)

    def is_here(self, name: str, value: Any) -> bool:
        """Whether `value` is a tensor on the device. Raises TypeError for a tensor on another device."""
        if not isinstance(value, torch.Tensor):
            return False
        if value.device != self.device:
            remedy = f"pass .to({str(self.device)!r}), or a NumPy array, which is copied there"
            raise TypeError(f"{name} is a tensor on {value.device}; expected one on {self.device}: {remedy}")
        return True

    def indices(self, name: str, value: Any, detach: bool = False) -> torch.Tensor:
        """`value` as int64 of shape (B,) on the device. Raises TypeError for floats, booleans and other devices."""
        if not self.is_here(name, value):
            return self.array(as_indices(name, value))
        if value.ndim != 1:
            raise ValueError(f"{name} has shape {tuple(value.shape)}; expected (B,)")
        if value.dtype not in _INTEGERS:
            raise TypeError(f"{name} has dtype {value.dtype}; expected integers, as add and sample give them")
        return value.long()  # type: ignore[no-any-return]

    def float64(self, name: str, value: Any, detach: bool = False) -> torch.Tensor:
        """`value` as float64 on the device. Raises TypeError for values that are not real numbers."""
        if not self.is_here(name, value):
            return self.array(as_float64(name, value))
        if value.is_complex():
            raise TypeError(f"{name} has dtype {value.dtype}; expected real numbers")
        return value.detach().to(torch.float64)  # type: ignore[no-any-return]

    def flags(self, name: str, value: Any) -> Any:
        return value.detach() if self.is_here(name, value) else self.array(as_array(name, value))

    def host(self, name: str, value: Any) -> npt.NDArray[Any]:
        """`value` as a NumPy array. Waits for the device if it is a tensor there."""
        return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)

    def window_starts(self, indices: Any) -> torch.Tensor:
        is_whole = self.is_here("indices", indices) and indices.ndim == 2 and indices.dtype == torch.int64
        return indices if is_whole else self.indices("indices", indices)

    def chosen(self, values: Any, mask: npt.NDArray[np.bool_]) -> torch.Tensor:
        places = np.flatnonzero(mask)
        return values.reshape(-1)[self.array(places)]  # type: ignore[no-any-return]

    def full(self, count: int, value: float) -> torch.Tensor:
        return torch.full((count,), value, dtype=torch.float64, device=self.device)

    def refuse_too_large(self, name: str, values: Any, limit: float) -> None:
        """Nothing: the storage records it, and it is raised later."""

    def generator(self, seed: Any) -> DeviceGenerator:
        return DeviceGenerator(seed, self.device)

    def seeded_state(self, generator: Any, seed: Any) -> Any:
        return DeviceGenerator(seed, self.device).state

    def check_generator_state(self, generator: Any, state: Any) -> None:
        try:
            if generator.fits(state):
                self.generator(0).state = state
        except (ValueError, TypeError, KeyError, RuntimeError, AttributeError) as error:
            raise ValueError(f"the state of the generator does not fit {self.device}: {error}") from error

    def combine(self, drawn: Any, shares: Any, newest: Any, of_newest: Any) -> tuple[Any, Any]:
        k, size = len(drawn), len(drawn) + len(newest)
        extra = torch.isin(drawn, newest)
        mixed = torch.cat(((k * shares + extra) / size, (k * of_newest + 1.0) / size))
        return torch.cat((drawn, newest)), mixed

    def is_in(self, indices: Any, others: Any) -> Any:
        return torch.isin(indices, others)

    def union(self, indices: Any, others: Any) -> Any:
        """The indices in either tensor, each once. Waits for the device."""
        return torch.unique(torch.cat((indices, others)))

    def difference(self, indices: Any, others: Any) -> Any:
        """The indices that are not among the others, each once. Waits for the device."""
        return torch.unique(indices[~torch.isin(indices, others)])

    def least_positive(self, numbers: Any) -> Any:
        infinite = torch.full((1,), torch.inf, dtype=torch.float64, device=self.device)
        return torch.cat((torch.where(numbers > 0.0, numbers, torch.inf), infinite)).min()

    def minimum(self, one: Any, other: Any) -> Any:
        one, other = (torch.as_tensor(each, dtype=torch.float64, device=self.device) for each in (one, other))
        return torch.minimum(one, other)
