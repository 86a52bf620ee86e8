"""Memory: the peak while a buffer is filled, relative to the stored bytes; and the memory that sampling retains."""

from collections.abc import Callable
from typing import Any

from benchmarks.footprint import STATUS
from benchmarks.processes import Subject
from benchmarks.timing import Measured

TITLES = {
    "small": "peak, 1e6 transitions, D=17, A=6",
    "stored": "peak, images, stacks stored",
    "once": "peak, images, frugal",
}


def results(subjects: list[Subject], quick: bool, tick: Callable[[], Any]) -> list[Measured]:
    """Rows of ratios to the bytes of the rows, and the bytes that replaykit's sampling retains."""
    if not STATUS.exists():
        return []
    rows = []
    for kind, title in _titles(quick).items():
        row = Measured(f"memory-{kind}", title, "x")
        for subject in subjects:
            found = subject.run("footprint", kind, "0")
            if "absent" in found:
                row.absent[subject.name] = found["absent"]
            else:
                row.values[subject.name] = [found["peak"] / found["rows"]]
            tick()
        rows.append(row)
    batches = 20_000 if quick else 1_000_000
    kept = Measured("memory-kept", f"kept of each of {batches} batches of 256", "B")
    traced = Measured("memory-traced", "of that, Python's objects", "B")
    for subject in _ours(subjects):
        found = subject.run("footprint", "small", str(batches))
        kept.values[subject.name], traced.values[subject.name] = [found["grown"] / batches], [found["traced"] / batches]
        tick()
    return [*rows, kept, traced]


def _ours(subjects: list[Subject]) -> list[Subject]:
    return [subject for subject in subjects if subject.is_replaykit]


def ticks(subjects: list[Subject], quick: bool) -> int:
    """The number of times that `results` calls `tick`."""
    return len(_titles(quick)) * len(subjects) + len(_ours(subjects)) if STATUS.exists() else 0


def _titles(quick: bool) -> dict[str, str]:
    return {"small": TITLES["small"]} if quick else TITLES
