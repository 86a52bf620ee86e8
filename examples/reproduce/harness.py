"""The parts that the experiments share: options, parallel runs, a table, and the check of the claims."""

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
BAR = "{percentage:3.0f}% |{bar}| {elapsed} elapsed, {remaining} left"

Task = TypeVar("Task", bound=tuple[Any, ...])
Result = TypeVar("Result")


def parser(name: str, description: str, quick: str) -> argparse.ArgumentParser:
    """A parser with the options of every experiment."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    made = argparse.ArgumentParser(description=description, allow_abbrev=False)
    add = made.add_argument
    add("--quick", action="store_true", help=f"make a quick run of less than 20 seconds: {quick}")
    add(
        "--jobs",
        type=at_least(1),
        default=cores,
        help="number of processes (default: the number of cores, %(default)s)",
    )
    text = (
        "save the picture to this file, and a table beside it as .csv (default: a file in runs/, beside the examples)"
    )
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
    """The results of `function` by task.

    Parameters
    ----------
    function : callable of one task
        A function at module level, so that other processes can import it.
    seconds : dict of float
        The approximate time of each task. It affects only the estimate and the order.
    jobs : int
        Number of processes. With 1, everything runs in this process.
    """
    jobs = min(jobs, len(seconds))
    tasks = sorted(seconds, key=lambda task: seconds[task], reverse=True)  # no long task runs alone at the end
    expected = max(sum(seconds.values()) / jobs, seconds[tasks[0]])
    print(f"{len(tasks)} runs in {jobs} process{'es' * (jobs > 1)}: about {duration(expected)}.")
    shares = {task: max(1, round(1e3 * seconds[task])) for task in tasks}  # integers, whose sum is exact
    results = {}
    try:
        with tqdm(total=sum(shares.values()), bar_format=BAR) as bar:
            for task, result in _outcomes(function, tasks, jobs):
                results[task] = result
                bar.update(shares[task])
    except KeyboardInterrupt:
        raise SystemExit("Interrupted. Nothing was written, because the runs are incomplete.") from None
    return {task: results[task] for task in seconds}


def duration(seconds: float) -> str:
    """A duration as text: seconds below two minutes, else minutes."""
    return f"{seconds:.0f} seconds" if seconds < 120.0 else f"{seconds / 60.0:.0f} minutes"


def _outcomes(function: Callable[[Task], Result], tasks: list[Task], jobs: int) -> Any:
    """Pairs of a task and its result, in order of completion."""
    if jobs == 1:
        for task in tasks:
            yield task, function(task)
        return
    # Processes are spawned, because a forked child inherits the threads of torch and tqdm in an undefined state. Only
    # the parent handles Ctrl-C, and then it ends the pool
    context = multiprocessing.get_context("spawn")
    with context.Pool(jobs, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        yield from pool.imap_unordered(_Named(function), tasks)


class _Named:
    """A function that also returns its argument."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __call__(self, task: Any) -> tuple[Any, Any]:
        return task, self.function(task)


def show(table: list[list[str]], path: Path) -> None:
    """Print a table, whose first row is the header, and write it to `path` as CSV."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(table)


def judge(claims: list[tuple[str, bool]]) -> None:
    """Print each claim and whether it holds. Exit with status 1 unless all hold."""
    for claim, holds in claims:
        print(f"{'holds' if holds else 'FAILS'}: {claim}")
    if not all(holds for _, holds in claims):
        raise SystemExit(1)
