"""Benchmark of a replay on Ray: steps added per second while batches are sampled, and the time for a batch.

    python -m benchmarks.sharded
    python -m benchmarks.sharded --seconds 10 --shards 4 --output sharded.json
    python -m benchmarks.sharded --soak 1800
    python -m benchmarks.sharded --torchrl

Observations have 4 floats, as in CartPole. Each writer is a Ray actor that adds one step at a time. The learner samples
batches of 256 from a prioritized replay, and updates their priorities. Most machines have fewer cores than there are
processes. In this case the processes compete for cores, and the results are lower than with a core for each process.

With --torchrl, a uniform `RayReplay` and the `RayReplayBuffer` of TorchRL are measured in turn. TorchRL has
one buffer in one actor. Its writers extend it by 64 steps at a time.

With --soak, writers add and the learner samples for the given number of seconds. The buffers are small enough to fill
up within the first seconds. The memory of all processes is printed every 10 seconds, and its growth at the end.
"""

import argparse
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray

from benchmarks.machine import describe
from replaykit import Field, PrioritizedBuffer, ReplayBuffer, Spec
from replaykit.distributed import RayReplay, ShardWriter

SPEC = Spec(obs=Field((4,)), action=Field((), np.int64))
BATCH, WARM_UP, LONGEST_BLOCK = 256, 20, 64
PAGE = os.sysconf("SC_PAGE_SIZE")


class Actor:
    """Adds steps for a given time."""

    def __init__(self, writer: ShardWriter) -> None:
        self.writer, self.rng = writer, np.random.default_rng(0)

    def pid(self) -> int:
        """The process id."""
        return os.getpid()

    def act(self, seconds: float) -> float:
        """Add steps for a number of seconds. Returns the steps per second, including the time to store all of them."""
        obs = self.rng.normal(size=(100, 4)).astype(np.float32)
        begin, steps = time.perf_counter(), 0
        while time.perf_counter() < begin + seconds:
            for number in range(99):
                self.writer.add(obs[number], number % 2, 1.0, obs[number + 1], number == 98, False)
            steps += 99
        self.writer.flush()
        return steps / (time.perf_counter() - begin)


@contextmanager
def running(
    shards: int, writers: int, capacity: int, is_uniform: bool = False
) -> Iterator[tuple[RayReplay, list[Any]]]:
    """A replay, and actors that write to it."""
    lanes = -(-writers // shards)

    def make() -> ReplayBuffer | PrioritizedBuffer:
        if is_uniform:
            return ReplayBuffer(capacity, SPEC, num_envs=lanes)
        return PrioritizedBuffer(capacity, SPEC, num_envs=lanes, beta=0.4)

    with RayReplay(make, shards, seed=0, block=LONGEST_BLOCK) as replay:
        actors = [ray.remote(num_cpus=0)(Actor).remote(replay.writer()) for _ in range(writers)]
        ray.get([actor.act.remote(0.1) for actor in actors])
        for _ in range(WARM_UP):
            batch = replay.sample(BATCH)
            replay.update_priorities(batch.indices, np.ones(BATCH))
        yield replay, actors
        for actor in actors:
            ray.kill(actor)


def adding(shards: int, writers: int, seconds: float) -> dict[str, float]:
    """Steps added and batches learned from, per second, measured at the same time."""
    with running(shards, writers, 100_000) as (replay, actors):

        def learn() -> None:
            batch = replay.sample(BATCH)
            replay.update_priorities(batch.indices, np.ones(BATCH))

        return {"writers": writers, **both_sides(actors, seconds, learn)}


def beside_torchrl(shards: int, writers: int, seconds: float) -> dict[str, Any]:
    """Steps added and batches sampled, per second, measured at the same time, for both libraries."""
    with running(shards, writers, 100_000, is_uniform=True) as (replay, actors):
        ours = both_sides(actors, seconds, lambda: replay.sample(BATCH))
    with running_torchrl(writers, shards * 100_000) as (buffer, actors):
        theirs = both_sides(actors, seconds, buffer.sample)
    return {"writers": writers, "replaykit": ours, "torchrl": theirs}


def both_sides(actors: list[Any], seconds: float, sample: Callable[[], Any]) -> dict[str, float]:
    """Steps that the actors add per second, and batches that are sampled per second in the same time."""
    pending = [actor.act.remote(seconds) for actor in actors]
    begin, batches = time.perf_counter(), 0
    while len(ray.wait(pending, num_returns=len(pending), timeout=0)[0]) < len(pending):
        sample()
        batches += 1
    sampled = batches / (time.perf_counter() - begin)
    return {"adds_per_second": sum(ray.get(pending)), "batches_per_second": sampled}


class TorchActor:
    """Extends a buffer of TorchRL for a given time."""

    def __init__(self, buffer: Any) -> None:
        self.buffer = buffer

    def act(self, seconds: float) -> float:
        """Steps added per second."""
        import torch
        from tensordict import TensorDict

        torch.set_num_threads(1)
        count, steps = LONGEST_BLOCK, 0
        obs = torch.randn(count + 1, 4)
        begin = time.perf_counter()
        while time.perf_counter() < begin + seconds:
            flags = {name: torch.zeros(count, 1, dtype=torch.bool) for name in ("terminated", "truncated", "done")}
            after = {"observation": obs[1:], "reward": torch.ones(count, 1), **flags}
            action = torch.zeros(count, dtype=torch.int64)
            self.buffer.extend(TensorDict({"observation": obs[:-1], "action": action, "next": after}, [count]))
            steps += count
        return steps / (time.perf_counter() - begin)


@contextmanager
def running_torchrl(writers: int, capacity: int) -> Iterator[tuple[Any, list[Any]]]:
    """TorchRL's buffer in an actor, and actors that write to it."""
    from torchrl.data import LazyTensorStorage, RayReplayBuffer

    options = {"num_cpus": 0, "num_gpus": 0}
    buffer = RayReplayBuffer(storage=partial(LazyTensorStorage, capacity), batch_size=BATCH, remote_config=options)
    actors = [ray.remote(num_cpus=0)(TorchActor).remote(buffer.client()) for _ in range(writers)]
    ray.get([actor.act.remote(0.1) for actor in actors])
    for _ in range(WARM_UP):
        buffer.sample()
    yield buffer, actors
    for actor in actors:
        ray.kill(actor)
    buffer.close()


def latency(shards: int, seconds: float) -> dict[str, float]:
    """Milliseconds that a learner waits for a batch: without other work, and with 5 ms of work between batches."""
    with running(shards, 1, 100_000) as (replay, _):
        found = dict[str, float]()
        for name, prefetch, pause in (("alone", 0, 0.0), ("sampled", 0, 0.005), ("prefetched", 2, 0.005)):
            times = []
            with replay.batches(BATCH, prefetch=prefetch) as batches:
                next(batches)
                deadline = time.perf_counter() + seconds
                while time.perf_counter() < deadline:
                    time.sleep(pause)
                    begin = time.perf_counter()
                    next(batches)
                    times.append(time.perf_counter() - begin)
            quartiles = np.quantile(times, (0.25, 0.5, 0.75)) * 1e3
            found |= dict(zip((f"{name}_low", name, f"{name}_high"), quartiles.tolist(), strict=True))
        return found


def soak(shards: int, writers: int, seconds: float) -> dict[str, float]:
    """The memory of all processes in MB, after a fifth of the time and at the end."""
    with running(shards, writers, 5_000) as (replay, actors):
        handles = [shard.__ray_call__.remote(lambda _: os.getpid()) for shard in replay.shards]
        processes = [os.getpid(), *ray.get(handles), *ray.get([actor.pid.remote() for actor in actors])]
        pending, seen = [actor.act.remote(seconds) for actor in actors], list[float]()
        begin = time.perf_counter()
        with replay.batches(BATCH) as batches:
            for count in itertools.count(1):
                batch = next(batches)
                replay.update_priorities(batch.indices, np.ones(BATCH))
                passed = time.perf_counter() - begin
                if passed > 10 * len(seen) + 10:
                    seen.append(sum(map(memory_of, processes)))
                    added = replay.stats()["added"]
                    print(f"{passed:6.0f} s: {seen[-1]:7.1f} MB, {added:9.0f} steps, {count:7d} batches", flush=True)
                if passed > seconds:
                    break
        ray.get(pending)
        replay.check()
    early = seen[len(seen) // 5]
    return {"seconds": seconds, "early_mb": early, "late_mb": seen[-1], "growth_mb": seen[-1] - early}


def memory_of(process: int) -> float:
    """The private memory of a process in MB. Linux only."""
    _, resident, shared, *_ = Path(f"/proc/{process}/statm").read_text().split()
    return (int(resident) - int(shared)) * PAGE / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="seconds of each measurement (default: %(default)s)"
    )
    parser.add_argument("--shards", type=int, default=2, help="number of shards (default: %(default)s)")
    parser.add_argument(
        "--writers", type=int, nargs="+", default=[1, 2, 4], help="numbers of writers to measure (default: 1 2 4)"
    )
    parser.add_argument(
        "--soak", type=float, metavar="SECONDS", help="measure the memory for this many seconds instead"
    )
    parser.add_argument("--torchrl", action="store_true", help="compare with TorchRL's RayReplayBuffer instead")
    parser.add_argument("--output", type=Path, help="write the results to this JSON file")
    options = parser.parse_args()
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="error")
    if options.soak:
        found: dict[str, Any] = {"soak": soak(options.shards, 2, options.soak)}
    elif options.torchrl:
        found = {"beside": [beside_torchrl(options.shards, each, options.seconds) for each in options.writers]}
    else:
        found = {"latency_ms": latency(options.shards, options.seconds)}
        found["adding"] = [adding(options.shards, writers, options.seconds) for writers in options.writers]
    found |= {"shards": options.shards, "batch": BATCH, "ray": ray.__version__, "machine": describe(None)}
    print(json.dumps(found, indent=2))
    if options.output:
        options.output.write_text(json.dumps(found, indent=2) + "\n")
    ray.shutdown()


if __name__ == "__main__":
    main()
