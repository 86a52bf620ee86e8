"""Large-batch experience replay: a large batch is drawn, and a batch from it by priorities that are fresh."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import numpy as np
import numpy.typing as npt

from replaykit.batch import Batch, Draw
from replaykit.checks import check_count
from replaykit.combined import CombinedReplay
from replaykit.declared import read_only
from replaykit.field import as_float64
from replaykit.hindsight import HindsightReplay
from replaykit.replay import Replay
from replaykit.wrapper import ReplayWrapper

PriorityFunction: TypeAlias = Callable[[Batch], Any]
_LARGEST_WEIGHT = np.finfo(np.float32).max


@dataclass(slots=True)
class LargeDraw(Draw):
    """A draw from a large batch, with its `weights`, of shape (B,)."""

    weights: npt.NDArray[np.float32] | None = None


@final
class LargeBatchReplay(ReplayWrapper):
    """Any replay, from which a large batch is drawn, and the batch from that, by priorities that you compute.

    A batch of B begins with M = `factor` B draws of the wrapped replay. `priority_fn` gives each of these rows a
    priority p, such as the magnitude of its TD error under the present network. B of the M rows are drawn with
    probability ``p / sum(p)``, independently. So priorities are never out of date, for the price of computing M of
    them for each batch. The weights ``mean(p) / p``, times those of the wrapped replay, make weighted means over the
    batch unbiased estimates of those over the large batch::

        buffer   [ . . . . . . . . . . . . . . . . . . . . . . ]
                     |   |     | |       |     |   |     |         M rows, as inner draws
        p            3   1     0 1       9     1   2     1         priority_fn(batch)
                     |                   |                         B of them, in proportion to p
        weights     3/4                 1/4                        mean(p) / p, here 2.25 / p

    The `probabilities` of a batch are conditional on its large batch: ``p / sum(p)`` of each row. So a single index has
    none, and `probability` raises an error.

    Parameters
    ----------
    inner : Replay
        A buffer or a wrapper. Not a `HindsightReplay`, which would draw other goals for the rows that are chosen than
        those that `priority_fn` has seen: put it around. Nor a `CombinedReplay`, whose newest transitions would be
        chosen or not like the others.
    factor : int
        Rows of the large batch for each of the batch; 4 in the paper.
    priority_fn : callable
        ``priority_fn(batch)`` returns the priorities of the M rows of a `Batch`, of shape (M,): finite, not negative,
        and not all 0. A row with priority 0 is not drawn, which is unbiased only if there is nothing to learn from it.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        If an argument is out of its range, or `inner` is one of the above. When sampling, if `priority_fn` raises, or
        returns another shape, or wrong numbers. The buffer and its generator are then unchanged.

    References
    ----------
    Lahire et al. (2021), Large Batch Experience Replay, section 4.

    Examples
    --------
    >>> import numpy as np
    >>> from replaykit import Field, LargeBatchReplay, ReplayBuffer, Spec
    >>> spec = Spec(obs=Field(()), action=Field(()))
    >>> def priority_fn(batch):
    ...     td_errors = batch.reward - batch.obs  # of your network
    ...     return np.abs(td_errors)
    >>> buffer = LargeBatchReplay(ReplayBuffer(1000, spec, seed=0), factor=4, priority_fn=priority_fn)
    >>> for step in range(100):
    ...     index = buffer.add(step, 0, 0.0, step + 1, False, False)
    >>> batch = buffer.sample(4)
    >>> batch.obs
    array([85., 54., 91., 72.], dtype=float32)
    >>> batch.weights * batch.obs  # the mean priority of the large batch
    array([50.1875, 50.1875, 50.1875, 50.1875], dtype=float32)
    """

    may_raise = True
    is_conditional = True
    factor: int = read_only("_factor", "Rows of the large batch for each of the batch.")
    priority_fn: PriorityFunction = read_only(
        "_priority_fn", "The function that gives the priorities of a large batch."
    )

    def __init__(self, inner: Replay, factor: int = 4, *, priority_fn: PriorityFunction) -> None:
        factor = check_count("factor", factor)
        super().__init__(inner, transitions_each=factor)
        self._factor = factor
        if not callable(priority_fn):
            wanted = "a function of a Batch, such as one that returns the magnitude of its TD errors"
            raise TypeError(f"priority_fn is {priority_fn!r}; expected {wanted}")
        _refuse_wrong_layers(inner)
        self._priority_fn = priority_fn

    def draw(self, batch_size: int) -> LargeDraw:
        """B rows of a large batch of the wrapped replay."""
        count = check_count("batch_size", batch_size)
        size = self.inner.checked_batch_size(self._factor * count)
        with self.lock:
            state = self.random_state()
            try:
                return self._chosen(Batch.of(self.inner.serve(size)), count)
            except BaseException:  # the next draw is the one that this would have been
                self.restore_random_state(state)
                raise

    def _chosen(self, large: Batch, count: int) -> LargeDraw:
        """So many rows of a large batch, in proportion to their priorities."""
        indices, weights = large.indices.copy(), large.weights.copy()  # which the function may change
        priorities = self._priorities(large, len(indices))
        running = priorities.cumsum()
        last = int(np.flatnonzero(priorities)[-1])  # in case that rounding leads past it
        rows = np.searchsorted(running, self.rng.random(count) * running[-1], "right").clip(max=last)
        chosen = priorities[rows]
        with np.errstate(over="ignore"):
            ratios = weights[rows] * (running[-1] / len(priorities) / chosen)
        weighed = np.minimum(ratios, _LARGEST_WEIGHT).astype(np.float32)
        return LargeDraw(indices[rows], chosen / running[-1], None, weighed)

    def _priorities(self, large: Batch, count: int) -> npt.NDArray[np.float64]:
        """The answer of the user's function for the rows of a large batch, as shares of the largest."""
        name = f"priority_fn {getattr(self._priority_fn, '__qualname__', None) or repr(self._priority_fn)}"
        expected = f"({count},), one priority for each row of the large batch"
        try:
            result = self._priority_fn(large)
        except Exception as error:
            raised = f"{name} raised {type(error).__name__}: {error}"
            raise RuntimeError(
                f"{raised}; it was given a Batch of {count} rows; expected it to return {expected}"
            ) from error
        priorities = as_float64(f"what {name} returned", result, True)
        if priorities.shape != (count,):
            raise ValueError(f"{name} returned shape {priorities.shape}; expected {expected}")
        wrong = ~(np.isfinite(priorities) & (priorities >= 0.0))
        if wrong.any():
            remedy = "expected finite numbers of at least 0, such as the magnitude of TD errors"
            raise ValueError(f"{name} returned {priorities[wrong][0]}; {remedy}")
        largest = priorities.max()
        if largest == 0.0:
            raise ValueError(f"{name} returned only zeros; expected a positive number; add a small one, such as 1e-6")
        return np.asarray(priorities / largest)

    def probability(self, indices: npt.ArrayLike, batch_size: int = 1) -> npt.NDArray[np.float64]:
        """Raises RuntimeError: the probabilities of a batch are conditional on its large batch."""
        reason = "are conditional on the large batch that priority_fn has seen, so a single index has none"
        raise RuntimeError(f"the probabilities of a LargeBatchReplay {reason}; use those of a batch")

    def weigh(self, draw: Draw) -> npt.NDArray[np.float32]:
        """``mean(p) / p`` of the large batch, times the weights of the wrapped replay."""
        if not isinstance(draw, LargeDraw) or draw.weights is None:
            raise TypeError(f"draw is a {type(draw).__name__}; expected what draw of a LargeBatchReplay returned")
        return draw.weights


_REFUSED: dict[type[ReplayWrapper], str] = {
    HindsightReplay: (
        "since it would draw other goals for the chosen rows than those that priority_fn has seen; put the "
        "HindsightReplay around the LargeBatchReplay"
    ),
    CombinedReplay: "since its newest transitions would be chosen or not like the others",
}


def _refuse_wrong_layers(replay: Replay) -> None:
    """Raise ValueError for a wrapper that cannot be in a large batch, at any depth."""
    for kind, reason in _REFUSED.items():
        if isinstance(replay, kind):
            raise ValueError(f"inner has a {kind.__name__}; expected another replay, {reason}")
    for layer in replay.inside:
        _refuse_wrong_layers(layer)
