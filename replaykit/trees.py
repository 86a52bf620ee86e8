"""Trees: dicts and tuples nested to any depth, as in nested observations and actions."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

Tree: TypeAlias = Any
"""A leaf, or a dict or tuple of trees."""


def entries_of(tree: Tree) -> Iterable[tuple[Any, Tree]]:
    """The keys of a dict or the numbers of a tuple, each with its entry."""
    return tree.items() if isinstance(tree, Mapping) else enumerate(tree)


def leaves_of(tree: Tree, path: str = "") -> Iterator[tuple[str, Any]]:
    """The path of every leaf of a tree, such as ``obs.position.0``, and the leaf. `path` is that of the tree."""
    if isinstance(tree, Mapping):
        for key, entry in tree.items():
            yield from leaves_of(entry, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, tuple):
        for i, entry in enumerate(tree):
            yield from leaves_of(entry, f"{path}.{i}" if path else str(i))
    else:
        yield path, tree


def map_tree(function: Callable[[Any, str], Any], tree: Tree, path: str = "") -> Tree:
    """A tree of the same structure with the results of `function` for every leaf and its path."""
    prefix = f"{path}." if path else ""
    if isinstance(tree, Mapping):
        return {key: map_tree(function, entry, f"{prefix}{key}") for key, entry in tree.items()}
    if isinstance(tree, tuple):
        return tuple(map_tree(function, entry, f"{prefix}{i}") for i, entry in enumerate(tree))
    return function(tree, path)
