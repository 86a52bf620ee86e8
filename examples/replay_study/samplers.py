"""The compared replays: those of replaykit, and three that each change one property.

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
    """A batch consists of runs of `length` consecutive transitions, each from a uniformly drawn start.

    The oldest transition follows the newest one, so that all stored transitions are equally likely, 1/N. Only
    independence is lost. A run can continue into the next episode. If the batch size is not a multiple of `length`, the
    last run is shorter.
    """

    def __init__(self, inner: Replay, length: int) -> None:
        super().__init__(inner)
        if inner.num_envs != 1:
            raise ValueError(
                f"inner has num_envs={inner.num_envs}; expected 1, since runs need a single stream of steps"
            )
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
    """Uniform replay of the newest `share` of the stored transitions, at least one."""
    if not 0.0 < share <= 1.0:
        raise ValueError(f"share is {share}; expected more than 0 and at most 1")
    return RecentReplay(buffer, newest=partial(_count_of, buffer, share))


def _count_of(buffer: Replay, share: float, _batches: int) -> float:
    return max(math.ceil(share * len(buffer)), 1)


@final
class DealtReplay(ReplayWrapper):
    """Prioritized replay whose probabilities are randomly reassigned to other transitions.

    The distribution of probabilities and weights is that of prioritized replay, but it does not depend on which
    transitions have large TD errors. If this replay performs as well as prioritized replay, the advantage does not come
    from the TD errors.

    Probabilities are reassigned every `every` steps, among the transitions stored at that time. Later transitions keep
    their own probability, so that new transitions are drawn soon, as in prioritized replay. If the receiver of a
    probability has been overwritten, the original transition is drawn.
    """

    def __init__(self, inner: Replay, every: int = 500, seed: int = 0) -> None:
        super().__init__(inner)
        if inner.num_envs != 1:
            raise ValueError(
                f"inner has num_envs={inner.num_envs}; expected 1, since deals need a single stream of steps"
            )
        self.every, self.seed = every, seed
        self._deal = 0, np.zeros(0, np.int64), np.zeros(0, np.int64)  # its end, and each receiver and giver

    def _dealt(self) -> tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The first index of the current deal, and the receiver and the giver of each index from there on."""
        end = (int(self.newest[0]) + 1) // self.every * self.every
        size = min(end, self.capacity)
        if self._deal[0] != end:
            receivers = end - size + np.random.default_rng((self.seed, end)).permutation(size)
            self._deal = end, receivers, end - size + np.argsort(receivers)
        return end - size, self._deal[1], self._deal[2]

    def draw(self, batch_size: int) -> Draw:
        """B indices, each in place of one that prioritized replay draws."""
        drawn = self.inner.draw(batch_size).indices
        first, receivers, _ = self._dealt()
        indices = drawn.copy()
        is_dealt = drawn < first + receivers.size
        received = receivers[drawn[is_dealt] - first]
        indices[is_dealt] = np.where(received >= self.oldest[0], received, drawn[is_dealt])
        return Draw(indices, self.probability(indices, batch_size))

    def probability(self, indices: npt.ArrayLike, batch_size: int = 1) -> npt.NDArray[np.float64]:
        """The probability of the transition that each index replaces; plus its own if no other index replaces it."""
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
