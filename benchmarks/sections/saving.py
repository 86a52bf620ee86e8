"""Checkpoints of a million transitions; see `benchmarks.saving`."""

from collections.abc import Callable
from typing import Any

from benchmarks.processes import Subject
from benchmarks.timing import Measured

ONE_FILE = "numpy.save"
ROWS = {
    "save": "a checkpoint",
    "save again": "another one, after 1,000 adds",
    "load": "loading it",
    "pickle": "a pickle of the buffer",
}


def results(subjects: list[Subject], quick: bool, tick: Callable[[], Any]) -> list[Measured]:
    """Rows of seconds for replaykit, compared with one file of the same size."""
    rows = [Measured(f"saving-{key.replace(' ', '-')}", title, "s", floors=(ONE_FILE,)) for key, title in ROWS.items()]
    for subject in subjects:
        if subject.is_replaykit:
            found = subject.run("saving", "1" if quick else "7")
            for row, key in zip(rows, ROWS, strict=True):
                row.values[subject.name], row.values[ONE_FILE] = found[key], found[ONE_FILE]
            tick()
    return rows


def ticks(subjects: list[Subject], quick: bool) -> int:
    """The number of times that `results` calls `tick`."""
    return sum(subject.is_replaykit for subject in subjects)
