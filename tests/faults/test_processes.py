"""Other processes: forked and killed processes, and several that start at the same time.

A buffer belongs to one process. ``tests/laws/test_locks.py`` and its neighbors have the promises about threads.
"""

import os
import pickle
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from numba import config

from tests.faults.stacks import STACKS, full

ROOT = Path(__file__).resolve().parents[2]
LOOP = """
import sys
import numpy as np
from tests.faults.stacks import STACKS, full
stack = STACKS["both wrappers"]
replay = full(stack)
print("ready", flush=True)
while True:
    replay.add(**stack.steps())
    batch = replay.sample(4)
    replay.update_priorities(batch.indices, np.ones(4))
"""
KERNEL = """
from replaykit._kernels.jit import jit
@jit
def double(x):
    return 2 * x
"""
USE = """
import sys
sys.path.insert(0, sys.argv[1])
import kernel
print(kernel.double(21), sum(kernel.double.stats.cache_hits.values()))
"""

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
compiles = pytest.mark.skipif(config.DISABLE_JIT, reason="nothing is compiled")


def python(*arguments, **environment):
    """The output of a Python process, which must not fail."""
    result = subprocess.run(
        [sys.executable, "-W", "error", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | {name: str(value) for name, value in environment.items()},
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@forks
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_process_that_is_forked_while_a_thread_holds_the_lock_can_use_its_copy():
    """If a process forks while another thread uses the buffer, the copy in the child is not locked."""
    replay, forked = full(STACKS["prioritized"]), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        held = threading.Event()

        def hold():
            with replay.lock:
                held.set()
                forked.wait(60)

        pool.submit(hold)
        held.wait(60)
        child = os.fork()
        if not child:
            status = 1
            try:
                signal.alarm(60)
                replay.add(**STACKS["prioritized"].steps())
                replay.check()
                status = int(len(replay.sample(3)) != 3)
            finally:
                os._exit(status)
        forked.set()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@forks
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_what_a_forked_process_adds_stays_there():
    """Steps that a forked process adds do not change the parent's buffer."""
    replay = full(STACKS["prioritized"])
    before = pickle.dumps(replay)
    child = os.fork()
    if not child:
        try:
            for _ in range(20):
                replay.add(**STACKS["prioritized"].steps())
            replay.clear()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert pickle.dumps(replay) == before


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="nothing is killed on this system")
def test_a_killed_process_leaves_no_file_and_no_shared_memory(tmp_path):
    """A process that is killed in the middle of a step leaves no files and no shared memory behind."""
    shared = Path("/dev/shm")
    before = set(shared.iterdir()) if shared.is_dir() else set()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", LOOP]
    with subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        maps = Path(f"/proc/{process.pid}/maps")
        mapped = maps.read_text() if maps.exists() else ""
        process.kill()
    assert not list(tmp_path.iterdir())
    assert "/dev/shm" not in mapped
    left = set(shared.iterdir()) - before if shared.is_dir() else set()
    assert not [path for path in left if "replaykit" in path.name]


@compiles
def test_processes_that_start_at_once_share_the_cache_of_kernels(tmp_path):
    """Processes that compile the same kernels at the same time write complete files, which later processes use."""
    (tmp_path / "kernel.py").write_text(KERNEL)
    with ThreadPoolExecutor(2) as pool:
        outputs = list(pool.map(lambda _: python("-c", USE, tmp_path, REPLAYKIT_CACHE_DIR=tmp_path), range(2)))
    assert [output.split()[0] for output in outputs] == ["42"] * 2
    assert python("-c", USE, tmp_path, REPLAYKIT_CACHE_DIR=tmp_path) == "42 1"


@compiles
def test_a_missing_cache_directory_is_made(tmp_path):
    """A missing cache directory is created. Only this user can read it."""
    (tmp_path / "kernel.py").write_text(KERNEL)
    directory = tmp_path / "not" / "there"
    assert python("-c", USE, tmp_path, REPLAYKIT_CACHE_DIR=directory) == "42 0"
    assert python("-c", USE, tmp_path, REPLAYKIT_CACHE_DIR=directory) == "42 1"
    if os.name == "posix":
        assert (directory / "replaykit").stat().st_mode & 0o077 == 0


@compiles
def test_a_cache_directory_that_cannot_be_written_is_done_without(tmp_path):
    """Without a writable cache directory, each process compiles its kernels, without an error or a warning."""
    (tmp_path / "kernel.py").write_text(KERNEL)
    file = tmp_path / "file"
    file.write_text("")
    read_only = tmp_path / "read-only"
    read_only.mkdir(mode=0o500)
    for directory in (file, read_only, ""):
        output = python("-c", USE, tmp_path, REPLAYKIT_CACHE_DIR=directory)
        assert output.split()[0] == "42"
    assert file.read_text() == ""


@compiles
def test_a_corrupt_file_in_the_cache_is_compiled_again(tmp_path):
    """A truncated or changed cache file is never run and raises no error. It is replaced."""
    (tmp_path / "kernel.py").write_text(KERNEL)
    assert python("-c", USE, tmp_path, REPLAYKIT_CACHE_DIR=tmp_path) == "42 0"
    (file,) = tmp_path.rglob("*.kernel")
    content = file.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 16
    for damaged in (content[: len(content) // 2], flipped):
        file.write_bytes(damaged)
        assert python("-c", USE, tmp_path, REPLAYKIT_CACHE_DIR=tmp_path) == "42 0"
    assert python("-c", USE, tmp_path, REPLAYKIT_CACHE_DIR=tmp_path) == "42 1"
