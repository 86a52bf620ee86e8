"""All functions that Numba compiles. They take arrays and plain numbers, and write their results to arrays.

Importing this package does not import Numba: it is imported with the first kernel module, for the first buffer.
"""

import importlib
from typing import Any


class LazyModule:
    """A module that is imported on the first access to one of its attributes; safe from several threads."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        module = importlib.import_module(self._name)
        self.__dict__.update({key: value for key, value in vars(module).items() if not key.startswith("__")})
        return getattr(module, name)


def lazy(name: str) -> Any:
    """A stand-in for the kernel module `name`."""
    return LazyModule(f"{__name__}.{name}")
