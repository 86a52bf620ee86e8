"""Batches with one half from each of two buffers, compared with NumPy gathers from two sets of arrays."""

from typing import Any

import numpy as np

from benchmarks.adapters.base import Library
from benchmarks.data import Task
from benchmarks.floors import Rows
from benchmarks.sections.rows import Shelf, make_row
from benchmarks.timing import Fresh, Row, Workload

TASK, BATCHES = Task(300_000, obs=17, action=6), (256, 4096)


def rows(libraries: list[Library], quick: bool) -> list[Row]:
    shelf, made, floor = Shelf(), [], Rows(TASK)
    columns = [columns_of(TASK.halved()) for _ in range(2)]
    for batch_size in BATCHES:

        def sample(library: Library, batch_size: int = batch_size) -> Workload:
            return Workload(shelf.get(library, "mixed", TASK).sampling(batch_size))

        floors = {"gather": floor.gather(batch_size), "two gathers of each field": gathers(columns, batch_size)}
        made.append(make_row(f"mixture-{batch_size}", f"sample {batch_size} of two", libraries, sample, floors))
    return made


def columns_of(task: Task) -> list[np.ndarray[Any, Any]]:
    """An array for each field."""
    obs, action, scalar = (np.ones((task.capacity, *shape), np.float32) for shape in ((task.obs,), (task.action,), ()))
    flag = np.zeros(task.capacity, np.bool_)
    return [obs, action, scalar, obs.copy(), flag, flag.copy()]


def gathers(columns: list[list[np.ndarray[Any, Any]]], batch_size: int) -> Workload:
    """Gather half of the rows from each of two sets of arrays, at new indices, and join them field by field."""
    high, half = len(columns[0][0]), batch_size // 2
    indices = Fresh(lambda rng, calls: rng.integers(high, size=(calls, 2, half)))

    def call() -> Any:
        first, second = indices.take()
        pairs = zip(*columns, strict=True)
        return [np.concatenate((a.take(first, axis=0), b.take(second, axis=0))) for a, b in pairs]

    return Workload(call, (indices,))
