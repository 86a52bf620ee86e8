"""The longest single add in each of three laps of a ring of a million transitions; see `benchmarks.pauses`."""

from collections.abc import Callable
from typing import Any

from benchmarks.pauses import LAPS
from benchmarks.processes import Subject
from benchmarks.timing import Measured

LANES = (1, 64)


def results(subjects: list[Subject], quick: bool, tick: Callable[[], Any]) -> list[Measured]:
    """Rows of milliseconds of the thread's CPU time, for replaykit only."""
    rows = []
    for lanes in LANES:
        laps = [Measured(pause_key(lanes, lap), _title(lanes, lap), "ms") for lap in range(1, LAPS + 1)]
        for subject in _ours(subjects):
            found: Any = subject.run("pauses", str(lanes), "2" if quick else "3")
            for row, milliseconds in zip(laps, found, strict=True):
                row.values[subject.name] = milliseconds
            tick()
        rows += laps
    return rows


def ticks(subjects: list[Subject], quick: bool) -> int:
    """The number of times that `results` calls `tick`."""
    return len(LANES) * len(_ours(subjects))


def pause_key(lanes: int, lap: int) -> str:
    """The key of a row."""
    return f"pause-{lanes}-lap-{lap}"


def _title(lanes: int, lap: int) -> str:
    return f"longest add of lap {lap}, {lanes} lane{'s' * (lanes > 1)}"


def _ours(subjects: list[Subject]) -> list[Subject]:
    return [subject for subject in subjects if subject.is_replaykit]
