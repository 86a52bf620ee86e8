"""Steps per second that 1, 2 and 4 processes add to one replay, while the learner samples batches of 256.

Run it with ``python -m benchmarks.processes_adding``. Each process adds steps, as fast as it can, to a segment of
shared memory. A step has an observation of 17 numbers and an action of 6. The baseline is code that you would write
without replaykit's writers: it sends blocks of 64 steps through a ``multiprocessing.Queue`` and adds them with
``extend``.
"""

import argparse
import multiprocessing
import os
import statistics
import threading
import time
from typing import Any

import numpy as np

from replaykit import Field, PrioritizedBuffer, Spec
from replaykit.distributed import ProcessWriters

SPEC = Spec(obs=Field((17,)), action=Field((6,)))
BLOCK = 64


def step() -> tuple[Any, ...]:
    return np.ones(17, np.float32), np.ones(6, np.float32), 1.0, np.ones(17, np.float32), False, False


def add(writer: Any, started: Any, ended: Any) -> None:
    values = step()
    started.wait()
    while not ended.is_set():
        for _ in range(BLOCK):
            writer.add(*values)


def send(queue: Any, started: Any, ended: Any) -> None:
    obs, action, reward, next_obs, terminated, truncated = step()
    started.wait()
    while not ended.is_set():
        rows = [(obs.copy(), action.copy(), reward, next_obs.copy(), terminated, truncated) for _ in range(BLOCK)]
        queue.put([np.array(column) for column in zip(*rows, strict=True)])


def measure(count: int, seconds: float, through_queue: bool) -> tuple[float, float]:
    """Steps added and batches sampled per second, with `count` processes."""
    context = multiprocessing.get_context("spawn")
    replay = PrioritizedBuffer(100_000 * count, SPEC, num_envs=count, seed=0)
    lead = (300, count) if count > 1 else (300,)
    obs, action, flags = np.ones((*lead, 17)), np.ones((*lead, 6)), np.zeros(lead, np.bool_)
    replay.extend(obs, action, np.ones(lead), obs, flags, flags)
    replay.sample(256)
    started, ended = context.Event(), context.Event()
    if through_queue:
        queues = [context.Queue(16) for _ in range(count)]
        processes = [context.Process(target=send, args=(queue, started, ended), daemon=True) for queue in queues]
        threads = [
            threading.Thread(target=_take, args=(queue, replay, i), daemon=True) for i, queue in enumerate(queues)
        ]
        writers = None
    else:
        writers = ProcessWriters(replay, count)
        processes = [context.Process(target=add, args=(writer, started, ended), daemon=True) for writer in writers]
        threads = []
    for thread in threads:
        thread.start()
    for process in processes:
        process.start()
    started.set()
    while (replay.bounds[1] < 1300).any():  # until all processes have started and everything is compiled
        time.sleep(0.1)
    begin, before, batches = time.perf_counter(), replay.stats()["added"], 0
    while time.perf_counter() < begin + seconds:
        replay.sample(256)
        batches += 1
    passed = time.perf_counter() - begin
    added = replay.stats()["added"] - before
    ended.set()
    for process in processes:
        process.join(1)
        process.kill()
    if writers is not None:
        writers.close()
    return added / passed, batches / passed


def _take(queue: Any, replay: Any, lane: int) -> None:
    writer = replay.writer(lane)
    while True:
        writer.extend(*queue.get())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds of each measurement (default: %(default)s)")
    parser.add_argument(
        "--repeats", type=int, default=3, help="number of measurements of each kind (default: %(default)s)"
    )
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores; adds/s and batches/s of 256, medians of {arguments.repeats}, least and most")
    for count in (1, 2, 4):
        for through_queue in (False, True):
            found = [measure(count, arguments.seconds, through_queue) for _ in range(arguments.repeats)]
            columns = zip(*found, strict=True)
            texts = [f"{statistics.median(each):10,.0f} ({min(each):,.0f} to {max(each):,.0f})" for each in columns]
            print(f"{count} {'queue' if through_queue else 'shared memory':>13}: {'  '.join(texts)}", flush=True)


if __name__ == "__main__":
    main()
