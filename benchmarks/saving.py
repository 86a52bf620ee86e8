"""The cost of a checkpoint: ``python -m benchmarks.saving LIBRARY CHECKOUT ROUNDS``

A prioritized buffer of one million transitions (17 float32 and an action of 6) is saved to a new directory, saved again
after 1,000 adds, and loaded. In the same rounds, for comparison, ``numpy.save`` writes the same number of bytes to
one file, and the buffer is pickled. Both files are flushed to the disk. Prints seconds as JSON.
"""

import json
import os
import pickle
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.checkouts import import_replaykit

CAPACITY, PART, LATER = 1_000_000, 10_000, 1_000


def main() -> None:
    """Print the seconds of each round, by operation."""
    checkout, rounds = sys.argv[2], int(sys.argv[3])
    import_replaykit(checkout)
    from replaykit import Field, PrioritizedBuffer, Spec

    spec, rng = Spec(obs=Field((17,)), action=Field((6,))), np.random.default_rng(0)
    buffer, twin = (PrioritizedBuffer(CAPACITY, spec, seed=0) for _ in range(2))
    for _ in range(CAPACITY // PART):
        buffer.extend(**steps(rng, PART))
    buffer.sample(32)
    found: dict[str, list[float]] = {}

    def timed(name: str, call: Callable[[], Any]) -> None:
        begin = time.perf_counter()
        call()
        found.setdefault(name, []).append(time.perf_counter() - begin)

    with tempfile.TemporaryDirectory() as place:
        path, one = Path(place, "checkpoint"), Path(place, "one")
        for _ in range(rounds):
            timed("save", partial(buffer.save, path))
            values = np.ones(sum(file.stat().st_size for file in path.iterdir()), np.uint8)
            timed("numpy.save", partial(write, one, partial(np.save, arr=values)))
            timed("pickle", partial(write, one, partial(pickle.dump, buffer)))
            buffer.extend(**steps(rng, LATER))
            timed("save again", partial(buffer.save, path))
            timed("load", partial(twin.load, path))
            shutil.rmtree(path)
    print(json.dumps(found))


def steps(rng: np.random.Generator, count: int) -> dict[str, Any]:
    """`count` transitions of noise."""
    obs = rng.random((2, count, 17), np.float32)
    ended = rng.random((2, count)) < 0.005
    fields = {"obs": obs[0], "action": rng.random((count, 6), np.float32), "reward": rng.random(count, np.float32)}
    return fields | {"next_obs": obs[1], "terminated": ended[0], "truncated": ended[1]}


def write(path: Path, call: Callable[[Any], Any]) -> None:
    """Write a file and flush it to the disk."""
    with open(path, "wb") as file:
        call(file)
        file.flush()
        os.fsync(file.fileno())


if __name__ == "__main__":
    main()
