"""One small module for each library: how its users build a buffer, and call it."""

import importlib
import warnings

from benchmarks.adapters.base import Library

PEERS = ("cpprb", "tianshou", "stable_baselines3", "torchrl", "flashbax")


def load(name: str) -> Library:
    """The adapter of a library, and the library with it.

    Raises
    ------
    ImportError
        If the library, or something it needs, is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries about each other, and about what they lack
        library: Library = importlib.import_module(f"benchmarks.adapters.{name}").LIBRARY
    return library
