"""Proportional prioritization: td_error -> priority -> scaled -> probability -> weight."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from replaykit._kernels import lazy
from replaykit.batch import Draw
from replaykit.checks import check_number
from replaykit.declared import read_only
from replaykit.distributions.base import Floats
from replaykit.distributions.prioritized import Draws, Prioritized, Weights
from replaykit.distributions.sum_tree import SCHEMES, SumTree
from replaykit.storage.base import Indices, Storage

tree_kernels: Any = lazy("tree")
fused: Any = lazy("fused")

_LEAF_BYTES = 32  # an upper limit for a leaf and its share of the inner nodes
_FLOAT32 = np.dtype(np.float32)


def largest_priority(limit: float, alpha: float, eps: float) -> float:
    """The largest TD error whose scaled priority, after eps and rounding, is at most `limit`, the largest leaf."""
    largest: float = 0.5 * limit ** min(1.0, 1.0 / max(alpha, 1e-300)) - eps
    if largest < 1.0:
        raise ValueError(f"eps is {eps} and alpha {alpha}; expected smaller values: every priority would overflow")
    return largest


class Proportional(Prioritized):
    """``P = p**alpha / sum(p**alpha)`` on a sum tree over the slots.

    Parameters
    ----------
    storage : Storage
    alpha, beta, eps, draws, weights
        As in `replaykit.PrioritizedBuffer`.
    """

    eps: float = read_only("_eps", "Added to the absolute value of every TD error.")
    saved_name = "scaled"

    def __init__(
        self, storage: Storage, *, alpha: float = 0.6, beta: float | Callable[[int], float] = 0.4, eps: float = 1e-2,
        draws: Draws = "stratified", weights: Weights = "batch",
    ) -> None:  # fmt: skip
        super().__init__(storage, alpha, beta, draws, weights)
        self._eps = check_number("eps", eps, sys.float_info.max, "a finite non-negative number")
        needed = storage.nbytes + _LEAF_BYTES * storage.capacity
        storage.refuse_size(needed, f"capacity {storage.capacity} with priorities")
        storage.claim("alpha", self._alpha)
        self.tree: SumTree = SumTree(storage.capacity, allocate=storage.allocate)
        if storage.is_reopened:
            self.tree.rebuild()
        self.settled: Indices = storage.allocate("settled", (2, storage.num_envs), np.int64)
        self.largest_priority: float = largest_priority(self.tree.limit, self.alpha, eps)
        self.largest_value: float = self.tree.limit
        self._scheme, self._arrays = SCHEMES.index(draws), (self.tree.nodes, self.tree.extremes, self.settled)

    def settle(self) -> None:
        """Give the transitions added since the last call the largest priority in the buffer, or 1 if it was empty."""
        tree_kernels.settle(*self._arrays, self.storage.bounds, self.storage.capacity)

    def update(self, slots: Indices, priorities: Floats) -> int:
        scaled: Floats = priorities**self._alpha
        if self._alpha > 1.0:  # keep a power that underflows positive, so that the transition can be drawn
            scaled[(scaled == 0.0) & (priorities > 0.0)] = sys.float_info.min
        tree_kernels.update(*self._arrays, self.storage.bounds, self.storage.capacity, slots, scaled)
        return len(slots)

    def draw(self, batch_size: int, rng: np.random.Generator) -> Draw:
        return self._draw_with(tree_kernels.proportional_draw, batch_size, rng)

    def probability(self, indices: Indices, batch_size: int) -> Floats:
        """``p**alpha / sum(p**alpha)`` of each stored index, 0 if all are 0. O(B)."""
        storage, shares = self.storage, np.empty(len(indices))
        if tree_kernels.proportional_shares(*self._arrays, storage.bounds, storage.capacity, indices, shares) >= 0:
            storage.refuse(indices)
        return shares

    def mass(self) -> float:
        self.settle()
        return self.tree.total

    def least_probability(self, batch_size: int, without: Indices) -> float:
        self.settle()
        return self._least(self.tree.smallest_without(self.storage.slots(without)))

    def _least(self, scaled: float) -> float:
        """The probability of a scaled priority. It is positive even if the quotient underflows."""
        return float(max(scaled / (self.tree.total or 1.0), sys.float_info.min))

    def kernels(self) -> Any:
        return fused.proportional_batch, fused.proportional_look

    def arguments(self, batch_size: int, rng: np.random.Generator) -> tuple[Any, ...]:
        """The tree, its bounds, and a number in [0, 1) for each draw."""
        if self.tree.nodes.item(1) == 0.0:
            self.settle()
            self.tree.refuse_empty()  # before any random number is drawn
        return (*self._arrays, rng.random(batch_size), self._scheme)

    def finish(self, fields: dict[str, Any], arguments: tuple[Any, ...]) -> None:
        """Add the weights. The kernel has replaced the random numbers by probabilities divided by the least one."""
        if self._weights == "batch":
            beta = self._beta if type(self._beta) is float else self.beta
            fields["weights"] = (arguments[3] ** -beta).astype(_FLOAT32)
        else:
            draw = self.complete(Draw(fields["indices"], fields["probabilities"]))
            fields["weights"] = self.weigh(draw, len(self.storage))

    def complete(self, draw: Draw) -> Draw:
        """Add the least probability of all transitions if weights are normalized by it."""
        if self._weights == "buffer":
            draw.least = self._least(self.tree.smallest)
        return draw

    def values(self) -> Floats:
        """The scaled priorities."""
        return self.tree.leaves

    def set_values(self, settled: Indices, slots: Indices, values: Floats) -> None:
        self.tree.clear()
        self.settled[:] = settled
        self.tree.set(slots, values)

    def fits(self, built: dict[str, Any]) -> bool:
        return super().fits(built) and built["arguments"]["alpha"] == self.alpha

    def stats(self) -> dict[str, float]:
        mean = self.mass() / max(len(self.storage), 1)
        return {"beta": self.beta, "scaled_priority_mean": mean, "scaled_priority_max": self.tree.largest}

    def check(self) -> None:
        self.settle()
        self.tree.check()
        storage = self.storage
        assert (self.settled == storage.bounds).all(), "a new transition did not get its priority"
        empty = np.setdiff1d(np.arange(storage.capacity), storage.stored() % storage.capacity)
        assert (self.tree.get(empty) == 0.0).all(), "a slot that holds no transition has a priority"
