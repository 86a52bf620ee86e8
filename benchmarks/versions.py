"""Two versions of replaykit measured in one run: ``python -m benchmarks --before CHECKOUT``

Each version is imported in a separate worker process, and both run the benchmarks of this checkout. The workers take
turns, row by row, so that both versions of a row are measured within milliseconds. In a round, each version has several
short turns, of which the fastest counts. Other work on the machine therefore has little influence on the ratio of a
round. The ratio of a row is the median over its rounds.

The memory layout of a process can make a call faster or slower during its whole life. The workers are therefore
restarted several times. Times are CPU times of the thread, because replaykit uses one thread.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.catalogue import IN_PROCESSES, TIMED
from benchmarks.checkouts import HERE
from benchmarks.processes import Subject
from benchmarks.timing import TURNS, Measured, figure

MEDIAN = 50
NAMES = BEFORE, AFTER = "before", "after"
ROUNDS_OF_A_LAUNCH = 8
"""Maximum number of rounds before the workers are restarted."""


class Worker:
    """A worker process with the rows of a section, for one version."""

    def __init__(self, checkout: str, section: str, quick: bool) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", checkout, section, "quick" if quick else ""],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=HERE,
            env=os.environ | {"PYTHONWARNINGS": "ignore", "PYTHONHASHSEED": "0"},
        )
        self.rows: list[dict[str, Any]] = self._answer()

    def time(self, key: str, name: str) -> float:
        """Microseconds of a call in one turn."""
        assert self.process.stdin is not None
        print(json.dumps((key, name)), file=self.process.stdin, flush=True)
        return float(self._answer())

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("a worker process failed; its error is printed above")
        return json.loads(line)

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


class Versions:
    """Both versions. Measures sections with them."""

    def __init__(self, before: str) -> None:
        self.checkouts = {BEFORE: before, AFTER: str(HERE)}
        self.subjects = [Subject(name, "replaykit", "import replaykit", path) for name, path in self.checkouts.items()]

    def measure(self, section: str, rounds: int, quick: bool, progress: Callable[[str, int], Any]) -> list[Measured]:
        """The rows of a section, with values for "before", "after" and the floors."""
        if section in TIMED:
            return self._timed(section, rounds, quick, progress)
        module = IN_PROCESSES[section][1]
        with progress(section, module.ticks(self.subjects, quick)) as bar:
            measured: list[Measured] = module.results(self.subjects, quick, bar.update)
        return measured

    def _timed(self, section: str, rounds: int, quick: bool, progress: Callable[[str, int], Any]) -> list[Measured]:
        rows: list[Measured] = []
        with progress(section, rounds) as bar:
            for first in range(0, rounds, ROUNDS_OF_A_LAUNCH):
                workers: dict[str, Worker] = {}
                try:
                    for name in NAMES:
                        workers[name] = Worker(self.checkouts[name], section, quick)
                    rows = rows or [_measured(*pair) for pair in zip(*_rows_of(workers), strict=True)]
                    for turn in range(first, min(first + ROUNDS_OF_A_LAUNCH, rounds)):
                        _measure_round(rows, workers, turn)
                        bar.update()
                finally:
                    for worker in workers.values():
                        worker.stop()
        return rows


def _rows_of(workers: dict[str, Worker]) -> list[list[dict[str, Any]]]:
    return [workers[name].rows for name in NAMES]


def _measured(before: dict[str, Any], after: dict[str, Any]) -> Measured:
    """A row without values, from the descriptions of both workers."""
    row = Measured(after["key"], after["title"], "us", floors=tuple(after["floors"]))
    for name, has in zip(NAMES, (before, after), strict=True):
        if has["has replaykit"]:
            row.values[name] = []
        else:
            row.absent[name] = has["absent"]["replaykit"]
    row.values |= {name: [] for name in row.floors}
    return row


def _measure_round(rows: list[Measured], workers: dict[str, Worker], turn: int) -> None:
    """Measure both versions of each row, in a different order each time, and the floors with the later version."""
    for row in rows:
        names = list(row.values)
        places = {name: (workers[AFTER], name) for name in row.floors}
        places |= {name: (workers[name], "replaykit") for name in names if name in workers}
        times: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(TURNS):
            for name in names if turn % 2 else names[::-1]:
                worker, workload = places[name]
                times[name].append(worker.time(row.key, workload))
        for name in names:
            row.values[name].append(min(times[name]))


def compared(row: Measured) -> dict[str, Any]:
    """The row for reports and files: medians of both versions and of floors, and the ratio after/before."""
    figures = {name: figure(values, row.unit, MEDIAN) for name, values in row.values.items()}
    if all(name in figures for name in NAMES):
        figures["ratio"] = figure(ratios(row.values[AFTER], row.values[BEFORE]), "x", MEDIAN)
    return {"key": row.key, "title": row.title, "figures": figures, "floors": list(row.floors), "absent": row.absent}


def ratios(values: list[float], others: list[float]) -> list[float]:
    """The ratio of each round."""
    return [value / other for value, other in zip(values, others, strict=True)]
