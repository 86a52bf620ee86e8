"""Memory of a library's buffer: ``python -m benchmarks.footprint LIBRARY CHECKOUT KIND BATCHES``

KIND is small (one million transitions of 17 float32), stored or once (stacks of frames). The resident memory is read
before the buffer is built and at its peak, while it is filled. Then BATCHES batches are sampled, and the bytes that are
not released are reported. Each call of this module is a separate process. Linux only.
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
    """Memory of this process in bytes: current (VmRSS) or peak (VmHWM)."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


def build(library: Library, kind: str, capacity: int) -> Buffer:
    """A full buffer."""
    if kind == "small":
        return library.uniform(Task(capacity, obs=17, action=6))
    return library.images(FrameTask(capacity), kind == "once")


def peak_of(make: Callable[[], Buffer]) -> tuple[Buffer, int]:
    """The result of `make`, and the largest increase of the resident memory in bytes."""
    gc.collect()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    buffer = make()
    return buffer, resident("VmHWM") - before


def kept_after(buffer: Buffer, batches: int) -> dict[str, float]:
    """Bytes not released after `batches` batches, for the process; for Python's objects after 1 % of the batches."""
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
    """Measure according to the command line, and print the result as JSON."""
    name, checkout, kind, batches = *sys.argv[1:4], int(sys.argv[4])
    import_replaykit(checkout)
    library, task = load(name), TASKS[kind]
    try:
        build(library, kind, 2 * PART_OF_FRAMES).sampling(BATCH)()  # compile, and run lazy imports
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
