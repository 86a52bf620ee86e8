"""Stacks of four 84x84 frames: stored unchanged, or in each library's most compact form."""

from collections.abc import Callable

from benchmarks.adapters.base import Library
from benchmarks.data import FrameTask
from benchmarks.floors import screen_copies
from benchmarks.sections.rows import Shelf, make_row
from benchmarks.timing import Row, Workload

BATCHES = (32, 256)


def rows(libraries: list[Library], quick: bool) -> list[Row]:
    task, shelf, made = FrameTask(10_000), Shelf(), []

    def build(batch_size: int, once: bool) -> Callable[[Library], Workload]:
        return lambda library: Workload(shelf.get(library, "images", task, once).sampling(batch_size))

    for once, form in ((False, "stacks stored"), (True, "frugal")):
        for batch_size in BATCHES:
            key = f"images-{batch_size}-{'once' if once else 'stored'}"
            title, floors = f"sample {batch_size}, {form}", screen_copies(batch_size)
            made.append(make_row(key, title, libraries, build(batch_size, once), floors))
    return made
