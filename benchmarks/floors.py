"""The minimum that the machine needs: the same bytes moved without a library, and a sum tree without Python.

For comparison only: nothing is checked, no field is extracted from its row, and every buffer is as simple as possible.
"""

from collections.abc import Callable
from functools import cache
from itertools import cycle, pairwise
from typing import Any

import numba
import numpy as np

from benchmarks.adapters.base import ALPHA, BETA
from benchmarks.data import SCREEN, STACK, Task
from benchmarks.timing import Fresh, Workload

njit: Callable[[Callable[..., Any]], Any] = numba.njit(error_model="numpy")


class Rows:
    """Packed rows of a task: all fields of a transition are adjacent."""

    def __init__(self, task: Task) -> None:
        obs, action = task.obs + 2 * task.goal, (np.float32, (task.action,)) if task.action else (np.int64, ())
        fields = [("obs", np.float32, (obs,)), ("action", *action), ("reward", np.float32)]
        fields += [("next_obs", np.float32, (obs,)), ("terminated", np.bool_), ("truncated", np.bool_)]
        size = np.dtype(fields, align=True).itemsize
        self.rows = np.full(task.capacity * size, 1, np.uint8).view(f"V{size}")  # fastest without field names

    def indices(self, batch_size: int, capacity: int | None = None) -> Fresh:
        """New random indices for each call."""
        high = capacity or self.rows.size
        return Fresh(lambda rng, calls: rng.integers(high, size=(calls, batch_size)))

    def assign(self) -> Workload:
        """Write one row at the next position."""
        rows, row = self.rows, self.rows[0]
        places = Fresh(lambda rng, calls: rng.integers(rows.size, size=calls).tolist())

        def call() -> None:
            rows[places.take()] = row

        return Workload(call, (places,))

    def copy(self, count: int) -> Workload:
        """Copy `count` rows."""
        rows, block = self.rows, self.rows[:count].copy()
        starts = Fresh(lambda rng, calls: rng.integers(rows.size - count, size=calls).tolist())

        def call() -> None:
            start = starts.take()
            rows[start : start + count] = block

        return Workload(call, (starts,))

    def gather(self, batch_size: int) -> Workload:
        """``numpy.take`` of the drawn rows."""
        rows, indices = self.rows, self.indices(batch_size)
        return Workload(lambda: rows.take(indices.take(), mode="clip"), (indices,))

    def gather_twice(self, batch_size: int, distance: int) -> Workload:
        """``numpy.take`` of the drawn rows, and of the rows `distance` steps later."""
        rows, indices = self.rows, self.indices(batch_size, self.rows.size - distance)

        def call() -> Any:
            drawn = indices.take()
            return rows.take(drawn, mode="clip"), rows.take(drawn + distance, mode="clip")

        return Workload(call, (indices,))

    def gather_with_goals(self, batch_size: int) -> Workload:
        """``numpy.take`` of the drawn rows, and of the same number of goals of other rows."""
        rows, indices, others = self.rows, self.indices(batch_size), self.indices(batch_size)
        goals = np.ones((rows.size, 3), np.float32)

        def call() -> Any:
            return rows.take(indices.take(), mode="clip"), goals.take(others.take(), axis=0, mode="clip")

        return Workload(call, (indices, others))

    def random_reads(self, batch_size: int) -> Workload:
        """Read one byte of each cache line of the drawn rows."""
        words = self.rows.view(np.uint8).reshape(self.rows.size, -1)
        indices = self.indices(batch_size)
        read = _kernels()["read"]
        return Workload(lambda: read(words, indices.take()), (indices,))


class Tree:
    """A plain binary sum tree and packed rows. One compiled call adds, draws, gathers, weighs and updates.

    It processes the whole batch level by level. Parents are recomputed as the sums of their children.
    """

    def __init__(self, task: Task) -> None:
        self.capacity = task.capacity
        self.rows = Rows(task).rows.view(np.uint64).reshape(task.capacity, -1)
        size = 1 << (task.capacity - 1).bit_length()
        self.nodes = np.zeros(2 * size)
        self.nodes[size : size + task.capacity] = (
            np.abs(np.random.default_rng(0).standard_normal(task.capacity)) ** ALPHA
        )
        while size > 1:
            size //= 2
            self.nodes[size : 2 * size] = self.nodes[2 * size : 4 * size].reshape(-1, 2).sum(axis=1)
        self.state = np.array([0x9E3779B97F4A7C15], np.uint64)
        self.cursor = 0

    def errors(self, batch_size: int) -> Fresh:
        """New TD errors for each call."""
        return Fresh(lambda rng, calls: np.abs(rng.standard_normal((calls, batch_size), np.float32)))

    def sample(self, batch_size: int) -> Workload:
        """Draw, gather and weigh."""
        draw, nodes, rows, state = _kernels()["draw"], self.nodes, self.rows, self.state
        return Workload(lambda: draw(nodes, self.capacity, rows, state, batch_size, BETA))

    def update(self, batch_size: int) -> Workload:
        """Update leaves in any order."""
        update, nodes, errors = _kernels()["update"], self.nodes, self.errors(batch_size)
        first, stop = nodes.size // 2, nodes.size // 2 + self.capacity
        leaves = Fresh(lambda rng, calls: rng.integers(first, stop, (calls, batch_size), np.uint32))
        return Workload(lambda: update(nodes, leaves.take(), errors.take(), ALPHA), (leaves, errors))

    def cycle(self, batch_size: int, adds: int = 1) -> Workload:
        """Everything in one compiled call."""
        cycle, nodes, rows, state = _kernels()["cycle"], self.nodes, self.rows, self.state
        errors, row = self.errors(batch_size), self.rows[0].copy()

        def call() -> Any:
            self.cursor = (self.cursor + adds) % self.capacity
            return cycle(
                nodes, self.capacity, rows, state, batch_size, errors.take(), row, self.cursor, adds, ALPHA, BETA
            )

        return Workload(call, (errors,))


def screen_copies(batch_size: int) -> dict[str, Workload]:
    """Memory copies with the size of both stacks of a batch, into a new array and into an existing one."""
    size = 2 * batch_size * STACK * SCREEN[0] * SCREEN[1]
    memory, kept = np.ones(8 * size, np.uint8), np.ones(size, np.uint8)
    starts = Fresh(lambda rng, calls: rng.integers(memory.size - size, size=calls).tolist())

    def fresh_copy() -> Any:
        start = starts.take()
        return memory[start : start + size].copy()

    def copy() -> None:
        start = starts.take()
        kept[:] = memory[start : start + size]

    return {"memory copy": Workload(fresh_copy, (starts,)), "copy to a kept array": Workload(copy, (starts,))}


def step_copies(observations: list[Any], capacity: int) -> Workload:
    """Copies of the obs and next_obs of successive steps to the next positions of two arrays."""
    obs_stored, next_obs_stored = (np.ones((capacity, *observations[0].shape), np.uint8) for _ in range(2))
    steps, places = cycle(pairwise(observations)), cycle(range(capacity))

    def call() -> None:
        place, (obs, next_obs) = next(places), next(steps)
        obs_stored[place] = obs
        next_obs_stored[place] = next_obs

    return Workload(call)


@cache
def _kernels() -> dict[str, Any]:
    """The compiled functions, together because they call each other."""

    def read(rows: Any, indices: Any) -> int:
        total = 0
        last = rows.shape[1] - 1
        for k in range(indices.size):
            for place in range(0, last, 64):
                total += rows[indices[k], place]
            total += rows[indices[k], last]
        return total

    # Unsigned indices avoid the check for negative ones
    unsigned, single = np.uint32, np.float32

    def ascend(nodes: Any, cursors: Any) -> None:
        """Recompute the parents of `cursors`, level by level up to the root. Equal neighbors are recomputed once."""
        count = cursors.size
        while cursors[0] > 1:
            kept = 0
            last = unsigned(0)
            for k in range(count):
                parent = unsigned(cursors[k] >> 1)
                cursors[kept] = parent
                kept += parent != last
                last = parent
            count = kept
            for k in range(count):
                left = unsigned(2 * cursors[k])
                nodes[cursors[k]] = nodes[left] + nodes[unsigned(left + 1)]

    def draw(nodes: Any, capacity: int, rows: Any, state: Any, batch_size: int, beta: float) -> Any:
        mass = np.empty(batch_size)
        cursors = np.ones(batch_size, np.uint32)
        part = nodes[1] / batch_size
        x = state[0]
        for k in range(batch_size):  # xorshift64*
            x ^= x >> np.uint64(12)
            x ^= x << np.uint64(25)
            x ^= x >> np.uint64(27)
            uniform = ((x * np.uint64(0x2545F4914F6CDD1D)) >> np.uint64(11)) * 2.0**-53
            mass[k] = (k + uniform) * part
        state[0] = x
        leaves = nodes.size // 2
        level = 1
        while level < leaves:
            for k in range(batch_size):
                below = unsigned(2 * cursors[k])
                left = nodes[below]
                right = mass[k] >= left
                mass[k] -= left * right
                cursors[k] = below + right
            level *= 2
        least = np.inf
        for k in range(batch_size):
            cursors[k] = min(cursors[k], leaves + capacity - 1)
            mass[k] = nodes[cursors[k]]
            least = min(least, mass[k])
        weights = np.empty(batch_size, np.float32)
        for k in range(batch_size):
            weights[k] = single(mass[k] / least) ** single(-beta)
        batch = np.empty((batch_size, rows.shape[1]), rows.dtype)
        for k in range(batch_size):
            slot = unsigned(cursors[k] - leaves)
            for word in range(rows.shape[1]):
                batch[k, word] = rows[slot, word]
        return batch, weights, cursors

    def update(nodes: Any, cursors: Any, errors: Any, alpha: float) -> None:
        for k in range(cursors.size):
            nodes[cursors[k]] = errors[k] ** single(alpha)
        ascend(nodes, cursors)

    def cycle(
        nodes: Any,
        capacity: int,
        rows: Any,
        state: Any,
        batch_size: int,
        errors: Any,
        row: Any,
        cursor: int,
        adds: int,
        alpha: float,
        beta: float,
    ) -> Any:
        added = np.empty(adds, np.uint32)
        for k in range(adds):
            slot = (cursor + k) % capacity
            rows[slot] = row
            added[k] = nodes.size // 2 + slot
            nodes[added[k]] = 1.0
        ascend(nodes, added)
        batch, weights, cursors = draw(nodes, capacity, rows, state, batch_size, beta)
        update(nodes, cursors.copy(), errors, alpha)
        return batch, weights, cursors

    ascend, draw, update = njit(ascend), njit(draw), njit(update)
    return {"read": njit(read), "draw": draw, "update": update, "cycle": njit(cycle)}
