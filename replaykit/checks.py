"""Checks of plain arguments; each error names the argument, what is expected and what was given."""

from numbers import Real
from typing import Any, get_args

import numpy as np


def check_count(name: str, value: Any) -> int:
    """`value` as an int of at least 1."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} is {value!r}; expected an int of at least 1")
    if value < 1:
        raise ValueError(f"{name} is {value}; expected an int of at least 1")
    return int(value)


def check_unit(name: str, value: Any) -> float:
    """`value` as a float in [0, 1]."""
    return check_number(name, value, 1.0, "a number in [0, 1]")


def check_number(name: str, value: Any, highest: float, expected: str) -> float:
    """`value` as a float in [0, highest]."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        raise TypeError(f"{name} is {value!r}; expected {expected}")
    if not 0.0 <= float(value) <= highest:
        raise ValueError(f"{name} is {value!r}; expected {expected}")
    return float(value)


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Raise ValueError unless `value` is one of the strings of a Literal."""
    if not isinstance(value, str) or value not in get_args(choices):
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, get_args(choices)))}")
