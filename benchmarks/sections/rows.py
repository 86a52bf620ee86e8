"""How the sections make their rows: buffers are built once, and missing features of a library are recorded."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.adapters.base import Buffer, Call, Library, NotOfferedError
from benchmarks.data import FrameTask, Task
from benchmarks.timing import Fresh, Row, Workload


class Shelf:
    """Full buffers of the libraries, each built at its first use."""

    def __init__(self) -> None:
        self.buffers: dict[Any, Buffer] = {}

    def get(self, library: Library, kind: str, task: Task | FrameTask, *options: Any) -> Buffer:
        """The buffer that the library's method `kind` builds. Raises `NotOfferedError` if there is none."""
        key = (library.name, kind, task, options)
        if key not in self.buffers:
            self.buffers[key] = getattr(library, kind)(task, *options)
        return self.buffers[key]


def make_row(
    key: str,
    title: str,
    libraries: list[Library],
    build: Callable[[Library], Workload],
    floors: dict[str, Workload],
    cold: bool = False,
) -> Row:
    """A row with the result of `build` for each library, or the reason why there is none."""
    row = Row(key + "-cold" * cold, title + ", cold" * cold, floors=floors, cold=cold)
    for library in libraries:
        _add(row, library, build)
    return row


def only_replaykit(libraries: list[Library]) -> list[Library]:
    """For rows of features that the other libraries do not have."""
    return [library for library in libraries if library.name == "replaykit"]


def _add(row: Row, library: Library, build: Callable[[Library], Workload]) -> None:
    try:
        row.workloads[library.name] = build(library)
    except NotOfferedError as reason:
        row.absent[library.name] = str(reason)


def in_turn(calls: list[Call]) -> Workload:
    """The calls in turn, repeatedly."""
    endless = itertools.cycle(calls)
    following = Fresh(lambda rng, count: itertools.islice(endless, count))
    return Workload(lambda: following.take()(), (following,))


def fresh_errors(batch_size: int) -> Fresh:
    """Absolute TD errors, float32 as from a network, new ones for each call."""
    return Fresh(lambda rng, calls: np.abs(rng.standard_normal((calls, batch_size), np.float32)))


def cycle(buffer: Buffer, task: Task, batch_size: int, adds: int = 1) -> Workload:
    """The work of an agent with prioritized replay: add, sample, and update the batch with new errors."""
    add, sample, errors = buffer.adding(task.one()), buffer.sampling(batch_size), fresh_errors(batch_size)
    update, indices_of = buffer.update, buffer.indices_of
    if adds == 1:  # no loop, because a loop would add to the measured time

        def call() -> None:
            add()
            update(indices_of(sample()), errors.take())

    else:

        def call() -> None:
            for _ in range(adds):
                add()
            update(indices_of(sample()), errors.take())

    return Workload(call, (errors,))


def update(buffer: Buffer, task: Task, batch_size: int) -> Workload:
    """Update random transitions with new priorities in each call."""
    indices = Fresh(lambda rng, calls: buffer.random_indices(rng, (calls, batch_size), task.capacity))
    errors, change = fresh_errors(batch_size), buffer.update
    return Workload(lambda: change(indices.take(), errors.take()), (indices, errors))
