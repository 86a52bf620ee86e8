"""Measurements that need separate processes."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from benchmarks.adapters.base import Library


@dataclass(frozen=True)
class Subject:
    """A library, or one version of replaykit, that is measured in separate processes.

    Parameters
    ----------
    name : str
        The name in the results.
    library : str
        The name of its adapter.
    importing : str
        The import statement for its replay buffers.
    checkout : str
        The checkout from which replaykit is imported. If it is empty, the one that Python finds.
    """

    name: str
    library: str
    importing: str
    checkout: str = ""

    @classmethod
    def of(cls, library: Library) -> "Subject":
        """The installed version of a library."""
        return cls(library.name, library.name, library.importing)

    @property
    def is_replaykit(self) -> bool:
        """Whether it is a version of replaykit."""
        return self.library == "replaykit"

    def run(self, module: str, *arguments: str, **variables: str) -> dict[str, Any]:
        """The last line that ``benchmarks.<module> LIBRARY CHECKOUT ARGUMENTS...`` prints, decoded from JSON."""
        return run("-m", f"benchmarks.{module}", self.library, self.checkout, *arguments, **variables)


def run(*arguments: str, **variables: str) -> dict[str, Any]:
    """Run Python with these arguments and environment variables. Returns its last line, decoded from JSON."""
    environment = os.environ | variables | {"PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
