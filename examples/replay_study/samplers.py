"""The replays that are compared: those of replaykit, and three that change one thing each.

============== =========================================== ====================================
replay         a batch is                                  what it changes of uniform replay
============== =========================================== ====================================
`BlockReplay`  runs of consecutive transitions             independence: each transition is as
                                                           likely as before, but not alone
`RecentReplay` drawn from the newest share of the buffer   identity: draws are independent, of
                                                           other transitions than all
`DealtReplay`  drawn by priorities that belong to others   nothing but what prioritized replay
                                                           does beside using TD errors
============== =========================================== ====================================
"""

from typing import Any, final

import numpy as np
import numpy.typing as npt

from replaykit import ReplayWrapper, Replay
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


@final
class RecentReplay(ReplayWrapper):
    """Uniform replay of the newest `share` of what is stored, at least one transition."""

    def __init__(self, inner: Replay, share: float) -> None:
        super().__init__(inner)
        if not 0.0 < share <= 1.0:
            raise ValueError(f"share is {share}; expected more than 0 and at most 1")
        self.share = share

    def _recent(self) -> npt.NDArray[np.int64]:
        return self.latest(int(np.ceil(self.share * len(self))))

    def draw(self, batch_size: int) -> Draw:
        """B indices of the newest, independently."""
        recent = self._recent()
        return Draw(self.rng.choice(recent, batch_size), np.full(batch_size, 1.0 / recent.size))

    def probability(self, indices: npt.ArrayLike, batch_size: int = 1) -> npt.NDArray[np.float64]:
        """One over the number of the newest for each of them, 0 for the others."""
        recent = self._recent()
        return np.isin(indices, recent) / recent.size


@final
class DealtReplay(ReplayWrapper):
    """Prioritized replay whose TD errors are dealt to the wrong transitions: those of a batch, in random order.

    Priorities of the same sizes are written as often and for the same transitions, new transitions still have the
    largest one, and the weights correct for it all just as well. Only the knowledge of which transition has which TD
    error is gone. So what this replay does as well as prioritized replay is not due to that knowledge.
    """

    def update_priorities(
        self,
        indices: npt.ArrayLike,
        td_errors: npt.ArrayLike | None = None,
        *,
        priorities: npt.ArrayLike | None = None,
    ) -> int:
        """As the wrapped buffer's, with the errors or priorities in random order."""

        def deal(values: npt.ArrayLike | None) -> Any:
            return None if values is None else self.rng.permutation(np.asarray(values))

        return self.inner.update_priorities(indices, deal(td_errors), priorities=deal(priorities))
