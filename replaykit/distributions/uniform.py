"""Uniform draws from all stored transitions."""

from typing import Any

import numpy as np

from replaykit._kernels import lazy
from replaykit.batch import Draw
from replaykit.declared import read_only
from replaykit.distributions.base import Distribution, Floats
from replaykit.storage.base import Indices, Storage

windows: Any = lazy("windows")
fused: Any = lazy("fused")


class Uniform(Distribution):
    """Every stored transition is equally likely.

    Parameters
    ----------
    storage : Storage
    replace : bool
        Whether a transition can occur twice in a batch.
    """

    replace: bool = read_only("_replace", "Whether a transition can occur twice in a batch.")

    def __init__(self, storage: Storage, *, replace: bool = True) -> None:
        super().__init__(storage)
        if not isinstance(replace, bool):
            raise TypeError(f"replace is {replace!r}; expected True or False")
        self._replace = replace

    def draw(self, batch_size: int, rng: np.random.Generator) -> Draw:
        """Draw indices. O(B), or O(B E) while lanes hold different steps."""
        return self._draw_with(windows.uniform_draw, batch_size, rng)

    def probability(self, indices: Indices, batch_size: int) -> Floats:
        shares: Floats = np.empty(len(self.storage.slots(indices)))
        shares.fill(1.0 / max(len(self.storage), 1))
        return shares

    def kernels(self) -> Any:
        return fused.uniform_batch, fused.uniform_look

    def arguments(self, batch_size: int, rng: np.random.Generator) -> tuple[Any, ...]:
        """A number in [0, 1) for each draw. Raises ValueError if `replace` is False and the batch is too large."""
        if self._replace:
            return (rng.random(batch_size),)
        size = len(self.storage)
        if batch_size > size:
            expected = f"at most {size}, the number of stored transitions, since draws are without replacement"
            raise ValueError(f"batch_size is {batch_size}; expected {expected}")
        return ((rng.choice(size, batch_size, replace=False) + 0.5) / size,)
