"""Compiled kernels are cached where this is safe. A problem with the files costs at most another compilation."""

import builtins
import errno
import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from numba import config

from replaykit._kernels import cache, jit
from tests.kernels.triple import triple

pytestmark = pytest.mark.skipif(config.DISABLE_JIT, reason="nothing is compiled")

TREE = """
from replaykit import SumTree
tree = SumTree(4)
tree.set([0, 1, 2, 3], [3.0, 0.0, 1.0, 2.0])
print(tree.find([3.5]).tolist())
from replaykit._kernels import tree as kernels
print(sum(kernels.assign.stats.cache_hits.values()))
"""
TRIPLE = """
from tests.kernels.triple import triple
print(triple(2))
print(sum(triple.stats.cache_hits.values()))
"""
THREADS = """
import threading
from concurrent.futures import ThreadPoolExecutor
together = threading.Barrier(6)
def first_use(number):
    together.wait()
    from tests.kernels.triple import triple
    return triple(number)
with ThreadPoolExecutor(6) as pool:
    assert list(pool.map(first_use, range(6))) == [0, 3, 6, 9, 12, 15]
"""
ROOT = Path(__file__).parents[2]


def process(directory, program=TRIPLE, *options, **environment):
    """The finished process of a program with this cache directory."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "REPLAYKIT_CACHE_DIR": str(directory), **environment}
    command = [sys.executable, *(options or ("-W", "error")), "-c", program]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    return result


def run(directory, program=TRIPLE):
    """The output lines of the program, with this cache directory and warnings as errors."""
    return process(directory, program).stdout.split()


def files(directory):
    """The files of the cached kernels."""
    return sorted(Path(directory).rglob("*.kernel"))


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """The cache directory of this process, in a test."""
    monkeypatch.setenv("REPLAYKIT_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(jit, "_KEEPS_KERNELS", True)
    cache.cache_directory.cache_clear()
    yield tmp_path / "replaykit"
    cache.cache_directory.cache_clear()


def hits():
    """Whether a new dispatcher finds its kernel on disk: 1, or 0 if it is compiled."""
    kernel = jit.jit(triple.py_func)
    assert kernel(2) == 6
    return sum(kernel.stats.cache_hits.values())


def test_the_second_process_compiles_nothing(tmp_path):
    """A second process compiles nothing. The cache has one file for each used kernel."""
    assert run(tmp_path, TREE) == ["[2]", "0"]
    kept = files(tmp_path)
    assert kept
    assert run(tmp_path, TREE) == ["[2]", "1"]
    assert files(tmp_path) == kept


@pytest.mark.skipif(os.name == "nt", reason="modes are of other platforms")
def test_directories_and_files_are_private(tmp_path, directory, monkeypatch):
    """Cache directories and files are private, even if new files are public by default."""
    monkeypatch.setenv("REPLAYKIT_CACHE_DIR", str(tmp_path / "made" / "too"))
    before = os.umask(0)
    try:
        assert hits() == 0
    finally:
        os.umask(before)
    (kept,) = files(tmp_path)
    for path, mode in zip([kept, *kept.parents], (0o600, 0o700, 0o700, 0o700), strict=False):
        assert path.stat().st_mode & 0o777 == mode, path


DAMAGES = {
    "truncated": lambda file, content: file.write_bytes(content[: len(content) // 2]),
    "empty": lambda file, content: file.write_bytes(b""),
    "flipped": lambda file, content: file.write_bytes(bytes([*content[:-9], content[-9] ^ 16, *content[-8:]])),
    "garbage": lambda file, content: file.write_bytes(b"not a kernel"),
    "directory": lambda file, content: file.mkdir(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_replaced(directory, damage):
    """A damaged file is not used. The kernel is compiled again, and the file is replaced if possible."""
    assert hits() == 0
    assert hits() == 1
    (file,) = files(directory)
    content = file.read_bytes()
    file.unlink()
    DAMAGES[damage](file, content)
    assert hits() == 0
    assert hits() == (damage != "directory")
    assert list(directory.iterdir()) == [file]


def test_damaged_files_are_replaced_in_another_process(tmp_path):
    """Another process replaces a damaged file without a warning."""
    assert run(tmp_path) == ["6", "0"]
    for file in files(tmp_path):
        file.write_bytes(file.read_bytes()[:-1])
    assert run(tmp_path) == ["6", "0"]
    assert run(tmp_path) == ["6", "1"]


def test_the_file_of_another_kernel_is_damage(directory):
    """A valid file with the name of another kernel is not run."""
    assert hits() == 0
    (file,) = files(directory)
    other = jit.jit(lambda number: 5 * number)
    assert other(2) == 10
    (another,) = {*files(directory)} - {file}
    another.replace(file)
    assert hits() == 0
    assert hits() == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_named_pipe_is_not_waited_for(tmp_path):
    """A named pipe counts as a damaged file."""
    assert run(tmp_path) == ["6", "0"]
    (file,) = files(tmp_path)
    file.unlink()
    os.mkfifo(file)
    assert run(tmp_path) == ["6", "0"]
    assert run(tmp_path) == ["6", "1"]


def test_directories_that_cannot_be_used_are_done_without(tmp_path):
    """Without a usable directory, kernels are compiled without a warning."""
    file = tmp_path / "file"
    file.write_text("")
    for directory in (file, file / "below", "/proc/nowhere", ""):
        result = process(directory)
        assert result.stdout.split() == ["6", "0"]
        assert result.stderr == ""


def test_a_read_only_directory_is_read(directory, monkeypatch):
    """Kernels in a read-only directory are used. Others are compiled without an error."""
    assert hits() == 0
    kept = files(directory)
    directory.chmod(0o500)
    opened = os.open

    def read_only(path, flags, *arguments, **options):
        if flags & (os.O_CREAT | os.O_WRONLY):
            raise OSError(errno.EROFS, "Read-only file system")
        return opened(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", read_only)
    assert hits() == 1
    other = jit.jit(lambda number: 5 * number)
    assert other(2) == 10
    directory.chmod(0o700)
    assert files(directory) == kept


@pytest.mark.parametrize("step", ["write", "replace"])
def test_a_full_disk_costs_the_cache_and_leaves_nothing(directory, monkeypatch, step):
    """With a full disk, the kernel works, and no partial file is left."""

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    class FullFile(io.FileIO):
        write = full

    def opened(path, mode, opener):
        return FullFile(path, mode, opener=opener) if "x" in mode else builtins.open(path, mode, opener=opener)

    if step == "write":
        monkeypatch.setattr(cache, "open", opened, raising=False)
    else:
        monkeypatch.setattr(os, "replace", full)
    assert hits() == 0
    assert list(directory.iterdir()) == []


def test_an_interrupt_leaves_no_part_of_a_file(directory, monkeypatch):
    """An interrupt is raised to the user and leaves no partial file."""

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        hits()
    assert list(directory.iterdir()) == []


def test_no_descriptor_stays_open(directory):
    """No file descriptor stays open, for accepted and for refused files and directories."""

    def lowest_free():
        descriptor = os.open(os.devnull, os.O_RDONLY)
        os.close(descriptor)
        return descriptor

    before = lowest_free()
    hits()
    (file,) = files(directory)
    hits()
    content = file.read_bytes()
    for damage in DAMAGES.values():
        file.unlink()
        damage(file, content)
        hits()
    directory.chmod(0o777)
    hits()
    assert lowest_free() == before


def test_processes_that_start_at_once_share_a_directory(tmp_path):
    """Processes that start at the same time write complete files."""
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda _: run(tmp_path / "made by each"), range(4)))
    assert [output[0] for output in outputs] == ["6"] * 4
    assert run(tmp_path / "made by each") == ["6", "1"]


def test_threads_may_use_a_kernel_for_the_first_time_at_once(tmp_path):
    """Several threads can use a kernel for the first time, with an empty and a filled cache."""
    for _ in range(2):
        assert process(tmp_path, THREADS).stderr == ""
    assert run(tmp_path) == ["6", "1"]


@pytest.mark.skipif(os.name == "nt", reason="modes are of other platforms")
def test_an_unsafe_directory_costs_one_warning_and_no_error(tmp_path):
    """An unsafe directory gives one warning, also with six threads. It is never an error."""
    shared = tmp_path / "shared" / "replaykit"
    shared.mkdir(parents=True)
    shared.chmod(0o777)
    for option in ("always", "error"):
        result = process(tmp_path / "shared", THREADS, "-W", option)
        assert result.stderr.count("REPLAYKIT_CACHE_DIR") == 1, result.stderr
        assert f"chmod go-w '{shared}'" in result.stderr
    assert not files(shared)


def test_without_a_home_kernels_are_compiled(tmp_path):
    """Without HOME, kernels are compiled without an error."""
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "REPLAYKIT_CACHE_DIR")}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment.pop("NUMBA_CACHE_DIR", None)
    result = subprocess.run(
        [sys.executable, "-c", TRIPLE], env=environment, capture_output=True, text=True, check=False
    )
    assert result.stdout.split()[0] == "6", result.stderr
    assert files(tmp_path)


def test_the_name_of_a_file_depends_on_the_sources_of_both(monkeypatch):
    """A file's name depends on the sources of replaykit, and on those beside a user's own kernel."""
    of = {Path(cache.__file__).parent: "package", Path(__file__).parent: "mine"}
    monkeypatch.setattr(cache, "_sources", of.__getitem__)
    versions = {cache.KernelCache(triple.py_func)._version}
    for directory in list(of):
        of[directory] += " changed"
        versions.add(cache.KernelCache(triple.py_func)._version)
    assert len(versions) == 3
