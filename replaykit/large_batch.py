"""Large-batch experience replay: draw a large batch, then draw the batch from it by fresh priorities."""

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
    """Draws a large batch from any replay, then draws the batch from it by priorities that you compute.

    A batch of B begins with M = `factor` B draws of the wrapped replay. `priority_fn` returns a priority p for each of
    these rows, such as the absolute TD error under the current network. B rows are then drawn independently from the M
    rows, with probability ``p / sum(p)``. Priorities are never out of date, but each batch needs M of them. The
    weights are ``mean(p) / p``, times those of the wrapped replay. With them, weighted means over the batch are
    unbiased estimates of means over the large batch::

        buffer   [ . . . . . . . . . . . . . . . . ]
                     |   |   | |   |   | |   |       M rows drawn by inner
        p            3   1   0 1   9   1 2   1       priority_fn(batch)
                     |             |                 B of them, proportional to p
        weights     3/4           1/4                mean(p) / p, here 2.25 / p

    The `probabilities` of a batch, ``p / sum(p)``, are conditional on its large batch. A single index has no
    probability, so `probability` raises an error.

    Parameters
    ----------
    inner : Replay
        A buffer or a wrapper. It must not contain a `HindsightReplay`, which would draw new goals after `priority_fn`
        has seen the rows; put the `HindsightReplay` outside. It must not contain a `CombinedReplay`, whose newest
        transitions would be dropped at random.
    factor : int
        Size of the large batch relative to the batch; 4 in the paper.
    priority_fn : callable
        ``priority_fn(batch)`` returns the priorities of the M rows of a `Batch`, of shape (M,). They are finite, not
        negative, and not all 0. A row with priority 0 is never drawn: without bias only if its gradient is 0.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        If an argument is out of range, or `inner` contains one of the wrappers above. When sampling, if `priority_fn`
        raises an error or returns a wrong shape or invalid numbers. The buffer and its generator are then unchanged.

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
    >>> buffer = LargeBatchReplay(ReplayBuffer(1000, spec, seed=0), priority_fn=priority_fn)
    >>> for step in range(100):
    ...     index = buffer.add(step, 0, 0.0, step + 1, False, False)
    >>> batch = buffer.sample(4)
    >>> batch.obs
    array([85., 54., 91., 72.], dtype=float32)
    >>> batch.weights * batch.obs  # the mean priority of the large batch
    array([50.1875, 50.1875, 50.1875, 50.1875], dtype=float32)
    """

    needs_cpu = "a LargeBatchReplay chooses rows with NumPy"
    may_raise = True
    is_conditional = True
    factor: int = read_only("_factor", "Size of the large batch relative to the batch.")
    priority_fn: PriorityFunction = read_only(
        "_priority_fn", "The function that returns the priorities of a large batch."
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
        """The indices of B rows of a large batch of the wrapped replay, with probabilities and weights."""
        count = check_count("batch_size", batch_size)
        size = self.inner.checked_batch_size(self._factor * count)
        with self.lock:
            state = self.random_state()
            try:
                return self._chosen(Batch.of(self.inner.serve(size)), count)
            except BaseException:  # so that the next draw uses the same random numbers
                self.restore_random_state(state)
                raise

    def _chosen(self, large: Batch, count: int) -> LargeDraw:
        """Draw `count` rows of a large batch, proportionally to their priorities."""
        indices, weights = large.indices.copy(), large.weights.copy()  # the function may change them
        priorities = self._priorities(large, len(indices))
        running = priorities.cumsum()
        last = int(np.flatnonzero(priorities)[-1])  # the limit if a point is rounded up
        rows = np.searchsorted(running, self.rng.random(count) * running[-1], "right").clip(max=last)
        chosen = priorities[rows]
        with np.errstate(over="ignore"):
            ratios = weights[rows] * (running[-1] / len(priorities) / chosen)
        weighed = np.minimum(ratios, _LARGEST_WEIGHT).astype(np.float32)
        return LargeDraw(indices[rows], chosen / running[-1], None, weighed)

    def _priorities(self, large: Batch, count: int) -> npt.NDArray[np.float64]:
        """The priorities of a large batch from the user's function, divided by the largest."""
        name = f"priority_fn {getattr(self._priority_fn, '__qualname__', None) or repr(self._priority_fn)}"
        expected = f"({count},), one priority for each row of the large batch"
        try:
            result = self._priority_fn(large)
        except Exception as error:
            raised = f"{name} raised {type(error).__name__}: {error}"
            raise RuntimeError(
                f"{raised}; it was given a Batch of {count} rows; expected it to return {expected}"
            ) from error
        priorities = as_float64(f"the result of {name}", result, True)
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
        """Raise RuntimeError: the probabilities of a batch are conditional on its large batch."""
        reason = "are conditional on the large batch that priority_fn has seen, so a single index has none"
        raise RuntimeError(f"the probabilities of a LargeBatchReplay {reason}; use those of a batch")

    def weigh(self, draw: Draw) -> npt.NDArray[np.float32]:
        """``mean(p) / p`` of the large batch, times the weights of the wrapped replay."""
        if not isinstance(draw, LargeDraw) or draw.weights is None:
            raise TypeError(f"draw is a {type(draw).__name__}; expected the result of draw() of a LargeBatchReplay")
        return draw.weights


_REFUSED: dict[type[ReplayWrapper], str] = {
    HindsightReplay: (
        "since it would draw other goals for the chosen rows than those that priority_fn has seen; put the "
        "HindsightReplay around the LargeBatchReplay"
    ),
    CombinedReplay: "since its newest transitions could then be left out of a batch",
}


def _refuse_wrong_layers(replay: Replay) -> None:
    """Raise ValueError for a wrapper that cannot be in a large batch, at any depth."""
    for kind, reason in _REFUSED.items():
        if isinstance(replay, kind):
            raise ValueError(f"inner has a {kind.__name__}; expected another replay, {reason}")
    for layer in replay.inside:
        _refuse_wrong_layers(layer)
