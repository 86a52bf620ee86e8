"""Command-line options that the examples share, for argparse."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeAlias

Strategy: TypeAlias = Literal["none", "future", "final", "episode", "random"]
COLORS: dict[Strategy, str] = {  # in the pictures
    "none": "tab:red",
    "future": "tab:blue",
    "final": "tab:green",
    "episode": "tab:purple",
    "random": "tab:orange",
}


def at_least(least: int) -> Callable[[str], int]:
    """A parser of integers that are at least `least`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is too small; expected at least {least}")
        return value

    return parse


def share(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{value} is not between 0 and 1")
    return value


def picture(text: str) -> Path:
    """The path of a picture. Its ending is checked before training."""
    path = Path(text)
    if path.suffix not in (".png", ".pdf", ".svg"):
        raise argparse.ArgumentTypeError(f"{path}: expected a name that ends in .png, .pdf or .svg")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path}: {error}") from None
    return path
