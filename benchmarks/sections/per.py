"""Prioritized replay: a sample, an update, and a cycle of add, sample and update, at four capacities, warm and cold."""

from benchmarks.adapters.base import Library
from benchmarks.data import Task
from benchmarks.floors import Tree
from benchmarks.sections.rows import Shelf, cycle, make_row, only_replaykit, update
from benchmarks.timing import Row, Workload

CAPACITIES = {"1e4": 10_000, "1e5": 100_000, "1e6": 1_000_000, "1e7": 10_000_000}
FULL = "1e6"
"""The capacity with additional rows: other batch sizes, and a sample and an update with cold caches."""


def rows(libraries: list[Library], quick: bool) -> list[Row]:
    made, shelf = [], Shelf()
    for size, capacity in CAPACITIES.items():
        if quick and capacity > CAPACITIES[FULL]:
            continue
        at = Capacity(size, Task(capacity), libraries, shelf)
        for cold in (False, True):
            made.append(at.cycle(256, cold))
            if size == FULL:
                made += [at.cycle(32, cold), at.cycle(4096, cold), at.dqn(cold)]
            if size == FULL or not cold:
                made += [at.sample(256, cold), at.update(256, cold)]
        if size == FULL:
            made += [at.sample(32), at.sample(4096), at.update(32), at.update(4096)]
            made += [at.rank_cycle(32), at.rank_cycle(256)]
    return made


class Capacity:
    """Rows of buffers of one capacity."""

    def __init__(self, size: str, task: Task, libraries: list[Library], shelf: Shelf) -> None:
        self.size, self.task, self.libraries, self.shelf = size, task, libraries, shelf
        self.tree = Tree(task)

    def sample(self, batch_size: int, cold: bool = False) -> Row:
        def build(library: Library) -> Workload:
            return Workload(self.shelf.get(library, "prioritized", self.task).sampling(batch_size))

        floors = {"binary tree": self.tree.sample(batch_size)}
        key, title = f"per-sample-{batch_size}-{self.size}", f"sample {batch_size}, {self.size}"
        return make_row(key, title, self.libraries, build, floors, cold)

    def update(self, batch_size: int, cold: bool = False) -> Row:
        def build(library: Library) -> Workload:
            return update(self.shelf.get(library, "prioritized", self.task), self.task, batch_size)

        floors = {"binary tree": self.tree.update(batch_size)}
        key, title = f"per-update-{batch_size}-{self.size}", f"update {batch_size}, {self.size}"
        return make_row(key, title, self.libraries, build, floors, cold)

    def cycle(self, batch_size: int, cold: bool = False) -> Row:
        """Add 1, sample, update."""
        key, title = f"per-cycle-{batch_size}-{self.size}", f"cycle {batch_size}, {self.size}"
        return self._cycle(key, title, batch_size, 1, cold)

    def dqn(self, cold: bool = False) -> Row:
        """The work of DQN: a batch of 32 for every four steps."""
        return self._cycle(f"per-dqn-{self.size}", f"add 4, sample 32, update 32, {self.size}", 32, 4, cold)

    def rank_cycle(self, batch_size: int) -> Row:
        """The cycle with rank-based priorities, compared with proportional ones."""
        ours = only_replaykit(self.libraries)

        def build(library: Library, kind: str = "rank") -> Workload:
            return cycle(self.shelf.get(library, "composed", self.task, (kind,)), self.task, batch_size)

        floors = {"proportional": build(ours[0], "prioritized")} if ours else {}
        return make_row(
            f"per-rank-{batch_size}-{self.size}", f"cycle {batch_size}, {self.size}, rank", ours, build, floors
        )

    def _cycle(self, key: str, title: str, batch_size: int, adds: int, cold: bool) -> Row:
        def build(library: Library) -> Workload:
            return cycle(self.shelf.get(library, "prioritized", self.task), self.task, batch_size, adds)

        floors = {"binary tree": self.tree.cycle(batch_size, adds)}
        return make_row(key, title, self.libraries, build, floors, cold)
