"""Proportional prioritization: td_error -> priority -> scaled -> probability -> weight."""

import sys
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from replaykit._kernels import lazy
from replaykit.batch import Draw
from replaykit.checks import check_choice, check_number, check_unit
from replaykit.chunks import Slots
from replaykit.declared import read_only
from replaykit.distributions.base import Distribution, Floats
from replaykit.distributions.sum_tree import SCHEMES, Scheme, SumTree
from replaykit.schedules import check_schedule
from replaykit.storage.base import Indices, Storage
from replaykit.storage.saved_state import LARGEST_STEP, check_array, require

tree_kernels, fused = lazy("tree"), lazy("fused")

Draws: TypeAlias = Scheme
Weights: TypeAlias = Literal["batch", "buffer", "none"]

_LEAF_BYTES = 32  # of a leaf and its share of the inner nodes, at most
_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
_SMALLEST_WEIGHT = np.finfo(np.float32).tiny


class Proportional(Distribution):
    """``P = p**alpha / sum(p**alpha)`` on a sum tree over the slots.

    Parameters
    ----------
    storage : Storage
    alpha, beta, eps, draws, weights
        As those of `replaykit.PrioritizedBuffer`.
    """

    alpha: float = read_only("_alpha", "How much priorities count.")
    eps: float = read_only("_eps", "Added to the magnitude of every TD error.")
    draws: Draws = read_only("_draws", "How the points of a draw lie on the mass.")
    weights: Weights = read_only("_weights", "What weights are divided by.")

    def __init__(
        self,
        storage: Storage,
        *,
        alpha: float = 0.6,
        beta: float | Callable[[int], float] = 0.4,
        eps: float = 1e-2,
        draws: Draws = "stratified",
        weights: Weights = "batch",
    ) -> None:
        super().__init__(storage)
        self._alpha = check_number("alpha", alpha, sys.float_info.max, "a finite non-negative number")
        self._eps = check_number("eps", eps, sys.float_info.max, "a finite non-negative number")
        check_choice("draws", draws, Draws)
        check_choice("weights", weights, Weights)
        self._draws, self._weights, self.beta = draws, weights, beta
        needed = storage.nbytes + _LEAF_BYTES * storage.capacity
        storage.refuse_size(needed, f"capacity {storage.capacity} with priorities")
        storage.claim("alpha", self._alpha)
        self.tree = SumTree(storage.capacity, allocate=storage.allocate)
        if storage.is_reopened:
            self.tree.rebuild()
        self._settled: Indices = storage.allocate("settled", (2, storage.num_envs), np.int64)
        # So that priorities to the power alpha can be summed, eps and rounding included
        self.largest_priority = 0.5 * self.tree.limit ** min(1.0, 1.0 / max(self.alpha, 1e-300)) - self.eps
        if self.largest_priority < 1.0:
            raise ValueError(f"eps is {eps} and alpha {alpha}; expected smaller ones, as no priority fits beside them")
        self._scheme, self._arrays = SCHEMES.index(draws), (self.tree.nodes, self.tree.extremes, self._settled)

    @property
    def beta(self) -> float:
        """The exponent of the weights of the next batch. Set it to a number in [0, 1], or to a schedule."""
        return check_unit("beta", self._beta(self.batches)) if callable(self._beta) else self._beta

    @beta.setter
    def beta(self, value: float | Callable[[int], float]) -> None:
        self._beta = check_schedule("beta", value)

    def settle(self) -> None:
        """Give the transitions added since the last call the largest priority in the buffer, or 1 if there is none."""
        tree_kernels.settle(*self._arrays, self.storage.bounds, self.storage.capacity)

    def update(self, slots: Indices, priorities: Floats) -> int:
        scaled: Floats = priorities**self._alpha
        if self._alpha > 1.0:  # a power that underflows is still positive: what has a priority can be drawn
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

    def weigh(self, draw: Draw, size: int) -> npt.NDArray[np.float32]:
        """``w = (N q)**-beta``, divided as `weights` says, for the probabilities q of a draw."""
        q, beta = draw.probabilities, self.beta
        if self._weights == "none":
            with np.errstate(over="ignore"):
                return np.asarray((size * q) ** -beta).astype(np.float32)
        least = draw.least if self._weights == "buffer" and draw.least is not None else np.minimum.reduce(q)
        weights: npt.NDArray[np.float32] = ((q / least) ** -beta).astype(_FLOAT32)
        return np.maximum(weights, _SMALLEST_WEIGHT) if self._weights == "buffer" else weights

    def mass(self) -> float:
        self.settle()
        return self.tree.total

    def least_probability(self, batch_size: int, without: Indices) -> float:
        self.settle()
        return self._least(self.tree.smallest_without(self.storage.slots(without)))

    def _least(self, scaled: float) -> float:
        """The probability of a scaled priority, which is positive even if the quotient underflows."""
        return float(max(scaled / (self.tree.total or 1.0), sys.float_info.min))

    def kernels(self) -> Any:
        return fused.proportional_batch, fused.proportional_look

    def arguments(self, batch_size: int, rng: np.random.Generator) -> tuple[Any, ...]:
        """The tree, the bounds it follows, and a number in [0, 1) for each draw."""
        if self.tree.nodes.item(1) == 0.0:
            self.settle()
            self.tree.refuse_empty()  # before anything random is drawn
        return (*self._arrays, rng.random(batch_size), self._scheme)

    def finish(self, fields: dict[str, Any], arguments: tuple[Any, ...]) -> None:
        """Add the weights; the kernel has replaced the random numbers by the ratios of probabilities to the least."""
        if self._weights == "batch":
            beta = self._beta if type(self._beta) is float else self.beta
            fields["weights"] = (arguments[3] ** -beta).astype(_FLOAT32)
        else:
            draw = self.complete(Draw(fields["indices"], fields["probabilities"]))
            fields["weights"] = self.weigh(draw, len(self.storage))

    def complete(self, draw: Draw) -> Draw:
        """Add the least probability of all, if weights are divided by it."""
        if self._weights == "buffer":
            draw.least = self._least(self.tree.smallest)
        return draw

    def state(self) -> dict[str, Any]:
        """The scaled priorities as they were last settled, in the order of the slots, and beta or its schedule."""
        capacity = self.storage.capacity
        scaled = self.tree.leaves[Slots(self._settled, capacity).select(0, capacity)]
        return {"capacity": capacity, "settled": self._settled, "scaled": scaled, "beta": self._beta}

    def check_state(self, state: dict[str, Any]) -> None:
        capacity, num_envs, settled = state["capacity"], self.storage.num_envs, state["settled"]
        require(type(capacity) is int and 0 < capacity < LARGEST_STEP, f"capacity is {capacity!r:.30}")
        require(capacity % num_envs == 0, f"capacity {capacity} is no multiple of {num_envs}")
        check_array("settled", settled, (2, num_envs), np.int64)
        is_possible = (settled >= 0) & (settled[0] <= settled[1]) & (settled < LARGEST_STEP // num_envs)
        require(is_possible.all() and (np.diff(settled, axis=0) <= capacity // num_envs).all(), "settled is impossible")
        scaled = state["scaled"]
        check_array("scaled", scaled, (np.diff(settled, axis=0).sum(),), np.float64)
        require(((scaled >= 0.0) & (scaled <= self.tree.limit)).all(), "a priority is negative, or too large")
        check_schedule("beta", state.get("beta", self._beta))

    def restore(self, state: dict[str, Any]) -> None:
        self.beta = state.get("beta", self._beta)
        bounds, num_envs, capacity = self.storage.bounds, self.storage.num_envs, self.storage.capacity
        indices = Slots(state["settled"], state["capacity"]).all()
        is_same, (step, lane) = state["capacity"] == capacity, np.divmod(indices, num_envs)
        settled = np.minimum(state["settled"], bounds) if is_same else np.clip(state["settled"], *bounds)
        is_kept = (step >= settled[0, lane]) & (step < settled[1, lane])
        self.tree.clear()
        self._settled[:] = settled
        self.tree.set(indices[is_kept] % capacity, state["scaled"][is_kept])

    def restart(self) -> None:
        self.tree.clear()
        self._settled[:] = self.storage.bounds[0]

    def fits(self, built: dict[str, Any]) -> bool:
        return super().fits(built) and built["arguments"]["alpha"] == self.alpha

    def stats(self) -> dict[str, float]:
        mean = self.mass() / max(len(self.storage), 1)
        return {"beta": self.beta, "scaled_priority_mean": mean, "scaled_priority_max": self.tree.largest}

    def check(self) -> None:
        self.settle()
        self.tree.check()
        storage = self.storage
        assert (self._settled == storage.bounds).all(), "a transition has not been given its priority"
        empty = np.setdiff1d(np.arange(storage.capacity), storage.stored() % storage.capacity)
        assert (self.tree.get(empty) == 0.0).all(), "a slot that holds no transition has a priority"
