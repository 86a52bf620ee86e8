"""Import replaykit from this checkout or from another one."""

import importlib
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent


def import_replaykit(checkout: str) -> None:
    """Import replaykit from a checkout, and nothing else. If it is empty, import the one that Python finds.

    Later imports of its modules, including lazy ones, also come from there.
    """
    if not checkout:
        return
    sys.path.insert(0, checkout)
    found = importlib.import_module("replaykit").__file__
    sys.path.remove(checkout)
    if found is None or Path(found).resolve().parent.parent != Path(checkout).resolve():
        raise ImportError(f"replaykit was imported from {found}; expected {checkout}")


def commit(checkout: Path = HERE) -> str | None:
    """The commit of a git checkout, and whether its replaykit has uncommitted changes. None without git."""
    try:
        head = _git(checkout, "rev-parse", "HEAD")
        changes = _git(checkout, "status", "--porcelain", "--", "replaykit")
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + (", with changes" if changes else "")


def _git(checkout: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, cwd=checkout)
    return done.stdout.strip()
