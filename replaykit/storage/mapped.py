"""`MappedStorage`: packed rows in memory-mapped files, which may be larger than memory and outlive the process."""

import errno
import functools
import gc
import json
import math
import mmap
import os
import urllib.parse
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from replaykit._kernels import lazy
from replaykit.saving.manifest import FORMAT, describe, differences
from replaykit.spec import Spec
from replaykit.storage.columns import Padding, Share
from replaykit.storage.local import LocalStorage
from replaykit.storage.lock import Lock

kernels: Any = lazy("store")

_LAYOUT, _LOCK = "layout.json", "lock"
_DAMAGED = "after a power failure, use another directory and load() a checkpoint"
_GROWING = ("tables", "overflow", "free")
"""Arrays that can grow."""


class MappedStorage(LocalStorage):
    """A `LocalStorage` whose arrays are memory-mapped files in a directory.

    The operating system keeps used pages in memory and writes changes to the files. The storage can therefore be larger
    than memory, and stored transitions survive if the process is killed at any moment. They may not survive a power
    failure: use ``save`` for that, and to keep the generator and the counters. All files get their full size at once,
    so a full disk raises an error here and not later.

    A directory with such files is opened again if the arguments are the same. Only one process at a time can open it. A
    forked child cannot use the storage. A copied or unpickled storage is a `LocalStorage`.

    Parameters
    ----------
    path : str or path-like
        A directory. It is created if it does not exist.
    capacity, spec, num_envs, stack, padding, share
        As in `LocalStorage`.

    Raises
    ------
    OSError
        If the directory is in use, contains other files, or the disk is full.
    ValueError, TypeError
        If the directory was created with other arguments or is damaged, or an argument is invalid.
    """

    saved_kind: str = "LocalStorage"

    def __init__(
        self,
        path: str | os.PathLike[str],
        capacity: int,
        spec: Spec,
        num_envs: int = 1,
        *,
        stack: int = 1,
        padding: Padding = "reset",
        share: Share = "large",
    ) -> None:
        self.path: str = os.path.abspath(os.fspath(path))
        os.makedirs(self.path, exist_ok=True)
        lock_file = _locked(self.path)
        self._release = weakref.finalize(self, os.close, lock_file)
        try:
            self._layout = self._opened_layout()
            super().__init__(capacity, spec, num_envs, stack=stack, padding=padding, share=share)
        except BaseException:
            self._release()
            raise
        self.lock.after_fork = functools.partial(_leave, self._release, self.path)
        if self.is_reopened:
            self._recover()

    def _opened_layout(self) -> dict[str, Any]:
        """The settings with which the directory was created. A new directory gets the current settings."""
        where, built = os.path.join(self.path, _LAYOUT), describe(self)
        capacity = built["arguments"]["capacity"]
        self.is_reopened: bool = os.path.exists(where)
        if not self.is_reopened:
            others = sorted(set(os.listdir(self.path)) - {_LOCK, f"{_LAYOUT}.new"})
            if others:
                expected = "expected a new or empty directory, or one that a storage created"
                raise FileExistsError(f"{self.path} has other files, such as {others[0]}; {expected}")
            layout: dict[str, Any] = {"format": FORMAT, "built": built, "claims": {}}
            self._write_layout(layout)
            return layout
        try:
            with open(where) as file:
                layout = json.load(file)
            found, number, was = layout["built"], layout["format"], layout["built"]["arguments"]["capacity"]
            claims = dict(layout["claims"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{where} is damaged: {type(error).__name__}: {error}") from None
        if number != FORMAT:
            raise ValueError(f"{where} has the format {number!r:.20}; this version reads {FORMAT}")
        remedy = "open it with the original settings, or choose another directory"
        for difference in differences(found, built):
            raise ValueError(f"{self.path}: {difference}; {remedy}")
        if was != capacity:
            raise ValueError(f"{self.path}: capacity was {was}, but is {capacity} here; {remedy}")
        return layout | {"claims": claims}

    def _write_layout(self, layout: dict[str, Any]) -> None:
        where = os.path.join(self.path, _LAYOUT)
        with open(f"{where}.new", "w") as file:
            json.dump(layout, file)
        os.replace(f"{where}.new", where)

    def claim(self, name: str, value: Any) -> None:
        was = self._layout["claims"].setdefault(name, value)
        if was != value:
            remedy = "open it with the original settings, or choose another directory"
            raise ValueError(f"{self.path}: {name} was {was!r:.50}, but is {value!r} here; {remedy}")
        self._write_layout(self._layout)

    def refuse_size(self, needed: int, purpose: str) -> None:
        """Do nothing: each file reserves its disk space when it is created."""

    def allocate(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """An array in its own file. An existing file keeps its contents."""
        where = os.path.join(self.path, f"{urllib.parse.quote(name, safe='')}.array")
        rest, kind = shape[1:], np.dtype(dtype)
        row_bytes = math.prod(rest) * kind.itemsize
        with open(os.open(where, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666), "r+b") as file:
            size = os.fstat(file.fileno()).st_size
            if size % row_bytes:
                raise ValueError(f"{where} has {size} bytes; expected a multiple of {row_bytes}: it is damaged")
            count = max(size // row_bytes, shape[0])
            if count > shape[0] and name.rpartition(".")[2] not in _GROWING:
                raise ValueError(f"{where} has {size} bytes; expected {shape[0] * row_bytes}: it is damaged")
            if count * row_bytes > size:
                _extend(file.fileno(), size, count * row_bytes, where)
            memory: Any = mmap.mmap(file.fileno(), count * row_bytes) if count else bytearray()
        if count and hasattr(mmap, "MADV_RANDOM"):
            memory.madvise(mmap.MADV_RANDOM)
        array: npt.NDArray[Any] = np.ndarray((count, *rest), kind, memory)
        self.arrays[name] = array
        return array

    def _recover(self) -> None:
        """Repair the files, whenever the last process ended: remove steps that were not published."""
        first, cursor = self.bounds
        if not ((first >= 0) & (first <= cursor) & (cursor - first <= self.length)).all():
            raise ValueError(f"{self.path} is damaged: its lanes are impossible; {_DAMAGED}")
        has_steps = np.flatnonzero(first < cursor)
        newest = (cursor[has_steps] - 1) * self.num_envs + has_steps
        numbers = self.tables[kernels.NUMBER, newest % self.capacity]
        if ((numbers < 0) | ((numbers - has_steps) % self.num_envs != 0)).any():
            raise ValueError(f"{self.path} is damaged: its episodes are impossible; {_DAMAGED}")
        self._lanes[kernels.EPISODE, has_steps] = numbers
        self._lanes[kernels.PLACE] = self._lanes[kernels.EPISODE] % self.capacity
        self._lanes[kernels.OVER, has_steps] = self.rows[newest % self.capacity, self.row.end]
        self.tables[kernels.STOPS, numbers % self.capacity] = newest
        self.header[kernels.STORED] = (cursor - first).sum()
        if self.header[kernels.SPLIT] > cursor.sum():
            self.forget_stamps()
        for columns in self.columns:
            columns.recover()

    def copied_arguments(self) -> tuple[type[Any], tuple[Any, ...], dict[str, Any]]:
        args, options = self._arguments
        if "path" in options:
            return LocalStorage, args, {name: value for name, value in options.items() if name != "path"}
        return LocalStorage, args[1:], options


def _locked(path: str) -> int:
    """Lock the directory for this process, if the system supports locks of files. Returns the lock's descriptor."""
    descriptor = os.open(os.path.join(path, _LOCK), os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        import fcntl
    except ImportError:
        return descriptor
    for is_last in (False, True):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if is_last:
                os.close(descriptor)
                remedy = "choose another directory, or delete the other buffer object"
                raise BlockingIOError(f"{path} is in use by another buffer or process; {remedy}") from None
            gc.collect()  # it may be in use by a storage of this process that is no longer referenced
        except OSError:  # a file system without locks
            break
    return descriptor


def _leave(release: Callable[[], Any], path: str, lock: Lock) -> None:
    """Close the files in a forked child, and refuse the storage there."""
    release()
    remedy = "start it with the spawn method, or use another buffer in it"
    reason = f"the files of {path} belong to the process that opened them, and a forked process cannot use them"
    lock.sampling, lock.refusal = True, f"{reason}; {remedy}"


def _extend(descriptor: int, size: int, wanted: int, where: str) -> None:
    """Enlarge a file and reserve its disk space, so that later writes to the mapped memory cannot fail."""
    try:
        os.posix_fallocate(descriptor, size, wanted - size)
    except (AttributeError, OSError) as error:
        if hasattr(os, "statvfs"):
            disk = os.statvfs(where)
            free, needed = disk.f_bavail * disk.f_frsize, wanted - size
            if free < needed:
                sizes = f"it needs {needed / 2**30:.1f} GiB, and the disk has {free / 2**30:.1f} GiB"
                raise OSError(getattr(error, "errno", None) or errno.ENOSPC, sizes, where) from None
        os.truncate(descriptor, wanted)
