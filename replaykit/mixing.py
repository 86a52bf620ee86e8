"""What a mixture is made with: locks held together, shares as numbers of rows, and the rows of each source."""

from collections.abc import Iterator
from itertools import pairwise
from operator import methodcaller
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from replaykit.batch import Rewrite
from replaykit.storage.base import Floats, Indices
from replaykit.storage.lock import Lock
from replaykit.trees import Tree

_ROUNDING = 1e-12
"""How far a share of a batch may be from a whole number, relative to the batch, and count as whole."""
_acquire, _release = methodcaller("acquire"), methodcaller("release")


class Locks:
    """The locks of several storages, held together; a `Lock <replaykit.storage.Lock>` in all that a replay asks of it.

    They are taken in the order of their creation, as everything else that takes several does, so that no two threads
    wait for each other.
    """

    def __init__(self, locks: list[Lock], written: Lock) -> None:
        self.each, self.written = sorted(locks, key=lambda lock: lock.number), written
        self._reversed = self.each[::-1]

    def __enter__(self) -> bool:
        taken: list[Any] = []
        try:
            taken.extend(map(_acquire, self.each))  # in one call, so that an interrupt leaves the right number in it
        except BaseException:
            for lock in self.each[: len(taken)]:
                lock.release()
            raise
        return True

    def __exit__(self, *_exception: object) -> None:
        list(map(_release, self._reversed))

    @property
    def sampling(self) -> bool:
        """Whether one of the storages is in the middle of a sample."""
        return any(lock.sampling for lock in self.each)

    @sampling.setter
    def sampling(self, value: bool) -> None:
        for lock in self.each:
            lock.sampling = value or lock.refusal is not None

    @property
    def refusal(self) -> str | None:
        """The reason for which nothing may be done any more with one of the storages."""
        return next((lock.refusal for lock in self.each if lock.refusal), None)

    def refuse_writing(self) -> None:
        """Raise RuntimeError if the thread that holds the locks is in the middle of a sample."""
        for lock in self.each:
            if lock.sampling:
                lock.refuse_writing()


class Plan(NamedTuple):
    """How many rows of a batch each source gives by its share: `counts`, and one more with the probability `chances`.

    `edges` are the sums of the chances of all sources before each, and of all, which is a whole number. `most` is the
    number above, or `counts` where it is whole.
    """

    shares: list[float]
    counts: list[int]
    chances: list[float]
    edges: list[float]
    most: list[int]
    is_whole: bool

    def rounded(self, uniform: float) -> list[int]:
        """Counts for a number in [0, 1), by systematic sampling: expectations are exact, and the sum is the size."""
        up = [int(edge + uniform) for edge in self.edges]
        return [count + end - begin for count, (begin, end) in zip(self.counts, pairwise(up), strict=True)]

    def counts_of(self, k: int) -> list[tuple[int, float]]:
        """The numbers of rows that source k may give, but 0, with their probabilities."""
        count, chance = self.counts[k], self.chances[k]
        return [(n, p) for n, p in ((count, 1.0 - chance), (count + 1, chance)) if n and p > 0.0]


def planned(shares: list[float], size: int) -> Plan:
    """The plan of a batch of `size`, for shares whose sum is 1 to rounding."""
    shares = [share / sum(shares) for share in shares]
    exact = np.array(shares) * size
    whole = np.rint(exact)
    is_whole = np.abs(exact - whole) <= _ROUNDING * size
    counts = np.where(is_whole, whole, np.floor(exact)).astype(np.int64)
    fractions, rest = np.where(is_whole, 0.0, exact - counts), size - int(counts.sum())
    edges = np.concatenate(([0.0], np.cumsum(fractions)))
    if rest:
        edges *= rest / edges[-1]
        edges[-1] = rest
    chances = np.diff(edges) if rest else np.zeros(len(shares))
    most = counts + (chances > 0.0)
    return Plan(shares, counts.tolist(), chances.tolist(), edges.tolist(), most.tolist(), not rest)


class Rows(NamedTuple):
    """The rows of a batch by source.

    Attributes
    ----------
    own : list of ndarray
        The indices of the rows of each source, its own.
    owner : ndarray of shape (B,), int64
        The number of the source of each row.
    begins : list of int
        Where the rows of each source begin, source after source, and B.
    order : ndarray of shape (B,), int64, or None
        The rows, source after source; None if this is how they are.
    width : int
        Windows of each row, T.
    """

    own: list[Indices]
    owner: Indices
    begins: list[int]
    order: Indices | None
    width: int

    def of(self, k: int, width: int = 1) -> Any:
        """The places of the rows of source k, or of their windows, in an array of all."""
        begin, end = self.begins[k : k + 2]
        if self.order is None:
            return slice(begin * width, end * width)
        return _widened(self.order[begin:end], width)

    def joined(self, parts: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """An array of all rows, or of all their windows, from those of each source."""
        array = np.concatenate(parts)
        if self.order is None:
            return array
        width = 1 if len(array) == len(self.order) else self.width
        result = np.empty_like(array)
        result[_widened(self.order, width)] = array
        return result

    def tree(self, parts: list[Tree]) -> Tree:
        """`joined`, of nested arrays."""
        first = parts[0]
        if type(first) is np.ndarray:
            return self.joined(parts)
        if isinstance(first, dict):
            return {key: self.tree([part[key] for part in parts]) for key in first}
        if isinstance(first, tuple):
            return tuple(self.tree(list(entries)) for entries in zip(*parts, strict=True))
        return self.joined(parts)

    def rewrites_of(self, rewrites: list[Rewrite], begin: int, count: int) -> Iterator[Rewrite]:
        """The rewrites of the windows of a source, the first of which is number `begin`, source after source."""
        for fields, windows, values in rewrites:
            if self.order is not None:
                places = np.empty(len(self.order) * self.width, np.int64)
                places[_widened(self.order, self.width)] = np.arange(places.size)
                windows = places[windows]
            is_mine = (windows >= begin) & (windows < begin + count)
            yield Rewrite(fields, windows[is_mine] - begin, values[is_mine])


def _widened(rows: Indices, width: int) -> Indices:
    """The numbers of the windows of rows, `width` for each."""
    return rows if width == 1 else (rows[:, None] * width + np.arange(width)).reshape(-1)


def padded_rewards(rewards: list[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    """Rewards (M, n, ...) with as many steps in all: a lane that is shorter than `n_step` has shorter windows."""
    longest = max(reward.shape[1] for reward in rewards)
    missing = [(longest - reward.shape[1], reward.ndim) for reward in rewards]
    return [
        np.pad(reward, [(0, 0), (0, steps), *[(0, 0)] * (axes - 2)]) if steps else reward
        for reward, (steps, axes) in zip(rewards, missing, strict=True)
    ]


def zeros_like(tree: Tree, rows: int) -> Tree:
    """Zeros in the place of a field, with so many rows."""
    if isinstance(tree, dict):
        return {key: zeros_like(entry, rows) for key, entry in tree.items()}
    if isinstance(tree, tuple):
        return tuple(zeros_like(entry, rows) for entry in tree)
    return np.zeros((rows, *tree.shape[1:]), tree.dtype)


def refuse_values(name: str, values: Floats, limit: float) -> None:
    """Raise ValueError for TD errors or priorities that `update_priorities` of a buffer refuses."""
    wrong = ~(np.abs(values) <= limit)
    if wrong.any():
        expected = f"finite numbers of at most {limit:.3g} in magnitude"
        raise ValueError(f"{name} contains {values[wrong][0]}; expected {expected}")
    if name == "priorities" and values.size and values.min() < 0.0:
        raise ValueError(f"priorities contains {values.min()}; expected non-negative numbers")
