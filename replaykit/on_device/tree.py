"""The sum tree of a device. It has few levels, because each level is an operation, and operations take time."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

WIDTH = 128
"""The number of children of a node."""
_BELOW_ONE = 1.0 - 2.0**-52


class DeviceTree:
    """A tree over C leaves in which every node is the sum of its 128 children.

    `draw` and `find` work as in `SumTree <replaykit.SumTree>`. Sums are float64. `set` recomputes all sums from the
    leaves: one pass over 8 C bytes, which takes a device microseconds. Therefore the sums always equal those of a new
    tree with the same leaves. A leaf of value 0 is never found. Only `check` waits for the device.

    Parameters
    ----------
    capacity : int
        Number of leaves, C.
    allocate : callable
        ``allocate(name, shape, dtype)`` returns a tensor of zeros.
    """

    def __init__(self, capacity: int, allocate: Callable[..., torch.Tensor]) -> None:
        self.capacity: int = capacity
        rows = -(-(capacity + 1) // WIDTH)  # an additional leaf takes the values of indices that are not stored
        self.levels: list[torch.Tensor] = [allocate("leaves", (rows, WIDTH), torch.float64)]
        while rows > 1:
            rows = -(-rows // WIDTH)
            self.levels.append(allocate(f"sums{len(self.levels)}", (rows, WIDTH), torch.float64))
        self.leaves: torch.Tensor = self.levels[0].view(-1)
        self.last: torch.Tensor = allocate("last", (capacity + 1,), torch.int64)
        self.stamp: torch.Tensor = allocate("stamp", (), torch.int64)
        self.limit: float = float(np.finfo(np.float64).max) / (2 * len(self.leaves))

    def set(self, slots: torch.Tensor, values: torch.Tensor) -> None:
        """Set leaves (B,) to values (B,). If a leaf occurs twice, its last value is kept. Leaf C stays 0. O(C)."""
        self.leaves[slots] = values[last_of(slots, self.last, self.stamp)]
        self.leaves[self.capacity] = 0.0
        self.add_up()

    def fill(self, slots: Any, value: Any) -> None:
        """Set the leaves at these slots, a slice or a tensor, to one value. Call `add_up` afterwards."""
        self.leaves[slots] = value

    def add_up(self) -> None:
        """Recompute all sums from the leaves. O(C)."""
        for level, above in zip(self.levels, self.levels[1:], strict=False):
            torch.sum(level, 1, out=above.view(-1)[: len(level)])

    def find(self, points: torch.Tensor) -> torch.Tensor:
        """The leaves at which the running sum of the values first exceeds `points` (B,), in [0, total)."""
        found = torch.zeros_like(points, dtype=torch.int64)
        for level in reversed(self.levels):
            values = level[found]
            running = values.cumsum(1)
            points = torch.minimum(points, running[:, -1] * _BELOW_ONE)  # rounding could go past the last child
            child = torch.searchsorted(running, points[:, None], right=True).clamp_(max=WIDTH - 1)
            points = (points - running.gather(1, child)[:, 0] + values.gather(1, child)[:, 0]).clamp_(min=0.0)
            found = found * WIDTH + child[:, 0]
        return found.clamp_(max=self.capacity - 1)

    def draw(self, uniforms: torch.Tensor, is_stratified: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Leaves (B,), drawn proportionally to their values, and their probabilities."""
        total, points = self.total, uniforms
        if is_stratified:
            points = (torch.arange(len(uniforms), device=uniforms.device) + uniforms) / len(uniforms)
        leaves = self.find(points * total)
        return leaves, self.leaves[leaves] / total

    @property
    def total(self) -> torch.Tensor:
        """The sum of all values, as a tensor without axes."""
        return self.levels[-1].sum()

    @property
    def largest(self) -> torch.Tensor:
        """The largest value, as a tensor without axes. O(C)."""
        return self.leaves.max()

    @property
    def smallest(self) -> torch.Tensor:
        """The smallest positive value, as a tensor without axes. It is inf if there is none. O(C)."""
        return torch.where(self.leaves > 0.0, self.leaves, torch.inf).min()

    def check(self) -> None:
        """Verify that every node is the sum of its children. Waits for the device."""
        leaves = self.leaves.cpu().numpy()
        assert (leaves >= 0.0).all(), "a leaf is negative"
        assert np.isfinite(leaves).all(), "a leaf is not finite"
        assert (leaves[self.capacity :] == 0.0).all(), "a leaf beyond the capacity is not 0"
        for level, above in zip(self.levels, self.levels[1:], strict=False):
            assert torch.equal(level.sum(1), above.view(-1)[: len(level)]), "a node is not the sum of its children"


def last_of(slots: torch.Tensor, last: torch.Tensor, stamp: torch.Tensor) -> torch.Tensor:
    """For each entry of `slots` (B,), the position of the last entry with the same slot.

    ``last`` (C + 1,) and ``stamp`` () are kept between calls: the largest stamp of each slot, and the next stamp.
    """
    stamps = stamp + torch.arange(len(slots), device=slots.device)
    last.scatter_reduce_(0, slots, stamps, "amax")
    found = last[slots] - stamp
    stamp += len(slots)
    return found
