"""Computations at sampling time: three-step returns, and goals achieved later.

Each is compared with a uniform sample of the same fields, in the same rounds.
"""

from collections.abc import Callable

from benchmarks.adapters.base import N_STEP, Library
from benchmarks.data import Task
from benchmarks.floors import Rows
from benchmarks.sections.rows import Shelf, make_row, only_replaykit
from benchmarks.timing import Row, Workload

TASK = Task(1_000_000)
GOALS = Task(1_000_000, obs=10, action=4, goal=3, episode=50)
BATCH = 256


def n_step_rows(libraries: list[Library], quick: bool) -> list[Row]:
    shelf, floor = Shelf(), Rows(TASK)

    def build(kind: str) -> Callable[[Library], Workload]:
        return lambda library: Workload(shelf.get(library, kind, TASK).sampling(BATCH))

    twice = {"gather": floor.gather_twice(BATCH, N_STEP - 1)}
    return [
        make_row("n-step-uniform", "sample 256, 1 step", libraries, build("uniform"), {"gather": floor.gather(BATCH)}),
        make_row("n-step", f"sample 256, {N_STEP} steps", libraries, build("n_step"), twice),
    ]


def hindsight_rows(libraries: list[Library], quick: bool) -> list[Row]:
    """Hindsight with a reward function that costs almost nothing, because its cost does not belong to the library."""
    shelf, floor = Shelf(), Rows(GOALS)
    only = only_replaykit(libraries)

    def uniform(library: Library) -> Workload:
        return Workload(shelf.get(library, "uniform", GOALS).sampling(BATCH))

    def hindsight(library: Library) -> Workload:
        return Workload(shelf.get(library, "hindsight", GOALS).sampling(BATCH))

    def add_and_sample(library: Library) -> Workload:
        buffer = shelf.get(library, "hindsight", GOALS)
        add, sample = buffer.adding(GOALS.one()), buffer.sampling(BATCH)

        def call() -> None:
            add()
            sample()

        return Workload(call)

    relabelled = {"gather": floor.gather_with_goals(BATCH)}
    return [
        make_row("her-uniform", "sample 256, goals as stored", only, uniform, {"gather": floor.gather(BATCH)}),
        make_row("her", "sample 256, future goals", libraries, hindsight, relabelled),
        make_row("her-cycle", "add 1, sample 256, future goals", libraries, add_and_sample, relabelled),
    ]
