"""Structures of dicts and tuples, to any depth: what nested observations and actions are."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

Tree: TypeAlias = Any
"""A leaf, or a dict or tuple of trees."""


def leaves_of(tree: Tree, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a tree and its path, such as ``obs.position.0``; `path` is that of the tree itself."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from leaves_of(value, _below(path, key))
    elif isinstance(tree, tuple):
        for i, value in enumerate(tree):
            yield from leaves_of(value, _below(path, i))
    else:
        yield path, tree


def map_tree(function: Callable[[Any, str], Any], tree: Tree, path: str = "") -> Tree:
    """`function` of every leaf and its path, in the same structure."""
    if isinstance(tree, Mapping):
        return {key: map_tree(function, value, _below(path, key)) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(map_tree(function, value, _below(path, i)) for i, value in enumerate(tree))
    return function(tree, path)


def _below(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)
