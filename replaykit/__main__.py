"""Information for bug reports: ``python -m replaykit`` prints versions, the machine and the cache of kernels.

``python -m replaykit --clear-cache`` deletes the kernels in the cache.
"""

import argparse
import os
import platform
import re
import stat
import sys
import warnings
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import replaykit

REQUIRED = "numpy", "numba", "llvmlite"
OPTIONAL = "torch", "gymnasium", "stable-baselines3", "tensordict", "torchrl", "minari", "hypothesis"
_KERNEL = re.compile(r"\w+-[0-9a-f]{32}\.kernel(\.[0-9a-f]{16})?")
"""File names of kernels, including unfinished files of processes that died while writing."""


def main(arguments: list[str] | None = None) -> int:
    """Print the report, or clear the cache. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m replaykit", description="Print the information that a bug report needs."
    )
    parser.add_argument(
        "--clear-cache",
        action="store_true",
        help="delete the compiled kernels in the cache instead; they are compiled again when needed",
    )
    if parser.parse_args(arguments).clear_cache:
        return clear_cache()
    for name, value in (*versions(), *machine()):
        print(f"{name:<18} {value}")
    for line in cache_lines():
        print(line)
    return 0


def versions() -> list[tuple[str, str]]:
    """Names and versions of replaykit, Python and the relevant packages. The packages are not imported."""
    python = f"{platform.python_version()} {platform.python_implementation()}"
    found = [
        ("replaykit", f"{replaykit.__version__} in {Path(replaykit.__file__).parent}"),
        ("python", f"{python} in {sys.prefix}"),
    ]
    found += [(name, _version(name) or "not installed") for name in REQUIRED]
    return found + [(name, number) for name in OPTIONAL if (number := _version(name))]


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def machine() -> list[tuple[str, str]]:
    """The system, the processor, and the environment variables that affect how kernels are compiled and cached."""
    cores = os.cpu_count()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    named = {name: value for name, value in os.environ.items() if name.startswith(("NUMBA_", "REPLAYKIT_"))}
    return [
        ("system", f"{platform.system()} {platform.release()}, {platform.machine()}"),
        ("processor", f"{_processor()}, {usable} of {cores} cores usable"),
        *((name, repr(value)) for name, value in sorted(named.items())),
    ]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def cache_lines() -> list[str]:
    """The directory of the kernel cache, the number and size of its kernels, and how to delete them."""
    try:
        directory, reasons = _cache()
        files = _kernels(directory) if directory is not None else {}
    except (ImportError, OSError) as error:
        return [f"{'kernel cache':<18} unknown: {error}"]
    if directory is None:
        return [f"{'kernel cache':<18} none: each process compiles its own kernels", *reasons]
    size = sum(files.values()) / 1e6
    return [
        f"{'kernel cache':<18} {directory}",
        f"{'':<18} {len(files)} kernels, {size:.1f} MB; to delete them: python -m replaykit --clear-cache",
    ]


def clear_cache() -> int:
    """Delete the kernels in the cache, and no other files. Returns the exit status."""
    from replaykit._kernels.cache import opened

    directory, reasons = _cache()
    if directory is None:
        print("There is no cache of kernels.", *reasons, sep="\n")
        return 0
    files = _kernels(directory)
    with opened(directory) as (prefix, parent):
        failures = {name: failure for name in files if (failure := _delete(prefix + name, parent))}
    print(f"Deleted {len(files) - len(failures)} kernels in {directory}. They are compiled again when they are needed.")
    for name, failure in failures.items():
        print(f"{name} was not deleted: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _delete(path: str, parent: int | None) -> OSError | None:
    """Delete a file. Returns the error if that fails, or None; a file that no longer exists is not an error."""
    try:
        os.unlink(path, dir_fd=parent)
    except FileNotFoundError:
        return None
    except OSError as error:
        return error
    return None


def _cache() -> tuple[Path | None, Iterable[str]]:
    """The directory of the cache and related warnings. Without a cache: None and the reasons."""
    from replaykit._kernels.cache import cache_directory

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        directory = cache_directory()
    if os.environ.get("REPLAYKIT_CACHE_DIR") == "":
        return None, ["REPLAYKIT_CACHE_DIR is empty, which turns the cache off."]
    return directory, [str(warning.message) for warning in caught]


def _kernels(directory: Path) -> dict[str, int]:
    """The names of the kernels in the cache, and their sizes in bytes. Links are not followed."""
    from replaykit._kernels.cache import opened

    sizes = {}
    with opened(directory) as (prefix, parent):
        for name in os.listdir(directory if parent is None else parent):
            if _KERNEL.fullmatch(name):
                status = os.stat(prefix + name, dir_fd=parent, follow_symlinks=False)
                if not stat.S_ISDIR(status.st_mode):
                    sizes[name] = status.st_size
    return sizes


if __name__ == "__main__":
    sys.exit(main())
