"""The `info` of vector environments: a dict of arrays, or a dict for each lane."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from replaykit.field import Array, Field, FieldNameError, Leaf
from replaykit.spec import Spec
from replaykit.trees import Tree, leaves_of

Lanes: TypeAlias = npt.NDArray[np.bool_]


def gathered(spec: Spec, name: str, *parts: tuple[Any, str, Lanes]) -> Tree:
    """The values of a field in all lanes. Each part is an `info`, a key of it, and the lanes to take from it.

    Raises
    ------
    FieldNameError
        If a value is missing: the key does not exist, its mask is False in a lane, or the entry of a lane is None.
    ValueError, TypeError, OverflowError
        If a value does not fit the field.
    """
    leaves = [leaf for leaf in spec.leaves if leaf.name.partition(".")[0] == name]
    arrays = {leaf: np.zeros((len(parts[0][2]), *leaf.shape), leaf.dtype) for leaf in leaves}
    for info, key, lanes in parts:
        if lanes.any():
            _fill(arrays, name, info, key, lanes)
    return spec.unflatten(list(arrays.values()), (name,))[name]


def _fill(arrays: dict[Leaf, Array], name: str, info: Any, key: str, lanes: Lanes) -> None:
    """Copy the values of a key of `info` for these lanes to the arrays of a field."""
    values, mask = column(info, key), column(info, f"_{key}")
    if values is None:
        _refuse_missing(name, key, lanes.nonzero()[0])
    if mask is not None:
        _refuse_missing(name, key, (lanes & ~flags(f"_{key}", mask, lanes.shape)).nonzero()[0])
    if isinstance(values, list) or getattr(values, "dtype", None) == np.object_:
        _fill_each(arrays, name, values, key, lanes)
        return
    found = dict(leaves_of(values, name))  # the keys of `values` may be in another order
    chosen = None if lanes.all() else lanes
    for leaf, array in arrays.items():
        parent, _, last = leaf.name.rpartition(".")
        known = np.asarray(found.get(f"{parent}._{last}", leaf.name in found), np.bool_)  # Gymnasium's mask of a key
        _refuse_missing(leaf.name, key, (lanes & ~known).nonzero()[0])
        array[... if chosen is None else chosen] = leaf.coerce(found[leaf.name], lanes.shape, chosen)


def _fill_each(arrays: dict[Leaf, Array], name: str, values: Any, key: str, lanes: Lanes) -> None:
    """`_fill` for `values` with one entry for each lane."""
    if len(values) != len(lanes):
        raise ValueError(f"{key!r} of info has {len(values)} entries; expected {len(lanes)}, one for each lane")
    for lane in lanes.nonzero()[0]:
        found = {} if values[lane] is None else dict(leaves_of(values[lane], name))
        for leaf, array in arrays.items():
            _refuse_missing(leaf.name, key, [] if leaf.name in found else [lane])
            array[lane] = leaf.coerce(found[leaf.name])


def column(info: Any, key: str) -> Any:
    """The value of a key of `info`: an array, or a list with an entry for each lane; None if it is missing."""
    if info is None or isinstance(info, Mapping):
        return (info or {}).get(key)
    values = [(entry or {}).get(key) for entry in info]
    return None if all(value is None for value in values) else values


def flags(name: str, values: Any, lead: tuple[int, ...]) -> Lanes:
    """The flags of all lanes as an array. Raises an error with `name` if they are not flags."""
    return _flag(name).coerce(values, lead)


@cache
def _flag(name: str) -> Leaf:
    return Leaf(name, Field((), np.bool_))


def _refuse_missing(name: str, key: str, lanes: Sequence[Any] | Array) -> None:
    """Raise FieldNameError if `lanes`, in which a value is missing, is not empty."""
    if len(lanes):
        remedy = "pass a function of the step, or give the key in every step (at an episode's end in final_info)"
        if name.startswith("next_obs"):
            remedy = "in SAME_STEP mode, it must hold an episode's last observation; add it in a wrapper"
        raise FieldNameError(f"{name} is missing in lanes {list(map(int, lanes))}: expected {key!r} in info; {remedy}")
