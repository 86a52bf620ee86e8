"""A segment of shared memory that passes steps from one writing process to one reading process."""

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
"""Positions in the header, in words of 8 bytes. Each number that one side writes has a separate cache line."""
_NEEDS_FENCES = platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686")
_SHORTEST_SLEEP, _LONGEST_SLEEP = 20e-6, 2e-3
_opened: set[tuple[int, tuple[int, int]]] = set()
"""The segments that this process writes to: the process id, and the device and inode of the file."""


class Place(NamedTuple):
    """The location of a segment, with which another process can open it."""

    path: str
    process: int
    token: int
    steps: int


class SegmentGoneError(RuntimeError):
    """Raised if the process that reads the segment has ended or has closed it."""


class Layout(NamedTuple):
    """The layout of a step in a slot: the record, the order of its leaves, and the position of the first leaf.

    The record has `td_error`, the leaves, named by their numbers, and then `mask`, `cut` and `has_error`. `cut` marks
    lanes in which an episode begins although no flag ended the previous one. There are no gaps between leaves.
    """

    record: np.dtype[Any]
    order: list[int]
    begin: int

    @classmethod
    def of(cls, spec: Spec, lanes: int) -> "Layout":
        """The layout for this spec and number of lanes."""
        sizes = [leaf.field.nbytes for leaf in spec.leaves]
        order = sorted(range(len(sizes)), key=lambda i: -min(sizes[i] & -sizes[i] or 8, 8))
        fields: list[Any] = [("td_error", np.float64, (lanes,))]
        fields += [(str(i), spec.leaves[i].dtype, (lanes, *spec.leaves[i].shape)) for i in order]
        fields += [("mask", np.bool_, (lanes,)), ("cut", np.bool_, (lanes,)), ("has_error", np.bool_)]
        packed = np.dtype(fields)
        padding = -packed.itemsize % 8
        return cls(np.dtype([*fields, ("", np.uint8, (padding,))]) if padding else packed, order, 8 * lanes)


class Segment:
    """A ring of steps in shared memory, with one writing and one reading process, and without locks between them.

    The writer copies steps to free slots, and then publishes the total number of steps that it has written. The reader
    takes published steps, and then sets the total number of steps that it has taken. Each number is one aligned word,
    which processors store atomically. x86 keeps stores in order. On other processors, a lock within the process is
    acquired and released as a memory barrier between the rows and the number. If a writer dies, the steps that it has
    not published do not exist for the reader, and no process waits for them.

    On Linux the memory is anonymous: it has no name in any directory. Other processes open it through the reader's file
    descriptor in ``/proc``. It is freed when the last process that has it open ends or is killed. The size of
    ``/dev/shm`` does not limit it. On other systems the memory is a temporary file. The reader deletes the file when it
    closes the segment or ends, unless it is killed.
    """

    def __init__(self, memory: mmap.mmap, record: np.dtype[Any], steps: int, place: Place) -> None:
        self.place: Place = place
        self._process = os.getpid()
        self._bytes = memoryview(memory)
        self._header: Any = self._bytes[: 8 * _WORDS].cast("q")
        self.slots: Array = np.ndarray((steps,), record, memory, 8 * _WORDS)
        self._fence, self._key = threading.Lock(), (0, 0)
        self._release: Callable[[], Any] = int

    @classmethod
    def create(cls, record: np.dtype[Any], steps: int) -> "Segment":
        """Create a segment, in the process that reads."""
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
        """Open a segment, in the process that writes. Only one process at a time can have it open for writing."""
        size, key = 8 * _WORDS + record.itemsize * place.steps, _key_of(place.path)
        if (os.getpid(), key) in _opened:  # closing a second file handle would release the lock
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
        """Store the device and the inode of the segment, and the function that `close` calls."""
        self._key, self._release = key, weakref.finalize(self, release, *arguments)
        self._header[_TOKEN] = self.place.token

    @property
    def token(self) -> int:
        """A random number at the start of the memory. It differs from that of any other memory at the same path."""
        return int(self._header[_TOKEN])

    def shut(self) -> None:
        """Make the writer raise an error at its next write."""
        self._header[_CLOSED] = 1

    def close(self) -> None:
        """Release the memory."""
        self._header, self.slots, self._bytes = list(self._header), self.slots[:0].copy(), memoryview(b"")
        self._release()

    # -- The writer ------------------------------------------------------------------------------------------

    def write_one(self, data: bytes, begin: int, timeout: float | None) -> int:
        """Write the bytes of one step, starting at byte `begin` of its record; otherwise like `write`."""
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
        """Write and publish steps, by the names of the record. Waits for room. Returns the number of steps written."""
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
        """The number of free slots. Waits until there is one, for at most `timeout` seconds."""
        begin, pause = 0.0, _SHORTEST_SLEEP
        while True:
            if self._header[_CLOSED]:
                raise SegmentGoneError("the learner has closed its process writers, so no more steps can be added")
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
        """Wait until the reader has taken all published steps."""
        while self._header[_TAKEN] < self._header[_PUBLISHED]:
            if self._header[_CLOSED] or not self.has_reader:
                raise _gone()
            time.sleep(_LONGEST_SLEEP)

    @property
    def has_reader(self) -> bool:
        """Whether the reading process is alive."""
        if _key_of(self.place.path) != self._key:
            return False
        if self.place.path.startswith("/proc/") or os.name == "nt":
            return True
        try:
            os.kill(self.place.process, 0)  # signal 0 only checks that the process exists
        except ProcessLookupError:
            return False
        return True

    # -- The reader ------------------------------------------------------------------------------------------

    def waiting(self, most: int) -> Array:
        """A view of the oldest published steps that are not taken yet, at most `most` of them."""
        taken, published = self._header[_TAKEN], self._header[_PUBLISHED]
        self._order()
        begin = taken % len(self.slots)
        return self.slots[begin : begin + min(published - taken, most, len(self.slots) - begin)]

    def take(self, count: int) -> None:
        """Return the oldest `count` slots to the writer."""
        self._order()
        self._header[_TAKEN] += count

    @property
    def counts(self) -> tuple[int, int, float]:
        """The numbers of published and of taken steps, and the seconds that the writer has waited for room."""
        return self._header[_PUBLISHED], self._header[_TAKEN], self._header[_WAITED] / 1e9

    def _order(self) -> None:
        """A memory barrier: no read or write is moved across this call."""
        for _ in range(2 if _NEEDS_FENCES else 0):
            with self._fence:
                pass


def _key_of(path: str) -> tuple[int, int]:
    """The device and the inode of a file, or zeros if it does not exist."""
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0
    return status.st_dev, status.st_ino


def _forked() -> RuntimeError:
    return RuntimeError("a forked process cannot use its parent's writer; pass a different writer to it")


def _gone() -> SegmentGoneError:
    return SegmentGoneError(
        "the learner's process has ended, or has closed its process writers; start it again, and use its new writers"
    )


def _locked(file: int) -> bool:
    """Lock a file for this process, if the system supports it. The lock ends with the process."""
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
