"""Do i.i.d. batches matter more than the TD errors in them? One command runs the whole study.

    python examples/study.py                        # the sound protocol
    python examples/study.py --quick                # a first look, in less than three minutes on two cores
    python examples/study.py --protocol original    # the settings of the study that replaykit grew from

The command first prints an estimate of the time. Ctrl-C loses at most the runs in progress, and the same command
continues the study: each run is stored in a file whose name depends on all its settings. The parts of the study are in
replay_study/; the docstring of this package gives the order for reading them. The results are in the documentation,
page "The study".

These files are saved in runs/study-.../ beside this script: episodes.csv.gz, snapshots.csv.gz and runs.csv.gz, with a
row for each episode, snapshot and run; summary.json and report.txt; and the figures.
"""

import argparse
import os
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import get_args

from options import at_least, share
from replay_study import analysis, figures
from replay_study.plan import Store, costs, execute, missing, plan
from replay_study.report import as_text, duration, write_page
from replay_study.run import Run
from replay_study.settings import PROTOCOLS, Protocol

SEEDS = {"sound": 30, "original": 3}
QUICK = {"sound": (4, 0.5), "original": (2, 0.2)}  # number of seeds, and the share of a run's full length


def parse_arguments() -> argparse.Namespace:
    """Parse and check the options."""
    parser = argparse.ArgumentParser(description="Run the study of replay, and draw its figures.", allow_abbrev=False)
    add = parser.add_argument
    add(
        "--protocol",
        choices=get_args(Protocol),
        default="sound",
        help="design of the experiment (default: %(default)s)",
    )
    names = list(PROTOCOLS["sound"])
    add("--envs", choices=names, nargs="+", default=names, help="tasks to learn (default: all)")
    add(
        "--seeds",
        type=at_least(2),
        help=f"number of seeds (default: {SEEDS['sound']} with --protocol sound, {SEEDS['original']} with original)",
    )
    add(
        "--first-seed", type=at_least(0), default=0, help="first of the consecutive random seeds (default: %(default)s)"
    )
    add(
        "--length",
        type=share,
        help="length of each run as a share of its full length, above 0 and at most 1 (default: 1)",
    )
    add("--quick", action="store_true", help="use few seeds and short runs: for a first look only")
    add(
        "--jobs",
        type=at_least(1),
        default=usable_cores(),
        help="number of processes (default: the number of cores, %(default)s)",
    )
    add(
        "--output", type=directory, help="directory for the results (default: a directory in runs/, beside this script)"
    )
    add("--page", type=directory, metavar="DIRECTORY", help="also write the files of the documentation page here")
    options = parser.parse_args()
    seeds, length = QUICK[options.protocol] if options.quick else (SEEDS[options.protocol], 1.0)
    options.seeds = options.seeds or seeds
    options.length = length if options.length is None else options.length
    if options.length == 0.0:
        parser.error("--length is 0; expected a positive number")
    options.envs = list(dict.fromkeys(options.envs))
    name = f"study-{options.protocol}{'-quick' if options.quick else ''}"
    name += f"-from-{options.first_seed}" if options.first_seed else ""
    try:
        options.output = options.output or directory(str(Path(__file__).resolve().parent / "runs" / name))
    except argparse.ArgumentTypeError as error:
        parser.error(f"--output {error}")
    return options


def directory(text: str) -> Path:
    """A directory for files. It is checked before training."""
    path = Path(text)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path}: {error}") from None
    return path


def usable_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_missing(runs: list[Run], store: Store, jobs: int) -> None:
    """Train the runs without a result."""
    left = missing(runs, store)
    print(f"{len(runs)} runs, {len(runs) - len(left)} of them already done.", flush=True)
    if not left:
        return
    jobs = min(jobs, len(left))
    seconds = costs(left)
    expected = sum(seconds[run.settings.env] for run in left) / jobs
    print(
        f"The others will take about {duration(expected)} on {jobs} {'process' if jobs == 1 else 'processes'}.",
        flush=True,
    )
    execute(left, store, jobs, seconds)


def write_results(runs: list[Run], store: Store, output: Path, page: Path | None = None) -> None:
    """Write tables, summary, report and figures from the results."""
    results = [(run, result) for run in runs if (result := store.read(run)) is not None]
    episodes = [row for run, result in results for row in analysis.long_rows(run, numbered(result.episodes))]
    snapshots = [row for run, result in results for row in analysis.long_rows(run, result.snapshots)]
    rows = [analysis.run_row(run, result) for run, result in results]
    analysis.write_csv(output / "episodes.csv.gz", episodes)
    analysis.write_csv(output / "snapshots.csv.gz", snapshots)
    analysis.write_csv(output / "runs.csv.gz", rows)
    summary = analysis.summarise(rows)
    analysis.write_summary(output / "summary.json", summary)
    text = as_text(summary)
    (output / "report.txt").write_text(text)
    print(text)
    pictures = figures.draw_all(output, summary, episodes, snapshots)
    for path in pictures:
        print(f"Figure: {path}")
    if page is not None:
        write_page(page, summary, output / "runs.csv.gz", pictures)


def numbered(episodes: list[dict[str, float]]) -> list[dict[str, float]]:
    """Episodes with their number, from 1."""
    return [{"episode": float(number), **row} for number, row in enumerate(episodes, 1)]


def main() -> None:
    """Plan, run, analyse, plot."""
    options = parse_arguments()
    runs = plan(options.protocol, options.envs, options.seeds, options.length, options.first_seed)
    store = Store(options.output / "results")
    try:
        make_missing(runs, store, options.jobs)
    except KeyboardInterrupt:
        done = len(runs) - len(missing(runs, store))
        sys.exit(
            f"\nInterrupted: {done} of {len(runs)} runs are stored. Repeat the command to continue with the others."
        )
    except BrokenProcessPool:
        sys.exit(
            "\nA process was killed, perhaps for lack of memory. Repeat the command to continue, with fewer --jobs."
        )
    write_results(runs, store, options.output, options.page)


if __name__ == "__main__":
    main()
