"""Combined experience replay: the newest transitions are in every batch."""

from typing import final

import numpy as np
import numpy.typing as npt

from replaykit.batch import Draw
from replaykit.field import as_indices
from replaykit.replay import Replay
from replaykit.storage import check_count
from replaykit.wrapper import ReplayWrapper


@final
class CombinedReplay(ReplayWrapper):
    """Any replay, with the newest transitions added to every batch in the place of as many draws.

    A batch of B is B - k draws from the whole buffer, the newest transitions among them, followed by the k newest,
    oldest first. So transition i, drawn with probability P_i before, now makes up a share of
    ``q_i = ((B - k) P_i + [i is one of the k newest]) / B`` of the batches; `probabilities` are these, and the
    weights of a
    prioritized buffer are made from them. A uniform buffer's weights stay 1: that the newest count for more is the
    point.

    Parameters
    ----------
    inner : Replay
        A buffer, or another wrapper.
    latest : int
        How many of the newest are in every batch, k; all, if fewer are stored. While parallel environments are stepped
        together, `num_envs` makes it the newest of each; otherwise it is the k added last, of whichever.

    Raises
    ------
    ValueError
        When sampling fewer than `latest`.

    References
    ----------
    Zhang and Sutton (2017), A Deeper Look at Experience Replay, section 4.

    Examples
    --------
    >>> from replaykit import CombinedReplay, Field, ReplayBuffer, Spec
    >>> buffer = CombinedReplay(ReplayBuffer(1000, Spec(obs=Field(()), action=Field(())), seed=0))
    >>> for step in range(100):
    ...     index = buffer.add(step, 0, 1.0, step + 1, False, False)
    >>> batch = buffer.sample(4)
    >>> batch.obs
    array([63., 26.,  4., 99.], dtype=float32)
    >>> batch.probabilities  # (3/4) (1/100), and 1/4 more for the newest
    array([0.0075, 0.0075, 0.0075, 0.2575])
    """

    def __init__(self, inner: Replay, latest: int = 1) -> None:
        super().__init__(inner)
        self.latest_count = check_count("latest", latest)

    def draw(self, batch_size: int) -> Draw:
        """B - k indices from the wrapped buffer, then the k newest, with the probabilities of the mixture."""
        newest = self._newest(batch_size)
        drawn = batch_size - newest.size
        if not drawn:
            return Draw(newest, np.full(batch_size, 1.0 / batch_size))
        draw = self.inner.draw(drawn)
        of_newest = (drawn * self.inner.probability(newest, drawn) + 1.0) / batch_size
        of_drawn = (drawn * draw.probabilities + np.isin(draw.indices, newest)) / batch_size
        least = None
        if draw.least is not None:
            of_others = drawn * self.inner.least_probability(drawn, newest) / batch_size
            least = min(of_others, float(of_newest.min()))
        return Draw(np.concatenate((draw.indices, newest)), np.concatenate((of_drawn, of_newest)), least)

    def _newest(self, batch_size: int) -> npt.NDArray[np.int64]:
        if self.latest_count > batch_size:
            raise ValueError(f"batch_size is {batch_size}; expected at least latest={self.latest_count}")
        return self._storage.ring.newest(self.latest_count)

    def probability(self, indices: npt.ArrayLike, batch_size: int = 1) -> npt.NDArray[np.float64]:
        """``((B - k) P + [one of the k newest]) / B`` of each stored index."""
        entries = as_indices("indices", indices)
        self._storage.ring.slots(entries)
        newest = self._newest(check_count("batch_size", batch_size))
        drawn = batch_size - newest.size
        of_inner = drawn * self.inner.probability(entries, drawn) if drawn else np.zeros(entries.shape)
        return (of_inner + np.isin(entries, newest)) / batch_size

    def least_probability(self, batch_size: int, without: npt.NDArray[np.int64]) -> float:
        """The smallest positive probability of any stored index but these; inf if there is none."""
        newest = self._newest(batch_size)
        drawn = batch_size - newest.size
        of_others = (
            drawn * self.inner.least_probability(drawn, np.union1d(newest, without)) / batch_size if drawn else np.inf
        )
        of_newest = self.probability(np.setdiff1d(newest, without), batch_size)
        return float(min(of_others, of_newest.min(initial=np.inf)))
