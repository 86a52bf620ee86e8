"""Functions made for one spec, without a loop over its fields: they take transitions apart, and name those of a batch.

Most of the time of adding one transition goes into looking at its six values. A function that is written for their
types and shapes does that in a third of the time that a loop takes. Where a value is not quite what is stored, it
gives None, and :class:`~replaykit.field.Leaf` decides what to make of it, or which error to raise.
"""

import struct
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from replaykit.spec import CORE, Spec
from replaykit.trees import Tree

Packer: TypeAlias = Callable[..., bytes | None]

_FORMATS = {
    "b1": "?", "i1": "b", "u1": "B", "i2": "h", "u2": "H", "i4": "i", "u4": "I", "i8": "q", "u8": "Q", "f2": "e",
    "f4": "f", "f8": "d",
}  # fmt: skip
"""By dtype, how Python's struct calls it."""


def row_packer(spec: Spec, row: np.dtype[Any]) -> Packer:
    r"""A function of the six core fields and a dict of the extras of one step: its row in bytes, or None.

    `row` is a record of the leaves of the spec, named by their positions. If not all are in it, or one is of a dtype
    that Python cannot pack, the function always gives None.

    Examples
    --------
    >>> from replaykit import Field, Spec
    >>> spec = Spec(obs=Field((2,), "uint8"), action=Field((), "int8"))
    >>> row = np.dtype([("0", "u1", (2,)), ("1", "i1"), ("2", "f4"), ("3", "u1", (2,)), ("4", "?"), ("5", "?")])
    >>> pack = row_packer(spec, row)
    >>> obs = np.array([1, 2], np.uint8)
    >>> pack(obs, 3, 0.0, obs, False, True, {})
    b'\x01\x02\x03\x00\x00\x00\x00\x01\x02\x00\x01'
    >>> pack(obs, 3.5, 0.0, obs, False, True, {})
    """
    places = {int(name): offset for name, (_, offset, *_) in (row.fields or {}).items()}
    formats = [f"{leaf.field.nbytes}s" if leaf.shape else _FORMATS.get(leaf.dtype.str[1:]) for leaf in spec.leaves]
    if len(places) < len(formats) or None in formats:
        return _pack_nothing
    known: dict[str, Any] = {}
    checks, layout, end = [], "=", 0
    order = sorted(places, key=lambda i: places[i])
    for i in order:
        leaf = spec.leaves[i]
        layout += f"{'x' * (places[i] - end)}{formats[i]}"
        end = max(end, places[i] + leaf.field.nbytes)
        if leaf.shape:
            known |= {f"dtype{i}": leaf.dtype, f"shape{i}": leaf.shape}
            checks.append(f"type({{{i}}}) is ndarray and {{{i}}}.dtype is dtype{i} and {{{i}}}.shape == shape{i}")
        else:
            known[f"types{i}"] = leaf.exact_types | leaf.ranged_types
            checks.append(f"type({{{i}}}) in types{i}")
    known["join"] = struct.Struct(layout + "x" * (row.itemsize - end)).pack
    parts = ", ".join(f"{{{i}}}.tobytes()" if spec.leaves[i].shape else f"{{{i}}}" for i in order)
    return _packer(spec, "", checks, parts, known)


def block_packer(spec: Spec, order: Sequence[int]) -> Packer:
    """A function of the leading axes, the core fields and the extras of many steps: their bytes, or None.

    The bytes of one leaf come after those of another, in this order.
    """
    known: dict[str, Any] = {"join": b"".join}
    checks = []
    for i, leaf in enumerate(spec.leaves):
        known |= {f"dtype{i}": leaf.dtype, f"shape{i}": leaf.shape}
        shape = f"lead + shape{i}" if leaf.shape else "lead"
        checks.append(f"type({{{i}}}) is ndarray and {{{i}}}.dtype is dtype{i} and {{{i}}}.shape == {shape}")
    parts = "".join(f"{{{i}}}.tobytes(), " for i in order)
    return _packer(spec, "lead, ", checks, f"({parts})", known)


def _pack_nothing(*_: Any) -> None:
    """What a packer is where nothing can be packed."""


def _packer(spec: Spec, first: str, checks: list[str], parts: str, known: dict[str, Any]) -> Packer:
    """A function that takes a step apart, checks its leaves and joins them; numbers in braces stand for the leaves."""
    known |= {"ndarray": np.ndarray, "error": struct.error}
    lines: list[str] = []
    leaves: list[str] = []
    extras = {name: spec[name] for name in spec.extra}
    for name in CORE:
        _unfold(spec[name], name, lines, leaves, known)
    if extras:
        _unfold(extras, "extras", lines, leaves, known)
    else:
        lines.append("if extras: return None")
    joined = "\n        ".join(lines)
    source = f"""
def packed({first}{", ".join(CORE)}, extras):
    try:
        {joined}
        if {" and ".join(checks).format(*leaves)}:
            return join({parts.format(*leaves)})
    except (KeyError, OverflowError, error):
        pass
    return None
"""
    packed: Packer = _defined(source, "packed", known)
    return packed


def _unfold(tree: Tree, name: str, lines: list[str], leaves: list[str], known: dict[str, Any]) -> None:
    """The statements that take the value `name` apart as the tree is, and what its leaves are called then."""
    if not isinstance(tree, dict | tuple):
        leaves.append(name)
        return
    kind = "dict" if isinstance(tree, dict) else "tuple"
    lines.append(f"if type({name}) is not {kind} or len({name}) != {len(tree)}: return None")
    for n, (key, entry) in enumerate(tree.items() if isinstance(tree, dict) else enumerate(tree)):
        known[f"key_{name}_{n}"] = key
        lines.append(f"{name}_{n} = {name}[key_{name}_{n}]")
        _unfold(entry, f"{name}_{n}", lines, leaves, known)


def batch_namer(spec: Spec, others: Sequence[str]) -> Callable[..., dict[str, Any]]:
    """A function of the leaves of a transition, and of further fields of these names: all of them by name, nested.

    Examples
    --------
    >>> from replaykit import Field, Spec
    >>> spec = Spec(obs={"x": Field(), "y": (Field(), Field())}, action=Field())
    >>> batch_namer(spec, ["weights"])(*range(11))["obs"]
    {'x': 0, 'y': (1, 2)}
    """
    known: dict[str, Any] = {}
    leaves: list[str] = []

    def written(tree: Tree) -> str:
        if isinstance(tree, dict):
            entries = []
            for key, entry in tree.items():
                name = f"key{len(known)}"
                known[name] = key
                entries.append(f"{name}: {written(entry)}")
            return f"{{{', '.join(entries)}}}"
        if isinstance(tree, tuple):
            return f"({''.join(f'{written(entry)}, ' for entry in tree)})"
        leaves.append(f"v{len(leaves)}")
        return leaves[-1]

    body = written({name: spec[name] for name in spec} | dict.fromkeys(others))
    named: Callable[..., dict[str, Any]] = _defined(
        f"def named({', '.join(leaves)}):\n    return {body}\n", "named", known
    )
    return named


def _defined(source: str, name: str, known: dict[str, Any]) -> Any:
    """The function of this name that `source` defines, where it finds what is `known`."""
    exec(compile(source, f"<replaykit {name}>", "exec"), known)
    return known[name]
