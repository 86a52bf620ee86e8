"""How a call is timed: in turn with all others, in many short rounds, with caches warm or cold."""

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.adapters.base import Call

SLICE = 0.015
"""Seconds that a workload is called for in a round."""

COLD_CALLS = 7
"""Calls of a cold workload in a round."""

EVICTED_BYTES = 64 * 2**20
LOW, SPREAD = 20, (10, 90)
"""Percentiles of the rounds: the figure, and what is told of its spread."""


SEEDS = np.random.SeedSequence(0)


class Fresh:
    """New arguments for each call of a workload, drawn before the round: ``fresh.take()``.

    ``draw(rng, calls)`` returns those of so many calls. Each supply has a stream of its own: with the same numbers in
    two workloads, an update would find the priority that it sets, and some trees stop there.
    """

    def __init__(self, draw: Callable[[np.random.Generator, int], Any]) -> None:
        self.draw = draw
        self.rng = np.random.default_rng(SEEDS.spawn(1)[0])
        self.take: Call = iter(()).__next__

    def prepare(self, calls: int) -> None:
        """Draw for so many calls."""
        self.take = iter(list(self.draw(self.rng, calls))).__next__


@dataclass
class Workload:
    """A call to be timed, and the arguments that are drawn for it beforehand."""

    call: Call
    fresh: tuple[Fresh, ...] = ()

    def prepare(self, calls: int) -> None:
        """Make ready for so many calls; not timed."""
        for supply in self.fresh:
            supply.prepare(calls)


@dataclass
class Row:
    """One workload on every library that has it, and the floors: what the machine needs at least for the same.

    The first floor is the one that ratios are told to.
    """

    key: str
    title: str
    workloads: dict[str, Workload] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    floors: dict[str, Workload] = field(default_factory=dict)
    cold: bool = False

    @property
    def everything(self) -> dict[str, Workload]:
        """All that is timed."""
        return self.workloads | self.floors


def measure(rows: list[Row], rounds: int, tick: Callable[[], Any]) -> list[dict[str, Any]]:
    """The rows with their figures, in microseconds.

    A round goes through all rows, and in each through all that is in it, beginning with another one each time. Each is
    called for `SLICE` seconds, and the round's figure is the mean; a cold one is called a few times, each after the
    caches were swept, and the round's figure is the median. `tick` is called after each.
    """
    cache = np.ones(EVICTED_BYTES // 8)
    calls = {(row.key, name): _calls(row, workload) for row, name, workload in _all(rows)}
    rounded: dict[tuple[str, str], list[float]] = {place: [] for place in calls}
    gc.collect()
    gc.freeze()
    for turn in range(rounds):
        gc.collect()
        for row in rows:
            names = list(row.everything)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                workload, count = row.everything[name], calls[row.key, name]
                workload.prepare(count)
                gc.disable()
                seconds = _cold(workload.call, count, cache) if row.cold else _warm(workload.call, count)
                gc.enable()
                rounded[row.key, name].append(1e6 * seconds)
                tick()
    gc.unfreeze()
    return [
        row_of(
            row.key,
            row.title,
            {name: figure(rounded[row.key, name], "us") for name in row.everything},
            list(row.floors),
            row.absent,
        )
        for row in rows
    ]


def _all(rows: list[Row]) -> Iterator[tuple[Row, str, Workload]]:
    for row in rows:
        for name, workload in row.everything.items():
            yield row, name, workload


def _calls(row: Row, workload: Workload) -> int:
    """How often a workload is called in a round; by finding out, everything is compiled."""
    for count in (3, 10):
        workload.prepare(count)
        seconds = _warm(workload.call, count)
    return COLD_CALLS if row.cold else int(np.clip(SLICE / seconds, 3, 10_000))


def _warm(call: Call, count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def _cold(call: Call, count: int, cache: Any) -> float:
    spent = []
    for _ in range(count):
        cache.sum()
        start = time.perf_counter()
        call()
        spent.append(time.perf_counter() - start)
    return float(np.median(spent))


def figure(values: list[float], unit: str) -> dict[str, Any]:
    """A low percentile of the rounds, and their spread."""
    value, low, high = (round(float(np.percentile(values, p)), 4) for p in (LOW, *SPREAD))
    return {"value": value, "low": low, "high": high, "unit": unit, "rounds": len(values)}


def row_of(
    key: str,
    title: str,
    figures: dict[str, dict[str, Any]],
    floors: list[str] | None = None,
    absent: dict[str, str] | None = None,
) -> dict[str, Any]:
    """A row as it is kept: the figures of libraries and floors, the floors' names, and why libraries are absent."""
    return {"key": key, "title": title, "figures": figures, "floors": floors or [], "absent": absent or {}}
