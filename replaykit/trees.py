"""Structures of dicts and tuples, to any depth: what nested observations and actions are."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

Tree: TypeAlias = Any
"""A leaf, or a dict or tuple of trees."""


def entries_of(tree: Tree) -> Iterable[tuple[Any, Tree]]:
    """The keys of a dict or the numbers of a tuple, each with its entry."""
    return tree.items() if isinstance(tree, Mapping) else enumerate(tree)


def leaves_of(tree: Tree, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a tree and its path, such as ``obs.position.0``; `path` is that of the tree itself."""
    if not isinstance(tree, Mapping | tuple):
        yield path, tree
        return
    for key, entry in entries_of(tree):
        yield from leaves_of(entry, f"{path}.{key}" if path else str(key))


def map_tree(function: Callable[[Any, str], Any], tree: Tree, path: str = "") -> Tree:
    """`function` of every leaf and its path, in the same structure."""
    if not isinstance(tree, Mapping | tuple):
        return function(tree, path)
    made = {key: map_tree(function, entry, f"{path}.{key}" if path else str(key)) for key, entry in entries_of(tree)}
    return made if isinstance(tree, Mapping) else tuple(made.values())
