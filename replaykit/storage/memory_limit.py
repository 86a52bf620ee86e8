"""The machine's memory: a storage that does not fit into it raises an error before it is allocated."""

import contextlib
import math
import os


def refuse_more_than_memory(
    needed: int, purpose: str, remedy: str = "lower the capacity or store smaller dtypes",
    where: str = "this machine", available: float | None = None,
) -> None:  # fmt: skip
    """Raise MemoryError if `where` has less than `needed` bytes of memory. The error shows both sizes."""
    available = _available_bytes() if available is None else available
    if needed > available:
        sizes = [f"{n / 2**30:.1f} GiB" if n >= 2**30 else f"{n / 2**20:.1f} MiB" for n in (needed, available)]
        raise MemoryError(f"{purpose} needs {sizes[0]}; {where} has {sizes[1]} available; {remedy}")


def _available_bytes() -> float:
    """The memory in bytes that can be used without swapping, at most a container's limit; inf if unknown."""
    with contextlib.suppress(OSError, KeyError, ValueError), open("/proc/meminfo") as meminfo:
        sizes = dict(line.split(":") for line in meminfo)
        return min(int(sizes["MemAvailable"].split()[0]) * 1024, _container_limit())
    with contextlib.suppress(AttributeError, ValueError, OSError):  # not Linux: the machine's total memory
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return math.inf


def _container_limit() -> float:
    """The memory limit of the container; inf without a limit."""
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError), open(limit) as file:  # no such file, or "max"
            return int(file.read())
    return math.inf
