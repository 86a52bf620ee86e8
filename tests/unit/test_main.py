"""``python -m replaykit`` prints a report for bug reports, and clears the cache of kernels."""

import os
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest

import replaykit
from replaykit.__main__ import cache_lines, clear_cache, main
from replaykit._kernels import cache

NAMES = "triple-" + "0" * 32 + ".kernel", "find-" + "a" * 32 + ".kernel." + "b" * 16


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """A cache with two kernels, one of them incomplete, and other files that such a directory may have."""
    monkeypatch.setenv("REPLAYKIT_CACHE_DIR", str(tmp_path))
    directory = tmp_path / "replaykit"
    directory.mkdir(mode=0o700)
    for name in NAMES:
        (directory / name).write_bytes(bytes(500_000))
    (directory / "notes.kernel").write_text("mine")
    (directory / ("folder-" + "0" * 32 + ".kernel")).mkdir()
    cache.cache_directory.cache_clear()
    yield directory
    cache.cache_directory.cache_clear()


def report(*options, **environment):
    """The output of the command. A warning is an error."""
    command = [sys.executable, "-W", "error", "-m", "replaykit", *options]
    result = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert not result.stderr
    return result.stdout


def test_the_report_has_versions_the_machine_and_the_cache(directory):
    """The report has versions, the machine, the cache, and the environment variables that change Numba."""
    lines = report(NUMBA_OPT="2").splitlines()
    values = {line.split()[0]: " ".join(line.split()[1:]) for line in lines}
    assert values["replaykit"].startswith(f"{replaykit.__version__} in ")
    assert values["numpy"] == np.__version__
    for name in ("numba", "llvmlite", "gymnasium"):
        assert values[name] == version(name)
    assert values["python"].startswith(sys.version.split()[0])
    assert values["processor"].endswith("usable")
    assert values["NUMBA_OPT"] == "'2'"
    assert values["kernel"] == f"cache {directory}"
    assert lines[-1].strip().startswith("2 kernels, 1.0 MB; ")


def test_the_report_imports_none_of_what_it_names(directory):
    """The report reads versions from package metadata, because an import of torch takes seconds."""
    program = (
        "import sys; from replaykit.__main__ import main; main([]);"
        "assert not {'torch', 'gymnasium', 'minari', 'stable_baselines3', 'hypothesis'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, capture_output=True)


def test_a_package_that_is_missing_is_not_listed(directory, monkeypatch, capsys):
    """A missing package is only listed if replaykit requires it."""
    monkeypatch.setattr("replaykit.__main__.OPTIONAL", ("no-such-package",))
    monkeypatch.setattr("replaykit.__main__.REQUIRED", ("nor-this-one",))
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert "no-such-package" not in printed
    assert "nor-this-one       not installed" in printed


def test_clearing_the_cache_deletes_kernels_and_nothing_else(directory):
    """Clearing the cache deletes kernels only, including incomplete ones of dead processes."""
    assert report("--clear-cache").startswith(f"Deleted 2 kernels in {directory}.")
    assert sorted(path.name for path in directory.iterdir()) == ["folder-" + "0" * 32 + ".kernel", "notes.kernel"]
    assert report("--clear-cache").startswith(f"Deleted 0 kernels in {directory}.")


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_clearing_the_cache_follows_no_link(directory, tmp_path):
    """A link in the cache is deleted, but not its target."""
    kept = tmp_path / "precious"
    kept.write_text("mine")
    (directory / ("link-" + "0" * 32 + ".kernel")).symlink_to(kept)
    assert report("--clear-cache").startswith("Deleted 3 kernels")
    assert kept.read_text() == "mine"


def test_kernels_that_another_process_deletes_first_are_no_error(directory, monkeypatch, capsys):
    """Two processes may clear the cache at once."""
    monkeypatch.setattr("replaykit.__main__._kernels", lambda directory: dict.fromkeys([*NAMES, "gone.kernel"], 1))
    assert clear_cache() == 0
    assert not capsys.readouterr().err


def test_a_kernel_that_cannot_be_deleted_is_named(directory, monkeypatch, capsys):
    """If a kernel cannot be deleted, it is named, and the others are deleted."""
    stuck = "folder-" + "0" * 32 + ".kernel"  # a directory
    monkeypatch.setattr("replaykit.__main__._kernels", lambda directory: dict.fromkeys([stuck, *NAMES], 1))
    assert clear_cache() == 1
    output = capsys.readouterr()
    assert output.out.startswith("Deleted 2 kernels")
    assert f"{stuck} was not deleted" in output.err


def test_without_a_cache_the_report_says_why(tmp_path):
    """Without a cache, the report says why: REPLAYKIT_CACHE_DIR is empty, or others can write to the directory."""
    assert "REPLAYKIT_CACHE_DIR is empty" in report(REPLAYKIT_CACHE_DIR="")
    assert "REPLAYKIT_CACHE_DIR is empty" in report("--clear-cache", REPLAYKIT_CACHE_DIR="")
    if hasattr(os, "geteuid"):
        tmp_path.chmod(0o777)
        for options in ((), ("--clear-cache",)):
            assert f"chmod go-w '{tmp_path}'" in report(*options, REPLAYKIT_CACHE_DIR=str(tmp_path))


def test_the_report_is_printed_although_numba_cannot_be_imported(directory, monkeypatch):
    """The report works if Numba cannot be imported, because this may be the bug."""
    monkeypatch.setitem(sys.modules, "replaykit._kernels.cache", None)
    (line,) = cache_lines()
    assert line.startswith("kernel cache       unknown: ")
