"""`Distribution`: the interface of everything that draws transitions."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from replaykit.backend import Backend
from replaykit.batch import Draw
from replaykit.declared import Declared
from replaykit.storage.base import Indices, Storage

Floats = npt.NDArray[np.float64]


class Distribution(Declared, ABC):
    """Base class of distributions, which draw stored transitions. Subclass it for other priorities.

    A distribution is not called when a transition is added. It finds added and retired transitions by comparing
    ``storage.bounds`` with earlier values. A subclass calls ``super().__init__`` and writes `draw` and `probability`;
    `update` if it has priorities; `weigh` if it corrects for its probabilities; `state` and `restore` if it has data of
    its own, in arrays from ``storage.allocate``. The buffer checks all arguments and holds the lock during each call.

    Parameters
    ----------
    storage : Storage
        Holds the transitions to draw.
    """

    backend: Backend
    """The operations on arrays, those of the storage."""
    batches = 0
    """The number of batches that the buffer has served."""
    eps: float = 0.0
    """Added to the absolute TD error to make a priority."""
    has_least: bool = False
    """Whether `weigh` needs the `least` of a draw, as `least_probability` computes it."""
    largest_priority: float = float(np.finfo(np.float64).max)
    """The largest magnitude of a priority or TD error that is accepted."""

    def __init__(self, storage: Storage) -> None:
        if not isinstance(storage, Storage):
            raise TypeError(f"storage is a {type(storage).__name__}; expected a Storage, such as a LocalStorage")
        self.storage: Storage = storage
        self.lock: Any = storage.lock
        self.backend = storage.backend

    @abstractmethod
    def draw(self, batch_size: int, rng: np.random.Generator) -> Draw:
        """Draw `batch_size` stored indices. The storage is not empty."""

    @abstractmethod
    def probability(self, indices: Indices, batch_size: int) -> Floats:
        """The expected fraction of a batch for each index. ``storage.slots`` raises IndexError if one is not stored."""

    def update(self, slots: Indices, priorities: Floats) -> int:
        """Set the priorities in `slots`. If a slot occurs twice, its last value counts. Returns the number applied."""
        return 0

    def weigh(self, draw: Draw, size: int) -> npt.NDArray[np.float32]:
        """Importance weights for the probabilities of a draw from `size` stored transitions, of shape (B,)."""
        weights: npt.NDArray[np.float32] = np.empty(len(draw.indices), np.float32)
        weights.fill(1.0)
        return weights

    def mass(self) -> float:
        """The sum by which probabilities are normalized, such as that of all scaled priorities."""
        return float(len(self.storage))

    def settle(self) -> None:
        """Set the priority of new transitions and remove retired ones. Called after `clear` and before some writes."""

    def least_probability(self, batch_size: int, without: Indices) -> float:
        """The smallest positive probability of any stored index except those in `without`; inf if none. O(N)."""
        shares = self.probability(np.setdiff1d(self.storage.stored(), without), batch_size)
        return float(shares.min(initial=np.inf, where=shares > 0.0))

    kernels: Any = None
    """A function that returns two kernels for ``Storage.fuse``. One makes a batch; one also looks ahead for goals."""

    def arguments(self, batch_size: int, rng: np.random.Generator) -> tuple[Any, ...]:
        """The first arguments of these kernels for a batch. Raises the errors of `draw`."""
        raise NotImplementedError

    def finish(self, fields: dict[str, Any], arguments: tuple[Any, ...]) -> None:
        """Add the weights to a batch that the first kernel has made."""

    def complete(self, draw: Draw) -> Draw:
        """Complete a draw that one of the kernels has made."""
        return draw

    def _draw_with(self, kernel: Callable[..., None], batch_size: int, rng: np.random.Generator) -> Draw:
        """The draw that a kernel makes from `arguments`."""
        arguments = *self.arguments(batch_size, rng), self.storage.bounds, self.storage.capacity
        indices, probabilities = np.empty(batch_size, np.int64), np.empty(batch_size)
        kernel(*arguments, np.empty(batch_size, np.int64), indices, probabilities)
        return self.complete(Draw(indices, probabilities))

    def stats(self) -> dict[str, float]:
        """Additional metrics for the buffer's ``stats``."""
        return {}

    def check(self) -> None:
        """Verify every invariant. Raises AssertionError."""
