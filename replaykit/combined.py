"""Combined experience replay: every batch contains the newest transitions."""

from typing import final

import numpy as np
import numpy.typing as npt

from replaykit.batch import Draw
from replaykit.checks import check_count
from replaykit.declared import read_only
from replaykit.replay import Replay
from replaykit.storage.base import Floats, Indices
from replaykit.wrapper import ReplayWrapper


@final
class CombinedReplay(ReplayWrapper):
    """Adds the k newest transitions to every batch of another replay. They replace k of its draws.

    A batch of B consists of B - k draws from the whole buffer, followed by the k newest transitions, oldest first. If
    `inner` draws transition i with probability P_i, its expected fraction of a batch is now
    ``q_i = ((B - k) P_i + [i is one of the k newest]) / B``. These are the `probabilities`. A prioritized buffer
    computes its weights from them. The weights of a uniform buffer stay 1, so the newest transitions count more.

    Parameters
    ----------
    inner : Replay
        A buffer or another wrapper, except a `LargeBatchReplay`.
    latest : int
        Number of newest transitions in every batch, k; all if fewer are stored. With parallel environments,
        ``latest=num_envs`` gives the newest transition of each. Sampling fewer than k rows raises ValueError.

    References
    ----------
    Zhang and Sutton (2017), A Deeper Look at Experience Replay, section 4.

    Examples
    --------
    >>> from replaykit import CombinedReplay, Field, ReplayBuffer, Spec
    >>> buffer = CombinedReplay(ReplayBuffer(1000, Spec(obs=Field(), action=Field()), seed=0))
    >>> for step in range(100):
    ...     index = buffer.add(step, 0, 1.0, step + 1, False, False)
    >>> batch = buffer.sample(4)
    >>> batch.obs
    array([63., 26.,  4., 99.], dtype=float32)
    >>> batch.probabilities  # (3/4) (1/100), and 1/4 more for the newest
    array([0.0075, 0.0075, 0.0075, 0.2575])
    """

    latest_count: int = read_only("_latest_count", "The number of newest transitions in every batch, k.")

    def __init__(self, inner: Replay, latest: int = 1) -> None:
        super().__init__(inner)
        if inner.is_conditional:
            got = "inner contains a LargeBatchReplay, whose transitions have no probabilities of their own"
            raise ValueError(f"{got}; expected a replay that can compute the probability of each transition")
        self._latest_count = check_count("latest", latest)

    def draw(self, batch_size: int) -> Draw:
        """B - k indices from the wrapped replay, then the k newest, with their combined probabilities."""
        backend = self.backend
        with self.lock:
            newest = self._newest(batch_size)
            drawn = batch_size - len(newest)
            if not drawn:
                return Draw(newest, backend.full(batch_size, 1.0 / batch_size))
            draw = self.inner.draw(drawn)
            of_newest = self.inner.probability(newest, drawn)
            indices, mixed = backend.combine(draw.indices, draw.probabilities, newest, of_newest)
            if draw.least is None:
                return Draw(indices, mixed)
            of_others = drawn * self.inner.least_probability(drawn, newest) / batch_size
            return Draw(indices, mixed, backend.minimum(of_others, self.inner.least_of(newest, mixed[drawn:])))

    def _newest(self, batch_size: int) -> Indices:
        if self._latest_count > batch_size:
            raise ValueError(f"batch_size is {batch_size}; expected at least latest={self._latest_count}")
        return self.inner.latest(self._latest_count)

    def probability(self, indices: npt.ArrayLike, batch_size: int = 1) -> npt.NDArray[np.float64]:
        """``((B - k) P + [one of the k newest]) / B`` of each stored index."""
        backend = self.backend
        entries = backend.indices("indices", indices)
        check_count("batch_size", batch_size)
        with self.lock:
            self.inner.read(entries, "terminated")  # raises for an index that is not stored
            newest = self._newest(batch_size)
            drawn = batch_size - len(newest)
            of_inner = drawn * self.inner.probability(entries, drawn) if drawn else backend.full(len(entries), 0.0)
            return (of_inner + backend.is_in(entries, newest)) / batch_size  # type: ignore[no-any-return]

    def least_probability(self, batch_size: int, without: Indices) -> float | Floats:
        """The smallest positive probability of any stored index except those in `without`; inf if there is none."""
        backend = self.backend
        with self.lock:
            newest = self._newest(batch_size)
            drawn = batch_size - len(newest)
            of_others: float | Floats = np.inf
            if drawn:
                of_others = drawn * self.inner.least_probability(drawn, backend.union(newest, without)) / batch_size
            newest = backend.difference(newest, without)
            of_newest = self.inner.least_of(newest, self.probability(newest, batch_size))
            return backend.minimum(of_others, of_newest)  # type: ignore[no-any-return]
