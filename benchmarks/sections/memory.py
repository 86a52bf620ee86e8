"""Memory: the peak while a buffer is filled, over the bytes of what is stored; and what sampling leaves behind."""

from collections.abc import Callable
from typing import Any

from benchmarks.adapters.base import Library
from benchmarks.footprint import STATUS
from benchmarks.processes import run
from benchmarks.timing import figure, row_of

TITLES = {
    "small": "peak, 1e6 transitions, D=17, A=6",
    "stored": "peak, images, stacks stored",
    "once": "peak, images, frugal",
}


def results(libraries: list[Library], quick: bool, tick: Callable[[], Any]) -> list[dict[str, Any]]:
    """Rows of ratios to the bytes of the rows, and one of the bytes that replaykit's sampling keeps."""
    if not STATUS.exists():
        return []
    rows = []
    for kind, title in _titles(quick).items():
        row = row_of(f"memory-{kind}", title, {})
        for library in libraries:
            found = run("-m", "benchmarks.footprint", library.name, kind, "0")
            if "absent" in found:
                row["absent"][library.name] = found["absent"]
            else:
                row["figures"][library.name] = figure([found["peak"] / found["rows"]], "x")
            tick()
        rows.append(row)
    batches = 20_000 if quick else 1_000_000
    found = run("-m", "benchmarks.footprint", "replaykit", "small", str(batches))
    tick()
    kept = {
        "replaykit": figure([found["grown"] / batches], "B"),
        "of that, Python's": figure([found["traced"] / batches], "B"),
    }
    return [*rows, row_of("memory-kept", f"kept of each of {batches} batches of 256", kept)]


def ticks(libraries: list[Library], quick: bool) -> int:
    """How often `results` calls its `tick`."""
    return len(_titles(quick)) * len(libraries) + 1 if STATUS.exists() else 0


def _titles(quick: bool) -> dict[str, str]:
    return {"small": TITLES["small"]} if quick else TITLES
