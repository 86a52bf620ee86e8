"""The sum tree is exact at every scale and after any updates."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replaykit import SumTree
from tests.helpers import priorities, tree_of


def test_the_example_of_the_docs():
    """The tree and the query of the documentation are correct."""
    tree = tree_of([3.0, 0.0, 1.0, 2.0])
    assert tree.nodes.tolist() == [0.0, 6.0, 3.0, 3.0, 3.0, 0.0, 1.0, 2.0]
    assert tree.find([3.5]).tolist() == [2]
    assert tree.find([0.0, 2.999, 3.0, 3.999, 4.0, 5.999]).tolist() == [0, 0, 2, 2, 3, 3]


@given(values=st.lists(priorities, min_size=1, max_size=40))
def test_boundary_masses_never_find_a_zero_leaf(values):
    """At each prefix sum, and one ulp beside it, the right positive leaf is found, up to rounding."""
    tree = tree_of(values)
    if tree.total == 0.0:
        with pytest.raises(ValueError, match="every priority is 0"):
            tree.find([0.0])
        return
    sums = np.cumsum(values)
    masses = np.concatenate([sums, np.nextafter(sums, 0), np.nextafter(sums, np.inf), [0.0]])
    masses = masses[(masses >= 0) & (masses < tree.total)]
    found = tree.find(masses)
    assert (np.asarray(values)[found] > 0).all()
    exact = np.concatenate([[Fraction(0)], np.cumsum([Fraction(value) for value in values])])
    slack = Fraction(tree.total) * Fraction(1, 2**46)
    for mass, leaf in zip(masses, found, strict=True):
        assert exact[leaf] - slack <= Fraction(mass) <= exact[leaf + 1] + slack


def textbook(nodes, mass):
    """The usual descent from textbooks, and the leaf where it ends."""
    node = 1
    while node < len(nodes) // 2:
        node *= 2
        if mass >= nodes[node]:
            mass -= nodes[node]
            node += 1
    return node - len(nodes) // 2


def test_where_rounding_leads_a_textbook_to_a_zero_leaf_a_positive_one_is_found():
    """Where rounding leads the usual descent to a zero leaf, this tree finds a positive one."""
    rng = np.random.default_rng(0)
    misled = 0
    for _ in range(600):
        values = rng.random(22) * (rng.random(22) < 0.6)
        tree = tree_of(values)
        sums = np.cumsum(values)
        masses = np.concatenate([sums, np.nextafter(sums, 0), np.nextafter(sums, np.inf)])
        masses = masses[masses < tree.total]
        found = tree.find(masses)
        assert (values[found] > 0).all()
        for mass, leaf in zip(masses, found, strict=True):
            end = textbook(tree.nodes, mass)
            if tree.nodes[len(tree.nodes) // 2 + end] > 0:
                assert leaf == end
            else:  # it ran off the end of what is positive
                misled += 1
                assert leaf == np.flatnonzero(values[:end])[-1]
    assert misled


@pytest.mark.parametrize("capacity", [1, 2, 3, 5, 7, 8, 9])
def test_small_integers_are_found_exactly(capacity):
    """Integer values are not rounded, so every half-integer mass is found as with a running sum."""
    rng = np.random.default_rng(capacity)
    for _ in range(50):
        values = rng.integers(0, 4, capacity)
        tree = tree_of(values.astype(float))
        assert tree.total == values.sum()
        if tree.total:
            masses = np.arange(0, tree.total, 0.5)
            np.testing.assert_array_equal(tree.find(masses), np.searchsorted(np.cumsum(values), masses, side="right"))


operations = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.lists(st.tuples(st.integers(0, 10**6), priorities), max_size=20)),
        st.tuples(st.just("fill"), st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), priorities)),
        st.tuples(st.just("extremes"), st.none()),
    ),
    max_size=30,
)


@given(capacity=st.integers(1, 70), operations=operations)
def test_a_tree_is_what_a_fresh_tree_would_be(capacity, operations):
    """After any updates, each sum is bit for bit that of a fresh tree, and the extremes are those of the leaves."""
    tree = SumTree(capacity)
    leaves = np.zeros(capacity)
    for name, argument in operations:
        if name == "set":
            indices = [index % capacity for index, _ in argument]
            tree.set(np.array(indices, np.int64), [value for _, value in argument])
            for index, (_, value) in zip(indices, argument, strict=True):
                leaves[index] = value
        elif name == "fill":
            start, stop = sorted((argument[0] % (capacity + 1), argument[1] % (capacity + 1)))
            tree.fill(start, stop, argument[2])
            leaves[start:stop] = argument[2]
        else:
            positive = leaves[leaves > 0]
            assert tree.largest == leaves.max()
            assert tree.smallest == positive.min(initial=np.inf)
            assert tree.smallest_without(np.array([0])) == leaves[1:][leaves[1:] > 0].min(initial=np.inf)
    np.testing.assert_array_equal(tree.get(np.arange(capacity)), leaves)
    np.testing.assert_array_equal(tree.nodes, tree_of(leaves).nodes)
    tree.check()


def test_twenty_thousand_mixed_updates_leave_no_trace():
    """After updates over 600 decades and then all zero but one leaf, that leaf alone has mass, exactly."""
    tree = SumTree(1000)
    rng = np.random.default_rng(0)
    for _ in range(200):
        tree.set(rng.integers(0, 1000, 100), 10.0 ** rng.uniform(-300, 300, 100))
    tree.set(np.arange(1000), np.zeros(1000))
    assert tree.total == 0.0
    tree.set([7], [1e-300])
    assert tree.total == 1e-300
    assert set(tree.draw(rng.random(100), 100)[0]) == {7}


def test_bad_arguments_leave_the_tree_unchanged():
    """NaN, infinite, negative and enormous values, and leaves that do not exist, are refused."""
    tree = tree_of([1.0, 2.0, 3.0])
    before = tree.nodes.tobytes()
    for value in (np.nan, np.inf, -1.0, 1e308):
        with pytest.raises(ValueError, match="expected finite numbers"):
            tree.set([0, 1], [1.0, value])
        with pytest.raises(ValueError, match="value is"):
            tree.fill(0, 2, value)
    for leaf in (-1, 3, 10**12):
        with pytest.raises(IndexError, match=f"leaves contains {leaf}"):
            tree.set([0, leaf], [1.0, 1.0])
        with pytest.raises(IndexError, match=f"leaves contains {leaf}"):
            tree.get([leaf])
    with pytest.raises(TypeError, match="float64; expected integers"):
        tree.set([0.0], [1.0])
    with pytest.raises(ValueError, match="values has shape"):
        tree.set([0, 1], [1.0])
    with pytest.raises(ValueError, match="leaves has shape"):
        tree.set([[0]], [[1.0]])
    with pytest.raises(IndexError, match="reach outside"):
        tree.fill(1, 4, 1.0)
    for start in (0.0, None):
        with pytest.raises(TypeError):
            tree.fill(start, 2, 1.0)
    for uniforms, size, scheme in (
        ([np.nan], 1, "iid"), ([1.0], 1, "iid"), ([-0.1], 1, "iid"), ([0.1], 6, "iid"), ([0.1] * 2, 2, "other"),
        ([0.1], 2, "stratified"),
        ([[0.1]], 1, "stratified"), ([0.1], 1, "uniform"), ([], 0, "iid"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="uniforms|scheme|batch_size"):
            tree.draw(np.array(uniforms), size, scheme)
    for mass in (-0.1, 6.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="expected points in"):
            tree.find([mass])
    with pytest.raises(ValueError, match="mass has shape"):
        tree.find([[1.0]])
    with pytest.raises(ValueError, match="capacity is 0"):
        SumTree(0)
    assert tree.nodes.tobytes() == before


def test_a_tree_is_printed_with_its_size_and_sum():
    """The repr shows the size and the sum in one line."""
    tree = tree_of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert repr(tree) == "SumTree(5, total=15)"
    assert len(tree) == 5


def test_arrays_may_come_from_elsewhere():
    """An allocator can provide the arrays. A tree on arrays of another tree continues with its values."""
    arrays = {}

    def allocate(name, shape, dtype):
        return arrays.setdefault(name, np.zeros(shape, dtype))

    tree = SumTree(5, allocate=allocate)
    tree.set([0, 3], [0.5, 2.0])
    assert tree.nodes is arrays["nodes"]
    assert tree.nbytes == sum(array.nbytes for array in arrays.values())
    again = SumTree(5, allocate=allocate)
    assert (again.total, again.smallest, again.largest) == (2.5, 0.5, 2.0)
    again.check()
