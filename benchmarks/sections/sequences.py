"""Rows of 80 consecutive transitions, compared with NumPy gathers of the same transitions."""

from typing import Any

import numpy as np

from benchmarks.adapters.base import Library
from benchmarks.data import SCREEN, FrameTask, ScreenTask, Task
from benchmarks.sections.rows import Shelf, make_row
from benchmarks.timing import Fresh, Row, Workload

BATCH, LENGTH = 32, 80
VECTORS, SCREENS = Task(300_000, obs=17, action=6, episode=1000), ScreenTask(30_000)


def rows(libraries: list[Library], quick: bool) -> list[Row]:
    shelf, made = Shelf(), []
    tasks: list[tuple[str, str, Task | FrameTask]] = [
        ("obs17", "D=17, A=6", VECTORS),
        ("screens", "84x84 frames", ScreenTask(3_000) if quick else SCREENS),
    ]
    for key, words, task in tasks:

        def sample(library: Library, task: Task | FrameTask = task) -> Workload:
            return Workload(shelf.get(library, "sequences", task, LENGTH).sampling(BATCH))

        title = f"sample {BATCH} x {LENGTH}, {words}"
        made.append(make_row(f"sequences-{key}", title, libraries, sample, {"gather": gather(task)}))
    return made


def gather(task: Task | FrameTask) -> Workload:
    """``numpy.take`` of every field for the transitions of new rows."""
    shape, action = ((task.obs,), (task.action,)) if isinstance(task, Task) else (SCREEN, ())
    dtype = np.float32 if isinstance(task, Task) else np.uint8
    obs, scalar, flag = np.ones((task.capacity, *shape), dtype), np.ones(task.capacity, np.float32), np.bool_
    fields = [obs, np.ones((task.capacity, *action), np.float32), scalar, obs.copy()]
    fields += [np.zeros(task.capacity, flag), np.zeros(task.capacity, flag)]
    places, high = np.arange(LENGTH), task.capacity - LENGTH
    starts = Fresh(lambda rng, calls: rng.integers(high, size=(calls, BATCH, 1)))

    def call() -> Any:
        indices = starts.take() + places
        return [field.take(indices, axis=0, mode="clip") for field in fields]

    return Workload(call, (starts,))
