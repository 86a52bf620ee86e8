"""The sum tree: draws proportional to priority in O(log C)."""

import operator
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from replaykit._kernels import lazy
from replaykit.checks import check_choice, check_count
from replaykit.field import as_float64, as_indices
from replaykit.storage.memory_limit import refuse_more_than_memory

kernels: Any = lazy("tree")

Scheme: TypeAlias = Literal["stratified", "iid"]
"""How the points of a draw are distributed over the total."""
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
"""In the order of the kernels' numbers."""
Leaves: TypeAlias = npt.NDArray[np.int64]
Values: TypeAlias = npt.NDArray[np.float64]
Allocate: TypeAlias = Callable[[str, tuple[int, ...], npt.DTypeLike], npt.NDArray[Any]]


def _zeros(_name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    return np.zeros(shape, dtype)


class SumTree:
    r"""A binary tree over C leaves in which every node is the sum of its two children.

    Leaf i holds a non-negative value. Side by side, the leaves form a line of length `total`. A uniformly drawn point
    on this line is on leaf i with probability ``value[i] / total``. From the root, the leaf of a point is found in
    log2 C steps. With the values 3, 0, 1, 2::

                       6             find(3.5):
                    /     \            at 6: 3.5 >= 3: go right with 0.5
                  3         3          at 3: 0.5 < 1: go left
                /   \     /   \        leaf 2
               3     0   1     2
        leaf   0     1   2     3
        mass  [0,3)  -  [3,4) [4,6)

    A leaf of value 0 has length 0 and is never found. Sums are float64. They are recomputed from the children and never
    updated by a difference, so they do not drift: each sum equals that of a new tree with the same values.

    Methods for writing: `set`, `fill`, `clear`. For drawing: `draw`, `find`. For inspection: `get`, `total`, `largest`,
    `smallest`, `check`. The kernels work on the arrays `nodes` and `extremes`.

    Parameters
    ----------
    capacity : int
        Number of leaves, C, at least 1.
    allocate : callable, optional
        ``allocate(name, shape, dtype)`` returns an array of zeros. An example is ``storage.allocate``.

    References
    ----------
    Schaul et al. (2016), Prioritized Experience Replay, appendix B.2.1.

    Examples
    --------
    >>> tree = SumTree(4)
    >>> tree.set([0, 2, 3, 0], [7.0, 1.0, 2.0, 3.0])
    >>> tree.get([0, 1, 2, 3]), tree.total
    (array([3., 0., 1., 2.]), 6.0)
    >>> tree.find([0.0, 2.9, 3.0, 3.5, 5.9])
    array([0, 0, 2, 2, 3])
    >>> tree.draw([0.5, 0.5, 0.5], 3)
    (array([0, 2, 3]), array([0.5       , 0.16666667, 0.33333333]))
    """

    def __init__(self, capacity: int, *, allocate: Allocate | None = None) -> None:
        self.capacity: int = check_count("capacity", capacity)
        depth = (self.capacity - 1).bit_length()
        self._blocks = 1 << (depth // 2)
        if allocate is None:
            refuse_more_than_memory(16 << depth, f"capacity {self.capacity} of a sum tree", "lower the capacity")
            allocate = _zeros
        self.nodes: npt.NDArray[Any] = allocate("nodes", (2 << depth,), np.float64)
        self.extremes: npt.NDArray[Any] = allocate("extremes", (kernels.BLOCKS + 2 * self._blocks,), np.float64)
        if not self.nodes[1]:
            self.extremes[kernels.MIN] = np.inf
        self.limit: float = np.finfo(np.float64).max / (2 << depth)

    def set(self, leaves: npt.ArrayLike, values: npt.ArrayLike) -> None:
        """Set `leaves` (B,) to `values` (B,). If a leaf occurs twice, its last value counts. O(B log C).

        Raises IndexError for a leaf outside [0, C). Raises ValueError for a value that is NaN, infinite, negative or
        above `limit`, and for different shapes. The tree is then unchanged.
        """
        leaves, values = self._checked(leaves), as_float64("values", values)
        if values.shape != leaves.shape:
            raise ValueError(f"values has shape {values.shape}; expected {leaves.shape}, that of leaves")
        wrong = ~((values >= 0.0) & (values <= self.limit))
        if wrong.any():
            raise ValueError(f"values contains {values[wrong][0]}; expected finite numbers in [0, {self.limit:.3g}]")
        kernels.assign(self.nodes, self.extremes, leaves, values)

    def fill(self, start: int, stop: int, value: float) -> None:
        """Set the leaves in [start, stop) to one value. O(stop - start + log C). Errors are those of `set`."""
        start, stop = operator.index(start), operator.index(stop)
        if not 0 <= start <= stop <= self.capacity:
            raise IndexError(f"leaves [{start}, {stop}) reach outside [0, {self.capacity})")
        if not 0.0 <= value <= self.limit:
            raise ValueError(f"value is {value}; expected a finite number in [0, {self.limit:.3g}]")
        kernels.fill(self.nodes, self.extremes, start, stop, float(value))

    def clear(self) -> None:
        """Set every leaf to 0. O(C)."""
        self.fill(0, self.capacity, 0.0)

    def rebuild(self) -> None:
        """Recompute all inner nodes and bounds from the leaves. O(C)."""
        size = len(self.leaves)
        while size > 1:
            size //= 2
            self.nodes[size : 2 * size] = self.nodes[2 * size : 4 * size : 2] + self.nodes[2 * size + 1 : 4 * size : 2]
        maxima, loose = self.extremes[kernels.BLOCKS :].reshape(2, -1)
        maxima[:], loose[:] = self.leaves.reshape(self._blocks, -1).max(axis=1), 0.0
        least = self.leaves.min(initial=np.inf, where=self.leaves > 0.0)
        self.extremes[[kernels.MAX, kernels.MIN, kernels.MAX_LOOSE, kernels.MIN_LOOSE]] = maxima.max(), least, 0.0, 0.0

    def draw(self, uniforms: npt.ArrayLike, batch_size: int, scheme: str = "stratified") -> tuple[Leaves, Values]:
        """Draw leaves proportionally to their values. Returns leaves and probabilities, of shape (B,). O(B log C).

        `batch_size` is B, and `uniforms` are B numbers in [0, 1). With "stratified", one point is drawn in each of B
        equal parts of the line. With "iid", each point is drawn from the whole line. In both cases the expected number
        of draws of a leaf is B times its probability. Raises ValueError if all leaves are 0 or an argument is wrong.
        """
        check_choice("scheme", scheme, Scheme)
        points, expected = as_float64("uniforms", uniforms), (check_count("batch_size", batch_size),)
        if points.shape != expected or not ((points >= 0.0) & (points < 1.0)).all():
            raise ValueError(f"uniforms has shape {points.shape}; expected {expected}, with numbers in [0, 1)")
        self.refuse_empty()
        leaves, probabilities = np.empty(len(points), np.int64), np.empty(len(points))
        kernels.draw(self.nodes, points, SCHEMES.index(scheme), leaves, probabilities)
        return leaves, probabilities

    def find(self, mass: npt.ArrayLike) -> Leaves:
        """The leaves at which the running sum of the values first exceeds `mass`, of shape (B,). O(B log C).

        Never returns a leaf of value 0. Raises ValueError if all leaves are 0 or a point is outside [0, total).
        """
        self.refuse_empty()
        masses = as_float64("mass", mass).copy()
        if masses.ndim != 1:
            raise ValueError(f"mass has shape {masses.shape}; expected (B,)")
        inside = (masses >= 0.0) & (masses < self.total)
        if not inside.all():
            raise ValueError(f"mass contains {masses[~inside][0]}; expected points in [0, {self.total})")
        leaves = np.empty(len(masses), np.int64)
        kernels.find(self.nodes, masses, leaves)
        return leaves

    def refuse_empty(self) -> None:
        """Raise ValueError if every leaf is 0."""
        if self.nodes[1] == 0.0:
            remedy = "set one to a positive number first, or use eps > 0"
            raise ValueError(f"every priority is 0, so nothing can be drawn; {remedy}")

    def __len__(self) -> int:
        return self.capacity

    def __repr__(self) -> str:
        return f"SumTree({self.capacity}, total={self.total:.6g})"

    def get(self, leaves: npt.ArrayLike) -> Values:
        """The values of `leaves`, of shape (B,). Raises IndexError for one outside [0, C)."""
        return np.asarray(self.leaves[self._checked(leaves)])

    @property
    def total(self) -> float:
        """The sum of all values."""
        return float(self.nodes[1])

    @property
    def largest(self) -> float:
        """The largest value; 0 if all are 0. Usually O(sqrt C); O(C) if the largest value of most blocks changed."""
        return float(kernels.largest(self.nodes, self.extremes))

    @property
    def smallest(self) -> float:
        """The smallest positive value; inf if there is none. O(1), or O(C) after its leaf has changed."""
        return float(kernels.smallest(self.nodes, self.extremes))

    def smallest_without(self, leaves: Leaves) -> float:
        """The smallest positive value of all other leaves; inf if there is none. O(C) if `leaves` have the smallest."""
        smallest = self.smallest
        if smallest not in self.get(leaves):
            return smallest
        others = np.delete(self.leaves, leaves)
        return float(others.min(initial=np.inf, where=others > 0.0))

    @property
    def leaves(self) -> Values:
        """A view of the values of all leaves, with zeros beyond the capacity. Do not change it."""
        return self.nodes[self.nodes.shape[0] // 2 :]

    def _checked(self, leaves: npt.ArrayLike) -> Leaves:
        indices = as_indices("leaves", leaves)
        outside = (indices < 0) | (indices >= self.capacity)
        if outside.any():
            raise IndexError(f"leaves contains {indices[outside][0]}; expected leaves in [0, {self.capacity})")
        return indices

    @property
    def nbytes(self) -> int:
        """Size of the tree in bytes."""
        return self.nodes.nbytes + self.extremes.nbytes

    def check(self) -> None:
        """Verify that every node is the sum of its children and every bound holds. O(C)."""
        nodes, leaves = self.nodes, self.leaves
        assert (leaves >= 0.0).all() and np.isfinite(leaves).all(), "a leaf is negative or not finite"
        assert (leaves[self.capacity :] == 0.0).all(), "a leaf beyond the capacity is not 0"
        if leaves.size > 1:
            assert (nodes[1 : leaves.size] == nodes[2::2] + nodes[3::2]).all(), "a node is not the sum of its children"
        blocks = leaves.reshape(self._blocks, -1).max(axis=1)
        maxima, loose = self.extremes[kernels.BLOCKS :].reshape(2, -1)
        assert (blocks <= maxima).all(), "a block holds a leaf above its bound"
        assert (blocks == maxima)[loose == 0.0].all(), "a bound that counts as attained is not"
        assert self.largest == leaves.max(), "the largest value is wrong"
        assert self.smallest == leaves.min(initial=np.inf, where=leaves > 0.0), "the smallest value is wrong"
