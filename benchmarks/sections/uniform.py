"""Uniform samples of small observations."""

from benchmarks.adapters.base import Library
from benchmarks.data import Task
from benchmarks.floors import Rows
from benchmarks.sections.rows import Shelf, make_row
from benchmarks.timing import Row, Workload

TASKS = {"D=4": Task(1_000_000), "D=17, A=6": Task(1_000_000, obs=17, action=6)}
BATCHES = ((32, False), (256, False), (256, True), (4096, False))
GIVEN = 4096


def rows(libraries: list[Library], quick: bool) -> list[Row]:
    shelf, made = Shelf(), []
    for name, task in TASKS.items():
        floor = Rows(task)
        for batch_size, cold in BATCHES:

            def sample(library: Library, task: Task = task, batch_size: int = batch_size) -> Workload:
                return Workload(shelf.get(library, "uniform", task).sampling(batch_size))

            key, title = f"sample-{batch_size}-obs{task.obs}", f"sample {batch_size}, {name}"
            floors = {"gather": floor.gather(batch_size), "random reads": floor.random_reads(batch_size)}
            made.append(make_row(key, title, libraries, sample, floors, cold))

        def given(library: Library, task: Task = task, floor: Rows = floor) -> Workload:
            indices = floor.indices(GIVEN)
            return Workload(shelf.get(library, "uniform", task).gathering(lambda: indices.take()), (indices,))

        floors = {"random reads": floor.random_reads(GIVEN), "gather": floor.gather(GIVEN)}
        made.append(
            make_row(f"given-{GIVEN}-obs{task.obs}", f"{GIVEN} given indices, {name}", libraries, given, floors)
        )
    return made
