"""The random generator of a device, with the methods of a NumPy generator that replays use."""

import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

_LARGEST_SEED = 1 << 63


class DeviceGenerator:
    """Random numbers as tensors on a device. The same seed gives the same numbers on the same kind of device.

    Parameters
    ----------
    seed : None, int, SeedSequence or numpy.random.Generator
    device : torch.device
    """

    def __init__(self, seed: Any, device: torch.device) -> None:
        self.device: torch.device = device
        self.generator: torch.Generator = torch.Generator(device)
        number = int(np.random.default_rng(seed).integers(_LARGEST_SEED))
        self.generator.manual_seed(number)
        self.host: np.random.Generator = np.random.default_rng(number)

    def random(self, size: int | tuple[int, ...] | None = None) -> Any:
        """Numbers in [0, 1), float64. Without a size, a single float from a generator on the CPU."""
        if size is None:
            return self.host.random()
        return torch.rand(size, dtype=torch.float64, device=self.device, generator=self.generator)

    def choice(self, size: int, count: int, replace: bool = False) -> torch.Tensor:
        """`count` different numbers from 0 to ``size - 1``, as int64."""
        assert not replace, "draw with random() instead"
        return torch.randperm(size, device=self.device, generator=self.generator)[:count]

    def permutation(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The rows of a NumPy array in random order. Waits for the device."""
        order = torch.randperm(len(array), device=self.device, generator=self.generator)
        return np.asarray(array[order.cpu().numpy()])

    @property
    def bit_generator(self) -> "DeviceGenerator":
        """The generator itself, whose `state` can be read and set, like that of a NumPy bit generator."""
        return self

    @property
    def state(self) -> dict[str, Any]:
        """The state: the kind of device, the bytes of torch's state, and the state of the generator on the CPU."""
        state = self.generator.get_state().numpy().copy()
        return {"bit_generator": self._kind, "state": state, "host": self.host.bit_generator.state}

    @state.setter
    def state(self, state: dict[str, Any]) -> None:
        self.generator.set_state(torch.from_numpy(np.array(state["state"], np.uint8)))
        if "host" in state:  # missing in checkpoints from before mixtures worked on a device
            self.host.bit_generator.state = state["host"]

    @property
    def _kind(self) -> str:
        return f"torch.{self.device.type}"

    def fits(self, state: dict[str, Any]) -> bool:
        """Whether a state was saved by a generator for the same kind of device."""
        return state.get("bit_generator") == self._kind

    def __deepcopy__(self, memo: dict[int, Any]) -> "DeviceGenerator":
        twin = copy.copy(self)
        twin.generator, twin.host = torch.Generator(self.device), np.random.default_rng()
        twin.state = self.state
        return twin
