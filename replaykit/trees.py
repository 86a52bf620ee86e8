"""Trees: dicts and tuples nested to any depth, as in nested observations and actions."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

Tree: TypeAlias = Any
"""A leaf, or a dict or tuple of trees."""


def entries_of(tree: Tree) -> Iterable[tuple[Any, Tree]]:
    """The keys of a dict or the numbers of a tuple, each with its entry."""
    return tree.items() if isinstance(tree, Mapping) else enumerate(tree)


def leaves_of(tree: Tree, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a tree and its path, such as ``obs.position.0``; `path` is that of the tree itself."""
    if isinstance(tree, Mapping):
        for key, entry in tree.items():
            yield from leaves_of(entry, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, tuple):
        for i, entry in enumerate(tree):
            yield from leaves_of(entry, f"{path}.{i}" if path else str(i))
    else:
        yield path, tree


def map_tree(function: Callable[[Any, str], Any], tree: Tree, path: str = "") -> Tree:
    """`function` of every leaf and its path, in the same structure."""
    prefix = f"{path}." if path else ""
    if isinstance(tree, Mapping):
        return {key: map_tree(function, entry, f"{prefix}{key}") for key, entry in tree.items()}
    if isinstance(tree, tuple):
        return tuple(map_tree(function, entry, f"{prefix}{i}") for i, entry in enumerate(tree))
    return function(tree, path)
