"""Writing: one transition, one of each of 64 lanes, and a stretch of 1024."""

from benchmarks.adapters.base import Library
from benchmarks.data import Task
from benchmarks.floors import Rows
from benchmarks.sections.rows import Shelf, make_row
from benchmarks.timing import Row, Workload

TASK = Task(1_000_000)
LANES = Task(64_000, lanes=64)
STRETCH = 1024


def rows(libraries: list[Library], quick: bool) -> list[Row]:
    shelf, floor, lanes = Shelf(), Rows(TASK), Rows(LANES)

    def one(library: Library) -> Workload:
        return Workload(shelf.get(library, "uniform", TASK).adding(TASK.one()))

    def one_prioritized(library: Library) -> Workload:
        return Workload(shelf.get(library, "prioritized", TASK).adding(TASK.one()))

    def of_lanes(library: Library) -> Workload:
        return Workload(shelf.get(library, "uniform", LANES).adding(LANES.one()))

    def stretch(library: Library) -> Workload:
        return Workload(shelf.get(library, "uniform", TASK).extending(TASK.stretch(0, STRETCH)))

    def short_stretch(library: Library) -> Workload:
        return Workload(shelf.get(library, "uniform", TASK).extending(TASK.stretch(0, LANES.lanes)))

    return [
        make_row("add-1", "add 1", libraries, one, {"a row written": floor.assign()}),
        make_row("add-1-per", "add 1, prioritized", libraries, one_prioritized, {"a row written": floor.assign()}),
        make_row("add-64", "add of 64 lanes", libraries, of_lanes, {"memory copy": lanes.copy(LANES.lanes)}),
        make_row("extend-64", "extend by 64", libraries, short_stretch, {"memory copy": floor.copy(LANES.lanes)}),
        make_row("extend-1024", "extend by 1024", libraries, stretch, {"memory copy": floor.copy(STRETCH)}),
    ]
