"""The cache of compiled kernels: one file for each, in a directory that no other user can write to.

Numba's own ``cache=True`` has three faults. It raises an error at import if no directory is writable, and in a call if
a file is truncated, and it runs damaged machine code. Here each file starts with a checksum, and its name depends on
everything the code depends on. If a file is missing, unreadable or damaged, the kernel is compiled again.

The files are pickles of code: anyone who can write them can run code in this process. The path of the directory is
therefore checked from the root down, as OpenSSH does for its keys. At each use, the directory and the file are opened
first and then checked through their descriptors. Windows has no such owners and modes: only links are refused.
"""

import contextlib
import functools
import hashlib
import os
import pickle
import stat
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba.core import config
from numba.core.compiler import CompileResult
from numba.core.runtime import rtsys
from numba.core.serialize import dumps

_CHECKSUM_BYTES = hashlib.sha256().digest_size


class _UnsafeError(OSError):
    """Another user can write to the cache."""


@functools.cache
def cache_directory() -> Path | None:
    """The directory of compiled kernels, or None if there is no directory that only this user can write to.

    It is in ``REPLAYKIT_CACHE_DIR`` if set (empty: no cache), else in ``NUMBA_CACHE_DIR``, else in the user's cache.
    Warns if other users can write to it. If it cannot be created, there is no warning. Never raises an error.
    """
    chosen = os.environ.get("REPLAYKIT_CACHE_DIR")
    if chosen == "":
        return None
    chosen = chosen or os.environ.get("NUMBA_CACHE_DIR")
    try:
        directory = (Path(chosen) if chosen else _user_cache()) / "replaykit"
        made = _make(directory)
        with opened(made):
            return made
    except _UnsafeError as error:
        _warn(
            f"Compiled kernels are not cached in {directory}, so each process compiles them again: {error}, or set "
            'REPLAYKIT_CACHE_DIR to a directory that only you can write to, or to "" for no cache and no warning.'
        )
    except (OSError, RuntimeError):
        pass
    return None


def _user_cache() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _warn(message: str) -> None:
    """Warn. If warnings are errors, print instead: a missing cache must not make the user's call fail."""
    try:
        warnings.warn(message, RuntimeWarning, stacklevel=3)
    except RuntimeWarning:
        print(message, file=sys.stderr)


def _make(directory: Path) -> Path:
    """Create `directory` if needed and return its path without links. Raises if others can replace a part of it.

    Proceeds from the root down: once a directory is safe, nobody else can replace its contents during the check.
    """
    if not hasattr(os, "geteuid"):
        directory.mkdir(parents=True, exist_ok=True)
        return directory
    place, parts = Path(), list(reversed(directory.absolute().parts))
    while parts:
        part = parts.pop()
        if part == "..":
            place = place.parent
            continue
        place /= part
        if not os.path.lexists(place):
            place.mkdir(mode=0o700, exist_ok=True)
        status = os.lstat(place)
        is_link = stat.S_ISLNK(status.st_mode)
        _check(place, status, stat.S_ISLNK if is_link else stat.S_ISDIR, shared=True)
        if is_link:
            place.stat()  # raises if the link is broken or circular
            parts.extend(reversed(place.readlink().parts))
            place = place.parent
    return place


def _check(path: str | Path, status: os.stat_result, is_kind: Callable[[int], bool], shared: bool = False) -> None:
    """Raise an error unless this is a file or directory, according to `is_kind`, and no other user can write to it.

    If `shared`, it may also belong to root, or be sticky like ``/tmp``, where nobody can replace files of others.
    """
    mode = status.st_mode
    if not is_kind(mode) or getattr(status, "st_reparse_tag", False):  # a tag is a link or junction on Windows
        raise OSError(f"{path} is a link, or not of the expected kind")
    if not hasattr(os, "geteuid"):
        return
    if status.st_uid != os.geteuid() and not (shared and status.st_uid == 0):
        raise _UnsafeError(f"{path} belongs to user {status.st_uid}. Change its owner")
    if mode & 0o022 and not stat.S_ISLNK(mode) and not (shared and mode & stat.S_ISVTX):
        raise _UnsafeError(f"its group or all users can write to {path}. Run `chmod go-w '{path}'`")


@contextlib.contextmanager
def opened(directory: Path) -> Iterator[tuple[str, int | None]]:
    """A prefix for file names in the safe `directory`, and the descriptor that they are relative to."""
    if not hasattr(os, "geteuid"):
        _check(directory, os.lstat(directory), stat.S_ISDIR)
        yield os.path.join(directory, ""), None
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        _check(directory, os.fstat(descriptor), stat.S_ISDIR)
        yield "", descriptor
    finally:
        os.close(descriptor)


def _opener(parent: int | None) -> Callable[[str, int], int]:
    """A function that opens a file relative to a directory's descriptor. It does not follow links or wait for pipes."""
    extra = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    return lambda path, flags: os.open(path, flags | extra, 0o600, dir_fd=parent)


def _read(directory: Path, name: str) -> bytes:
    """The content of a file. Raises an error if another user can write to it."""
    with opened(directory) as (prefix, parent):
        path = prefix + name
        if parent is None:
            _check(path, os.lstat(path), stat.S_ISREG)
        with open(path, "rb", opener=_opener(parent)) as file:
            _check(path, os.fstat(file.fileno()), stat.S_ISREG)
            return file.read()


def _write(directory: Path, name: str, content: bytes) -> None:
    """Write a file atomically, or write nothing and raise an error."""
    with opened(directory) as (prefix, parent):
        path = prefix + name
        temporary = f"{path}.{os.urandom(8).hex()}"
        try:
            with open(temporary, "xb", opener=_opener(parent)) as file:
                file.write(content)
            os.replace(temporary, path, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=parent)
            raise


class KernelCache:
    """One kernel's compiled code on disk: the part of Numba's cache interface that a dispatcher calls."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._name = function.__name__
        sources = _sources(Path(__file__).parent), _sources(Path(function.__code__.co_filename).parent)
        versions = sys.version, numba.__version__, np.__version__
        options = config.BOUNDSCHECK, config.OPT, config.DEBUGINFO_DEFAULT
        self._version = repr((function.__module__, *sources, *versions, *options))

    @property
    def cache_path(self) -> str:
        """The directory, for Numba's reports."""
        return str(cache_directory())

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """The compiled kernel for `signature`, or None if it must be compiled."""
        directory = cache_directory()
        if directory is None:
            return None
        name = self._file(signature, target_context.codegen())
        try:
            content = _read(directory, name)
            checksum, payload = content[:_CHECKSUM_BYTES], content[_CHECKSUM_BYTES:]
            if _checksum(name, payload) != checksum:
                raise ValueError("checksum differs")
            # All that machine code needs to run. Numba would load its whole compiler and SciPy here, which takes longer
            # than everything else before the first batch
            rtsys.initialize(target_context)
            return CompileResult._rebuild(target_context, *pickle.loads(payload))
        except Exception:  # missing, damaged or not safe: the kernel is compiled again, and the file replaced
            return None

    def save_overload(self, signature: Any, result: Any) -> None:
        """Save the compiled kernel. A failure, such as a full disk, is ignored."""
        directory = cache_directory()
        if directory is not None:
            with contextlib.suppress(Exception):
                name, payload = self._file(signature, result.codegen), dumps(result._reduce())
                _write(directory, name, _checksum(name, payload) + payload)

    def _file(self, signature: Any, codegen: Any) -> str:
        key = repr((self._version, str(signature), codegen.magic_tuple()))
        return f"{self._name}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.kernel"


def _checksum(name: str, payload: bytes) -> bytes:
    """A checksum of the name and the payload, so that a renamed file also counts as damaged."""
    return hashlib.sha256(name.encode() + payload).digest()


@functools.cache
def _sources(directory: Path) -> str:
    """A digest of the sources in a directory: a kernel contains the code of the kernels that it calls."""
    digest = hashlib.sha256()
    paths = sorted(directory.glob("*.py"))
    if not paths:
        raise FileNotFoundError(f"no sources in {directory}")
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()
