"""The packed row: the position of each leaf of a transition, and the conversion of values to bytes and back to arrays.

Checking the six values takes most of the time of an add. Each spec therefore gets generated functions for its types and
shapes, as in ``dataclasses``. They check the usual values inline and pass all other values to `Leaf.coerce`.
"""

import functools
import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import CodeType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from replaykit._kernels import lazy
from replaykit.field import Field
from replaykit.spec import CORE, Spec
from replaykit.trees import Tree, entries_of

kernels: Any = lazy("windows")

Axes = tuple[int, ...]
Encode = Callable[[tuple[Tree, ...], Mapping[str, Tree], Axes], Any]

_FORMATS = {np.dtype(code).str[1:]: code for code in "?bBhHiIqQefd"}
"""The format of Python's struct for each dtype of a scalar. NumPy uses the same codes."""
_WRONG = (KeyError, ValueError, TypeError, OverflowError, struct.error)
"""Errors that an invalid value may raise."""
_INT64, _FLOAT32, _FLOAT64 = Field((), np.int64), Field((), np.float32), Field((), np.float64)
_DERIVED = {"length": _INT64, "weights": _FLOAT32, "probabilities": _FLOAT64, "indices": _INT64}
"""Fields of a batch that follow `discount`."""
LAYOUTS_KEPT = 16
SOURCES_KEPT = 128


class Layout(NamedTuple):
    """The layout of a block: dtype of a batch, dtype that includes the windows' rewards, plan, and number of bytes."""

    batch: np.dtype[Any]
    windows: np.dtype[Any]
    plan: npt.NDArray[np.int64]
    nbytes: int


class Row:
    """The layout of the packed row of a spec, and the functions for it.

    Leaves that consist of 8-byte words come first, then those of 4-byte words, so that whole words can be copied. The
    two flags are last, followed by the flag that ends an episode. The row is padded to a multiple of 8 bytes.

    `packed` are the spec positions of the leaves in the row, in row order, and `place` the offset of each. `end` is the
    offset of the flag that ends an episode. `encoder` makes `encode_steps`, `encode_lanes` and `encode_row`.
    `name_batch` nests all leaves and derived fields in a dict, `name_transitions` those up to the length.

    Leaves at the positions in a group of `groups` are in columns. `encode` handles values that need additional checks.
    """

    def __init__(self, spec: Spec, groups: Sequence[Sequence[int]], encode: Encode, lanes: Axes = (1,)) -> None:
        leaves, names = spec.leaves, [leaf.name for leaf in spec.leaves]
        self._groups, apart = groups, [i for group in groups for i in group]
        sizes = [0 if i in apart else leaf.field.nbytes for i, leaf in enumerate(leaves)]
        reward, *flags = (names.index(name) for name in ("reward", "terminated", "truncated"))
        others = [i for i in range(len(leaves)) if i not in apart and i not in flags]
        self.packed: list[int] = [*sorted(others, key=lambda i: -min(sizes[i] & -sizes[i] or 8, 8)), *flags]
        *starts, end = np.cumsum([0, *(sizes[i] for i in self.packed)]).tolist()
        self.end: int = end
        self.place: dict[int, Any] = dict(zip(self.packed, starts, strict=True))
        self.nbytes: int = (end + 8) // 8 * 8
        places = [(self.place[i], sizes[i]) for i in self.packed]
        self.leaf_places: npt.NDArray[np.int64] = np.array(places, np.int64).reshape(-1)
        formats = {i: (leaves[i].dtype, leaves[i].shape) for i in self.packed}
        self.record: np.dtype[Any] = _record(self.packed, formats, self.place, self.nbytes)
        self.encode_steps: Callable[..., Any] = encoder(spec, self.packed, groups, encode)
        self.encode_lanes: Callable[..., Any] = encoder(spec, self.packed, groups, encode, lanes)
        self.encode_row: Callable[..., Any] = encoder(spec, self.packed, groups, encode, lane=self.encode_lanes)
        self.name_batch: Callable[..., dict[str, Any]] = batch_namer(spec, ("discount", *_DERIVED))
        self.name_transitions: Callable[..., dict[str, Any]] = batch_namer(spec, ("discount", "length"))
        derived = [Field((), leaves[reward].dtype), *_DERIVED.values(), _INT64, _FLOAT64]
        fields = [*(None if i in apart else leaf.field for i, leaf in enumerate(leaves)), *derived]
        plan = np.full((kernels.PLAN_ROWS, len(fields)), kernels.NO_ROW, np.int64)
        plan[kernels.SIZE] = [*sizes, *(field.nbytes for field in derived)]
        for i in self.packed:
            if i not in (reward, *flags):
                step = kernels.LAST if leaves[i].is_of_last else kernels.FIRST
                plan[[step, kernels.ONLY], i] = self.place[i]
        of_window = [reward, *flags]
        plan[kernels.META, 1:9] = self.nbytes, self.end, *of_window, *(self.place[i] for i in of_window)
        layout = functools.partial(_layout, fields, plan, leaves[reward].shape)
        self.layout: Callable[[int, int], Layout] = functools.lru_cache(LAYOUTS_KEPT)(layout)

    def join(self, leaves: Sequence[npt.NDArray[Any]]) -> Any:
        """The concatenated bytes of the packed leaves of some entries; in a tuple with the groups, if any."""
        data = b"".join([np.ascontiguousarray(leaves[i]).data for i in self.packed])
        return (data, *([leaves[i] for i in group] for group in self._groups)) if self._groups else data


def _layout(fields: Sequence[Field | None], plan: npt.NDArray[np.int64], reward: Axes, count: int, n: int) -> Layout:
    """The layout for `count` transitions with windows of `n` steps. Each field is aligned to 64 bytes."""
    formats: Any = [(np.uint8, (0,)) if f is None else (f.dtype, (count, *f.shape)) for f in fields]
    formats[-1] = np.float64, (count, n, *reward)
    sizes = [(np.dtype(dtype).itemsize * math.prod(shape) + 63) // 64 * 64 for dtype, shape in formats]
    *starts, nbytes = np.cumsum([0, *sizes]).tolist()
    plan = plan.copy()
    plan[kernels.START], plan[kernels.META, kernels.COUNT] = starts, count
    served = range(len(sizes) - 2)
    batch, windows = (_record(f, formats, starts, nbytes) for f in (served, [*served, len(sizes) - 1]))
    return Layout(batch, windows, plan, nbytes)


def _record(fields: Iterable[int], formats: Any, places: Any, nbytes: int) -> np.dtype[Any]:
    """A record dtype of fields with these formats at these offsets."""
    names, kinds, offsets = [str(i) for i in fields], [formats[i] for i in fields], [places[i] for i in fields]
    return np.dtype({"names": names, "formats": kinds, "offsets": offsets, "itemsize": nbytes})


def encoder(
    spec: Spec, order: Sequence[int], groups: Sequence[Any], encode: Encode, lanes: Axes = (), lane: Any = None
) -> Callable[..., Any]:
    """A function that flattens steps, checks their leaves and returns the same block as `Row.join`.

    Its arguments are the leading axes (unless they are always `lanes`), the six core fields and a dict of the extras.
    With `lane`, it encodes a single step without leading axes, and passes values with an axis of length 1 to `lane`.
    Invalid values, and values in other containers than those of the spec, go to `encode`, which raises the first error.
    """
    is_row, core = lane is not None, ", ".join(CORE)
    known: dict[str, Any] = {"ndarray": np.ndarray, "wrong": _WRONG, "encode": encode, "encode_lane": lane}
    lines = [] if spec.extra else ["if extras: raise KeyError"]
    names = [leaf for name in CORE for leaf in _unfold(spec[name], name, lines, known)]
    if spec.extra:
        names += _unfold({name: spec[name] for name in spec.extra}, "extras", lines, known)
    if is_row:
        axes = len(spec["reward"].shape)
        lines.append(f"if type(reward) is ndarray and reward.ndim > {axes}: return encode_lane({core}, extras)")
    for i, (leaf, name) in enumerate(zip(spec.leaves, names, strict=True)):
        is_number = is_row and not leaf.shape and i in order
        known |= {f"dtype{i}": leaf.dtype, f"shape{i}": lanes + leaf.shape, f"types{i}": leaf.scalar_types}
        known[f"coerce{i}"] = leaf.coerce_scalar if is_number else leaf.coerce
        if is_number:
            is_unusual = f"type({name}) not in types{i}" + (f" or {name} != {name}" if leaf.dtype.kind == "f" else "")
        else:
            shape = f"shape{i}" if is_row or lanes else f"lead + shape{i}" if leaf.shape else "lead"
            is_unusual = f"type({name}) is not ndarray or {name}.dtype is not dtype{i} or {name}.shape != {shape}"
        lines.append(f"if {is_unusual}: {name} = coerce{i}({name}{'' if is_row else ', lead'})")
    codes = [_FORMATS.get(leaf.dtype.str[1:]) if is_row and not leaf.shape else None for leaf in spec.leaves]
    layout = "=" + "".join(codes[i] or f"{spec.leaves[i].field.nbytes}s" for i in order)
    known |= {"pack": struct.Struct(layout).pack, "join": b"".join, "lead": lanes}
    parts = ", ".join(names[i] if codes[i] else f"{names[i]}.tobytes()" for i in order)
    first = "" if is_row or lanes else "lead, "
    lead, joined = ("()", f"pack({parts})") if is_row else ("lead", f"join(({parts}))")
    columns = "".join(f", ({', '.join(names[i] for i in group)},)" for group in groups)
    statements = "\n        ".join(lines)
    source = f"""
def encoded({first}{core}, extras):
    try:
        {statements}
        return {joined}{columns}
    except wrong:
        return encode(({core}), extras, {lead})
"""
    return _defined(source, "encoded", known)


def _unfold(tree: Tree, name: str, lines: list[str], known: dict[str, Any]) -> list[str]:
    """The names of the leaves of the value `name`. The statements that flatten it are appended to `lines`."""
    if isinstance(tree, Field):
        return [name]
    lines.append(f"if not isinstance({name}, {type(tree).__name__}) or len({name}) != {len(tree)}: raise KeyError")
    leaves = []
    for n, (key, entry) in enumerate(entries_of(tree)):
        known[f"key_{name}_{n}"] = key
        lines.append(f"{name}_{n} = {name}[key_{name}_{n}]")
        leaves += _unfold(entry, f"{name}_{n}", lines, known)
    return leaves


def batch_namer(spec: Spec, others: Sequence[str]) -> Callable[..., dict[str, Any]]:
    """A function that takes the leaves of a transition and further fields `others`, and returns them nested by name.

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
    return _defined(f"def named({', '.join(leaves)}):\n    return {body}\n", "named", known)


def _defined(source: str, name: str, known: dict[str, Any]) -> Callable[..., Any]:
    """The function `name` that `source` defines, with the globals `known`."""
    exec(_compiled(source, name), known)
    return known.pop(name)  # type: ignore[no-any-return]  # its globals do not refer to it: it is freed at once


@functools.lru_cache(SOURCES_KEPT)
def _compiled(source: str, name: str) -> CodeType:
    """The code of `source`. Buffers of the same spec, such as copies, share it."""
    return compile(source, f"<replaykit {name}>", "exec")
