"""Draw the newest transitions: no replay."""

import numpy as np

from replaykit.batch import Draw
from replaykit.distributions.base import Distribution, Floats
from replaykit.storage.base import Indices


class Latest(Distribution):
    """Draws the B newest transitions, oldest first. If fewer are stored, they are repeated in order."""

    def draw(self, batch_size: int, rng: np.random.Generator) -> Draw:
        """The newest indices."""
        newest = self.storage.latest(batch_size)
        places = np.arange(batch_size) % newest.size
        return Draw(np.resize(newest, batch_size), _shares(places, newest.size, batch_size))

    def probability(self, indices: Indices, batch_size: int) -> Floats:
        """1/B for each of the B newest transitions, more if they are repeated, and 0 for others. O(B log B)."""
        if not self.storage.slots(indices).size:
            return np.zeros(0)
        newest = self.storage.latest(batch_size)
        order = np.argsort(newest)
        places = order[np.searchsorted(newest, indices, sorter=order).clip(max=newest.size - 1)]
        return np.where(newest[places] == indices, _shares(places, newest.size, batch_size), 0.0)


def _shares(places: Indices, size: int, batch_size: int) -> Floats:
    """The fraction of a batch that the transition at each place gets if `size` transitions fill it in order."""
    shares: Floats = (batch_size // size + (places < batch_size % size)) / batch_size
    return shares
