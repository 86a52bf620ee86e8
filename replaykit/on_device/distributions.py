"""The distributions of a `DeviceStorage`: uniform, newest transitions, and proportional to priorities."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from replaykit.batch import Draw
from replaykit.checks import check_number
from replaykit.declared import read_only
from replaykit.distributions.latest import Latest
from replaykit.distributions.prioritized import Draws, Prioritized, Weights
from replaykit.distributions.proportional import largest_priority
from replaykit.distributions.uniform import Uniform
from replaykit.on_device.storage import DeviceStorage
from replaykit.on_device.tree import DeviceTree
from replaykit.storage.base import Indices, stored_in

_SMALLEST_WEIGHT = float(np.finfo(np.float32).tiny)


class DeviceUniform(Uniform):
    """`Uniform` draws on a device."""

    saved_kind: str | None = "Uniform"
    storage: DeviceStorage

    @property
    def is_capturable(self) -> bool:
        """Whether every draw runs the same operations. Without replacement, they depend on the buffer's size."""
        return self.replace

    def prepare(self) -> None:
        """Do nothing: a draw reads only the stored transitions."""

    def draw(self, batch_size: int, rng: Any) -> Draw:
        return self.draw_captured(batch_size, rng)

    def draw_captured(self, batch_size: int, rng: Any) -> Draw:
        """`draw`, as part of a graph."""
        (uniforms,) = self.arguments(batch_size, rng)
        indices, size = self.storage.nth_stored(uniforms)
        return Draw(indices, (1.0 / size.double()).expand(batch_size).contiguous())  # type: ignore[arg-type]

    def probability(self, indices: Any, batch_size: int) -> Any:
        self.storage.slots(indices)
        return self.backend.full(len(indices), 1.0 / max(len(self.storage), 1))

    def weigh(self, draw: Draw, size: int) -> Any:
        return torch.ones(len(draw.indices), device=self.storage.device)

    def least_probability(self, batch_size: int, without: Any) -> Any:
        size, count = len(self.storage), (without >= 0).sum()
        return torch.where(count < size, self.backend.full(1, 1.0 / max(size, 1))[0], torch.inf)


class DeviceLatest(Latest):
    """`Latest` draws on a device: the newest transitions."""

    saved_kind: str | None = "Latest"
    storage: DeviceStorage

    def draw(self, batch_size: int, rng: Any) -> Draw:
        newest = self.storage.latest(batch_size)
        places = np.arange(batch_size) % len(newest)
        shares = (batch_size // len(newest) + (places < batch_size % len(newest))) / batch_size
        put = self.storage.backend.array
        return Draw(newest[put(places)], put(shares))  # type: ignore[arg-type]

    def probability(self, indices: Any, batch_size: int) -> Any:
        self.storage.slots(indices)
        if not len(self.storage):
            return self.backend.full(len(indices), 0.0)
        draw: Any = self.draw(batch_size, None)
        is_same = indices[:, None] == draw.indices
        return is_same.sum(1).double() / batch_size

    def weigh(self, draw: Draw, size: int) -> Any:
        return torch.ones(len(draw.indices), device=self.storage.device)


class DeviceProportional(Prioritized):
    """`Proportional` draws on a device, with a `DeviceTree`.

    Parameters
    ----------
    storage : DeviceStorage
    alpha, beta, eps, draws, weights
        As in `replaykit.PrioritizedBuffer`.
    """

    saved_kind: str | None = "Proportional"
    saved_name = "scaled"
    storage: DeviceStorage
    eps: float = read_only("_eps", "Added to the absolute value of every TD error.")

    def __init__(
        self, storage: DeviceStorage, *, alpha: float = 0.6, beta: float | Callable[[int], float] = 0.4,
        eps: float = 1e-2, draws: Draws = "stratified", weights: Weights = "batch",
    ) -> None:  # fmt: skip
        super().__init__(storage, alpha, beta, draws, weights)
        self._eps = check_number("eps", eps, sys.float_info.max, "a finite non-negative number")
        storage.refuse_size(24 * storage.capacity, f"capacity {storage.capacity} with priorities")
        self.tree: DeviceTree = DeviceTree(storage.capacity, storage.make)
        self.settled: Indices = storage.bounds.copy()
        storage.follow_writes(self.settle)
        self.largest_priority: float = largest_priority(self.tree.limit, self.alpha, eps)
        self.largest_value: float = self.tree.limit
        self._beta_on_device: torch.Tensor = storage.make("beta", (), torch.float64)
        self._beta_there = 0.0

    def settle(self) -> None:
        """Give the transitions added since the last call the largest priority in the buffer, or 1 if it was empty."""
        storage, (first, cursor) = self.storage, self.storage.bounds
        if np.array_equal(self.settled, storage.bounds):
            return
        lost = np.stack((np.maximum(self.settled[0], cursor - storage.length), first))
        new = np.stack((np.maximum(self.settled[1], first), cursor))
        self._fill(lost, 0.0)
        largest = self.tree.largest
        self._fill(new, torch.where(largest > 0.0, largest, 1.0))
        self.tree.add_up()
        self.settled[:] = storage.bounds

    def _fill(self, bounds: Indices, value: Any) -> None:
        """Set the leaves of the steps within these bounds of the lanes."""
        storage, stop = self.storage, np.maximum(bounds[0], bounds[1])
        if (bounds[0] >= bounds[1]).all():
            return
        if (bounds == bounds[:, :1]).all():  # all lanes have the same bounds: consecutive slots
            begin, end = (int(step) * storage.num_envs for step in bounds[:, 0])
            slot = begin % storage.capacity
            head = min(end - begin, storage.capacity - slot)
            self.tree.fill(slice(slot, slot + head), value)
            self.tree.fill(slice(0, end - begin - head), value)
        else:
            indices = stored_in(np.stack((bounds[0], stop)), storage.num_envs)
            self.tree.fill(storage.backend.array(indices % storage.capacity), value)

    def update(self, slots: Any, priorities: Any) -> Any:
        """Set the priorities in `slots`. Slot C is ignored. Returns the number of applied updates as a tensor."""
        self.settle()
        scaled = priorities**self._alpha
        if self._alpha > 1.0:  # keep a power that underflows positive, so that the transition can be drawn
            scaled = torch.where((scaled == 0.0) & (priorities > 0.0), sys.float_info.min, scaled)
        self.tree.set(slots, scaled)
        return (slots < self.storage.capacity).sum()

    is_capturable = True
    """Every draw runs the same operations."""

    def prepare(self) -> None:
        """Settle, and send beta to the device. A graph cannot contain this work, because its shapes change."""
        self.settle()
        self.beta_on_device()

    def draw(self, batch_size: int, rng: Any) -> Draw:
        self.prepare()
        return self.draw_captured(batch_size, rng)

    def draw_captured(self, batch_size: int, rng: Any) -> Draw:
        """`draw` without `prepare`, as part of a graph. Call `prepare` first."""
        tree, storage = self.tree, self.storage
        slots, probabilities = tree.draw(rng.random(batch_size), self._draws == "stratified")
        storage.late.note("nothing", tree.total == 0.0)
        least = self._least(tree.smallest) if self._weights == "buffer" else None
        return Draw(storage.indices_of(slots), probabilities, least)  # type: ignore[arg-type]

    def _least(self, scaled: torch.Tensor) -> torch.Tensor:
        return (scaled / self.tree.total).clamp(min=sys.float_info.min)

    def probability(self, indices: Any, batch_size: int) -> Any:
        slots = self.storage.slots(indices)
        self.settle()
        total = self.tree.total
        return self.tree.leaves[slots] / torch.where(total > 0.0, total, 1.0)

    def weigh(self, draw: Draw, size: int) -> Any:
        """``w = (N q)**-beta`` for the probabilities q of the last draw, normalized according to `weights`."""
        q: Any = draw.probabilities
        beta = self.beta_on_device()  # which may have changed since the last draw
        if self._weights == "none":
            return (self.storage.size_on_device() * q).pow(-beta).float()
        least = draw.least if self._weights == "buffer" and draw.least is not None else q.min()
        weights = (q / least).pow(-beta).float()
        return weights.clamp(min=_SMALLEST_WEIGHT) if self._weights == "buffer" else weights

    def beta_on_device(self) -> torch.Tensor:
        """Beta as a tensor, so that a captured graph reads its current value."""
        beta = self.beta
        if beta != self._beta_there:
            self._beta_on_device.fill_(beta)
            self._beta_there = beta
        return self._beta_on_device

    def mass(self) -> float:
        self.settle()
        return float(self.tree.total)

    def least_probability(self, batch_size: int, without: Any) -> Any:
        self.settle()
        leaves = self.tree.leaves.clone()
        capacity = self.storage.capacity
        leaves[torch.where(without < 0, capacity, without % capacity)] = 0.0
        least = torch.where(leaves > 0.0, leaves, torch.inf).min()
        return self._least(least)

    def values(self) -> Any:
        return self.tree.leaves.cpu().numpy()

    def set_values(self, settled: Indices, slots: Indices, values: Any) -> None:
        put = self.storage.backend.array
        self.tree.leaves.zero_()
        self.tree.fill(put(slots), put(values))
        self.tree.add_up()
        self.settled[:] = settled

    def fits(self, built: dict[str, Any]) -> bool:
        return super().fits(built) and built["arguments"]["alpha"] == self.alpha

    def stats(self) -> dict[str, float]:
        mean = self.mass() / max(len(self.storage), 1)
        return {"beta": self.beta, "scaled_priority_mean": mean, "scaled_priority_max": float(self.tree.largest)}

    def check(self) -> None:
        self.settle()
        self.tree.check()
        storage, leaves = self.storage, self.values()
        empty = np.setdiff1d(np.arange(storage.capacity), storage.stored() % storage.capacity)
        assert (leaves[empty] == 0.0).all(), "a slot that holds no transition has a priority"
