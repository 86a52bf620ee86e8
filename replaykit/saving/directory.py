"""The directory of a checkpoint: its files, and the order in which they are written."""

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from replaykit.saving.manifest import FORMAT, checksum_of, unpacked

Array = npt.NDArray[Any]

MANIFEST = "manifest.json"
_FILE = re.compile(r"[0-9a-f]{16}-[0-9]+\.npy")
"""File names of arrays: the token of the save that wrote them, and a number."""
_UNFINISHED = re.compile(r"[0-9a-f]{16}\.json")
_HEADER_BYTES = 4096
"""Larger than the header of any array written here."""


class Directory:
    """A directory with the arrays of one checkpoint, and a manifest that names them.

    At any moment the manifest is that of the last finished save, and all files that it names exist. A save writes files
    with new names, replaces the manifest, and only then deletes files that are no longer needed. Saves to the same
    directory wait for each other. Loads and saves also wait for each other.

    Attributes
    ----------
    token : str
        Identifies the save and its files.
    """

    def __init__(self, path: Any) -> None:
        self.path: str = os.path.abspath(os.fsdecode(path))
        self.token: str = secrets.token_hex(8)
        self._written = 0

    @contextlib.contextmanager
    def saving(self) -> Iterator[dict[str, Any] | None]:
        """The content of the existing manifest, or None. If the ``with`` block raises, its new files are deleted."""
        if not os.path.isdir(self.path):
            os.makedirs(self.path, exist_ok=True)  # another save may create it at the same time
            sync(os.path.dirname(self.path))
        with self._locked(exclusive=True):
            names = os.listdir(self.path)
            others = [name for name in names if not (_FILE.fullmatch(name) or _UNFINISHED.fullmatch(name))]
            try:
                former = self.manifest() if MANIFEST in names else None
            except ValueError:  # no file of a damaged checkpoint can be reused
                former = None
            others = [name for name in others if name != MANIFEST] if MANIFEST in names else others
            if others and former is None:
                expected = "expected a directory that is new, empty, or has a checkpoint"
                raise FileExistsError(f"{self.path} has other files, such as {others[0]}; {expected}")
            try:
                yield former
            except BaseException:
                self._abandon()
                raise

    @contextlib.contextmanager
    def loading(self) -> Iterator[dict[str, Any]]:
        """The content of the manifest."""
        if not os.path.isdir(self.path):
            raise FileNotFoundError(f"{self.path} is not a directory; expected one that save() wrote")
        with self._locked(exclusive=False):
            yield self.manifest()

    @contextlib.contextmanager
    def _locked(self, exclusive: bool) -> Iterator[None]:
        """Hold a lock of the directory, if the system and the file system support locks."""
        try:
            import fcntl
        except ImportError:
            yield
            return
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
            yield
        finally:
            try:  # a child forked in the meantime also has the descriptor and would keep the lock
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            except OSError:
                pass
            finally:
                os.close(descriptor)

    def manifest(self) -> dict[str, Any]:
        """The content of the manifest. Raises FileNotFoundError or ValueError."""
        where = os.path.join(self.path, MANIFEST)
        try:
            data = self._bytes_of(MANIFEST)
        except FileNotFoundError:
            raise FileNotFoundError(f"{where} is missing; expected a directory that save() wrote") from None
        return unpacked(data, where)

    def _bytes_of(self, name: str, size: int | None = None) -> bytes:
        """The bytes of a file in the directory, with this size if given. Links and devices raise ValueError."""
        where = os.path.join(self.path, name)
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
        if os.path.islink(where):
            raise ValueError(f"{where} is a link; expected a file")
        descriptor = os.open(where, flags | getattr(os, "O_BINARY", 0))
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError(f"{where} is not a file")
            if size is not None and status.st_size != size:
                raise ValueError(f"{where} has {status.st_size} bytes; expected {size}: it is damaged")
            with open(descriptor, "rb", closefd=False) as file:
                return file.read(status.st_size)
        except OSError as error:
            raise OSError(error.errno, error.strerror, where) from None
        finally:
            os.close(descriptor)

    def write(self, _name: str, array: Array, former: Any = None) -> list[Any]:
        """Write an array, unless the file `former` has the same bytes. Returns a reference: file, size and checksum."""
        array, head = np.ascontiguousarray(array), io.BytesIO()
        np.lib.format.write_array_header_1_0(head, np.lib.format.header_data_from_array_1_0(array))
        data = array.reshape(-1).view(np.uint8).data
        digest = hashlib.sha256(head.getbuffer())
        digest.update(data)
        size, checksum = len(head.getbuffer()) + len(data), digest.hexdigest()
        if self.has(former) and list(former[1:]) == [size, checksum]:
            return list(former)
        name = f"{self.token}-{self._written}.npy"
        self._written += 1
        self._write(name, head.getbuffer(), data)
        return [name, size, checksum]

    def has(self, reference: Any) -> bool:
        """Whether the file of a reference exists and has the right size."""
        try:
            return bool(os.lstat(os.path.join(self.path, _checked(reference)[0])).st_size == reference[1])
        except (OSError, ValueError, TypeError):
            return False

    def _write(self, name: str, *parts: Any) -> None:
        """Write a new file and flush it to the disk."""
        where = os.path.join(self.path, name)
        try:
            with open(where, "xb") as file:
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if error.filename is None:
                raise OSError(error.errno, error.strerror, where) from None
            raise

    def read(self, reference: Any) -> Array:
        """The array of a file, read-only. Raises ValueError or OSError if it is not the one that was written."""
        name, size, checksum = _checked(reference)
        where = os.path.join(self.path, name)
        data = self._bytes_of(name, size)
        if hashlib.sha256(data).hexdigest() != checksum:
            raise ValueError(f"{where} is damaged: its checksum is wrong")
        head = io.BytesIO(data[:_HEADER_BYTES])
        try:
            if np.lib.format.read_magic(head) != (1, 0):
                raise ValueError("another version of the format")
            shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(head)
            if is_fortran or dtype.hasobject:
                raise ValueError("objects or another order")
            return np.frombuffer(data, dtype, offset=head.tell()).reshape(shape)
        except Exception as error:
            raise ValueError(f"{where} is not an array that save() wrote: {error}") from None

    def commit(self, content: dict[str, Any]) -> None:
        """Replace the manifest by one with this content, and delete the files that it does not name."""
        text = json.dumps({"format": FORMAT, "checksum": checksum_of(content), "content": content}, allow_nan=False)
        unfinished = f"{self.token}.json"
        self._write(unfinished, text.encode())
        sync(self.path)
        os.replace(os.path.join(self.path, unfinished), os.path.join(self.path, MANIFEST))
        sync(self.path)
        kept = set(_files_of(content))
        self._delete(lambda name: name not in kept)

    def _abandon(self) -> None:
        """Delete the files of this save, unless its manifest is already in place."""
        try:
            is_committed = self.manifest()["token"] == self.token
        except (FileNotFoundError, ValueError, KeyError):
            is_committed = False
        if not is_committed:
            self._delete(lambda name: name.startswith(self.token))

    def _delete(self, is_chosen: Any) -> None:
        """Delete the chosen files of checkpoints. Files that cannot be deleted stay."""
        for name in os.listdir(self.path):
            if (_FILE.fullmatch(name) or _UNFINISHED.fullmatch(name)) and is_chosen(name):
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(self.path, name))


def _checked(reference: Any) -> tuple[str, int, str]:
    """The file name, size and checksum of a reference. Raises ValueError if `write` cannot have returned it."""
    name, size, checksum = reference
    if not (type(name) is str and _FILE.fullmatch(name) and type(size) is int and type(checksum) is str):
        raise ValueError(f"{MANIFEST} names the file {name!r:.50}; expected one that save() wrote")
    return name, size, checksum


def sync(directory: str) -> None:
    """Flush a directory's file names to the disk, if the system supports it."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system on which directories cannot be flushed
                raise
        finally:
            os.close(descriptor)


def _files_of(content: Any) -> Iterator[str]:
    """The names of all files in the content of a manifest."""
    if isinstance(content, dict):
        yield from _files_of(list(content.values()))
    elif isinstance(content, list):
        for entry in content:
            yield from _files_of(entry)
    elif isinstance(content, str) and _FILE.fullmatch(content):
        yield content
