"""Writing: one transition, one for each of several lanes, and many at once."""

from collections.abc import Callable

import numpy as np

from benchmarks.adapters.base import Library
from benchmarks.data import Task
from benchmarks.floors import Rows
from benchmarks.sections.rows import Shelf, make_row, only_replaykit
from benchmarks.timing import Row, Workload

TASK = Task(1_000_000)
GOALS = Task(300_000, obs=10, action=4, goal=3, episode=50)
FEW_LANES, MASKED_LANES, LANES = (Task(64_000, lanes=lanes) for lanes in (4, 8, 64))
WRITTEN_LANES = Task(32_000, lanes=4)
STRETCHES = (64, 1024, 4096)
MASK = np.arange(MASKED_LANES.lanes) % 3 != 1


def rows(libraries: list[Library], quick: bool) -> list[Row]:
    shelf, floor, ours = Shelf(), Rows(TASK), only_replaykit(libraries)

    def one(kind: str, task: Task) -> Callable[[Library], Workload]:
        return lambda library: Workload(shelf.get(library, kind, task).adding(task.one()))

    def masked(library: Library) -> Workload:
        return Workload(shelf.get(library, "uniform", MASKED_LANES).adding_some(MASKED_LANES.one(), MASK))

    def to_one(library: Library) -> Workload:
        return Workload(shelf.get(library, "uniform", WRITTEN_LANES).adding_to(1, TASK.one()))

    def stretch(count: int) -> Callable[[Library], Workload]:
        return lambda library: Workload(shelf.get(library, "uniform", TASK).extending(TASK.stretch(0, count)))

    def written(task: Task) -> dict[str, Workload]:
        return {"a row written": Rows(task).assign()}

    def copied(task: Task) -> dict[str, Workload]:
        return {"memory copy": Rows(task).copy(task.lanes)}

    row_written = {"a row written": floor.assign()}
    made = [
        make_row("add-1", "add 1", libraries, one("uniform", TASK), row_written),
        make_row("add-1-per", "add 1, prioritized", libraries, one("prioritized", TASK), row_written),
        make_row("add-1-goals", "add 1, dict of 3 observations", ours, one("uniform", GOALS), written(GOALS)),
        make_row("add-4", "add of 4 lanes", libraries, one("uniform", FEW_LANES), copied(FEW_LANES)),
        make_row("add-64", "add of 64 lanes", libraries, one("uniform", LANES), copied(LANES)),
        make_row("add-writer", "add of 1 of 4 lanes, by a writer", ours, to_one, row_written),
        make_row("add-masked", f"add of {MASK.sum()} of 8 lanes, masked", ours, masked, copied(MASKED_LANES)),
    ]
    for count in STRETCHES:
        floors = {"memory copy": floor.copy(count)}
        made.append(make_row(f"extend-{count}", f"extend by {count}", libraries, stretch(count), floors))
    return made
