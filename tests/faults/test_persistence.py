"""Crashes, full disks, damage and forgery: a path has one complete checkpoint, and a failed load changes nothing."""

import contextlib
import errno
import json
import os
import shutil
import signal
import sys
import time

import numpy as np
import pytest

from replaykit import (
    Field,
    PrioritizedBuffer,
    ReplayBuffer,
    Spec,
)
from replaykit.saving import directory as files
from tests.checkpoints import MANIFEST, Learner, assert_tidy, content_of, manifest_of, references_in, seal, sealed
from tests.helpers import (
    FLAT,
    interrupted,
    interrupted_at,
    unchanged,
)

FRAMES = Spec(obs=Field((4, 20), np.uint8), action=Field((), np.int64), big=Field((600,)))


def make(seed=0, capacity=20):
    """A buffer with rows, frames, columns, priorities, and lanes of different lengths."""
    return PrioritizedBuffer(capacity, FRAMES, num_envs=2, n_step=2, stack=2, share="all", seed=seed)


def make_plain(seed=0):
    """A buffer whose checkpoint has few files."""
    return ReplayBuffer(20, FLAT, seed=seed)


def learned(count, seed=0, make=make):
    buffer = make(seed)
    Learner(seed).act(buffer, count)
    return buffer


def content_at(path, make=make):
    """The content of the checkpoint at a path. The checkpoint must be complete."""
    buffer = make(99)
    buffer.load(path)
    content = content_of(buffer)
    buffer.check()  # gives new transitions their priorities
    return content


@pytest.fixture
def saved(tmp_path):
    """A buffer and the path where it is saved."""
    buffer = learned(60)
    buffer.save(tmp_path / "checkpoint")
    return buffer, tmp_path / "checkpoint"


# -- Crashes -------------------------------------------------------------------------------------------------------


class Calls:
    """A replacement for `os` and `open` in the module that writes files. It counts calls, and stops at one of them."""

    def __init__(self, stop, at, stops_after=False):
        self.stop, self.at, self.stops_after, self.done = stop, at, stops_after, []

    def __getattr__(self, name):
        function = getattr(os, name)
        if name in ("open", "fsync", "replace", "unlink", "makedirs"):
            return lambda *arguments, **options: self.call(name, function, *arguments, **options)
        return function

    def call(self, name, function, *arguments, **options):
        self.step(name)
        result = function(*arguments, **options)
        if self.stops_after:
            self.step(name)
        return result

    def step(self, name):
        self.done.append(name)
        if len(self.done) == self.at:
            self.stop()

    def open_file(self, file, *arguments, **options):
        return CountedFile(self, self.call("open", open, file, *arguments, **options))


class CountedFile:
    """A file whose bytes are written in two halves."""

    def __init__(self, calls, file):
        self.calls, self.file = calls, file

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.file.close()

    def write(self, data):
        half = len(data) // 2
        for part in (data[:half], data[half:]):
            self.calls.call("write", self.file.write, part)
            self.file.flush()

    def __getattr__(self, name):
        return getattr(self.file, name)


@contextlib.contextmanager
def watched(calls):
    """Let the module for saving use these replacements."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "os", calls)
        patch.setattr(files, "open", calls.open_file, raising=False)
        yield


def saved_in_child(buffer, path, calls):
    """Save in a forked child that may exit early. Returns whether it did."""
    child = os.fork()
    if child == 0:
        try:
            with watched(calls):
                buffer.save(path)
            os._exit(0)
        finally:
            os._exit(2)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 77)
    return code == 77


def die():
    os._exit(77)


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")


@needs_fork
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
@pytest.mark.parametrize("is_new", [True, False], ids=["new", "over another"])
def test_a_process_that_dies_at_any_system_call_leaves_a_whole_checkpoint(tmp_path, is_new):
    """If a process dies before, in or after any system call of a save, the old or the new checkpoint is complete."""
    former, buffer, first = learned(50, make=make_plain), learned(50, make=make_plain), tmp_path / "first"
    former.save(first)
    Learner(7).act(buffer, 12)
    allowed, at, found = {content_of(buffer), None if is_new else content_of(former)}, 0, set()
    while True:
        at, path = at + 1, tmp_path / f"at {at + 1}"
        if not is_new:
            shutil.copytree(first, path)
        if not saved_in_child(buffer, path, Calls(die, at, stops_after=True)):
            break
        has_manifest = (path / MANIFEST).exists()
        content = content_at(path, make_plain) if has_manifest else None
        assert content in allowed
        found.add(content)
        buffer.save(path)
        assert content_at(path, make_plain) == content_of(buffer)
        assert_tidy(path)
        shutil.rmtree(path)
    assert at > 50
    assert found == allowed


@needs_fork
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_process_that_is_killed_leaves_a_whole_checkpoint(tmp_path):
    """A process that adds and saves in a loop is killed at random moments. The checkpoint is always complete."""
    buffer, path, rng = learned(50), tmp_path / "checkpoint", np.random.default_rng(0)
    buffer.save(path)
    for number in range(8):
        child = os.fork()
        if child == 0:
            try:
                while True:
                    Learner(number).act(buffer, 2)
                    buffer.save(path)
            finally:
                os._exit(1)
        time.sleep(rng.random() * 0.03)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        buffer = make()
        buffer.load(path)
        buffer.check()
    buffer.save(path)
    assert_tidy(path)
    assert content_at(path) == content_of(buffer)


def full():
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("is_new", [True, False], ids=["new", "over another"])
def test_a_full_disk_leaves_the_former_checkpoint(tmp_path, is_new):
    """If the disk is full, the error names the file, the old checkpoint is intact, and no new file remains."""
    former, buffer, first = learned(50, make=make_plain), learned(50, make=make_plain), tmp_path / "first"
    former.save(first)
    Learner(7).act(buffer, 12)
    at, names = 0, set()
    while True:
        at, path = at + 1, tmp_path / f"at {at + 1}"
        if is_new:
            path.mkdir()
        else:
            shutil.copytree(first, path)
        before, calls = set(os.listdir(path)), Calls(full, at)
        with watched(calls):
            try:
                buffer.save(path)
            except OSError as error:
                message, name = str(error), calls.done[at - 1]
            else:
                if len(calls.done) < at:
                    break
                assert calls.done[at - 1] == "unlink"
                continue
        names.add(name)
        assert name in ("fsync", "open", "replace", "write")
        if name == "write":
            assert str(path) in message
            assert ".npy" in message or ".json" in message
        is_committed = (path / MANIFEST).exists() and content_at(path, make_plain) == content_of(buffer)
        if not is_committed:
            assert set(os.listdir(path)) == before
            assert is_new or content_at(path, make_plain) == content_of(former)
        else:
            assert "replace" in calls.done
        buffer.save(path)
        assert_tidy(path)
    assert names == {"fsync", "open", "replace", "write"}


@pytest.fixture
def unlocked(monkeypatch):
    """Directories are not locked in this context, because a tracer could leave the lock behind."""
    monkeypatch.setattr(files.Directory, "_locked", lambda self, exclusive: contextlib.nullcontext())


traced = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # files that are closed late


@traced
@pytest.mark.usefixtures("unlocked")
def test_an_interrupted_save_leaves_a_whole_checkpoint(tmp_path):
    """After Ctrl-C at any point of a save, the old or new checkpoint is complete. The next save deletes the rest."""
    former, buffer, first = learned(50, make=make_plain), learned(50, make=make_plain), tmp_path / "first"
    former.save(first)
    Learner(7).act(buffer, 12)
    allowed, found, at = {content_of(former), content_of(buffer)}, set(), 1
    while True:
        path = tmp_path / f"at {at}"
        shutil.copytree(first, path)
        if interrupted_at(lambda path=path: buffer.save(path), at) is None:
            break
        found.add(content_at(path, make_plain))
        buffer.save(path)
        assert_tidy(path)
        assert content_at(path, make_plain) == content_of(buffer)
        shutil.rmtree(path)
        at += 233
    assert found == allowed


@traced
@pytest.mark.usefixtures("unlocked")
def test_an_interrupted_load_leaves_a_replay_that_works(tmp_path):
    """After Ctrl-C at any point of a load, the replay has its old data, the loaded data or none. It can be used."""
    source = learned(70)
    source.save(tmp_path)
    before, found, at = learned(45, seed=3), set(), 1
    while True:
        buffer = learned(45, seed=3)
        stopped = interrupted_at(lambda buffer=buffer: buffer.load(tmp_path), at)
        buffer.check()
        found.add("nothing" if not len(buffer) else content_of(buffer))
        Learner(5).act(buffer, 10)
        buffer.check()
        if stopped is None:
            break
        at += 211
    assert found == {"nothing", content_of(before), content_of(source)}


@traced
@pytest.mark.usefixtures("unlocked")
def test_an_interrupt_after_the_new_manifest_counts_keeps_its_files(saved):
    """After Ctrl-C at any line at the end of a save, the old or the new checkpoint is complete."""
    buffer, path = saved
    for at in range(1, 40):
        Learner(at).act(buffer, 3)
        former, now = content_at(path), content_of(buffer)
        commit = files.Directory.commit
        with pytest.MonkeyPatch.context() as patch:
            stopped = []

            def stop(self, content, at=at, stopped=stopped, commit=commit):
                stopped.append(interrupted(lambda: commit(self, content), at, "saving/directory.py"))
                if stopped[0]:
                    raise KeyboardInterrupt

            patch.setattr(files.Directory, "commit", stop)
            with contextlib.suppress(KeyboardInterrupt):
                buffer.save(path)
        assert content_at(path) in (former, now)
        if not stopped[0]:
            break
    buffer.save(path)
    assert_tidy(path)


# -- Places --------------------------------------------------------------------------------------------------------


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path, saved):
    """A path to a file instead of a directory raises an error in `save` and `load`. The file is unchanged."""
    buffer, _ = saved
    (tmp_path / "file").write_text("mine")
    with unchanged(buffer, OSError, "file"):
        buffer.save(tmp_path / "file")
    with unchanged(buffer, FileNotFoundError, "file is not a directory; expected one that save"):
        buffer.load(tmp_path / "file")
    with unchanged(buffer, OSError, "file"):
        buffer.save(tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_missing_directory_is_made_by_save_and_refused_by_load(tmp_path, saved):
    """`save` creates missing directories, and `load` raises an error for them. A path may be a str, bytes or Path."""
    buffer, _ = saved
    with unchanged(buffer, FileNotFoundError, "nowhere is not a directory"):
        buffer.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with unchanged(buffer, FileNotFoundError, "empty/manifest.json is missing"):
        buffer.load(tmp_path / "empty")
    buffer.save(str(tmp_path / "a" / "b"))
    assert content_at(os.fsencode(tmp_path / "a" / "b")) == content_of(buffer)


@pytest.mark.parametrize("manifest", [None, "{}", '{"name": "an application", "format": 1}', ""])
def test_a_directory_with_other_files_is_left_alone(tmp_path, saved, manifest):
    """Saving to a directory with other files raises an error, even if one of them is named like a manifest."""
    buffer, _ = saved
    (tmp_path / "notes.txt").write_text("mine")
    if manifest is not None:
        (tmp_path / MANIFEST).write_text(manifest)
    before = {file.name for file in tmp_path.iterdir() if file.is_file()}
    with unchanged(buffer, FileExistsError, "has other files, such as notes.txt; expected a directory that is new"):
        buffer.save(tmp_path)
    assert {file.name for file in tmp_path.iterdir() if file.is_file()} == before


def test_files_of_others_beside_a_checkpoint_stay(saved):
    """A save deletes only files that an earlier save wrote. Other files beside a checkpoint do not disturb a load."""
    buffer, path = saved
    (path / "notes.txt").write_text("mine")
    Learner(1).act(buffer, 30)
    buffer.save(path)
    assert (path / "notes.txt").read_text() == "mine"
    assert content_at(path) == content_of(buffer)


def test_a_damaged_checkpoint_can_be_saved_over(saved):
    """A save can replace a damaged checkpoint. It deletes the remaining files of the damaged one."""
    buffer, path = saved
    (path / MANIFEST).write_text("{")
    (path / f"{'0' * 16}.json").write_text("unfinished")
    buffer.save(path)
    assert_tidy(path)
    assert content_at(path) == content_of(buffer)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the super-user may write everywhere")
def test_a_read_only_directory_is_refused(saved):
    """Saving to a read-only directory raises an error. The checkpoint in it can still be loaded."""
    buffer, path = saved
    before = content_of(buffer)
    path.chmod(0o500)
    try:
        Learner(1).act(buffer, 10)
        with unchanged(buffer, PermissionError, str(path)):
            buffer.save(path)
        assert content_at(path) == before
    finally:
        path.chmod(0o700)


# -- Damage --------------------------------------------------------------------------------------------------------


def refused(path, match=None, error=(ValueError, OSError)):
    """Check that loading raises an error that names a file, and leaves a buffer in use unchanged."""
    buffer = learned(30, seed=5)
    with unchanged(buffer, error, match or str(path)):
        buffer.load(path)
    assert not open_files(path)


def open_files(path):
    """The files in a directory that this process has open, if the system shows them."""
    found = []
    for descriptor in os.listdir("/proc/self/fd") if sys.platform == "linux" else []:
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return [file for file in found if file.startswith(str(path))]


def test_a_flipped_bit_is_found_in_every_file(saved):
    """A single changed bit in any file of a checkpoint raises an error that names the file."""
    _, path = saved
    rng = np.random.default_rng(0)
    for file in sorted(path.iterdir()):
        data = file.read_bytes()
        for place in {0, len(data) - 1, *rng.integers(0, len(data), 3).tolist()}:
            wrong = bytearray(data)
            wrong[place] ^= 1 << int(rng.integers(8))
            file.write_bytes(wrong)
            refused(path, match=str(file))
        file.write_bytes(data)


def test_a_cut_file_is_found(saved):
    """A file of a checkpoint that is empty, too short, too long or missing raises an error that names it."""
    _, path = saved
    for file in sorted(path.iterdir()):
        data = file.read_bytes()
        for wrong in (b"", data[: len(data) // 2], data[:-1], data + b"\0"):
            file.write_bytes(wrong)
            refused(path, match=str(file))
        file.unlink()
        refused(path, match=str(file), error=FileNotFoundError)
        file.write_bytes(data)
    assert content_at(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no such files here")
@pytest.mark.parametrize("kind", ["link", "dangling", "fifo", "directory"])
def test_only_files_are_read(saved, tmp_path, kind):
    """A link, a pipe or a directory in place of a file of a checkpoint raises an error."""
    _, path = saved
    for file in sorted(path.iterdir())[-3:]:
        data = file.read_bytes()
        (tmp_path / "other").write_bytes(data)
        file.unlink()
        if kind == "fifo":
            os.mkfifo(file)
        elif kind == "directory":
            file.mkdir()
        else:
            file.symlink_to(tmp_path / ("other" if kind == "link" else "nothing"))
        refused(path, match=str(file))
        file.rmdir() if kind == "directory" else file.unlink()
        file.write_bytes(data)


@pytest.mark.parametrize("name", ["../other.npy", "/etc/passwd", "", ".", "manifest.json", "a\0.npy", 3, None, ["x"]])
def test_only_files_of_the_directory_are_read(saved, tmp_path, name):
    """A manifest that names a file outside the directory raises an error, even if its checksum is right."""
    _, path = saved
    content = manifest_of(path)
    reference = references_in(content)[3]
    shutil.copy(path / reference[0], tmp_path / "other.npy")
    reference[0] = name
    seal(path, content)
    refused(path)


def test_another_format_is_refused(saved):
    """A checkpoint of another format version raises an error that says what to do."""
    _, path = saved
    content = manifest_of(path)
    for number, remedy in [(2, "update replaykit"), (0, "save it again"), (True, "save it again"), ("1", "save it")]:
        seal(path, content, format=number)
        refused(path, f"manifest.json has the format {number!r}; this version reads 1: {remedy}", ValueError)
    seal(path, content)
    assert content_at(path)


def test_deep_and_strange_manifests_are_refused(saved):
    """A manifest that is deeply nested or has the wrong structure raises an error and does not crash the process."""
    _, path = saved
    content = manifest_of(path)
    for text in ["[" * 100_000, '{"a":' * 2000, "[]", "3", "null", '"x"', "NaN", '{"format": 1}', "\xff", "1" * 5000]:
        (path / MANIFEST).write_bytes(text.encode("latin-1"))
        refused(path, "manifest.json", ValueError)
    for depth in (50, 300, 450):
        nested = None
        for _ in range(depth):
            nested = {"list": [nested]}
        (path / MANIFEST).write_text(json.dumps(sealed(content | {"parts": content["parts"] | {"storage": nested}})))
        refused(path, error=ValueError)


def test_a_file_that_is_named_again_and_again_is_refused(saved):
    """A manifest that names a file twice raises an error, so a load needs no more memory than the files justify."""
    _, path = saved
    for is_twice_in_one in (True, False):
        content = manifest_of(path)
        array = next(find(content, "lanes"))
        if is_twice_in_one:
            array["chunks"] *= 2
            array["shape"][0] *= 2
        else:
            next(find(content, "starts"))["chunks"] = array["chunks"]
        seal(path, content)
        refused(path, "refers to a file that was already used", ValueError)


def find(node, name):
    """The arrays of this name."""
    for key, entry in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else []:
        if key == "array" and entry["name"].endswith(f".{name}"):
            yield entry
        yield from find(entry, name)


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("span", 0),
        ("capacity", 0),
        ("capacity", 1 << 61),
        ("capacity", 21),
        ("capacity", 22.0),
        ("bounds", "starts"),
        ("bounds", "lanes"),
    ],
)
def test_chunks_of_impossible_sizes_are_refused(saved, entry, value):
    """Arrays of impossible sizes raise an error before memory is allocated for them."""
    _, path = saved
    content = manifest_of(path)
    for array in list(find(content, "rows")):
        array[entry] = next(find(content, value)) if isinstance(value, str) else value
    seal(path, content)
    refused(path, error=ValueError)


def test_rows_of_other_steps_than_the_lanes_hold_are_refused(saved, tmp_path):
    """A checkpoint with rows from another checkpoint raises an error, even if each file is valid."""
    _, path = saved
    other = make()
    Learner(0).act(other, 20)
    other.save(tmp_path / "other")
    content, others = manifest_of(path), manifest_of(tmp_path / "other")
    for name in ("rows", "stamps"):
        mine, theirs = next(find(content, name)), next(find(others, name))
        for reference in references_in(theirs):
            shutil.copy(tmp_path / "other" / reference[0], path)
        mine.clear()
        mine.update(theirs)
        seal(path, content)
        refused(path, "of other steps", ValueError)
