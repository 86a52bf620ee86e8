"""The replays that are compared: those of replaykit, and three that change one thing each.

============== =========================================== ====================================
replay         a batch is                                  what it changes of uniform replay
============== =========================================== ====================================
`BlockReplay`  runs of consecutive transitions             independence: each transition is as
                                                           likely as before, but not alone
`RecentReplay` drawn from the newest share of the buffer,  identity: draws are independent, of
               which `newest_share` makes                  other transitions than all
`DealtReplay`  drawn by priorities that belong to others   nothing but what prioritized replay
                                                           does beside using TD errors
============== =========================================== ====================================
"""

import math
from functools import partial
from typing import final

import numpy as np
import numpy.typing as npt

from replaykit import RecentReplay, Replay, ReplayWrapper
from replaykit.batch import Draw


@final
class BlockReplay(ReplayWrapper):
    """A batch of runs of `length` consecutive transitions, each from a uniformly drawn start.

    The newest transition is followed by the oldest, so that every stored one is exactly equally likely, 1/N; only
    independence is given up. A run goes on into the next episode. If the batch size is no multiple of `length`, the
    last run is shorter.
    """

    def __init__(self, inner: Replay, length: int) -> None:
        super().__init__(inner)
        if inner.num_envs != 1:
            raise ValueError(f"inner has num_envs={inner.num_envs}; expected 1, as runs are of one stream of steps")
        if length < 1:
            raise ValueError(f"length is {length}; expected at least 1")
        self.length = length

    def draw(self, batch_size: int) -> Draw:
        """B indices in runs."""
        size = len(self)
        starts = self.rng.integers(size, size=-(-batch_size // self.length))
        places = (starts[:, None] + np.arange(self.length)) % size  # (runs, length)
        indices = self.oldest[0] + places.reshape(-1)[:batch_size]
        return Draw(indices, np.full(batch_size, 1.0 / size))

    def probability(self, indices: npt.ArrayLike, batch_size: int = 1) -> npt.NDArray[np.float64]:
        """1/N for every stored index."""
        return np.full(np.shape(indices), 1.0 / len(self))


def newest_share(buffer: Replay, share: float) -> RecentReplay:
    """Uniform replay of the newest `share` of what is stored, at least one transition."""
    if not 0.0 < share <= 1.0:
        raise ValueError(f"share is {share}; expected more than 0 and at most 1")
    return RecentReplay(buffer, newest=partial(_count_of, buffer, share))


def _count_of(buffer: Replay, share: float, _batches: int) -> float:
    return max(math.ceil(share * len(buffer)), 1)


@final
class DealtReplay(ReplayWrapper):
    """Prioritized replay whose probabilities are dealt to other transitions, at random.

    As many are drawn as often as prioritized replay would, with the same weights, but not those whose TD errors
    are large: only the knowledge of which they are is gone. So what this replay does as well as prioritized replay is
    not due to that knowledge.

    Transitions are dealt once in `every` steps, each the place of another that is as old as the deal or older. One that
    was added since keeps the place of its own, so that here as there a new transition is soon seen. A transition whose
    receiver has been overwritten is drawn itself.
    """

    def __init__(self, inner: Replay, every: int = 500, seed: int = 0) -> None:
        super().__init__(inner)
        if inner.num_envs != 1:
            raise ValueError(f"inner has num_envs={inner.num_envs}; expected 1, as deals are of one stream of steps")
        self.every, self.seed = every, seed
        self._deal = 0, np.zeros(0, np.int64), np.zeros(0, np.int64)  # its end, and who gets, and gives, each place

    def _dealt(self) -> tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The first index of the present deal, and the receiver and the giver of each from there on."""
        end = (int(self.newest[0]) + 1) // self.every * self.every
        size = min(end, self.capacity)
        if self._deal[0] != end:
            receivers = end - size + np.random.default_rng((self.seed, end)).permutation(size)
            self._deal = end, receivers, end - size + np.argsort(receivers)
        return end - size, self._deal[1], self._deal[2]

    def draw(self, batch_size: int) -> Draw:
        """B indices, each in the place of one that prioritized replay draws."""
        drawn = self.inner.draw(batch_size).indices
        first, receivers, _ = self._dealt()
        indices = drawn.copy()
        is_dealt = drawn < first + receivers.size
        received = receivers[drawn[is_dealt] - first]
        indices[is_dealt] = np.where(received >= self.oldest[0], received, drawn[is_dealt])
        return Draw(indices, self.probability(indices, batch_size))

    def probability(self, indices: npt.ArrayLike, batch_size: int = 1) -> npt.NDArray[np.float64]:
        """That of the one in whose place each is drawn, and its own if nobody is drawn in its."""
        entries = np.asarray(indices)
        first, receivers, givers = self._dealt()
        oldest = self.oldest[0]
        is_dealt = entries < first + receivers.size
        own = self.inner.probability(entries, batch_size)
        places = np.where(is_dealt, entries - first, 0)
        giver = np.where(is_dealt, givers[places] if givers.size else 0, oldest)
        given = np.where(giver >= oldest, self.inner.probability(np.maximum(giver, oldest), batch_size), 0.0)
        is_lost = np.where(is_dealt, receivers[places] < oldest if receivers.size else False, False)
        return np.where(is_dealt, given + is_lost * own, own)
