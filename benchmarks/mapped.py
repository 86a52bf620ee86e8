"""A buffer in files that is larger than memory: ``python -m benchmarks.mapped --gib 30 --path DIRECTORY``

The buffer is filled with transitions of two observations of 3,500 float32, 28 KB per transition, and then sampled.
`small` is a buffer of 1 GiB, whose pages are all in memory, and `large` has the size ``--gib``. For a cold batch, the
files are closed, dropped from the system's cache and opened again, so each row is read from the disk. Each batch is
checked against the written rows. Linux only.
"""

import argparse
import gc
import json
import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from replaykit import Field, ReplayBuffer, Spec

NUMBERS, ROUNDS, COLD_ROUNDS = 3_500, 200, 5
SPEC = Spec(obs=Field((NUMBERS,)), action=Field((), np.int64))


def main() -> None:
    """Fill, measure, and print a table of microseconds."""
    options = parse_arguments()
    found = {"small": measure(options.path / "small", 1.0), "large": measure(options.path / "large", options.gib)}
    for name, figures in found.items():
        print(name, json.dumps(figures))
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n")


def measure(path: Path, gib: float) -> dict[str, float]:
    """Microseconds of the calls of a buffer of `gib` GiB, and the seconds to fill it and to open it again."""
    capacity, part = int(gib * 2**30 / SPEC.nbytes), 256
    figures = {"GiB": gib, "transitions": float(capacity)}
    try:
        buffer, begin = opened(path, capacity), time.perf_counter()
        for start in tqdm(range(0, capacity, part), desc=f"{gib:g} GiB", leave=False, disable=None):
            buffer.extend(*steps(start, min(part, capacity - start)))
        figures["fill, s"] = time.perf_counter() - begin
        os.sync()
        for size in (32, 256):
            figures[f"sample {size}"] = median(partial(sample, buffer, size), ROUNDS)
        figures["add 1"] = median(partial(buffer.add, *(value[0] for value in steps(capacity, 1))), ROUNDS)
        for size in (32, 256):
            cold = []
            for _ in range(COLD_ROUNDS):
                del buffer
                gc.collect()
                forget(path)
                begin = time.perf_counter()
                buffer = opened(path, capacity)
                figures["open again, s"] = time.perf_counter() - begin
                cold.append(median(partial(sample, buffer, size), 1))
            figures[f"cold sample {size}"] = float(np.median(cold))
        assert len(buffer) == capacity
        del buffer
    finally:
        shutil.rmtree(path, ignore_errors=True)
    return {name: round(value, 3) for name, value in figures.items()}


def opened(path: Path, capacity: int) -> ReplayBuffer:
    """The buffer in the files in a directory."""
    return ReplayBuffer(capacity, SPEC, storage=path, share="none", seed=0)


def steps(start: int, count: int) -> tuple[Any, ...]:
    """Transitions in which every number identifies the transition."""
    numbers = np.arange(start, start + count, dtype=np.float32)
    obs = np.broadcast_to(numbers[:, None], (count, NUMBERS))
    ended = np.zeros(count, np.bool_)
    return np.ascontiguousarray(obs), numbers.astype(np.int64), numbers, np.ascontiguousarray(obs + 1), ended, ended


def sample(buffer: ReplayBuffer, size: int) -> None:
    """Sample a batch and check that it has the rows that were written."""
    batch = buffer.sample(size)
    assert (batch.obs[:, -1] == batch.reward).all()
    assert (batch.next_obs[:, 0] == batch.reward + 1).all()


def median(call: Callable[[], Any], rounds: int) -> float:
    """The median time of a call in microseconds."""
    spent = []
    for _ in range(rounds):
        begin = time.perf_counter()
        call()
        spent.append(time.perf_counter() - begin)
    return float(np.median(spent)) * 1e6


def forget(path: Path) -> None:
    """Flush the files to the disk and ask the system to drop their pages."""
    os.sync()
    for file in path.glob("*.array"):
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mapped", description="Measure a buffer larger than memory."
    )
    parser.add_argument(
        "--gib", type=float, default=30.0, help="size of the large buffer in GiB (default: %(default)s)"
    )
    parser.add_argument(
        "--path", type=Path, required=True, help="directory for the files, on a disk with more free space than --gib"
    )
    parser.add_argument("--output", type=Path, help="write the results to this JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
