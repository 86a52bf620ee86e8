"""A first reading of replaykit's speed, side by side with cpprb in one run: python benchmarks/first_reading.py

Three workloads of a CartPole-like buffer (4 float32 observations, one discrete action), whole public calls on both
sides: adding one transition, sampling a uniform batch of 256, and the cycle of prioritized replay at a capacity of
1,000,000: add 1, sample 256, update 256 with fresh TD errors. The libraries take turns, round by round, on one core
where the system allows to choose it; a figure is the 20th percentile of the rounds. Only the ratios mean something:
times move with the machine and with what else runs on it.

    pip install "replaykit[bench]"
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from cpprb import PrioritizedReplayBuffer as CpprbPrioritized
from cpprb import ReplayBuffer as CpprbUniform

from replaykit import Field, PrioritizedBuffer, ReplayBuffer, Spec

CAPACITY, OBS, BATCH = 1_000_000, 4, 256
MUST = {"add 1": 0.15, "uniform sample 256": 0.35, "prioritized cycle 256 at 1e6": 0.25}

Workload = Callable[[], object]


def ours(rng: np.random.Generator) -> dict[str, Workload]:
    """The workloads on replaykit."""
    spec = Spec(obs=Field((OBS,)), action=Field((), np.int64))
    obs = rng.random((CAPACITY, OBS), np.float32)
    none = np.zeros(CAPACITY, np.bool_)
    everything = (obs, np.zeros(CAPACITY, np.int64), np.ones(CAPACITY, np.float32), obs, none, none)
    uniform, per = ReplayBuffer(CAPACITY, spec, seed=0), PrioritizedBuffer(CAPACITY, spec, seed=0)
    for buffer in (uniform, per):
        buffer.extend(*everything)
    per.update_priorities(np.arange(CAPACITY), rng.standard_normal(CAPACITY))
    one = obs[0].copy()

    def cycle() -> None:
        per.add(one, 1, 1.0, one, False, False)
        batch = per.sample(BATCH)
        per.update_priorities(batch.indices, rng.standard_normal(BATCH))

    return {
        "add 1": lambda: uniform.add(one, 1, 1.0, one, False, False),
        "uniform sample 256": lambda: uniform.sample(BATCH),
        "prioritized cycle 256 at 1e6": cycle,
    }


def theirs(rng: np.random.Generator) -> dict[str, Workload]:
    """The workloads on cpprb."""
    fields: dict[str, Any] = {
        "obs": {"shape": OBS},
        "act": {"dtype": np.int64},
        "rew": {},
        "next_obs": {"shape": OBS},
        "done": {},
    }
    obs = rng.random((CAPACITY, OBS), np.float32)
    everything = {
        "obs": obs,
        "act": np.zeros(CAPACITY),
        "rew": np.ones(CAPACITY),
        "next_obs": obs,
        "done": np.zeros(CAPACITY),
    }
    uniform, per = CpprbUniform(CAPACITY, fields), CpprbPrioritized(CAPACITY, fields)
    for buffer in (uniform, per):
        buffer.add(**everything)
    per.update_priorities(np.arange(CAPACITY), np.abs(rng.standard_normal(CAPACITY)))
    one = obs[0].copy()

    def cycle() -> None:
        per.add(obs=one, act=1, rew=1.0, next_obs=one, done=0.0)
        batch = per.sample(BATCH)
        per.update_priorities(batch["indexes"], np.abs(rng.standard_normal(BATCH)))

    return {
        "add 1": lambda: uniform.add(obs=one, act=1, rew=1.0, next_obs=one, done=0.0),
        "uniform sample 256": lambda: uniform.sample(BATCH),
        "prioritized cycle 256 at 1e6": cycle,
    }


def seconds_per_call(workload: Workload, calls: int) -> float:
    """The mean time of a call in one round."""
    start = time.perf_counter()
    for _ in range(calls):
        workload()
    return (time.perf_counter() - start) / calls


def main() -> None:
    """Measure, print the table and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--calls", type=int, default=300, help="calls of a workload in a round")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    libraries = {"replaykit": ours(np.random.default_rng(0)), "cpprb": theirs(np.random.default_rng(0))}
    rounds: dict[str, dict[str, list[float]]] = {name: {"replaykit": [], "cpprb": []} for name in MUST}
    for workloads in libraries.values():  # compile, and touch all memory
        for workload in workloads.values():
            seconds_per_call(workload, options.calls)
    for _ in range(options.rounds):
        for name in MUST:
            for library, workloads in libraries.items():
                rounds[name][library].append(1e6 * seconds_per_call(workloads[name], options.calls))

    results = {}
    print(f"{'':32}{'replaykit':>12}{'cpprb':>12}{'ratio':>8}{'must':>8}   (us a call; 20th percentile, [10th-90th])")
    for name, figures in rounds.items():
        low, middle, high = (
            {library: np.percentile(values, p) for library, values in figures.items()} for p in (10, 20, 90)
        )
        ratio = middle["replaykit"] / middle["cpprb"]
        spread = ", ".join(f"{library} {low[library]:.1f}-{high[library]:.1f}" for library in figures)
        print(f"{name:32}{middle['replaykit']:12.2f}{middle['cpprb']:12.2f}{ratio:8.3f}{MUST[name]:8.2f}   [{spread}]")
        results[name] = {"us": middle, "p10": low, "p90": high, "ratio": ratio, "must": MUST[name]}
    if options.output:
        machine = {"python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count()}
        versions = {package: version(package) for package in ("replaykit", "cpprb", "numpy", "numba")}
        content = {"machine": machine, "versions": versions, "capacity": CAPACITY, "results": results}
        options.output.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
