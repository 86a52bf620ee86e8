"""Measure and print: ``python -m benchmarks.gpu``. The docstring of the package describes the options."""

import argparse
import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.gpu.rivals import RIVALS, Call, NotOfferedError, Rival, Task
from benchmarks.machine import describe, versions

SIZES, LANES = (256, 4096, 32768), 4096
SLICE, ROUNDS, QUICK_ROUNDS = 0.02, 30, 3
FIRST_CALLS = 5
GOALS = {
    "uniform": (50, 50, 60),
    "three steps": (80, 90, 150),
    "prioritized": (130, 220, 400),
    "adding": (45,),
    "pinned": (60, 70, 200),
}
"""Goals: at most these microseconds for each size, with a million rows on an H100 or H200."""


@dataclass
class Race:
    """The calls of all rivals for the same work, and their microseconds in each round."""

    title: str
    calls: dict[str, Call] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    values: dict[str, list[float]] = field(default_factory=dict)


def main() -> None:
    options = parse_arguments()
    device, found = torch.device(options.device), []
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    print(f"{card}, {options.rows} rows\n")
    with tqdm(total=4, desc="work", disable=None, leave=False) as bar:
        for races in works(Task(device, options.rows), options.sizes):
            rounds = QUICK_ROUNDS if options.quick else ROUNDS
            run(races, rounds, device)
            found += [figures(race) for race in races]
            bar.update()
    print(table(found))
    print(goals_text(found, options.sizes))
    if options.output:
        content = {"card": card, "rows": options.rows, "machine": describe(None), "races": found}
        content["versions"] = versions(["torchrl", "flashbax"])
        options.output.write_text(json.dumps(content, indent=1) + "\n")


def works(task: Task, sizes: list[int]) -> Any:
    """The races of each kind of work. The buffers of one kind are freed before those of the next are built."""
    yield drawing("uniform", task, sizes, lambda rival, size: rival.sampling(size))
    yield drawing("three steps", replace(task, n_step=3), sizes, lambda rival, size: rival.sampling(size))

    def cycling(rival: Rival, size: int) -> Call:
        return rival.cycling(size, torch.rand(size, device=task.device, dtype=torch.float32))

    yield drawing("prioritized", replace(task, prioritized=True), sizes, cycling)
    lanes = min(LANES, task.rows // 4)
    whole = replace(task, lanes=lanes, rows=task.rows // lanes * lanes)
    yield drawing("adding", whole, [lanes], lambda rival, _size: rival.adding())


def drawing(title: str, task: Task, sizes: list[int], call_of: Any) -> list[Race]:
    """A race for each size, between all rivals that offer it."""
    races = [Race(f"{title}, {size}") for size in sizes]
    for name, kind in RIVALS.items():
        calls, reason = offered(kind, task, sizes, call_of)
        for race, call in zip(races, calls, strict=False):
            race.calls[name] = call
        for race in races[len(calls) :]:
            race.absent[name] = reason
    return races


def offered(kind: type[Rival], task: Task, sizes: list[int], call_of: Any) -> tuple[list[Call], str]:
    """The call of a rival for each size, or none and the reason."""
    try:
        rival = kind(task)
        return [call_of(rival, size) for size in sizes], ""
    except NotOfferedError as error:
        return [], str(error)


def run(races: list[Race], rounds: int, device: torch.device) -> None:
    """Time all calls. The order is random and differs between rounds."""
    rng = np.random.default_rng(0)
    for race in races:
        for name, call in race.calls.items():
            timed(call, FIRST_CALLS, device)  # compiles, and records graphs
            race.counts[name] = int(np.clip(SLICE / timed(call, FIRST_CALLS, device), 3, 5_000))
            race.values[name] = []
    everything = [(race, name) for race in races for name in race.calls]
    for _ in range(rounds):
        for place in rng.permutation(len(everything)):
            race, name = everything[place]
            race.values[name].append(1e6 * timed(race.calls[name], race.counts[name], device))


def timed(call: Call, count: int, device: torch.device) -> float:
    """Seconds of a call: the mean of `count` calls, including all work on the device."""
    wait(device)
    start = time.perf_counter()
    for _ in range(count):
        call()
    wait(device)
    return (time.perf_counter() - start) / count


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def figures(race: Race) -> dict[str, Any]:
    """The medians of a race, and the 10th and the 90th percentile."""
    spread = {name: np.percentile(values, (50, 10, 90)).round(1).tolist() for name, values in race.values.items()}
    return {"title": race.title, "us": spread, "absent": race.absent}


def table(found: list[dict[str, Any]]) -> str:
    """Microseconds of each rival, with their ratio to those of replaykit in brackets."""
    lines = []
    for race in found:
        own = race["us"]["replaykit"][0]
        lines.append(race["title"])
        lines += [f"  {name:20} {us[0]:10.1f} us  ({us[0] / own:.2f})" for name, us in race["us"].items()]
        lines += [f"  {name:20} {reason}" for name, reason in race["absent"].items()]
    return "\n".join(lines)


def goals_text(found: list[dict[str, Any]], sizes: list[int]) -> str:
    """Each goal, and whether it is reached. The goals are for a large GPU and a million rows."""
    lines, titles = ["\ngoals"], {race["title"]: race["us"] for race in found}
    for work, limits in GOALS.items():
        kind, name = ("uniform", "replaykit, pinned") if work == "pinned" else (work, "replaykit")
        for size, limit in zip([LANES] if work == "adding" else SIZES, limits, strict=True):
            us = titles.get(f"{kind}, {size}", {}).get(name)
            if us is not None:
                verdict = "reached" if us[0] <= limit else "missed"
                lines.append(f"  {work}, {size}: {us[0]:.1f} us, at most {limit}: {verdict}")
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure buffers on a GPU.", allow_abbrev=False)
    there = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=there, help="device of torch (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=1_000_000, help="number of transitions (default: %(default)s)")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="batch sizes (default: all three)")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds instead of {ROUNDS}")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
