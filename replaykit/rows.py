"""Plain dictionaries of arrays, such as the rows of a data set: which field each entry belongs to."""

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
"""What LeRobot calls fields."""
_LEFT_OUT = ("timestamp", "frame_index", "episode_index", "index", "task_index", "task", "next.done")
"""Entries of a row of LeRobot that are no part of a transition, or, the last, not one flag but two."""


def nested_row(row: Mapping[str, Any]) -> dict[str, Tree]:
    """The entries of a row under the names of fields, nested at the dots of their keys.

    Entries whose names are 0, 1 and so on become a tuple. A row with ``observation`` in place of ``obs`` is one of
    LeRobot: its fields get their names here, and what it has beside them is left out.

    Raises
    ------
    FieldNameError
        If a key is the beginning of another one, as ``obs`` and ``obs.position``.
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
    """A dict that was made of keys with dots, and not given."""


def _plain(tree: Tree) -> Tree:
    """The tree with a dict or a tuple in place of each `_Nested`."""
    if not isinstance(tree, _Nested):
        return tree
    entries = {key: _plain(entry) for key, entry in tree.items()}
    numbers = [str(i) for i in range(len(entries))]
    return tuple(entries[i] for i in numbers) if set(entries) == set(numbers) else entries


def _renamed(key: str) -> str:
    """The name of a field, or of a part of one, in place of LeRobot's."""
    for theirs, ours in _FIELDS.items():
        if key == theirs or key.startswith(f"{theirs}."):
            return ours + key[len(theirs) :]
    return key
