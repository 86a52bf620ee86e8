"""The longest add of each lap of a large ring: ``python -m benchmarks.pauses LIBRARY CHECKOUT LANES FILLS``

A buffer of one million transitions is filled three times, one step of every lane at a time. The time of an add is the
CPU time of the thread, which excludes other processes. An interrupt, or another guest on the same processor, can still
make an add look slow. Several buffers are therefore filled with the same steps and compared add by add: a pause caused
by the buffer appears each time. For each add, the shorter time of two fillings counts.

Reading the clock takes as long as an add of one lane. Such adds are therefore timed in groups of ten, and the longest
group gives an upper bound for the longest add. It is about 15 microseconds too high.

Everything is first compiled with a small buffer of the same kind. This and the first adds of each buffer are not
counted. Python's garbage collector is off.
"""

import gc
import json
import sys
import time
from collections.abc import Iterator
from itertools import cycle, islice
from typing import Any

import numpy as np

from benchmarks.adapters import load
from benchmarks.adapters.base import Call, Library
from benchmarks.checkouts import import_replaykit
from benchmarks.data import Steps, Task

CAPACITY, SMALL, LAPS = 1_000_000, 6_400, 3
FIRST_ADDS = 100
TIMED_TOGETHER = 10
"""Number of one-lane adds between two readings of the clock."""


def main() -> None:
    """Print the milliseconds of the longest add in each pair of fillings, for each lap, as JSON."""
    name, checkout, lanes, fills = *sys.argv[1:3], int(sys.argv[3]), int(sys.argv[4])
    import_replaykit(checkout)
    library = load(name)
    fill_laps(library, Task(SMALL, lanes=lanes))
    gc.collect()
    gc.freeze()
    gc.disable()
    filled = [fill_laps(library, Task(CAPACITY, lanes=lanes)) for _ in range(fills)]
    pairs = [(filled[k], filled[k - 1]) for k in range(fills if fills > 2 else 1)]
    longest = [np.minimum(*pair).max(axis=1) / 1e6 for pair in pairs]
    print(json.dumps(np.transpose(longest).tolist()))


def fill_laps(library: Library, task: Task) -> Any:
    """Nanoseconds of each add or group of adds to a new buffer, of shape (laps, adds of a lap)."""
    together = TIMED_TOGETHER if task.lanes == 1 else 1
    count = task.capacity // task.lanes // together
    adds = adds_of_an_episode(library, task)
    for _ in range(FIRST_ADDS):
        next(adds)()
    spent = np.full((LAPS, count), -1, np.int64)  # allocates its pages before the measurement
    clock = time.thread_time_ns
    for lap in spent:
        before = clock()
        for k in range(count):
            for add in islice(adds, together):
                add()
            now = clock()
            lap[k] = now - before
            before = now
    return spent


def adds_of_an_episode(library: Library, task: Task) -> Iterator[Call]:
    """Calls that repeatedly add the steps of an episode to an empty buffer. Lanes end at different steps."""
    buffer = library.empty(task)
    steps = task.stretch(0, task.episode)
    if task.lanes == 1:
        return cycle([buffer.adding(step) for step in _one_by_one(steps)])
    terminated = steps.terminated.copy()
    for lane in range(task.lanes):
        terminated[:, lane] = np.roll(terminated[:, lane], lane * task.episode // task.lanes)
    columns = zip(*steps._replace(terminated=terminated), strict=True)
    return cycle([buffer.adding(Steps(*values)) for values in columns])


def _one_by_one(steps: Steps) -> list[Steps]:
    """Steps of one lane as an environment returns them: arrays as observations, and Python numbers."""
    action, reward, terminated, truncated = (
        column.tolist() for column in (steps.action, steps.reward, steps.terminated, steps.truncated)
    )
    columns = zip(steps.obs, action, reward, steps.next_obs, terminated, truncated, strict=True)
    return [Steps(*column) for column in columns]


if __name__ == "__main__":
    main()
