"""Start-up, each measured in a separate process: the import and first batches, with cold and warm compile caches."""

import tempfile
from collections.abc import Callable
from typing import Any

from benchmarks.processes import Subject, run
from benchmarks.timing import Measured

IMPORT = """
import json, sys, time
start = time.perf_counter()
sys.path.insert(0, {checkout!r})
{importing}
print(json.dumps({{"seconds": time.perf_counter() - start}}))
"""
KINDS = {"uniform": "first uniform batch", "prioritized": "then a prioritized one", "n_step": "then one of 3 steps"}
"""First batches in one process. Each buffer compiles only what the earlier ones did not compile."""


def results(subjects: list[Subject], quick: bool, tick: Callable[[], Any]) -> list[Measured]:
    """Rows of seconds. The subjects take turns. Compile caches are in temporary directories.

    Only replaykit keeps a compile cache: tianshou and flashbax compile in each process.
    """
    rows = _Rows()
    with tempfile.TemporaryDirectory() as kept:
        for subject in _ours(subjects):  # fill the caches
            first_batches(subject, f"{kept}/{subject.name}", *KINDS)
            tick()
        for turn in range(repeats(quick)):
            rows.imports.values.setdefault("import numpy", []).append(import_of("import numpy"))
            for subject in subjects[turn % len(subjects) :] + subjects[: turn % len(subjects)]:
                rows.measure_warm(subject, f"{kept}/{subject.name}")
                if subject.is_replaykit and turn < repeats_cold(quick):
                    rows.measure_cold(subject)
                tick()
    rows.cold.absent = {subject.name: "keeps no compile cache" for subject in subjects if not subject.is_replaykit}
    return rows.everything


class _Rows:
    """The rows of this section. Its methods measure a subject and append the values."""

    def __init__(self) -> None:
        self.imports = Measured("import", "import", "s", floors=("import numpy",))
        self.warm = Measured("first-batch-warm", "first batch, compile cache warm", "s")
        self.cold = Measured("first-batch-cold", "first batch, compile cache cold", "s")
        self.sequence = {
            (state, kind): Measured(f"first-{kind}-{state}", f"{title}, compile cache {state}", "s")
            for state in ("warm", "cold")
            for kind, title in KINDS.items()
        }

    @property
    def everything(self) -> list[Measured]:
        return [self.imports, self.warm, self.cold, *self.sequence.values()]

    def measure_warm(self, subject: Subject, kept: str) -> None:
        """Measure processes with the compile cache `kept`."""
        self._append(self.imports, subject, import_of(subject.importing, subject.checkout))
        self._append(self.warm, subject, first_batch(subject, kept))
        if subject.is_replaykit:
            self._append_sequence("warm", subject, kept)

    def measure_cold(self, subject: Subject) -> None:
        """Measure processes with empty compile caches."""
        with tempfile.TemporaryDirectory() as empty:
            self._append(self.cold, subject, first_batch(subject, empty))
        with tempfile.TemporaryDirectory() as empty:
            self._append_sequence("cold", subject, empty)

    def _append_sequence(self, state: str, subject: Subject, cache: str) -> None:
        for kind, seconds in first_batches(subject, cache, *KINDS).items():
            self._append(self.sequence[state, kind], subject, seconds)

    @staticmethod
    def _append(row: Measured, subject: Subject, seconds: float) -> None:
        row.values.setdefault(subject.name, []).append(seconds)


def _ours(subjects: list[Subject]) -> list[Subject]:
    return [subject for subject in subjects if subject.is_replaykit]


def ticks(subjects: list[Subject], quick: bool) -> int:
    """The number of times that `results` calls `tick`."""
    return len(_ours(subjects)) + len(subjects) * repeats(quick)


def repeats(quick: bool) -> int:
    """The number of processes for each figure."""
    return 1 if quick else 8


def repeats_cold(quick: bool) -> int:
    """The number of processes for each figure with an empty cache."""
    return 1 if quick else 3


def import_of(statement: str, checkout: str = "") -> float:
    """Seconds that a statement takes in a new process."""
    return float(run("-c", IMPORT.format(importing=statement, checkout=checkout))["seconds"])


def first_batch(subject: Subject, cache: str) -> float:
    """Seconds for the import of a library and its first batch, prioritized if the library supports it."""
    found = first_batches(subject, cache, "prioritized") or first_batches(subject, cache, "uniform")
    return next(iter(found.values()))


def first_batches(subject: Subject, cache: str, *kinds: str) -> dict[str, float]:
    """Seconds to the first batch of each kind, in one process, with compile caches in `cache`."""
    return subject.run("first_batch", *kinds, REPLAYKIT_CACHE_DIR=cache, NUMBA_CACHE_DIR=cache)
