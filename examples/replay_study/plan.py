"""All runs of a study. Each result is stored in its own file, so that an interrupted study can continue."""

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .replays import replays_for
from .run import Result, Run, train
from .settings import PROTOCOLS, Protocol


def plan(protocol: Protocol, envs: list[str], seeds: int, length: float, first: int = 0) -> list[Run]:
    """Every run. All replays of a seed come before the next seed, so that an interrupted study has complete seeds."""
    runs = []
    for seed in range(first, first + seeds):
        for env in envs:
            settings = PROTOCOLS[protocol][env].shortened(length)
            names = replays_for(protocol, env)
            runs += [Run(protocol=protocol, replay=name, seed=seed, settings=settings) for name in names]
    return runs


class Store:
    """Results as files in a directory. Their names depend on all settings.

    A file is written under another name and then renamed, so it is never incomplete. A damaged file, or one of another
    configuration, counts as missing. NaN is stored as null.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def path(self, run: Run) -> Path:
        """The path of a run's result."""
        text = json.dumps(run.configuration(), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        return self.directory / f"{run.protocol}-{run.settings.env}-{run.replay}-{run.seed:03d}-{digest}.json"

    def write(self, run: Run, result: Result) -> None:
        """Store a result."""
        tables = {"episodes": _columns(result.episodes), "snapshots": _columns(result.snapshots)}
        text = json.dumps({"configuration": run.configuration(), **tables}, allow_nan=False)
        path = self.path(run)
        aside = path.with_suffix(f".{os.getpid()}.part")
        try:
            with aside.open("w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)

    def read(self, run: Run) -> Result | None:
        """The result of a run, or None if it is missing."""
        try:
            kept = json.loads(self.path(run).read_text())
            # JSON turns tuples into lists, so both are compared as text
            if json.dumps(kept["configuration"], sort_keys=True) != json.dumps(run.configuration(), sort_keys=True):
                return None
            return Result(_rows(kept["episodes"]), _rows(kept["snapshots"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return None


def _columns(rows: list[dict[str, float]]) -> dict[str, list[float | None]]:
    return {name: [row[name] if row[name] == row[name] else None for row in rows] for name in (rows[0] if rows else ())}


def _rows(columns: dict[str, list[float | None]]) -> list[dict[str, float]]:
    values = [[float("nan") if value is None else value for value in column] for column in columns.values()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]


def missing(runs: list[Run], store: Store) -> list[Run]:
    """The runs without a result."""
    return [run for run in runs if store.read(run) is None]


def costs(runs: list[Run]) -> dict[str, float]:
    """The approximate time of a run in seconds, for each task in `runs`. A short run is measured."""
    seconds = {}
    for run in {run.settings.env: run for run in runs}.values():
        settings = run.settings
        if settings.episodes is not None:  # their length is not known in advance
            share = 0.4 if settings.env.startswith("CartPole") else 0.95
            steps = round(settings.episodes * settings.time_limit * share)
        else:
            steps = settings.steps or 0
        short = replace(settings, steps=min(steps, 1_500), episodes=None, learning_starts=100, snapshots=0)
        trial = replace(run, replay="uniform", settings=short)
        _seconds_of(replace(trial, settings=replace(short, steps=150, snapshots=1)))  # compiles the kernels
        of_steps = _seconds_of(trial)
        of_both = _seconds_of(replace(trial, settings=replace(short, snapshots=1)))
        of_snapshots = settings.snapshots * max(of_both - of_steps, 0.0)
        seconds[settings.env] = of_steps * steps / (short.steps or 1) + of_snapshots
    return seconds


def _seconds_of(run: Run) -> float:
    start = time.perf_counter()
    train(run)
    return time.perf_counter() - start


def execute(runs: list[Run], store: Store, jobs: int, seconds: dict[str, float]) -> None:
    """Make the results of `runs` in `jobs` processes. A progress bar shows the remaining time.

    After Ctrl-C the runs in progress finish, and KeyboardInterrupt is raised.
    """
    whole = sum(seconds[run.settings.env] for run in runs)
    shape = "{percentage:3.0f}% |{bar}| {postfix[0]} of {postfix[1]} runs, {elapsed} elapsed, {remaining} left"
    done = [0, len(runs)]
    with tqdm(total=whole, bar_format=shape, postfix=done, file=sys.stderr, mininterval=0.5) as bar:
        for run in _finished(runs, store, jobs):
            done[0] += 1
            bar.update(seconds[run.settings.env])


def _finished(runs: list[Run], store: Store, jobs: int) -> Iterator[Run]:
    """Each run as soon as its result is stored."""
    if jobs == 1:
        for run in runs:
            store.write(run, train(run))
            yield run
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_ignore_interrupts) as pool:
        futures: dict[Future[Any], Run] = {pool.submit(_train_and_keep, run, store): run for run in runs}
        try:
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process decides


def _train_and_keep(run: Run, store: Store) -> None:
    store.write(run, train(run))
