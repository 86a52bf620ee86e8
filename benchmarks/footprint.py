"""Memory that a library's buffer takes: ``python -m benchmarks.footprint LIBRARY CHECKOUT KIND BATCHES``

KIND is small (a million transitions of 17 float32), stored or once (stacks of frames). The resident memory is read
before the buffer is built and at its peak, while it is filled. Then so many batches are sampled, and the bytes that
stay are reported. Each call of this module is a process of its own. Linux only.
"""

import gc
import json
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from benchmarks.adapters import load
from benchmarks.adapters.base import Buffer, Library, NotOfferedError
from benchmarks.checkouts import import_replaykit
from benchmarks.data import PART_OF_FRAMES, FrameTask, Task

BATCH = 256
TASKS: dict[str, Task | FrameTask] = {
    "small": Task(1_000_000, obs=17, action=6),
    "stored": FrameTask(10 * PART_OF_FRAMES),
    "once": FrameTask(10 * PART_OF_FRAMES),
}
STATUS = Path("/proc/self/status")


def resident(field: str) -> int:
    """Bytes of memory that this process has now (VmRSS), or had at most (VmHWM)."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


def build(library: Library, kind: str, capacity: int) -> Buffer:
    """A full buffer."""
    if kind == "small":
        return library.uniform(Task(capacity, obs=17, action=6))
    return library.images(FrameTask(capacity), kind == "once")


def peak_of(make: Callable[[], Buffer]) -> tuple[Buffer, int]:
    """What `make` makes, and the bytes by which the resident memory rose at most."""
    gc.collect()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now
    buffer = make()
    return buffer, resident("VmHWM") - before


def kept_after(buffer: Buffer, batches: int) -> dict[str, float]:
    """Bytes that stay after so many batches: of the process; and that Python knows of, after a hundredth as many."""
    sample = buffer.sampling(BATCH)
    for _ in range(1000):
        sample()
    gc.collect()
    before = resident("VmRSS")
    for _ in range(batches):
        sample()
    gc.collect()
    grown = resident("VmRSS") - before
    tracemalloc.start()
    sample()
    known = tracemalloc.get_traced_memory()[0]
    for _ in range(batches // 100):
        sample()
    gc.collect()
    return {"grown": grown, "traced": tracemalloc.get_traced_memory()[0] - known}


def main() -> None:
    """Measure what the command line names, and print it as JSON."""
    name, checkout, kind, batches = *sys.argv[1:4], int(sys.argv[4])
    import_replaykit(checkout)
    library, task = load(name), TASKS[kind]
    try:
        build(library, kind, 2 * PART_OF_FRAMES).sampling(BATCH)()  # compile, and import what is imported late
    except NotOfferedError as reason:
        print(json.dumps({"absent": str(reason)}))
        return
    buffer, peak = peak_of(lambda: build(library, kind, task.capacity))
    found: dict[str, float] = {"peak": peak, "rows": task.capacity * task.row_bytes}
    if batches:
        found |= kept_after(buffer, batches)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
