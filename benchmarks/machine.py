"""The machine: limits all libraries to one core and one thread, and describes the machine for the results."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_OTHER_CORES: set[int] = set()
"""The cores that `one_core` does not use."""
PACKAGES = ("numpy", "numba", "torch", "jax", "jaxlib", "tensordict", "gymnasium")


def one_core() -> int | None:
    """Restrict this process, its threads and its children to one core, if the system allows it. Returns the core.

    Call it before any import that starts threads.
    """
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[variable] = "1"
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    if not hasattr(os, "sched_setaffinity"):
        return None
    core = max(os.sched_getaffinity(0))  # the first core serves more of the system's interrupts
    _OTHER_CORES.update(os.sched_getaffinity(0) - {core})
    os.sched_setaffinity(0, {core})
    return core


def another_core() -> None:
    """Let this thread use the cores that `one_core` does not use, if there are any."""
    if _OTHER_CORES:
        os.sched_setaffinity(0, _OTHER_CORES)


def describe(core: int | None) -> dict[str, Any]:
    """The conditions of a run, apart from the code."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "pinned to core": core,
        "caches": _caches(),
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "python": platform.python_version(),
        "load average at the start": _load(),
    }


def versions(distributions: list[str]) -> dict[str, str]:
    """The versions of the installed libraries and of the packages that they are built on."""
    found = {name: _version(name) for name in (*distributions, *PACKAGES)}
    return {name: number for name, number in found.items() if number}


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or sys.platform
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _caches() -> dict[str, str]:
    """The size of each cache of the first core."""
    found = {}
    for cache in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind, level, size = ((cache / name).read_text().strip() for name in ("type", "level", "size"))
        found[f"L{level} {kind.lower()}"] = size
    return found


def _load() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
