"""Measure, print and save: ``python -m benchmarks``. The docstring of the package describes the options."""

import argparse
import gc
import json
import time
from pathlib import Path
from typing import Any

from benchmarks import machine

CORE = machine.one_core()  # must run before imports that start threads

from tqdm import tqdm  # noqa: E402

from benchmarks.adapters import PEERS, load  # noqa: E402
from benchmarks.adapters.base import Library  # noqa: E402
from benchmarks.catalogue import ARCHITECTURE, IN_PROCESSES, SECTIONS, TIMED  # noqa: E402
from benchmarks.checkouts import commit  # noqa: E402
from benchmarks.processes import Subject  # noqa: E402
from benchmarks.report import architecture_text, section_text, targets_text, versions_text  # noqa: E402
from benchmarks.targets import judge  # noqa: E402
from benchmarks.timing import Clock, Measured, Row, measure  # noqa: E402

ROUNDS, QUICK_ROUNDS = 40, 5
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.thread_time}


def main() -> None:
    options = parse_arguments()
    content = {"machine": machine.describe(CORE)}
    start = time.perf_counter()
    content |= run_versions(options) if options.before else run_libraries(options)
    print(f"\n{time.perf_counter() - start:.0f} s")
    if options.output:
        options.output.write_text(json.dumps(content, indent=1) + "\n")


def run_libraries(options: argparse.Namespace) -> dict[str, Any]:
    """Measure replaykit and the other libraries, and print their figures and the targets."""
    libraries, skipped = available(options.libs)
    sections = []
    for name in options.only:
        begin = time.perf_counter()
        if name in TIMED:
            title, rows_of = TIMED[name]
            measured = timed(name, rows_of(libraries, options.quick), options.rounds, CLOCKS[options.clock])
        else:
            title, module = IN_PROCESSES[name]
            subjects = [Subject.of(library) for library in libraries]
            with progress(name, module.ticks(subjects, options.quick)) as bar:
                measured = module.results(subjects, options.quick, bar.update)
        sections.append({"name": name, "title": title, "rows": [row.figures() for row in measured]})
        print(f"{section_text(sections[-1])}\n({time.perf_counter() - begin:.0f} s)", flush=True)
        gc.collect()
    targets = judge(sections)
    print(targets_text(targets))
    print(f"\nlibraries: {', '.join(library.name for library in libraries)}")
    for name, reason in skipped.items():
        print(f"skipped: {name} ({reason})")
    return {
        "versions": machine.versions([library.distribution for library in libraries]),
        "commit": commit(),
        "settings": settings(options) | {"low percentile": 20},
        "skipped": skipped,
        "sections": sections,
        "targets": targets,
    }


def run_versions(options: argparse.Namespace) -> dict[str, Any]:
    """Measure replaykit before and after, and print both and the limits of the architecture."""
    from benchmarks.architecture import judge
    from benchmarks.versions import Versions, compared

    sections: list[dict[str, Any]] = []
    everything: list[Measured] = []
    versions = Versions(str(options.before))
    for name in options.only:
        begin = time.perf_counter()
        measured = versions.measure(name, options.rounds, options.quick, progress)
        everything += measured
        title = (TIMED | IN_PROCESSES)[name][0]
        sections.append({"name": name, "title": title, "rows": [compared(row) for row in measured]})
        print(f"{versions_text(sections[-1])}\n({time.perf_counter() - begin:.0f} s)", flush=True)
    table = judge(everything)
    print(architecture_text(table))
    return {
        "versions": machine.versions([]),
        "before": commit(options.before),
        "after": commit(),
        "settings": settings(options) | {"figure": "median"},
        "sections": sections,
        "architecture": table,
    }


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """The settings of a run, apart from the machine and the versions."""
    return {"rounds": options.rounds, "quick": options.quick, "spread": "10-90 %", "clock": options.clock}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Time the replay buffers of replaykit and other libraries."
    )
    sections_help = "comma-separated sections, or architecture for those with a limit (default: %(default)s)"
    parser.add_argument("--only", default=",".join(SECTIONS), help=sections_help)
    libs_help = "comma-separated other libraries, or none (default: %(default)s)"
    parser.add_argument("--libs", default=",".join(PEERS), help=libs_help)
    parser.add_argument(
        "--before",
        type=Path,
        help="directory of another checkout of replaykit, to compare with instead of other libraries",
    )
    parser.add_argument(
        "--quick", action="store_true", help="run fewer rounds, without buffers of 10 million transitions"
    )
    parser.add_argument(
        "--rounds", type=int, help=f"rounds of each timing (default: {ROUNDS}; {QUICK_ROUNDS} with --quick)"
    )
    clock_help = "wall: elapsed time; cpu: processor time of one thread, for a busy machine (default: %(default)s)"
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help=clock_help)
    parser.add_argument("--output", type=Path, help="write the results to this JSON file")
    options = parser.parse_args()
    options.only = list(ARCHITECTURE) if options.only == "architecture" else options.only.split(",")
    options.libs = [] if options.libs == "none" else options.libs.split(",")
    for option, known in (("only", SECTIONS), ("libs", PEERS)):
        unknown = set(getattr(options, option)) - set(known)
        if unknown:
            parser.error(f"--{option}: {', '.join(sorted(unknown))}: expected one or more of {', '.join(known)}")
    if options.rounds is None:
        options.rounds = QUICK_ROUNDS if options.quick else ROUNDS
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: expected at least 1")
    if options.before:
        options.before = options.before.resolve()
        if not (options.before / "replaykit" / "__init__.py").is_file():
            parser.error(f"--before {options.before}: expected a checkout of this repository")
    if options.output and not options.output.parent.is_dir():
        parser.error(f"--output {options.output}: no such directory")
    return options


def available(peers: list[str]) -> tuple[list[Library], dict[str, str]]:
    """Replaykit and the installed peers, and the reason why each other peer is missing."""
    libraries, skipped = [load("replaykit")], {}
    for name in peers:
        try:
            libraries.append(load(name))
        except (ImportError, OSError) as error:  # noqa: PERF203 - the second where a shared object does not load
            skipped[name] = str(error)
            print(f"{name} is skipped: {error}")
    return libraries, skipped


def timed(name: str, rows: list[Row], rounds: int, clock: Clock) -> list[Measured]:
    """Measure the rows of a section."""
    with progress(name, rounds * sum(len(row.everything) for row in rows)) as bar:
        return measure(rows, rounds, bar.update, clock)


def progress(name: str, total: int) -> Any:
    """A bar with an estimate of the remaining time."""
    return tqdm(total=total, desc=name, mininterval=0.5, leave=False, disable=None)


if __name__ == "__main__":
    main()
