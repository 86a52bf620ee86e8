"""Conversion of plain dictionaries of arrays, such as the rows of a data set, to the fields of a spec."""

from collections.abc import Mapping
from typing import Any

from replaykit.field import FieldNameError
from replaykit.trees import Tree

_FIELDS = {
    "observation": "obs",
    "next.observation": "next_obs",
    "next.reward": "reward",
    "next.terminated": "terminated",
    "next.truncated": "truncated",
}
"""LeRobot's names of fields."""
_LEFT_OUT = ("timestamp", "frame_index", "episode_index", "index", "task_index", "task", "next.done")
"""Entries of a LeRobot row that are not stored. ``next.done`` does not separate termination from truncation."""


def nested_row(row: Mapping[str, Any]) -> dict[str, Tree]:
    """The entries of a row by field name, nested at the dots of their keys.

    Entries named 0, 1 and so on become a tuple. A row with ``observation`` instead of ``obs`` is a LeRobot row: its
    fields are renamed, and its other entries are ignored.

    Raises
    ------
    FieldNameError
        If a key is also the beginning of another key, as in ``obs`` and ``obs.position``.
    """
    roots = {str(key).partition(".")[0] for key in row}
    if "observation" in roots and "obs" not in roots:
        row = {_renamed(key): value for key, value in row.items() if key not in _LEFT_OUT}
    found = _Nested()
    for key, value in row.items():
        *parents, last = str(key).split(".")
        place, made = found, ""
        for name in parents:
            made = f"{made}.{name}" if made else name
            if made in row:
                raise FieldNameError(f"the example has the keys {made!r} and {key!r}; expected one of them, not both")
            place = place.setdefault(name, _Nested())
        place[last] = value
    return {name: _plain(tree) for name, tree in found.items()}


class _Nested(dict[str, Any]):
    """A dict built from keys with dots."""


def _plain(tree: Tree) -> Tree:
    """The tree, with each `_Nested` replaced by a dict or a tuple."""
    if not isinstance(tree, _Nested):
        return tree
    entries = {key: _plain(entry) for key, entry in tree.items()}
    numbers = [str(i) for i in range(len(entries))]
    return tuple(entries[i] for i in numbers) if set(entries) == set(numbers) else entries


def _renamed(key: str) -> str:
    """LeRobot's name of a field, or of a part of one, replaced by ours."""
    for theirs, ours in _FIELDS.items():
        if key == theirs or key.startswith(f"{theirs}."):
            return ours + key[len(theirs) :]
    return key
