"""Measure, print and keep: ``python -m benchmarks``; see the package."""

import argparse
import gc
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import machine

CORE = machine.one_core()  # before anything is imported that starts threads

from tqdm import tqdm  # noqa: E402

from benchmarks.adapters import PEERS, load  # noqa: E402
from benchmarks.adapters.base import Library  # noqa: E402
from benchmarks.report import section_text, targets_text  # noqa: E402
from benchmarks.sections import add, images, memory, per, startup, training, uniform, views  # noqa: E402
from benchmarks.targets import judge  # noqa: E402
from benchmarks.timing import Row, measure  # noqa: E402

RowsOf = Callable[[list[Library], bool], list[Row]]
TIMED: dict[str, tuple[str, RowsOf]] = {
    "add": ("Adding", add.rows),
    "uniform": ("Uniform sampling", uniform.rows),
    "per": ("Prioritized replay", per.rows),
    "nstep": ("Returns of three steps", views.n_step_rows),
    "her": ("Hindsight goals", views.hindsight_rows),
    "images": ("Stacks of frames", images.rows),
    "training": ("A training step with its network", training.rows),
}
IN_PROCESSES: dict[str, tuple[str, Any]] = {
    "startup": ("Start-up", startup),
    "memory": ("Memory, over the bytes of the rows", memory),
}
ROUNDS, QUICK_ROUNDS = 40, 5


def main() -> None:
    options = parse_arguments()
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    libraries, skipped = available(options.libs)
    description = machine.describe(CORE)
    start, sections = time.perf_counter(), []
    for name in options.only:
        begin = time.perf_counter()
        if name in TIMED:
            title, rows_of = TIMED[name]
            rows = timed(name, rows_of(libraries, options.quick), rounds)
        else:
            title, module = IN_PROCESSES[name]
            with progress(name, module.ticks(libraries, options.quick)) as bar:
                rows = module.results(libraries, options.quick, bar.update)
        sections.append({"name": name, "title": title, "rows": rows})
        print(f"{section_text(sections[-1])}\n({time.perf_counter() - begin:.0f} s)", flush=True)
        gc.collect()
    targets = judge(sections)
    print(targets_text(targets))
    print(f"\n{time.perf_counter() - start:.0f} s; libraries: {', '.join(library.name for library in libraries)}")
    for name, reason in skipped.items():
        print(f"skipped: {name} ({reason})")
    if options.output:
        content = {
            "machine": description,
            "versions": machine.versions([library.distribution for library in libraries]),
            "commit": commit(),
            "settings": {"rounds": rounds, "quick": options.quick, "low percentile": 20, "spread": "10-90 %"},
            "skipped": skipped,
            "sections": sections,
            "targets": targets,
        }
        options.output.write_text(json.dumps(content, indent=1) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Replay buffers side by side.")
    everything = (*TIMED, *IN_PROCESSES)
    parser.add_argument("--only", default=",".join(everything), help="sections (default: %(default)s)")
    parser.add_argument("--libs", default=",".join(PEERS), help="peers (default: %(default)s), or none")
    parser.add_argument("--quick", action="store_true", help="few rounds, and nothing of 10 million transitions")
    parser.add_argument("--rounds", type=int, help=f"default: {ROUNDS}, with --quick {QUICK_ROUNDS}")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    options.only = options.only.split(",")
    options.libs = [] if options.libs == "none" else options.libs.split(",")
    for option, known in (("only", everything), ("libs", PEERS)):
        unknown = set(getattr(options, option)) - set(known)
        if unknown:
            parser.error(f"--{option}: {', '.join(sorted(unknown))}: expected some of {', '.join(known)}")
    if options.rounds is not None and options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: expected at least 1")
    if options.output and not options.output.parent.is_dir():
        parser.error(f"--output {options.output}: no such directory")
    return options


def available(peers: list[str]) -> tuple[list[Library], dict[str, str]]:
    """Replaykit and those of the peers that are installed; and why the others are not there."""
    libraries, skipped = [load("replaykit")], {}
    for name in peers:
        try:
            libraries.append(load(name))
        except (ImportError, OSError) as error:  # noqa: PERF203 - the second where a shared object does not load
            skipped[name] = str(error)
            print(f"{name} is skipped: {error}")
    return libraries, skipped


def timed(name: str, rows: list[Row], rounds: int) -> list[dict[str, Any]]:
    """Measure the rows of a section."""
    with progress(name, rounds * sum(len(row.everything) for row in rows)) as bar:
        return measure(rows, rounds, bar.update)


def progress(name: str, total: int) -> Any:
    """A bar with an estimate of the remaining time."""
    return tqdm(total=total, desc=name, mininterval=0.5, leave=False, disable=None)


def commit() -> str | None:
    """The commit of the working tree, if it is one."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


if __name__ == "__main__":
    main()
