"""Prioritized experience replay: td_error -> priority -> scaled -> probability -> weight."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
import numpy.typing as npt

from replaykit._kernels import lazy
from replaykit.batch import Draw
from replaykit.buffer import build_from_env
from replaykit.field import as_indices
from replaykit.frames import Padding
from replaykit.replay import Replay
from replaykit.ring import Share
from replaykit.spec import Spec
from replaykit.storage import Seed, Storage, Stretch, check_choice, check_count, check_number, check_unit
from replaykit.sum_tree import SCHEMES, SumTree

kernels = lazy("lanes")

Draws = Literal["stratified", "iid", "systematic"]
Weights = Literal["batch", "buffer", "none"]


_SCHEMES = {scheme: number for number, scheme in enumerate(SCHEMES)}
_TREE_BYTES = 32  # of a leaf and its share of the inner nodes, at most
_INT64 = np.dtype(np.int64)
_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
_SMALLEST_WEIGHT = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class LinearSchedule:
    """A value that goes linearly from `start` to `end` over `steps` steps, and stays there.

    Parameters
    ----------
    start, end : float
    steps : int
        At least 1. As a schedule of `beta`, steps count the batches sampled.

    Examples
    --------
    >>> beta = LinearSchedule(0.4, 1.0, steps=100)
    >>> beta(0), beta(50), beta(1000)
    (0.4, 0.7, 1.0)
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        check_count("steps", self.steps)

    def __call__(self, step: int) -> float:
        """The value at `step`."""
        progress = min(step / self.steps, 1.0)
        return (1.0 - progress) * self.start + progress * self.end


@final
class PrioritizedBuffer(Replay):
    """Proportional prioritized replay: transitions with a large TD error are drawn more often.

    A transition with TD error δ has the priority ``p = abs(δ) + eps``, and is drawn with the probability
    ``P = p**alpha / sum(p**alpha)``. Learning is corrected for that by the weights ``w = (N P)**-beta``. A new
    transition gets the largest priority in the buffer just before it is added, so that it is soon seen once; 1 if
    there is none.

    Parameters
    ----------
    capacity, spec, num_envs, n_step, gamma, stack, padding, share, seed
        As those of `ReplayBuffer`.
    alpha : float
        How much priorities count: 0 is uniform replay, 1 is proportional to the priority.
    beta : float or callable
        How much of the bias is corrected, from 0 to 1. A number, settable at any time; or a schedule, a function of the
        number of batches sampled so far such as ``LinearSchedule(0.4, 1.0, steps)``, to be annealed to 1 over training.
    eps : float
        Added to every ``abs(td_error)``, so that no transition is starved. In units of TD error: 1e-2 suits errors
        around 1.
    draws : {"stratified", "iid", "systematic"}
        Whether the batch is drawn one from each of B equal parts of the mass, independently, or at equal distances.
    weights : {"batch", "buffer", "none"}
        By what weights are divided: the largest of the batch; the largest that any stored transition would have, which
        makes all weights small while one transition has a tiny priority, and then learning stalls; or nothing.

    Raises
    ------
    ValueError, TypeError
        For an argument out of its range, naming it.

    References
    ----------
    Schaul et al. (2016), Prioritized Experience Replay, sections 3.3 and 3.4, appendix B.2.1.

    Examples
    --------
    >>> import numpy as np
    >>> from replaykit import Field, PrioritizedBuffer, Spec
    >>> buffer = PrioritizedBuffer(4, Spec(obs=Field(()), action=Field(())), alpha=1.0, beta=1.0, eps=0.0, seed=0)
    >>> for step in range(4):
    ...     index = buffer.add(step, 0, 1.0, step + 1, False, False)
    >>> buffer.update_priorities([0, 1, 2, 3], td_errors=[3.0, 0.0, -1.0, 2.0])
    4
    >>> buffer.probability([0, 1, 2, 3])
    array([0.5       , 0.        , 0.16666667, 0.33333333])
    >>> batch = buffer.sample(3)
    >>> batch.indices
    array([0, 0, 3])
    >>> batch.weights  # proportional to 1 / probability
    array([0.6666667, 0.6666667, 1.       ], dtype=float32)
    """

    def __init__(
        self,
        capacity: int,
        spec: Spec,
        *,
        num_envs: int = 1,
        n_step: int = 1,
        gamma: float = 0.99,
        stack: int = 1,
        padding: Padding = "reset",
        share: Share = "large",
        alpha: float = 0.6,
        beta: float | Callable[[int], float] = 0.4,
        eps: float = 1e-2,
        draws: Draws = "stratified",
        weights: Weights = "batch",
        seed: Seed = None,
    ) -> None:
        self.alpha = check_number("alpha", alpha, sys.float_info.max, "a finite non-negative number")
        self.eps = check_number("eps", eps, sys.float_info.max, "a finite non-negative number")
        check_choice("draws", draws, Draws)
        check_choice("weights", weights, Weights)
        self.draws: Draws = draws
        self.weights: Weights = weights
        storage = Storage(capacity, spec, num_envs, n_step, gamma, stack, padding, share, seed, _TREE_BYTES)
        super().__init__(storage)
        self.beta = beta
        self._tree = SumTree(self.capacity)
        self._settled = np.zeros(self.num_envs, np.int64)
        self._settled_clock = 0
        # So that priorities to the power alpha can be summed, eps and rounding included
        self._largest_priority = 0.5 * self._tree.limit ** min(1.0, 1.0 / max(self.alpha, 1e-300)) - self.eps
        if self._largest_priority < 1.0:
            raise ValueError(f"eps is {eps} and alpha {alpha}; expected smaller ones, as no priority fits beside them")
        self._stale_updates = 0

    @classmethod
    def from_env(cls, env: Any, capacity: int, **options: Any) -> "PrioritizedBuffer":
        """A buffer for the transitions of a Gymnasium environment, single or vector; `options` as the constructor's."""
        return build_from_env(cls, env, capacity, options)

    @property
    def beta(self) -> float:
        """The exponent of the weights of the next batch. Set it to a number in [0, 1], or to a schedule."""
        return check_unit("beta", self._beta(self._storage.batches)) if callable(self._beta) else self._beta

    @beta.setter
    def beta(self, value: float | Callable[[int], float]) -> None:
        self._beta = value if callable(value) else check_unit("beta", value)

    # -- Priorities ------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Give the transitions added since the last call the largest priority in the buffer.

        What is added shows in the ring's cursors, so adding costs nothing here, and an interrupted add leaves nothing
        to undo. Each lane's new slots are filled at once; while lanes are in step, those of all lanes are.
        """
        ring = self._storage.ring
        if ring.clock == self._settled_clock:
            return
        tree, settled = self._tree, self._settled
        if ring.gaps:
            self._drop_retired()
        if ring.stamps is None:
            tree.settle(settled, ring.bounds)
        else:
            slots = ring.span(np.maximum(settled, ring.first)) % ring.capacity
            tree.assign(slots, np.full(slots.size, tree.largest or 1.0))
            settled[:] = ring.cursor
        self._settled_clock = ring.clock

    def _drop_retired(self) -> None:
        """After a reset or an interrupted add: only what is stored and has had its priority keeps one."""
        ring = self._storage.ring
        alive = ring.living()
        kept = alive[alive // ring.num_envs < self._settled[alive % ring.num_envs]]
        others = np.setdiff1d(np.arange(ring.capacity), kept % ring.capacity)
        self._tree.assign(others, np.zeros(others.size))
        ring.gaps = False

    def _write_prioritized(self, ready: Stretch, errors: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        scaled = self._scaled(np.abs(errors) + self.eps)
        self._settle()
        indices = self._storage.write(ready)
        ring = self._storage.ring
        slots, kept = np.empty(errors.size, np.int64), np.empty(errors.size, np.float64)
        count = kernels.living(indices[indices >= 0], scaled, np.inf, 0.0, ring.bounds, ring.capacity, slots, kept)
        self._tree.assign(slots[:count], kept[:count])
        self._settled[:] = ring.cursor
        return indices

    def _scaled(self, priorities: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Leaves of the tree: ``priorities**alpha``."""
        scaled: npt.NDArray[np.float64] = priorities**self.alpha
        if self.alpha > 1.0:  # a power that underflows is still positive: what has a priority can be drawn
            scaled[(scaled == 0.0) & (priorities > 0.0)] = sys.float_info.min
        return scaled

    def update_priorities(
        self,
        indices: npt.ArrayLike,
        td_errors: npt.ArrayLike | None = None,
        *,
        priorities: npt.ArrayLike | None = None,
    ) -> int:
        """Set the priorities of the transitions of a batch; see :meth:`Replay.update_priorities`. O(B log C).

        Examples
        --------
        >>> from replaykit import Field, PrioritizedBuffer, Spec
        >>> buffer = PrioritizedBuffer(2, Spec(obs=Field(()), action=Field(())))
        >>> for step in range(3):
        ...     index = buffer.add(step, 0, 1.0, step + 1, False, False)
        >>> buffer.update_priorities([0, 1, 2], td_errors=[0.5, -2.0, 1.0])  # 0 was overwritten by 2
        2
        """
        ring = self._storage.ring
        slots: npt.NDArray[np.int64] | None = None
        if (
            priorities is None
            and type(indices) is type(td_errors) is np.ndarray
            and indices.dtype is _INT64
            and (td_errors.dtype is _FLOAT32 or td_errors.dtype is _FLOAT64)
            and indices.shape == td_errors.shape
            and indices.ndim == 1
        ):  # the usual arguments, looked at in fewer steps
            values = td_errors.astype(_FLOAT64)
            slots = np.empty(len(values), np.int64)
            limit, eps = self._largest_priority, self.eps
            if kernels.living(indices, values, limit, eps, ring.bounds, ring.capacity, slots, values) != len(values):
                slots = None  # some are stale, or wrong
        if slots is None:
            slots, values, stale = self._checked_update(indices, td_errors, priorities, self.eps)
            self._stale_updates += stale
        scaled = self._scaled(values)
        if ring.clock != self._settled_clock:
            self._settle()
        self._tree.assign(slots, scaled)
        return len(slots)

    # -- The verbs -------------------------------------------------------------------------------------------

    def _fields(self, batch_size: int) -> dict[str, Any]:
        storage, tree = self._storage, self._tree
        packed = storage.packed
        if self.weights != "batch" or packed is None or not packed.is_single or not tree.is_narrow:
            return super()._fields(batch_size)
        ring = storage.ring
        if ring.gaps or ring.stamps is not None or tree.is_empty:
            self._settle()
            tree.refuse_empty()
        points = np.empty(batch_size, _FLOAT64)
        storage.rng.random(out=points[:1] if self.draws == "systematic" else points)
        tree.is_changing = True
        fields = packed.prioritized(tree.nodes, tree.marks, self._settled, points, _SCHEMES[self.draws])
        tree.is_changing = False
        self._settled_clock = ring.clock
        beta = self._beta if type(self._beta) is float else self.beta
        fields["weights"] = (points**-beta).astype(_FLOAT32)
        return fields

    def draw(self, batch_size: int) -> Draw:
        """B indices in proportion to their scaled priorities. O(B log C).

        Raises
        ------
        ValueError
            If every priority is 0.
        """
        slots, probabilities, least = self._draw(batch_size)
        return Draw(self._storage.ring.indices_of(slots), probabilities, least)

    def _draw(self, batch_size: int) -> tuple[npt.NDArray[np.integer[Any]], npt.NDArray[np.float64], float | None]:
        """Slots, their probabilities, and the least of all if weights are normalised by it."""
        self._settle()
        tree = self._tree
        tree.refuse_empty()  # before anything random is drawn
        uniforms = self._storage.rng.random(1 if self.draws == "systematic" else batch_size)
        slots, probabilities = tree.draw_at(uniforms, batch_size, self.draws)
        return slots, probabilities, self._least(tree.smallest) if self.weights == "buffer" else None

    def probability(self, indices: npt.ArrayLike, batch_size: int = 1) -> npt.NDArray[np.float64]:
        """``p**alpha / sum(p**alpha)`` of each stored index, 0 if all are 0. O(B)."""
        check_count("batch_size", batch_size)
        slots = self._storage.ring.slots(as_indices("indices", indices))
        self._settle()
        return self._tree.get(slots) / (self._tree.total or 1.0)

    def weigh(self, draw: Draw) -> npt.NDArray[np.float32]:
        """``w = (N q)**-beta``, divided as `weights` says, for the probabilities q of a draw."""
        q, beta = draw.probabilities, self.beta
        if self.weights == "none":
            with np.errstate(over="ignore"):
                unscaled: npt.NDArray[np.float32] = ((len(self) * q) ** -beta).astype(np.float32)
            return unscaled
        least = draw.least if self.weights == "buffer" and draw.least is not None else np.minimum.reduce(q)
        weights: npt.NDArray[np.float32] = ((q / least) ** -beta).astype(np.float32)
        return np.maximum(weights, _SMALLEST_WEIGHT) if self.weights == "buffer" else weights

    def least_probability(self, batch_size: int, without: npt.NDArray[np.int64]) -> float:
        """The smallest positive probability of any stored index but these; inf if there is none."""
        self._settle()
        return self._least(self._tree.smallest_without(self._storage.ring.slots(without)))

    def _least(self, scaled: float) -> float:
        """The probability of a scaled priority, which is not 0 even where the quotient underflows."""
        return float(max(scaled / (self._tree.total or 1.0), sys.float_info.min))

    # -- Looking ---------------------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, the tree included, whether filled or not."""
        return super().nbytes + self._tree.nbytes

    def stats(self) -> dict[str, float]:
        """Numbers for a logger: those of every buffer, `beta`, `stale_updates`, and of the scaled priorities p**alpha
        the mean and the maximum, `scaled_priority_mean` and `scaled_priority_max`.
        """
        self._settle()
        tree, size = self._tree, len(self)
        return super().stats() | {
            "beta": self.beta,
            "stale_updates": float(self._stale_updates),
            "scaled_priority_mean": tree.total / size if size else 0.0,
            "scaled_priority_max": tree.largest,
        }

    def check(self) -> None:
        """Verify every invariant, those of the tree included. O(C).

        Raises
        ------
        AssertionError
            Naming the broken invariant.
        """
        super().check()
        self._settle()
        self._tree.check()
        ring = self._storage.ring
        settled = np.maximum(self._settled, ring.first)
        assert (settled == ring.cursor).all(), "a transition has not been given its priority"
        dead = np.setdiff1d(np.arange(ring.capacity), ring.living() % ring.capacity)
        assert (self._tree.get(dead) == 0.0).all(), "a slot that holds no transition has a priority"
