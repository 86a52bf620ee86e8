"""Start-up, each in a process of its own: the import, and the first batch, with a cold and a warm compile cache."""

import tempfile
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from benchmarks.adapters.base import Library
from benchmarks.processes import run
from benchmarks.timing import figure, row_of

IMPORT = """
import json, time
start = time.perf_counter()
{importing}
print(json.dumps({{"seconds": time.perf_counter() - start}}))
"""


def results(libraries: list[Library], quick: bool, tick: Callable[[], Any]) -> list[dict[str, Any]]:
    """Rows of seconds. The libraries take turns; compile caches are in directories made for this.

    Only replaykit keeps one: what tianshou and flashbax compile, they compile in each process.
    """
    imports, warm, cold = (defaultdict[str, list[float]](list) for _ in range(3))
    with tempfile.TemporaryDirectory() as kept:
        first_batch("replaykit", kept)  # fills the cache
        tick()
        for _ in range(repeats(quick)):
            imports["import numpy"].append(import_of("import numpy"))
            for library in libraries:
                imports[library.name].append(import_of(library.importing))
                warm[library.name].append(first_batch(library.name, kept))
                tick()
            with tempfile.TemporaryDirectory() as empty:
                cold["replaykit"].append(first_batch("replaykit", empty))
    figures = ({name: figure(values, "s") for name, values in seconds.items()} for seconds in (imports, warm, cold))
    titles = ("import", "first batch, compile cache warm", "first batch, compile cache cold")
    keys = ("import", "first-batch-warm", "first-batch-cold")
    rows = [row_of(key, title, found) for key, title, found in zip(keys, titles, figures, strict=True)]
    rows[0]["floors"] = ["import numpy"]
    rows[2]["absent"] = {library.name: "keeps no compile cache" for library in libraries if library.name != "replaykit"}
    return rows


def ticks(libraries: list[Library], quick: bool) -> int:
    """How often `results` calls its `tick`."""
    return 1 + len(libraries) * repeats(quick)


def repeats(quick: bool) -> int:
    """Processes for each figure."""
    return 1 if quick else 10


def import_of(statement: str) -> float:
    """Seconds that a statement takes in a fresh process."""
    return float(run("-c", IMPORT.format(importing=statement))["seconds"])


def first_batch(library: str, cache: str) -> float:
    """Seconds from before the import of a library to its first batch, with compile caches in that directory."""
    found = run("-m", "benchmarks.first_batch", library, REPLAYKIT_CACHE_DIR=cache, NUMBA_CACHE_DIR=cache)
    return float(found["seconds"])
