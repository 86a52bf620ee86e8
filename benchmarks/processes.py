"""Measurements that need a process of their own."""

import json
import os
import subprocess
import sys
from typing import Any


def run(*arguments: str, **variables: str) -> dict[str, Any]:
    """What Python, run with these arguments and environment variables, prints last, as JSON."""
    environment = os.environ | variables | {"PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
