"""A segment of shared memory: steps on their way from one process that writes to one that reads."""

import contextlib
import mmap
import os
import platform
import secrets
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from replaykit.field import Array
from replaykit.spec import Spec

_TOKEN, _PUBLISHED, _TAKEN, _CLOSED, _WAITED, _WORDS = 0, 8, 16, 24, 32, 40
"""Places in the header, in words of 8 bytes: each number that one side writes is in a cache line of its own."""
_NEEDS_FENCES = platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686")
_SHORTEST_SLEEP, _LONGEST_SLEEP = 20e-6, 2e-3
_opened: set[tuple[int, tuple[int, int]]] = set()
"""The process, and the device and inode, of each segment that this process writes to."""


class Place(NamedTuple):
    """Where a segment is: what another process needs to open it."""

    path: str
    process: int
    token: int
    steps: int


class SegmentGoneError(RuntimeError):
    """The process that reads the segment has ended, or has closed it."""


class Layout(NamedTuple):
    """How a step of some lanes lies in a slot: the record, the order of its leaves, and where the first of them begins.

    The record has `td_error`, the leaves by their numbers, and then `mask`, `cut`, which is where an episode begins
    although the last step has no flag that ends one, and `has_error`. Nothing lies between the leaves.
    """

    record: np.dtype[Any]
    order: list[int]
    begin: int

    @classmethod
    def of(cls, spec: Spec, lanes: int) -> "Layout":
        """The layout for a spec and so many lanes."""
        sizes = [leaf.field.nbytes for leaf in spec.leaves]
        order = sorted(range(len(sizes)), key=lambda i: -min(sizes[i] & -sizes[i] or 8, 8))
        fields: list[Any] = [("td_error", np.float64, (lanes,))]
        fields += [(str(i), spec.leaves[i].dtype, (lanes, *spec.leaves[i].shape)) for i in order]
        fields += [("mask", np.bool_, (lanes,)), ("cut", np.bool_, (lanes,)), ("has_error", np.bool_)]
        packed = np.dtype(fields)
        padding = -packed.itemsize % 8
        return cls(np.dtype([*fields, ("", np.uint8, (padding,))]) if padding else packed, order, 8 * lanes)


class Segment:
    """A ring of steps in shared memory, with one process that writes and one that reads. No locks are shared.

    The writer copies steps to free slots and then publishes the count of all that it has written; the reader takes what
    is published and then sets the count of all that it has taken. Each count is one aligned word, which processors
    store at once. x86 keeps stores in order; elsewhere a lock of the process, released and taken, is the barrier
    between the rows and the count. So what a writer that died has not published is not there, and nobody waits for it.

    The memory has no name in any directory: on Linux it is anonymous, and other processes open it through the reader's
    file descriptor in ``/proc``. It vanishes with the last process that has it open, however that ends, and the size of
    ``/dev/shm`` does not limit it. On other systems it is a file in the directory for temporary files, which the reader
    deletes when it closes it or ends, unless it is killed.
    """

    def __init__(self, memory: mmap.mmap, record: np.dtype[Any], steps: int, place: Place) -> None:
        self.place, self._process = place, os.getpid()
        self._bytes = memoryview(memory)
        self._header: Any = self._bytes[: 8 * _WORDS].cast("q")
        self.slots: Array = np.ndarray((steps,), record, memory, 8 * _WORDS)
        self._fence, self._key = threading.Lock(), (0, 0)
        self._release: Callable[[], Any] = int

    @classmethod
    def create(cls, record: np.dtype[Any], steps: int) -> "Segment":
        """A new segment, for the process that reads."""
        size = 8 * _WORDS + record.itemsize * steps
        directory, token = None, secrets.randbits(62)
        if hasattr(os, "memfd_create"):
            file = os.memfd_create("replaykit", os.MFD_CLOEXEC)
            path = f"/proc/{os.getpid()}/fd/{file}"
        else:
            directory = tempfile.mkdtemp(prefix="replaykit-")
            path = os.path.join(directory, "segment")
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(file, size)
        segment = cls(mmap.mmap(file, size), record, steps, Place(path, os.getpid(), token, steps))
        segment.claim(_key_of(path), _close, file, directory, os.getpid())
        return segment

    @classmethod
    def open(cls, record: np.dtype[Any], place: Place) -> "Segment":
        """The segment at a place, for the process that writes. Only one process at a time can have it open so."""
        size, key = 8 * _WORDS + record.itemsize * place.steps, _key_of(place.path)
        if (os.getpid(), key) in _opened:  # to close it once more would give up the lock
            raise BlockingIOError("is in use in this process")
        try:
            file = os.open(place.path, os.O_RDWR | getattr(os, "O_CLOEXEC", 0))
        except OSError:
            raise _gone() from None
        try:
            if os.fstat(file).st_size != size:
                raise _gone()
            segment = cls(mmap.mmap(file, size), record, place.steps, place)
            if segment.token != place.token:
                raise _gone()
            if not _locked(file):
                raise BlockingIOError("is in use in another process")
        except BaseException:
            os.close(file)
            raise
        _opened.add((os.getpid(), key))
        segment.claim(key, _give_back, file, key, os.getpid())
        return segment

    def claim(self, key: tuple[int, int], release: Callable[..., None], *arguments: Any) -> None:
        """Note the device and the inode of the segment, and what `close` has to call."""
        self._key, self._release = key, weakref.finalize(self, release, *arguments)
        self._header[_TOKEN] = self.place.token

    @property
    def token(self) -> int:
        """A random number that the memory begins with, to be told from other memory at the same place."""
        return int(self._header[_TOKEN])

    def shut(self) -> None:
        """Let the writer raise an error when it writes the next time."""
        self._header[_CLOSED] = 1

    def close(self) -> None:
        """Give the memory back."""
        self._header, self.slots, self._bytes = list(self._header), self.slots[:0].copy(), memoryview(b"")
        self._release()

    # -- The writer ------------------------------------------------------------------------------------------

    def write_one(self, data: bytes, begin: int, timeout: float | None) -> int:
        """Write the bytes of a step from a place of its record on, as `write` does."""
        if self._process != os.getpid():
            raise _forked()
        if not self._room(timeout):
            return 0
        published = self._header[_PUBLISHED]
        start = 8 * _WORDS + published % len(self.slots) * self.slots.itemsize + begin
        self._bytes[start : start + len(data)] = data
        self._order()
        self._header[_PUBLISHED] = published + 1
        return 1

    def write(self, values: dict[str, Any], steps: int, timeout: float | None) -> int:
        """Write some steps, by the names of the record, and publish them; wait for room. Returns how many fitted."""
        if self._process != os.getpid():
            raise _forked()
        done = 0
        while done < steps:
            count = min(self._room(timeout), steps - done)
            if not count:
                break
            published = self._header[_PUBLISHED]
            begin = published % len(self.slots)
            count = min(count, len(self.slots) - begin)
            for name, value in values.items():
                self.slots[name][begin : begin + count] = value[done : done + count]
            self._order()
            self._header[_PUBLISHED] = published + count
            done += count
        return done

    def _room(self, timeout: float | None) -> int:
        """How many slots are free; waits for one."""
        begin, pause = 0.0, _SHORTEST_SLEEP
        while True:
            if self._header[_CLOSED]:
                raise SegmentGoneError("the learner has closed its process writers; nothing can be added any more")
            room = len(self.slots) - self._header[_PUBLISHED] + self._header[_TAKEN]
            if room:
                break
            begin = begin or time.monotonic()
            if timeout is not None and time.monotonic() - begin >= timeout:
                break
            if pause >= _LONGEST_SLEEP and not self.has_reader:
                raise _gone()
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_SLEEP)
        if begin:
            self._header[_WAITED] += int(1e9 * (time.monotonic() - begin))
        self._order()
        return int(room)

    def await_reader(self) -> None:
        """Wait until everything that was published is taken."""
        while self._header[_TAKEN] < self._header[_PUBLISHED]:
            if self._header[_CLOSED] or not self.has_reader:
                raise _gone()
            time.sleep(_LONGEST_SLEEP)

    @property
    def has_reader(self) -> bool:
        """Whether the process that reads lives."""
        if _key_of(self.place.path) != self._key:
            return False
        if self.place.path.startswith("/proc/") or os.name == "nt":
            return True
        try:
            os.kill(self.place.process, 0)  # sends nothing
        except ProcessLookupError:
            return False
        return True

    # -- The reader ------------------------------------------------------------------------------------------

    def waiting(self, most: int) -> Array:
        """The oldest steps that were published and not taken, at most so many, as a view."""
        taken, published = self._header[_TAKEN], self._header[_PUBLISHED]
        self._order()
        begin = taken % len(self.slots)
        return self.slots[begin : begin + min(published - taken, most, len(self.slots) - begin)]

    def take(self, count: int) -> None:
        """Give so many slots back to the writer."""
        self._order()
        self._header[_TAKEN] += count

    @property
    def counts(self) -> tuple[int, int, float]:
        """Steps published, steps taken, and seconds that the writer has waited for room."""
        return self._header[_PUBLISHED], self._header[_TAKEN], self._header[_WAITED] / 1e9

    def _order(self) -> None:
        """What was read and written before is so for others before what comes after."""
        for _ in range(2 if _NEEDS_FENCES else 0):
            with self._fence:
                pass


def _key_of(path: str) -> tuple[int, int]:
    """The device and the inode of a file; zeros if it is gone."""
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0
    return status.st_dev, status.st_ino


def _forked() -> RuntimeError:
    return RuntimeError("a forked child cannot use the writer of its parent; give it a writer of its own")


def _gone() -> SegmentGoneError:
    return SegmentGoneError("the learner's process has ended, or has closed its process writers; start it again first")


def _locked(file: int) -> bool:
    """Lock a file for this process, where the system can; the lock ends with the process."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _close(file: int, directory: str | None, process: int) -> None:
    with contextlib.suppress(OSError):
        os.close(file)
    if directory is not None and process == os.getpid():
        shutil.rmtree(directory, ignore_errors=True)


def _give_back(file: int, key: tuple[int, int], process: int) -> None:
    _close(file, None, process)
    _opened.discard((process, key))
