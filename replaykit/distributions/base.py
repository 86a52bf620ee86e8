"""Distribution, the interface of what is drawn."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from replaykit.batch import Draw
from replaykit.declared import Declared
from replaykit.storage.base import Indices, Storage

Floats = npt.NDArray[np.float64]


class Distribution(Declared, ABC):
    """Which stored transitions are drawn, and with what probability. Subclass it for other priorities.

    A distribution is not called when a transition is added. What was added and retired since it was last asked follows
    from ``storage.bounds``. A subclass calls ``super().__init__`` and writes `draw` and `probability`; `update` if it
    has priorities; `weigh` if it corrects for its probabilities; and `state` and `load` for what it keeps, in arrays
    from ``storage.allocate``. It need not check arguments, and the buffer holds the lock when it calls them.

    Parameters
    ----------
    storage : Storage
        Whose transitions are drawn.
    """

    batches = 0
    """How many batches the buffer has served."""
    eps: float = 0.0
    """Added to the magnitude of a TD error to make a priority."""
    largest_priority: float = float(np.finfo(np.float64).max)
    """Larger priorities and TD errors are refused."""

    def __init__(self, storage: Storage) -> None:
        if not isinstance(storage, Storage):
            raise TypeError(f"storage is a {type(storage).__name__}; expected a Storage, such as a LocalStorage")
        self.storage: Storage = storage
        self.lock: Any = storage.lock

    @abstractmethod
    def draw(self, batch_size: int, rng: np.random.Generator) -> Draw:
        """Draw `batch_size` stored indices; the storage is not empty."""

    @abstractmethod
    def probability(self, indices: Indices, batch_size: int) -> Floats:
        """The expected share of each index in a batch. ``storage.slots`` raises IndexError where it is not stored."""

    def update(self, slots: Indices, priorities: Floats) -> int:
        """Set the priorities of the transitions in `slots`, the last of duplicates; returns how many were applied."""
        return 0

    def weigh(self, draw: Draw, size: int) -> npt.NDArray[np.float32]:
        """Importance weights for the probabilities of a draw from `size` stored transitions, of shape (B,)."""
        weights: npt.NDArray[np.float32] = np.empty(len(draw.indices), np.float32)
        weights.fill(1.0)
        return weights

    def mass(self) -> float:
        """The sum that probabilities are divided by. A mixture of buffers draws from each in proportion to it."""
        return float(len(self.storage))

    def settle(self) -> None:
        """Give new transitions their priority, and drop retired ones. Called after `clear`, and before some writes."""

    def least_probability(self, batch_size: int, without: Indices) -> float:
        """The smallest positive probability of any stored index but those in `without`; inf if there is none. O(N)."""
        shares = self.probability(np.setdiff1d(self.storage.stored(), without), batch_size)
        return float(shares.min(initial=np.inf, where=shares > 0.0))

    kernels: Any = None
    """For ``Storage.fuse``: returns two kernels, one that draws, opens and reduces, and one that also looks ahead."""

    def arguments(self, batch_size: int, rng: np.random.Generator) -> tuple[Any, ...]:
        """The first arguments of these kernels for a batch. Raises what `draw` raises."""
        raise NotImplementedError

    def finish(self, fields: dict[str, Any], arguments: tuple[Any, ...]) -> None:
        """Complete a batch that the first kernel has made: add the weights."""

    def complete(self, draw: Draw) -> Draw:
        """Complete a draw that one of the kernels has made."""
        return draw

    def _draw_with(self, kernel: Callable[..., None], batch_size: int, rng: np.random.Generator) -> Draw:
        """The draw that a kernel makes of `arguments`."""
        arguments = *self.arguments(batch_size, rng), self.storage.bounds, self.storage.capacity
        indices, probabilities = np.empty(batch_size, np.int64), np.empty(batch_size)
        kernel(*arguments, np.empty(batch_size, np.int64), indices, probabilities)
        return self.complete(Draw(indices, probabilities))

    def stats(self) -> dict[str, float]:
        """Further numbers for ``stats`` of the buffer."""
        return {}

    def check(self) -> None:
        """Verify every invariant. Raises AssertionError."""
