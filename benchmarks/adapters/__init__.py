"""One small module for each library: how its users build and call a buffer."""

import importlib
import warnings

from benchmarks.adapters.base import Library

PEERS = ("cpprb", "tianshou", "stable_baselines3", "torchrl", "flashbax")


def load(name: str) -> Library:
    """Import the adapter of a library, and with it the library.

    Raises
    ------
    ImportError
        If the library or one of its dependencies is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries warn about each other and about missing packages
        library: Library = importlib.import_module(f"benchmarks.adapters.{name}").LIBRARY
    return library
