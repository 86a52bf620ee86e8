"""What the experiments share: options, runs side by side, a table, and whether what was claimed holds."""

import argparse
import csv
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

sys.path.append(str(Path(__file__).resolve().parents[1]))  # so that experiments can import the examples

from options import at_least, picture

RUNS = Path(__file__).resolve().parents[1] / "runs"
BAR = "{percentage:3.0f}% |{bar}| {elapsed} so far, {remaining} to go"

Task = TypeVar("Task", bound=tuple[Any, ...])
Result = TypeVar("Result")


def parser(name: str, description: str, quick: str) -> argparse.ArgumentParser:
    """A parser with the options that every experiment has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    made = argparse.ArgumentParser(description=description, allow_abbrev=False)
    add = made.add_argument
    add("--quick", action="store_true", help=f"a look in less than 20 seconds: {quick}")
    add("--jobs", type=at_least(1), default=cores, help="processes (default: one for each core, %(default)s)")
    text = "the picture, with the table beside it as .csv (default: in runs/, beside the examples)"
    add("--output", type=picture, default=str(RUNS / f"{name}.png"), help=text)
    return made


def positive(text: str) -> float:
    """A positive number."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def run_all(function: Callable[[Task], Result], seconds: Mapping[Task, float], jobs: int) -> dict[Task, Result]:
    """What `function` returns for each task, by task.

    Parameters
    ----------
    function : callable of one task
        A function of a module, so that other processes find it.
    seconds : dict of float
        For each task, how long it takes, roughly. Only the estimate and the order depend on it.
    jobs : int
        Processes; with one, everything happens in this one.
    """
    jobs = min(jobs, len(seconds))
    tasks = sorted(seconds, key=lambda task: seconds[task], reverse=True)  # a long one at the end would run alone
    expected = max(sum(seconds.values()) / jobs, seconds[tasks[0]])
    print(f"{len(tasks)} runs in {jobs} process{'es' * (jobs > 1)}: about {duration(expected)}.")
    shares = {task: max(1, round(1e3 * seconds[task])) for task in tasks}  # whole numbers, whose sum is exact
    results = {}
    try:
        with tqdm(total=sum(shares.values()), bar_format=BAR) as bar:
            for task, result in _outcomes(function, tasks, jobs):
                results[task] = result
                bar.update(shares[task])
    except KeyboardInterrupt:
        raise SystemExit("Interrupted. Nothing was written, since part of the runs says little.") from None
    return {task: results[task] for task in seconds}


def duration(seconds: float) -> str:
    """In words: seconds below two minutes, else minutes."""
    return f"{seconds:.0f} seconds" if seconds < 120.0 else f"{seconds / 60.0:.0f} minutes"


def _outcomes(function: Callable[[Task], Result], tasks: list[Task], jobs: int) -> Any:
    """Pairs of a task and its result, as they come."""
    if jobs == 1:
        for task in tasks:
            yield task, function(task)
        return
    # Spawned, since a forked child inherits the threads of torch and of tqdm as they happen to be. Ctrl-C is the
    # parent's affair, which then ends the pool
    context = multiprocessing.get_context("spawn")
    with context.Pool(jobs, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        yield from pool.imap_unordered(_Named(function), tasks)


class _Named:
    """A function that returns its argument too."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __call__(self, task: Any) -> tuple[Any, Any]:
        return task, self.function(task)


def show(table: list[list[str]], path: Path) -> None:
    """Print a table, its header first, and write it to `path` as CSV."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(table)


def judge(claims: list[tuple[str, bool]]) -> None:
    """Print each claim and whether it holds; end the program with status 1 unless all do."""
    for claim, holds in claims:
        print(f"{'holds' if holds else 'FAILS'}: {claim}")
    if not all(holds for _, holds in claims):
        raise SystemExit(1)
