"""Checks of plain arguments. Each error names the argument, the expected value and the given value."""

import difflib
import inspect
import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any, get_args

import numpy as np


def check_count(name: str, value: Any, least: int = 1) -> int:
    """`value` as an int of at least `least`."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} is {value!r}; expected an int of at least {least}")
    if value < least:
        raise ValueError(f"{name} is {value}; expected an int of at least {least}")
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


def check_finite(name: str, value: Any) -> float:
    """`value` as a finite float."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        raise TypeError(f"{name} is {value!r}; expected a finite number")
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}; expected a finite number")
    return float(value)


def check_seed(
    seed: Any,
    expected: str = "None, a non-negative int, a SeedSequence or a Generator",
    kinds: tuple[type, ...] = (np.random.SeedSequence, np.random.Generator),
) -> Any:
    """`seed`. Raises TypeError or ValueError unless it is None, an int of at least 0, or an instance of `kinds`."""
    is_int = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
    if (is_int and seed >= 0) or seed is None or isinstance(seed, kinds):
        return seed
    raise (ValueError if is_int else TypeError)(f"seed is {seed!r}; expected {expected}")


def check_generator_state(generator: np.random.BitGenerator, state: Any) -> None:
    """Raise ValueError for a state that a generator of this kind cannot have. NumPy checks only a part of it."""
    places = {"pos": 624, "buffer_pos": 4}
    try:
        for part in (state, *(value for value in state.values() if isinstance(value, dict))):
            if any(not 0 <= part.get(name, 0) <= most for name, most in places.items()):
                raise ValueError("a position is out of range")
        type(generator)(0).state = state
    except (ValueError, TypeError, KeyError, OverflowError, AttributeError) as error:
        raise ValueError(f"the state of the generator does not fit a {type(generator).__name__}: {error}") from error


def check_arguments(cls: type, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    """Raise TypeError for arguments that the constructor does not accept. The error shows its arguments in order."""
    signature = inspect.signature(cls.__init__)  # type: ignore[misc]
    try:
        signature.bind(None, *args, **options)
    except TypeError as error:
        parameters = list(signature.parameters.values())[1:]
        by_name = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
        order = ", ".join([p.name for p in parameters if p.name not in by_name] + ["*"] * bool(by_name) + by_name)
        names = [p.name for p in parameters]
        meant = "".join(nearest(name, names) for name in options if name not in names)
        meant += "; Spec.from_spaces makes the spec of an environment" if "spec" in names and not meant else ""
        raise TypeError(f"{cls.__name__}: {error}; expected {cls.__name__}({order}){meant}") from None


def nearest(name: Any, known: Iterable[str]) -> str:
    """The end of an error about a misspelt name: the most similar known name, or an empty string."""
    match = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {match[0]!r}?" if match else ""


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Raise ValueError unless `value` is one of the strings of a Literal."""
    if not isinstance(value, str) or value not in get_args(choices):
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, get_args(choices)))}")


def prefixed(numbers: Mapping[str, Any], prefix: Any) -> dict[str, float]:
    """The numbers as floats, with `prefix` before each name."""
    if not isinstance(prefix, str):
        raise TypeError(f"prefix is {prefix!r}; expected a str, such as 'replay/'")
    return {f"{prefix}{name}": float(value) for name, value in numbers.items()}
