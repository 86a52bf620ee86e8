"""The sum tree: draws in proportion to priority in O(log C)."""

import operator
from typing import Any

import numpy as np
import numpy.typing as npt

from replaykit._kernels import lazy
from replaykit.field import as_float64, as_indices
from replaykit.storage import check_count

kernels = lazy("tree")

SCHEMES = ("stratified", "iid", "systematic")
"""How the points of a draw lie on the mass, in the order of the kernels' numbers."""


class SumTree:
    r"""A binary tree over C leaves in which every node is the sum of its two children.

    Leaf i holds a non-negative value. Laid side by side the leaves make up a line of length `total`, and a point
    drawn uniformly on that line lies on leaf i with probability ``value[i] / total``. The sums tell which leaf a
    point lies on in log2 C steps. With the values 3, 0, 1, 2::

                       6                 find(3.5):
                    /     \                at 6: left sum 3, and 3.5 >= 3: go right with 3.5 - 3 = 0.5
                  3         3              at 3: left sum 1, and 0.5 <  1: go left
                /   \     /   \            leaf 2
               3     0   1     2
        leaf   0     1   2     3
        mass  [0,3)  -  [3,4) [4,6)

    A leaf of value 0 covers nothing, and is never found. Sums are float64 and are always recomputed from the
    children, never adjusted by a difference, so they do not drift: whatever has happened to a tree, each is what a
    fresh tree would have.

    Methods for writing: `set`, `fill`, `clear`. For drawing: `draw`, `find`. For looking: `get`, `total`, `largest`,
    `smallest`, `check`.

    `assign`, `settle` and `draw_at` are for a buffer, which has checked what it gives; `nodes` and `marks` are the
    arrays that kernels work on, and `is_changing` tells that a change of them was cut short, to be repaired.

    Parameters
    ----------
    capacity : int
        Leaves, C; any number of at least 1.

    References
    ----------
    Schaul et al. (2016), Prioritized Experience Replay, appendix B.2.1.

    Examples
    --------
    >>> tree = SumTree(4)
    >>> tree.set([0, 1, 2, 3], [3.0, 0.0, 1.0, 2.0])
    >>> tree.total
    6.0
    >>> tree.find([0.0, 2.9, 3.0, 3.5, 5.9])
    array([0, 0, 2, 2, 3])
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = check_count("capacity", capacity)
        depth = (self.capacity - 1).bit_length()
        self.nodes = np.zeros(2 << depth, np.float64)
        self._blocks = 1 << (depth // 2)
        self.marks = np.zeros(kernels.PEAKS + 2 * self._blocks)
        self.marks[kernels.MIN] = np.inf
        self.is_narrow = depth < 31  # then 4 bytes are enough for the cursors of a descent
        self._cursor_dtype = np.int32 if self.is_narrow else np.int64
        self.is_changing = False
        self.limit = np.finfo(np.float64).max / (2 << depth)

    # -- Writing ---------------------------------------------------------------------------------------------

    def set(self, leaves: npt.ArrayLike, values: npt.ArrayLike) -> None:
        """Give `leaves` new values; of a leaf named twice the last one counts.

        Runtime O(B log C), less the ancestors that the leaves share.

        Parameters
        ----------
        leaves : array-like of shape (B,), int
        values : array-like of shape (B,), float

        Raises
        ------
        IndexError
            If a leaf lies outside [0, C).
        ValueError
            If a value is NaN, infinite, negative or above `limit`, or the shapes differ. The tree is unchanged.

        Examples
        --------
        >>> tree = SumTree(3)
        >>> tree.set([0, 2, 0], [5.0, 1.0, 2.0])
        >>> tree.get([0, 1, 2])
        array([2., 0., 1.])
        """
        leaves = self._checked(leaves)
        values = as_float64("values", values)
        if values.shape != leaves.shape:
            raise ValueError(f"values has shape {values.shape}; expected {leaves.shape}, that of leaves")
        if values.size and not (values.min() >= 0.0 and values.max() <= self.limit):
            wrong = values[~((values >= 0.0) & (values <= self.limit))][0]
            raise ValueError(f"values contains {wrong}; expected finite numbers in [0, {self.limit:.3g}]")
        self.assign(leaves, values)

    def assign(self, leaves: npt.NDArray[np.int64], values: npt.NDArray[np.float64]) -> None:
        """:meth:`set` for arguments that are known to be right, as those of a buffer are."""
        self._repair()
        self.is_changing = True
        kernels.assign(self.nodes, self.marks, leaves, values)
        self.is_changing = False

    def fill(self, start: int, stop: int, value: float) -> None:
        """Give the leaves in [start, stop) one value. O(stop - start + log C)."""
        start, stop = operator.index(start), operator.index(stop)
        if not 0 <= start <= stop <= self.capacity:
            raise IndexError(f"leaves [{start}, {stop}) reach outside [0, {self.capacity})")
        if not 0.0 <= value <= self.limit:
            raise ValueError(f"value is {value}; expected a finite number in [0, {self.limit:.3g}]")
        self._repair()
        self.is_changing = True
        kernels.fill(self.nodes, self.marks, start, stop, float(value))
        self.is_changing = False

    def settle(self, settled: npt.NDArray[np.int64], bounds: npt.NDArray[np.int64]) -> None:
        """Give what lanes in step have stored since `settled` the largest value, 1 if there is none; now it has it."""
        self._repair()
        self.is_changing = True
        kernels.settle(self.nodes, self.marks, settled, bounds, self.capacity)
        self.is_changing = False

    def clear(self) -> None:
        """Set every leaf to 0. O(C)."""
        self.fill(0, self.capacity, 0.0)

    def _repair(self) -> None:
        """Recompute every sum if an interrupt cut the last change short. The leaves are what they are."""
        if not self.is_changing:
            return
        leaves = self._leaves()
        self.marks[:] = 0.0
        self.marks[kernels.MIN] = np.inf
        kernels.assign(self.nodes, self.marks, np.arange(leaves.size), leaves)
        self.is_changing = False

    # -- Drawing ---------------------------------------------------------------------------------------------

    def draw(
        self, uniforms: npt.NDArray[np.float64], batch_size: int, scheme: str = "stratified"
    ) -> tuple[npt.NDArray[np.integer[Any]], npt.NDArray[np.float64]]:
        """Leaves drawn in proportion to their values, and their probabilities.

        Runtime O(B log C). With "stratified" the line is cut into B equal parts, and one point is drawn in each; with
        "systematic" the parts' points all lie at the same place; with "iid" points are drawn anywhere. In each scheme a
        leaf is expected B times its probability.

        Parameters
        ----------
        uniforms : ndarray of shape (B,), or (1,) for "systematic", float64 in [0, 1)
        batch_size : int
            B.
        scheme : {"stratified", "iid", "systematic"}

        Returns
        -------
        leaves : ndarray of shape (B,), int
        probabilities : ndarray of shape (B,), float64

        Raises
        ------
        TypeError, ValueError
            If every leaf is 0, or an argument is none of these.

        Examples
        --------
        >>> tree = SumTree(4)
        >>> tree.set([0, 1, 2, 3], [3.0, 0.0, 1.0, 2.0])
        >>> tree.draw(np.array([0.5, 0.5, 0.5]), 3)
        (array([0, 2, 3], dtype=int32), array([0.5       , 0.16666667, 0.33333333]))
        """
        if scheme not in SCHEMES:
            raise ValueError(f"scheme is {scheme!r}; expected one of {', '.join(map(repr, SCHEMES))}")
        points = as_float64("uniforms", uniforms)
        expected = (1 if scheme == "systematic" else check_count("batch_size", batch_size),)
        if points.shape != expected or not ((points >= 0.0) & (points < 1.0)).all():
            raise ValueError(f"uniforms of shape {points.shape} given; expected {expected}, of numbers in [0, 1)")
        self.refuse_empty()
        return self.draw_at(points, check_count("batch_size", batch_size), scheme)

    def draw_at(
        self, uniforms: npt.NDArray[np.float64], batch_size: int, scheme: str
    ) -> tuple[npt.NDArray[np.integer[Any]], npt.NDArray[np.float64]]:
        """:meth:`draw` for arguments that are known to be right, and a tree that is not empty."""
        leaves: npt.NDArray[np.signedinteger[Any]] = np.empty(batch_size, self._cursor_dtype)
        probabilities = np.empty(batch_size, np.float64)
        kernels.draw(self.nodes, uniforms, SCHEMES.index(scheme), batch_size, leaves, probabilities)
        return leaves, probabilities

    def find(self, mass: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Leaves at which the running sum of the values first exceeds `mass`.

        Runtime O(B log C). Never returns a leaf of value 0.

        Parameters
        ----------
        mass : array-like of shape (B,), float
            Points in [0, total).

        Returns
        -------
        ndarray of shape (B,), int64

        Raises
        ------
        ValueError
            If the tree is empty, or a point lies outside [0, total).

        Examples
        --------
        >>> tree = SumTree(4)
        >>> tree.set([0, 1, 2], [3.0, 0.0, 1.0])
        >>> tree.find([0.0, 2.9, 3.0])
        array([0, 0, 2])
        """
        self.refuse_empty()
        masses = as_float64("mass", mass).copy()
        if masses.ndim != 1:
            raise ValueError(f"mass has shape {masses.shape}; expected (B,)")
        inside = (masses >= 0.0) & (masses < self.total)
        if not inside.all():
            raise ValueError(f"mass contains {masses[~inside][0]}; expected points in [0, {self.total})")
        leaves = np.empty(masses.shape[0], self._cursor_dtype)
        kernels.find(self.nodes, masses, leaves)
        return leaves.astype(np.int64)

    @property
    def is_empty(self) -> bool:
        """Whether every leaf is 0."""
        return self.is_changing or self.nodes.item(1) == 0.0

    def refuse_empty(self) -> None:
        """Raise ValueError if every leaf is 0."""
        self._repair()
        if self.nodes[1] == 0.0:
            raise ValueError(
                "every priority is 0, so nothing can be drawn; set one to a positive number first, or use eps > 0"
            )

    # -- Looking ---------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self.capacity

    def __repr__(self) -> str:
        return f"SumTree({self.capacity}, total={self.total:.6g})"

    def get(self, leaves: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """The values of `leaves`, of shape (B,). Raises IndexError for one outside [0, C)."""
        values: npt.NDArray[np.float64] = self._leaves()[self._checked(leaves)]
        return values

    @property
    def total(self) -> float:
        """The sum of all values."""
        self._repair()
        return float(self.nodes[1])

    @property
    def largest(self) -> float:
        """The largest value. Usually O(sqrt C); O(C) if most blocks of leaves have lost their largest since."""
        self._repair()
        return float(kernels.largest(self.nodes, self.marks))

    @property
    def smallest(self) -> float:
        """The smallest positive value, inf if there is none. O(1), and O(C) after a leaf that held it has changed."""
        self._repair()
        return float(kernels.smallest(self.nodes, self.marks))

    def smallest_without(self, leaves: npt.NDArray[np.int64]) -> float:
        """The smallest positive value of all leaves but these; O(C) only if one of these holds the smallest."""
        smallest = self.smallest
        if smallest not in self.get(leaves):
            return smallest
        others = self._leaves().copy()
        others[leaves] = 0.0
        return float(others.min(initial=np.inf, where=others > 0.0))

    def _leaves(self) -> npt.NDArray[np.float64]:
        return self.nodes[self.nodes.shape[0] // 2 :]

    def _checked(self, leaves: npt.ArrayLike) -> npt.NDArray[np.int64]:
        indices = as_indices("leaves", leaves)
        outside = (indices < 0) | (indices >= self.capacity)
        if outside.any():
            raise IndexError(f"leaves contains {indices[outside][0]}; expected leaves in [0, {self.capacity})")
        return indices

    @property
    def nbytes(self) -> int:
        """Bytes of the tree."""
        return self.nodes.nbytes + self.marks.nbytes

    def check(self) -> None:
        """Verify that every node is the sum of its children and every bound holds. O(C).

        Raises
        ------
        AssertionError
            Naming the broken invariant.
        """
        self._repair()
        nodes, leaves = self.nodes, self._leaves()
        assert (leaves >= 0.0).all() and np.isfinite(leaves).all(), "a leaf is negative or not finite"
        assert (leaves[self.capacity :] == 0.0).all(), "a leaf beyond the capacity is not 0"
        if leaves.size > 1:
            assert (nodes[1 : leaves.size] == nodes[2::2] + nodes[3::2]).all(), "a node is not the sum of its children"
        blocks = leaves.reshape(self._blocks, -1).max(axis=1)
        peaks, loose = self.marks[kernels.PEAKS :].reshape(2, -1)
        assert (blocks <= peaks).all(), "a block holds a leaf above its peak"
        assert (blocks == peaks)[loose == 0.0].all(), "a peak that counts as held is not"
        assert self.largest == leaves.max(), "the largest value is wrong"
        assert self.smallest == leaves.min(initial=np.inf, where=leaves > 0.0), "the smallest value is wrong"
