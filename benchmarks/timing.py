"""Timing: calls take turns in many short rounds, with warm or cold caches."""

import contextlib
import gc
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from benchmarks.adapters.base import Call
from benchmarks.machine import another_core

SLICE = 0.015
"""Seconds of a workload's calls in a round."""

TURNS, TURN = 5, 0.005
"""The number of turns of each version in a round, and the seconds of a turn."""

FIRST_CALLS = 3, 10, 10, 10
"""Number of calls before the first round. They compile everything. The fastest determine the calls per round."""

FIRST_PART = 10
"""A round begins with untimed calls, a tenth of the number of timed calls."""

COLD_CALLS = 7
"""Number of calls of a cold workload in a round."""

EVICTED_BYTES = 64 * 2**20
LOW, SPREAD = 20, (10, 90)
"""Percentiles of the rounds: the figure, and the ends of its spread."""

Clock: TypeAlias = Callable[[], float]
SEEDS = np.random.SeedSequence(0)


class Fresh:
    """New arguments for each call of a workload, drawn before the round: ``fresh.take()``.

    ``draw(rng, calls)`` returns the arguments of `calls` calls. Each object has its own random stream. If two workloads
    had the same numbers, an update would not change the priority, and some trees would then stop early.
    """

    def __init__(self, draw: Callable[[np.random.Generator, int], Any]) -> None:
        self.draw = draw
        self.rng = np.random.default_rng(SEEDS.spawn(1)[0])
        self.take: Call = iter(()).__next__

    def prepare(self, calls: int) -> None:
        """Draw the arguments of `calls` calls."""
        self.take = iter(list(self.draw(self.rng, calls))).__next__


@dataclass
class Workload:
    """A call to be timed, and its arguments, which are drawn in advance.

    `beside` is a call that a second thread repeats at the same time.
    """

    call: Call
    fresh: tuple[Fresh, ...] = ()
    beside: Call | None = None

    def prepare(self, calls: int) -> None:
        """Prepare `calls` calls. This is not timed."""
        for supply in self.fresh:
            supply.prepare(calls)


@dataclass
class Row:
    """One workload for every library that has it, and the floors: the minimum that the machine needs for it.

    Ratios are given relative to the first floor.
    """

    key: str
    title: str
    workloads: dict[str, Workload] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    floors: dict[str, Workload] = field(default_factory=dict)
    cold: bool = False

    @property
    def everything(self) -> dict[str, Workload]:
        """All timed workloads."""
        return self.workloads | self.floors


@dataclass
class Measured:
    """A row after its measurement: the values of all rounds for each library, floor or version.

    The k-th values of all names were measured in the same round.
    """

    key: str
    title: str
    unit: str
    values: dict[str, list[float]] = field(default_factory=dict)
    floors: tuple[str, ...] = ()
    absent: dict[str, str] = field(default_factory=dict)

    def figures(self) -> dict[str, Any]:
        """The row for reports and files, with a low percentile of each name's rounds."""
        return {
            "key": self.key,
            "title": self.title,
            "figures": {name: figure(values, self.unit) for name, values in self.values.items()},
            "floors": list(self.floors),
            "absent": self.absent,
        }


class Timer:
    """Times the workloads of some rows. A new timer calls each a few times, so that everything is compiled.

    The default clock is the wall clock, because some libraries use several threads. If no library does, the CPU time of
    this thread is better, because it excludes other processes.
    """

    def __init__(self, rows: list[Row], seconds: float = SLICE, clock: Clock = time.perf_counter) -> None:
        self.clock = clock
        self.rows = {row.key: row for row in rows}
        self.cache = np.ones(EVICTED_BYTES // 8 if any(row.cold for row in rows) else 0)
        self.calls = {
            (row.key, name): self._calls(row, workload, seconds)
            for row in rows
            for name, workload in row.everything.items()
        }

    def _calls(self, row: Row, workload: Workload, seconds: float) -> int:
        """The number of calls of a workload in `seconds` seconds. Measuring it also compiles everything."""
        fastest = np.inf
        with second_thread(workload.beside):
            for count in FIRST_CALLS:
                workload.prepare(count)
                fastest = min(fastest, _warm(workload.call, count, self.clock))
        return COLD_CALLS if row.cold else int(np.clip(seconds / fastest, 3, 10_000))

    def time(self, key: str, name: str) -> float:
        """Microseconds of a call in one round.

        A warm workload is first called a few times, so that the caches hold its data. Then it is called for the timer's
        seconds, and the result is the mean. A cold workload is called a few times, each time after flushing the caches,
        and the result is the median.
        """
        row, count = self.rows[key], self.calls[key, name]
        workload, first_calls = row.everything[name], 0 if row.cold else 1 + count // FIRST_PART
        workload.prepare(first_calls + count)
        gc.disable()
        with second_thread(workload.beside):
            for _ in range(first_calls):
                workload.call()
            seconds = self._cold(workload.call, count) if row.cold else _warm(workload.call, count, self.clock)
        gc.enable()
        return 1e6 * seconds

    def _cold(self, call: Call, count: int) -> float:
        spent = []
        for _ in range(count):
            self.cache.sum()
            start = self.clock()
            call()
            spent.append(self.clock() - start)
        return float(np.median(spent))


@contextlib.contextmanager
def second_thread(call: Call | None) -> Iterator[None]:
    """A context in which another thread, on another core if there is one, repeats `call`."""
    if call is None:
        yield
        return
    begun, over = threading.Event(), threading.Event()

    def work() -> None:
        another_core()
        call()
        begun.set()
        while not over.is_set():
            call()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    begun.wait()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def few_objects() -> Iterator[None]:
    """A context in which the garbage collector ignores the objects that exist at its start."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def measure(rows: list[Row], rounds: int, tick: Callable[[], Any], clock: Clock = time.perf_counter) -> list[Measured]:
    """The rows with their times in microseconds.

    A round goes through all rows, and in each row through all names, starting with a different one each time. `tick` is
    called after each.
    """
    timer = Timer(rows, clock=clock)
    measured = {row.key: measured_of(row, list(row.everything)) for row in rows}
    with few_objects():
        for turn in range(rounds):
            gc.collect()
            for row in rows:
                names = list(row.everything)
                first = turn % len(names) if names else 0
                for name in names[first:] + names[:first]:
                    measured[row.key].values[name].append(timer.time(row.key, name))
                    tick()
    return list(measured.values())


def measured_of(row: Row, names: list[str]) -> Measured:
    """The row without values, in microseconds, for these names."""
    return Measured(row.key, row.title, "us", {name: [] for name in names}, tuple(row.floors), row.absent)


def _warm(call: Call, count: int, clock: Clock) -> float:
    start = clock()
    for _ in range(count):
        call()
    return (clock() - start) / count


def figure(values: list[float], unit: str, percentile: float = LOW) -> dict[str, Any]:
    """A percentile of the rounds and their spread."""
    value, low, high = (round(float(np.percentile(values, p)), 4) for p in (percentile, *SPREAD))
    return {"value": value, "low": low, "high": high, "unit": unit, "rounds": len(values)}
