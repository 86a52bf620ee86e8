"""The packed row: where each leaf of a transition lies, and how values become bytes and bytes become arrays.

Most of the time of adding one transition is spent on looking at its six values. So each spec gets functions of its own,
generated as source for its types and shapes, as ``dataclasses`` generates an ``__init__``. They check the usual values
in place, and hand any other value to `Leaf.coerce`.
"""

import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from replaykit._kernels import lazy
from replaykit.field import Field
from replaykit.spec import CORE, Spec
from replaykit.trees import Tree

kernels = lazy("windows")

Encode = Callable[[tuple[Tree, ...], Mapping[str, Tree], tuple[int, ...]], Any]

_FORMATS = {
    "b1": "?", "i1": "b", "u1": "B", "i2": "h", "u2": "H", "i4": "i", "u4": "I", "i8": "q", "u8": "Q", "f2": "e",
    "f4": "f", "f8": "d",
}  # fmt: skip
"""The format of Python's struct for each dtype of a scalar."""
_WRONG = (ValueError, TypeError, OverflowError, struct.error)
"""What a value that does not fit may raise."""
_DERIVED = {
    "length": Field((), np.int64),
    "weights": Field((), np.float32),
    "probabilities": Field((), np.float64),
    "indices": Field((), np.int64),
}
"""Fields of a batch that follow `discount`."""
LAYOUTS_KEPT = 16


class Layout(NamedTuple):
    """A block of some transitions: the record of a batch, the record with windows' rewards, the plan, and the bytes."""

    batch: np.dtype[Any]
    windows: np.dtype[Any]
    plan: npt.NDArray[np.int64]
    nbytes: int


class Row:
    """The layout of the packed row of a spec, and the functions that go with it.

    Leaves of whole 8-byte words come first, then those of whole 4-byte words, so that they can be moved as such. The
    two flags are last, and after them the flag that ends an episode. The row is filled up to whole words of 8 bytes.

    `packed` has the positions of the leaves in the row, in the order in which they lie there, and `place` where each of
    them begins. `end` is the place of the flag that ends an episode. `encode_row` converts the six core fields and a
    dict of the extras of one step of one lane to bytes; `encode_steps` those of many steps, after their leading axes,
    leaf after leaf. `name_batch` makes all leaves and derived fields a nested dict, `name_transitions` those up to the
    length.

    Parameters
    ----------
    spec : Spec
    apart : collection of int
        The positions of the leaves that are not in the row.
    encode : callable
        Encodes values that need more than the usual checks.
    """

    def __init__(self, spec: Spec, apart: Sequence[int], encode: Encode) -> None:
        self.spec = spec
        leaves = spec.leaves
        sizes = [0 if i in apart else leaf.field.nbytes for i, leaf in enumerate(leaves)]
        names = [leaf.name for leaf in leaves]
        flags = [names.index("terminated"), names.index("truncated")]
        others = [i for i in range(len(leaves)) if i not in apart and i not in flags]
        self.packed = [*sorted(others, key=lambda i: -min(sizes[i] & -sizes[i] or 8, 8)), *flags]
        ends = np.cumsum([0, *(sizes[i] for i in self.packed)]).tolist()
        self.place = dict(zip(self.packed, ends, strict=False))
        self.end = ends[-1]
        self.nbytes = (self.end + 8) // 8 * 8
        self.leaf_places = np.array([(self.place[i], sizes[i]) for i in self.packed], np.int64).reshape(-1)
        formats = {i: (leaves[i].dtype, leaves[i].shape) for i in self.packed}
        self.record = _record(self.packed, formats, self.place, self.nbytes)
        if not apart:
            self.encode_steps = steps_encoder(spec, self.packed, encode)
            self.encode_row = row_encoder(spec, self.packed, encode, self.encode_steps)
        self.name_batch = batch_namer(spec, ("discount", *_DERIVED))
        self.name_transitions = batch_namer(spec, ("discount", "length"))
        self._plan_for(names, sizes, flags)
        self._layouts: dict[int, dict[int, Layout]] = {}

    def _plan_for(self, names: list[str], sizes: list[int], flags: list[int]) -> None:
        """The parts of the plan that do not depend on the number of transitions."""
        k, leaves, reward = kernels, self.spec.leaves, names.index("reward")
        derived = [leaves[reward].field, *_DERIVED.values(), Field((), np.int64), Field((), np.float64)]
        self._fields = [*(leaf.field if i in self.place else None for i, leaf in enumerate(leaves)), *derived]
        plan = np.full((k.PLAN_ROWS, len(self._fields)), k.NO_ROW, np.int64)
        plan[k.SIZE] = [*sizes, *(field.nbytes for field in derived)]
        for i in self.packed:
            if i not in (reward, *flags):
                is_next = names[i].partition(".")[0] == "next_obs"
                plan[k.LAST if is_next else k.FIRST, i] = plan[k.ONLY, i] = self.place[i]
        of_window = [reward, *flags]
        plan[k.META, 1:9] = self.nbytes, self.end, *of_window, *(self.place[i] for i in of_window)
        self._plan = plan

    def layouts(self, n: int) -> dict[int, Layout]:
        """The layouts for windows of `n` steps that have been made, by the number of transitions."""
        return self._layouts.setdefault(n, {})

    def layout(self, count: int, n: int) -> Layout:
        """The layout for `count` transitions with windows of `n` steps, each field from a multiple of 64 bytes on."""
        layouts = self.layouts(n)
        if count not in layouts:
            if len(layouts) >= LAYOUTS_KEPT:
                layouts.clear()
            formats: Any = [(np.uint8, (0,)) if f is None else (f.dtype, (count, *f.shape)) for f in self._fields]
            formats[-1] = np.float64, (count, n)
            sizes = [(np.dtype(dtype).itemsize * math.prod(shape) + 63) // 64 * 64 for dtype, shape in formats]
            *starts, nbytes = np.cumsum([0, *sizes]).tolist()
            plan = self._plan.copy()
            plan[kernels.START], plan[kernels.META, kernels.COUNT] = starts, count
            served = range(len(sizes) - 2)
            batch, windows = (_record(f, formats, starts, nbytes) for f in (served, [*served, len(sizes) - 1]))
            layouts[count] = Layout(batch, windows, plan, nbytes)
        return layouts[count]

    def join(self, leaves: Sequence[npt.NDArray[Any]]) -> bytes:
        """The bytes of the packed leaves of some entries, one leaf after another."""
        return b"".join([np.ascontiguousarray(leaves[i]).data for i in self.packed])


def _record(fields: Iterable[int], formats: Any, places: Any, nbytes: int) -> np.dtype[Any]:
    """A record of fields with these formats at these places."""
    names, offsets = [str(i) for i in fields], [places[i] for i in fields]
    kinds = [formats[i] for i in fields]
    return np.dtype({"names": names, "formats": kinds, "offsets": offsets, "itemsize": nbytes})


def row_encoder(
    spec: Spec, order: Sequence[int], encode: Encode, encode_steps: Callable[..., Any]
) -> Callable[..., Any]:
    """A function of the six core fields and a dict of the extras of one step, which returns the bytes of its row.

    Values with a leading axis of length 1 go to `encode_steps`. Values in a container of another kind than the spec's,
    or with a number out of range, go to `encode`.
    """
    known: dict[str, Any] = {"encode_steps": encode_steps}
    checks, layout, parts = [], "=", []
    for i, leaf in enumerate(spec.leaves):
        known |= {f"coerce{i}": leaf.coerce if leaf.shape else leaf.coerce_scalar, f"types{i}": leaf.scalar_types}
        if leaf.shape:
            known |= {f"dtype{i}": leaf.dtype, f"shape{i}": leaf.shape}
            wrong = f"type({{{i}}}) is not ndarray or {{{i}}}.dtype is not dtype{i} or {{{i}}}.shape != shape{i}"
        else:
            wrong = f"type({{{i}}}) not in types{i}"
            wrong += f" or {{{i}}} != {{{i}}}" if leaf.dtype.kind == "f" else ""  # a NaN
        checks.append(f"if {wrong}: {{{i}}} = coerce{i}({{{i}}})")
    for i in order:
        leaf = spec.leaves[i]
        code = None if leaf.shape else _FORMATS.get(leaf.dtype.str[1:])
        layout += code or f"{leaf.field.nbytes}s"
        parts.append(f"{{{i}}}" if code else f"{{{i}}}.tobytes()")
    known["join"] = struct.Struct(layout).pack
    fields = ", ".join(CORE)
    checks.insert(
        0,
        f"""if type(reward) is ndarray and reward.ndim:
            try: return encode_steps((1,), {fields}, extras)
            except wrong: return encode(({fields}), extras, ())""",
    )
    return _encoder(spec, "", checks, ", ".join(parts), known, encode)


def steps_encoder(spec: Spec, order: Sequence[int], encode: Encode) -> Callable[..., Any]:
    """A function of the leading axes, the core fields and the extras of many steps, which returns their bytes.

    The bytes of one leaf come after those of another. Values in a container of another kind go to `encode`.
    """
    known: dict[str, Any] = {"join": b"".join}
    checks = []
    for i, leaf in enumerate(spec.leaves):
        known |= {f"coerce{i}": leaf.coerce, f"dtype{i}": leaf.dtype, f"shape{i}": leaf.shape}
        shape = f"lead + shape{i}" if leaf.shape else "lead"
        wrong = f"type({{{i}}}) is not ndarray or {{{i}}}.dtype is not dtype{i} or {{{i}}}.shape != {shape}"
        checks.append(f"if {wrong}: {{{i}}} = coerce{i}({{{i}}}, lead)")
    parts = "".join(f"{{{i}}}.tobytes(), " for i in order)
    return _encoder(spec, "lead, ", checks, f"({parts})", known, encode)


def _encoder(
    spec: Spec, first: str, checks: list[str], parts: str, known: dict[str, Any], encode: Encode
) -> Callable[..., Any]:
    """A function that takes a step apart, checks its leaves and joins them. Numbers in braces stand for the leaves."""
    known |= {"ndarray": np.ndarray, "wrong": _WRONG, "encode": encode}
    lines: list[str] = []
    leaves: list[str] = []
    extras = {name: spec[name] for name in spec.extra}
    for name in CORE:
        _unfold(spec[name], name, lines, leaves, known)
    if extras:
        _unfold(extras, "extras", lines, leaves, known)
    else:
        lines.append("if extras: raise KeyError")
    unfolded = "\n        ".join(lines)
    checked = "\n        ".join(check.format(*leaves) for check in checks)
    other = f"encode(({', '.join(CORE)}), extras, {'lead' if first else '()'})"
    source = f"""
def encoded({first}{", ".join(CORE)}, extras):
    try:
        {unfolded}
    except KeyError:
        return {other}
    try:
        {checked}
        return join({parts.format(*leaves)})
    except wrong:  # the first error, in the order of the spec
        return {other}
"""
    return _defined(source, "encoded", known)  # type: ignore[no-any-return]


def _unfold(tree: Tree, name: str, lines: list[str], leaves: list[str], known: dict[str, Any]) -> None:
    """The statements that take the value `name` apart, and the names of its leaves."""
    if not isinstance(tree, dict | tuple):
        leaves.append(name)
        return
    kind = "dict" if isinstance(tree, dict) else "tuple"
    lines.append(f"if type({name}) is not {kind} or len({name}) != {len(tree)}: raise KeyError")
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
    source = f"def named({', '.join(leaves)}):\n    return {body}\n"
    return _defined(source, "named", known)  # type: ignore[no-any-return]


def _defined(source: str, name: str, known: dict[str, Any]) -> Any:
    """The function of this name that `source` defines, with the names in `known`."""
    exec(compile(source, f"<replaykit {name}>", "exec"), known)
    return known[name]
