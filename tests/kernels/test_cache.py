"""Compiled kernels are kept where they may be, and nothing that happens to the files is worse than compiling again."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from numba import config

pytestmark = pytest.mark.skipif(config.DISABLE_JIT, reason="nothing is compiled")

PROGRAM = """
from replaykit import SumTree
tree = SumTree(4)
tree.set([0, 1, 2, 3], [3.0, 0.0, 1.0, 2.0])
print(tree.find([3.5]).tolist())
from replaykit._kernels import tree as kernels
print(sum(kernels.assign.stats.cache_hits.values()))
"""


def run(directory, program=PROGRAM, **environment):
    """What the program prints, line by line, with this cache directory."""
    environment = {**os.environ, "REPLAYKIT_CACHE_DIR": str(directory), **environment}
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def files(directory):
    """The cached kernels."""
    return sorted(Path(directory).rglob("*.kernel"))


def test_the_second_process_compiles_nothing(tmp_path):
    """And finds one file for each kernel that was used."""
    assert run(tmp_path) == ["[2]", "0"]
    kept = files(tmp_path)
    assert kept
    assert run(tmp_path) == ["[2]", "1"]
    assert files(tmp_path) == kept


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "garbage", "directory"])
def test_damaged_files_are_replaced(tmp_path, damage):
    """A truncated file, a flipped bit or anything else is a miss, and heals where it can."""
    run(tmp_path)
    kept = files(tmp_path)
    for file in kept:
        content = bytearray(file.read_bytes())
        file.unlink()
        if damage == "truncated":
            file.write_bytes(content[: len(content) // 2])
        elif damage == "empty":
            file.write_bytes(b"")
        elif damage == "flipped":
            content[len(content) // 2] ^= 16
            file.write_bytes(content)
        elif damage == "garbage":
            file.write_bytes(b"not a kernel")
        else:
            file.mkdir()
    assert run(tmp_path) == ["[2]", "0"]
    if damage != "directory":
        assert run(tmp_path) == ["[2]", "1"]


def test_directories_that_cannot_be_used_are_done_without(tmp_path):
    """A file in the place of the directory, a path that cannot exist, none at all, and one that others can write."""
    file = tmp_path / "file"
    file.write_text("")
    for directory in (file, "/proc/nowhere", ""):
        assert run(directory) == ["[2]", "0"]
    shared = tmp_path / "shared" / "replaykit"
    shared.mkdir(parents=True)
    shared.chmod(0o777)
    assert run(tmp_path / "shared") == ["[2]", "0"]
    assert not files(shared)


@pytest.mark.skipif(os.name == "nt" or os.getuid() == 0, reason="permissions do not bind this user")
def test_a_read_only_directory_is_read(tmp_path):
    """Nothing is written, and nothing fails."""
    (tmp_path / "replaykit").mkdir()
    (tmp_path / "replaykit").chmod(0o500)
    assert run(tmp_path) == ["[2]", "0"]


def test_processes_that_start_at_once_share_a_directory(tmp_path):
    """Each writes whole files or none."""
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda _: run(tmp_path), range(4)))
    assert [output[0] for output in outputs] == ["[2]"] * 4
    assert run(tmp_path) == ["[2]", "1"]


def test_without_a_home_kernels_are_compiled(tmp_path):
    """An unset HOME is no error."""
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "REPLAYKIT_CACHE_DIR")}
    environment["XDG_CACHE_HOME"] = str(tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False
    )
    assert result.stdout.split()[0] == "[2]", result.stderr
    assert files(tmp_path)
