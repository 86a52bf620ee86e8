"""Measurements that need a process of their own."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from benchmarks.adapters.base import Library


@dataclass(frozen=True)
class Subject:
    """What is measured in processes of its own: a library, or one version of replaykit.

    Parameters
    ----------
    name : str
        Its name in the results.
    library : str
        The name of its adapter.
    importing : str
        The statement that imports what its replay buffers need.
    checkout : str
        The checkout that replaykit is imported from; empty: whichever Python finds.
    """

    name: str
    library: str
    importing: str
    checkout: str = ""

    @classmethod
    def of(cls, library: Library) -> "Subject":
        """A library as it is installed."""
        return cls(library.name, library.name, library.importing)

    @property
    def is_replaykit(self) -> bool:
        """Whether it is a version of replaykit."""
        return self.library == "replaykit"

    def run(self, module: str, *arguments: str, **variables: str) -> dict[str, Any]:
        """What ``benchmarks.<module> LIBRARY CHECKOUT ARGUMENTS...`` prints last, as JSON."""
        return run("-m", f"benchmarks.{module}", self.library, self.checkout, *arguments, **variables)


def run(*arguments: str, **variables: str) -> dict[str, Any]:
    """What Python, run with these arguments and environment variables, prints last, as JSON."""
    environment = os.environ | variables | {"PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
