"""Manifests: the settings of a replay and the state of its parts, as JSON with references to arrays."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from replaykit.chunks import Chunks
from replaykit.declared import Declared
from replaykit.field import Field
from replaykit.schedules import LinearSchedule
from replaykit.spec import Spec

Array = npt.NDArray[Any]
Write = Callable[[str, Any], dict[str, Any]]
Read = Callable[[dict[str, Any]], Any]

FORMAT = 1
"""The version of the manifest format. Newer manifests raise an error."""
_NOT_COMPARED = {"capacity", "beta", "ratio", "shares"}
"""Arguments that may differ, or that the state also contains."""
_NOT_SAVED = {"seed", "path", "device", "pin_memory"}
"""Arguments that do not affect the saved data."""


def encode(value: Any, where: str, write: Write) -> Any:
    """Encode a value of a state for a manifest. ``write(where, array)`` returns a reference to arrays or chunks."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, Chunks) or (isinstance(value, np.ndarray) and value.dtype.kind not in "OV"):
        return {"array": write(where, value)}
    if type(value) in (list, tuple):
        return {type(value).__name__: [encode(entry, f"{where}.{k}", write) for k, entry in enumerate(value)]}
    if type(value) is dict:
        return {"dict": [[encode(k, where, write), encode(entry, f"{where}.{k}", write)] for k, entry in value.items()]}
    if isinstance(value, LinearSchedule):
        return {"LinearSchedule": [value.start, value.end, value.steps]}
    if isinstance(value, Field):
        return {"Field": [list(value.shape), value.dtype.str, *(["last"] if value.step == "last" else [])]}
    of_dtype = f" of {value.dtype}" if isinstance(value, np.ndarray) else ""
    expected = "expected numbers, strings, arrays, and lists, tuples and dicts of them"
    raise TypeError(f"{where} is a {type(value).__name__}{of_dtype}; {expected}")


def decode(node: Any, read: Read) -> Any:
    """The value of a node of a manifest. Raises ValueError for a node that `encode` does not make."""
    if node is None or type(node) in (bool, int, str, float):
        return node
    try:
        ((kind, content),) = node.items()
        if kind == "float":
            return {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}[content]
        if kind == "array":
            return read(content)
        if kind in ("list", "tuple"):
            entries = [decode(entry, read) for entry in content]
            return entries if kind == "list" else tuple(entries)
        if kind == "dict":
            return {decode(key, read): decode(entry, read) for key, entry in content}
        if kind == "Spec":
            return Spec(**decode(content, read))
        if kind == "LinearSchedule":
            return LinearSchedule(*content)
        if kind == "Field":
            shape, dtype, *last = content
            return Field(tuple(shape), np.dtype(dtype), step=last[0] if last else "first")
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"the manifest is damaged: {error}") from error
    raise ValueError(f"the manifest is damaged: it has a {kind!r:.30}")


def describe(built: Any) -> Any:
    """The settings of an object: its class and its constructor's arguments.

    For functions and objects of other classes, only the type is recorded.
    """
    if isinstance(built, Declared):
        given = built.built_with()
        if not isinstance(given.get("storage"), Declared):
            given.pop("storage", None)
        arguments = {name: describe(value) for name, value in given.items() if name not in _NOT_SAVED}
        return {"class": built.saved_kind or type(built).__name__, "arguments": arguments}
    if isinstance(built, Spec):
        return {"Spec": describe({name: built[name] for name in ("obs", "action", "reward", *built.extra)})}
    if type(built) in (list, tuple):
        return {type(built).__name__: [describe(entry) for entry in built]}
    if type(built) is dict:
        return {"dict": [[describe(key), describe(value)] for key, value in built.items()]}
    if is_function(built):
        return {"function": getattr(built, "__qualname__", type(built).__name__)}
    try:
        return encode(built, "", _refuse_array)
    except TypeError:
        return {"object": type(built).__name__}


def _refuse_array(_where: str, _array: Any) -> dict[str, Any]:
    raise TypeError


def differences(saved: Any, built: Any, name: str = "") -> Iterator[str]:
    """The differences between two settings, as text for an error."""
    if type(saved) is dict and type(built) is dict and "class" in saved and "class" in built:
        if saved["class"] != built["class"]:
            yield f"{name or 'it'} was saved from a {saved['class']}, and this is a {built['class']}"
            return
        ours, theirs = built["arguments"], saved["arguments"]
        for key in sorted((ours.keys() | theirs.keys()) - _NOT_COMPARED):
            yield from differences(theirs.get(key), ours.get(key), key)
    elif _keys(saved) == _keys(built) is not None:
        for (key, theirs), (_, ours) in zip(saved["dict"], built["dict"], strict=True):
            yield from differences(theirs, ours, f"{name}[{key!r}]")
    elif saved != built and not (_is_of_user(saved) and _is_of_user(built)):
        yield f"{name} was {_words(saved)}, but is {_words(built)} here"


def _keys(node: Any) -> list[Any] | None:
    """The keys of the description of a dict of objects."""
    if type(node) is not dict or node.keys() != {"dict"}:
        return None
    is_of_objects = all(type(entry) is dict and "class" in entry for _, entry in node["dict"])
    return [key for key, _ in node["dict"]] if is_of_objects else None


def _is_of_user(node: Any) -> bool:
    return type(node) is dict and node.keys() <= {"function", "object"}


def _words(node: Any) -> str:
    """A description as readable text."""
    if type(node) is not dict:
        return repr(node)
    kind, content = next(iter(node.items()))
    if kind == "dict":
        return "{" + ", ".join(f"{_words(key)}: {_words(value)}" for key, value in content) + "}"
    if kind in ("list", "tuple"):
        return f"({', '.join(map(_words, content))})"
    if kind == "Field":
        step = ", step='last'" if content[2:] else ""
        return f"Field({tuple(content[0])}, {content[1]!r}{step})"
    return _words(content) if kind == "Spec" else f"{kind} {content}"


def is_function(value: Any) -> bool:
    """Whether a value is a function, which cannot be saved."""
    return callable(value) and not isinstance(value, LinearSchedule)


def arrays_in(content: Any) -> Iterator[dict[str, Any]]:
    """All references to arrays in the content of a manifest."""
    if isinstance(content, dict):
        if type(content.get("chunks")) is list and "name" in content:
            yield content
        content = list(content.values())
    if isinstance(content, list):
        for entry in content:
            yield from arrays_in(entry)


def checksum_of(content: Any) -> str:
    """The checksum of the content of a manifest."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def unpacked(text: str | bytes, where: str) -> dict[str, Any]:
    """The content of a manifest, verified; `where` names it in errors."""
    try:
        found = json.loads(text)
        number, checksum, content = found["format"], found["checksum"], found["content"]
        actual = checksum_of(content)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{where} is damaged: {type(error).__name__}: {error}") from None
    if type(number) is not int or number != FORMAT:
        remedy = "update replaykit" if type(number) is int and number > FORMAT else "save it again"
        raise ValueError(f"{where} has the format {number!r:.20}; this version reads {FORMAT}: {remedy}")
    if type(content) is not dict or checksum != actual:
        raise ValueError(f"{where} is damaged: its checksum is wrong")
    return content
