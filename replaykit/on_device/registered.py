"""CPU memory that a device reads in place."""

import weakref
from typing import Any

import numpy as np
import numpy.typing as npt
import torch


def as_seen_by(device: torch.device, array: npt.NDArray[Any]) -> torch.Tensor:
    """A tensor on `device` that shares the memory of a contiguous array, without copying.

    On CUDA, the memory is page-locked and registered with the driver until the array is freed. Operations read it
    through the bus. On torch's CPU device, the tensor is a view.

    Raises
    ------
    MemoryError
        If the driver refuses to lock that much memory.
    """
    if device.type != "cuda" or not array.nbytes:
        return torch.from_numpy(array).to(device)
    with torch.cuda.device(device):
        code = int(_driver().cudaHostRegister(array.ctypes.data, array.nbytes, 0))
    if code:
        remedy = "choose a smaller capacity, raise the limit of locked memory (ulimit -l), or leave pin_memory out"
        raise MemoryError(f"{array.nbytes} bytes of memory cannot be pinned for {device} (CUDA error {code}); {remedy}")
    weakref.finalize(array, _unregister, device, array.ctypes.data).atexit = False
    return torch.as_tensor(_Memory(array), device=device)


class _Memory:
    """The memory of an array, in the interface from which torch creates a tensor without copying."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self._array = array  # the tensor keeps this object, and so the array
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": np.dtype(array.dtype).str,
            "data": (array.ctypes.data, False),
            "version": 3,
        }


def _unregister(device: torch.device, address: int) -> None:
    """Release memory before it is freed. Waits for the operations that read it."""
    with torch.cuda.device(device):
        torch.cuda.synchronize(device)
        _driver().cudaHostUnregister(address)


def _driver() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]
