"""Two threads on one buffer: an actor that adds and a learner that samples, compared with the same calls alone.

The second thread repeats its call while the first is timed. Both need Python's global interpreter lock, so in every
library each call takes longer than alone.
"""

from collections.abc import Callable

from benchmarks.adapters.base import Buffer, Call, Library, NotOfferedError
from benchmarks.data import Task
from benchmarks.sections.rows import Shelf, make_row
from benchmarks.timing import Row, Workload

TASK = Task(300_000)
BATCH = 256
Work = Callable[[Buffer], Call]
"""A call on a buffer that a thread repeats."""


def rows(libraries: list[Library], quick: bool) -> list[Row]:
    shelf = Shelf()

    def row(key: str, title: str, kind: str, first: Work, second: Work | None = None) -> Row:
        def build(library: Library) -> Workload:
            if not library.is_for_threads:
                raise NotOfferedError("does not say that threads may share a buffer")
            buffer = shelf.get(library, kind, TASK)
            return Workload(first(buffer), beside=second and second(buffer))

        return make_row(f"threads-{key}", title, libraries, build, {})

    made = []
    for kind in ("uniform", "prioritized"):
        made += [
            row(f"add-alone-{kind}", f"add 1, {kind}, alone", kind, act),
            row(f"add-{kind}", f"add 1, {kind}, beside a learner", kind, act, learn),
            row(f"sample-alone-{kind}", f"sample {BATCH}, {kind}, alone", kind, learn),
            row(f"sample-{kind}", f"sample {BATCH}, {kind}, beside an actor", kind, learn, act),
        ]
    return made


def act(buffer: Buffer) -> Call:
    """Add a step."""
    return buffer.adding(TASK.one())


def learn(buffer: Buffer) -> Call:
    """Sample a batch."""
    return buffer.sampling(BATCH)
