"""Uniform replay of the newest transitions."""

import math
from collections.abc import Callable
from typing import Any, final

import numpy as np
import numpy.typing as npt

from replaykit.batch import Draw
from replaykit.buffer import Buffer
from replaykit.checks import check_count, check_finite
from replaykit.distributions.uniform import Uniform
from replaykit.field import as_indices
from replaykit.replay import Replay
from replaykit.schedules import check_schedule
from replaykit.storage.base import EMPTY, Indices
from replaykit.wrapper import ReplayWrapper


@final
class RecentReplay(ReplayWrapper):
    """Uniform replay of the newest transitions only.

    Each of the E lanes contributes its last ``ceil(newest / E)`` transitions, or all if it has fewer. They are equally
    likely. All other transitions have probability 0. Weights are 1. A draw is O(B + E)::

        oldest                       newest
        [ . . . . . . . . | x x x x x x x ]     newest=7: each x has probability 1/7

    Parameters
    ----------
    inner : Replay
        A `ReplayBuffer`, or a wrapper around one that does not change its draws, such as `HindsightReplay`.
    newest : float or callable
        The number of transitions, at least 1. Either a number, or a function of the number of batches sampled so far,
        such as `ERESchedule`.

    Raises
    ------
    TypeError, ValueError
        If `newest` is out of range, or `inner` does not draw uniformly: its priorities, for example, would have no
        effect. When sampling, if `newest` returns a number below 1, or if `inner` draws without replacement and the
        batch is larger than the number of recent transitions.

    References
    ----------
    Wang and Ross (2019), Boosting Soft Actor-Critic: Emphasizing Recent Experience without Forgetting the Past.

    Examples
    --------
    >>> from replaykit import Field, RecentReplay, ReplayBuffer, Spec
    >>> buffer = RecentReplay(ReplayBuffer(1000, Spec(Field(), Field()), seed=0), newest=10)
    >>> for step in range(100):
    ...     index = buffer.add(step, 0, 1.0, step + 1, False, False)
    >>> buffer.sample(6).obs
    array([98., 96., 95., 92., 93., 90.], dtype=float32)
    >>> buffer.probability([89, 90, 99])
    array([0. , 0.1, 0.1])
    """

    needs_cpu = "a RecentReplay draws with NumPy"

    def __init__(self, inner: Replay, newest: float | Callable[[int], float]) -> None:
        super().__init__(inner)
        self._uniform = _uniform_of(inner)
        self._newest_count = check_schedule("newest", newest, _check_newest)

    @property
    def newest_count(self) -> float:
        """The number of transitions that the next batch is drawn from, if that many are stored."""
        count = self._newest_count
        return _check_newest("newest", count(self._uniform.batches)) if callable(count) else count

    def _recent(self) -> tuple[Indices, Indices]:
        """The next step of each lane to be written, and the number of recent steps before it."""
        first, cursor = self.bounds
        return cursor, np.minimum(cursor - first, math.ceil(self.newest_count / len(cursor)))

    def draw(self, batch_size: int) -> Draw:
        """B indices of the newest transitions, with or without replacement as in the wrapped buffer."""
        batch_size = check_count("batch_size", batch_size)
        with self.lock:
            cursor, counts = self._recent()
            total = int(counts.sum())
            if not total:
                raise ValueError(EMPTY)
            if self._uniform.replace:
                places = self.rng.integers(total, size=batch_size)
            elif batch_size <= total:
                places = self.rng.choice(total, batch_size, replace=False)
            else:
                expected = f"at most {total}, the number of recent transitions, since draws are without replacement"
                raise ValueError(f"batch_size is {batch_size}; expected {expected}")
            stops = counts.cumsum()
            lanes = np.searchsorted(stops, places, "right")
            indices = (cursor[lanes] + places - stops[lanes]) * self.successor + lanes
            return Draw(indices, np.full(batch_size, 1.0 / total))

    def probability(self, indices: npt.ArrayLike, batch_size: int = 1) -> npt.NDArray[np.float64]:
        """1 / M for each of the M recent transitions, 0 for all others. Raises IndexError if one is not stored."""
        entries = as_indices("indices", indices)
        check_count("batch_size", batch_size)
        with self.lock:
            self.inner.read(entries, "terminated")  # raises for an index that is not stored
            cursor, counts = self._recent()
            steps, lanes = np.divmod(entries, self.successor)
            shares: npt.NDArray[np.float64] = (steps >= (cursor - counts)[lanes]) / max(int(counts.sum()), 1)
            return shares


def _uniform_of(inner: Replay) -> Uniform:
    """The uniform distribution of the wrapped buffer. Raises an error if `inner` does not draw uniformly."""
    layer: Any = inner
    while isinstance(layer, ReplayWrapper) and type(layer).draw is ReplayWrapper.draw:
        layer = layer.inner
    if isinstance(layer, Buffer) and type(layer.distribution) is Uniform:
        return layer.distribution
    expected = "expected a replay that draws uniformly, such as a ReplayBuffer"
    raise ValueError(
        f"inner contains a {type(layer).__name__}; {expected}; put wrappers that draw around a RecentReplay"
    )


def _check_newest(name: str, value: Any) -> float:
    """`value` as a finite number of at least 1."""
    if check_finite(name, value) < 1.0:
        raise ValueError(f"{name} is {value!r}; expected a number of at least 1, or a schedule that returns one")
    return float(value)
