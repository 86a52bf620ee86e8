"""The common part of prioritized distributions: settings, weights and the saved priorities."""

import sys
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from replaykit.batch import Draw
from replaykit.checks import check_choice, check_number, check_unit
from replaykit.chunks import Slots
from replaykit.declared import read_only
from replaykit.distributions.base import Distribution, Floats
from replaykit.distributions.sum_tree import Scheme
from replaykit.schedules import check_schedule
from replaykit.storage.base import Indices, Storage, stored_in
from replaykit.storage.saved_state import LARGEST_STEP, check_array, require

Draws: TypeAlias = Scheme
Weights: TypeAlias = Literal["batch", "buffer", "none"]

_FLOAT32 = np.dtype(np.float32)
_SMALLEST_WEIGHT = np.finfo(np.float32).tiny


def importance_weights(draw: Draw, size: int, beta: float, weights: Weights) -> npt.NDArray[np.float32]:
    """``w = (N q)**-beta``, normalized according to `weights`, for the probabilities q of a draw from N transitions."""
    q = draw.probabilities
    if weights == "none":
        with np.errstate(over="ignore"):
            return np.asarray((size * q) ** -beta).astype(np.float32)
    least = draw.least if weights == "buffer" and draw.least is not None else np.minimum.reduce(q)
    found: npt.NDArray[np.float32] = ((q / least) ** -beta).astype(_FLOAT32)
    return np.maximum(found, _SMALLEST_WEIGHT) if weights == "buffer" else found


class Prioritized(Distribution):
    """A distribution with a value for each slot, which determines probabilities and weights.

    A subclass keeps `settled`, the bounds for which these values are up to date.
    """

    alpha: float = read_only("_alpha", "The strength of prioritization.")
    draws: Draws = read_only("_draws", "Whether draws are stratified or independent.")
    weights: Weights = read_only("_weights", "How weights are normalized.")
    largest_value: float
    """The largest possible value in `state`."""
    saved_name: str
    """The name of these values in a checkpoint."""
    settled: Indices

    def __init__(
        self, storage: Storage, alpha: float, beta: float | Callable[[int], float], draws: Draws, weights: Weights
    ) -> None:
        super().__init__(storage)
        self._alpha = check_number("alpha", alpha, sys.float_info.max, "a finite non-negative number")
        check_choice("draws", draws, Draws)
        check_choice("weights", weights, Weights)
        self._draws, self._weights, self.beta = draws, weights, beta
        self.has_least: bool = weights == "buffer"

    @property
    def beta(self) -> float:
        """The exponent of the weights of the next batch. Set it to a number in [0, 1], or to a schedule."""
        return check_unit("beta", self._beta(self.batches)) if callable(self._beta) else self._beta

    @beta.setter
    def beta(self, value: float | Callable[[int], float]) -> None:
        self._beta = check_schedule("beta", value)

    def weigh(self, draw: Draw, size: int) -> npt.NDArray[np.float32]:
        """``w = (N q)**-beta`` for the probabilities q of a draw, normalized according to `weights`."""
        return importance_weights(draw, size, self.beta, self._weights)

    @abstractmethod
    def values(self) -> Floats:
        """The value of each slot, in an array that may be a view and longer than the number of slots."""

    @abstractmethod
    def set_values(self, settled: Indices, slots: Indices, values: Floats) -> None:
        """Set the values of exactly these slots, for steps within the bounds `settled`."""

    def state(self) -> dict[str, Any]:
        """The values at the time of the last `settle`, in slot order, and beta or its schedule."""
        capacity = self.storage.capacity
        values = self.values()[Slots(self.settled, capacity).select(0, capacity)]
        return {"capacity": capacity, "settled": self.settled, self.saved_name: values, "beta": self._beta}

    def check_state(self, state: dict[str, Any]) -> None:
        capacity, num_envs, settled = state["capacity"], self.storage.num_envs, state["settled"]
        require(type(capacity) is int and 0 < capacity < LARGEST_STEP, f"capacity is {capacity!r:.30}")
        require(capacity % num_envs == 0, f"capacity {capacity} is not a multiple of {num_envs}")
        check_array("settled", settled, (2, num_envs), np.int64)
        is_possible = (settled >= 0) & (settled[0] <= settled[1]) & (settled < LARGEST_STEP // num_envs)
        require(is_possible.all() and (np.diff(settled, axis=0) <= capacity // num_envs).all(), "settled is impossible")
        values = state[self.saved_name]
        check_array(self.saved_name, values, (np.diff(settled, axis=0).sum(),), np.float64)
        require(((values >= 0.0) & (values <= self.largest_value)).all(), "a priority is negative, or too large")
        check_schedule("beta", state.get("beta", self._beta))

    def restore(self, state: dict[str, Any]) -> None:
        self.beta = state.get("beta", self._beta)
        bounds, num_envs, capacity = self.storage.bounds, self.storage.num_envs, self.storage.capacity
        indices = Slots(state["settled"], state["capacity"]).all()
        is_same, (step, lane) = state["capacity"] == capacity, np.divmod(indices, num_envs)
        settled = np.minimum(state["settled"], bounds) if is_same else np.clip(state["settled"], *bounds)
        is_kept = (step >= settled[0, lane]) & (step < settled[1, lane])
        slots, values = indices[is_kept] % capacity, state[self.saved_name][is_kept]
        if not is_same:  # later transitions get the largest saved priority, even if its transition is not kept
            new = stored_in(np.stack((settled[1], bounds[1])), num_envs) % capacity
            largest = state[self.saved_name].max(initial=0.0) or 1.0
            settled, slots = bounds, np.concatenate((slots, new))
            values = np.concatenate((values, np.full(len(new), largest)))
        self.set_values(settled, slots, values)

    def restart(self) -> None:
        bounds = self.storage.bounds
        self.set_values(np.array([bounds[0], bounds[0]]), np.zeros(0, np.int64), np.zeros(0))
