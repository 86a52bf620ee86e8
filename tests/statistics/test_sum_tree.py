"""The sum tree: the distribution of its draws."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numba import config

from tests.helpers import priorities, tree_of


@given(
    values=st.lists(priorities, min_size=1, max_size=33).filter(lambda values: sum(values) > 0),
    batch_size=st.integers(1, 50),
    seed=st.integers(0, 2**32 - 1),
)
def test_counts_of_a_batch_lie_within_their_exact_bounds(values, batch_size, seed):
    """If draws are stratified, floor(B P) - 1 <= count <= ceil(B P) + 1."""
    tree = tree_of(values)
    uniforms = np.random.default_rng(seed).random(batch_size)
    leaves, probabilities = tree.draw(uniforms, batch_size)
    counts = np.bincount(leaves, minlength=len(values))
    expected = batch_size * np.asarray(values) / tree.total
    rounding = 1e-9 * batch_size
    assert (counts >= np.floor(expected - rounding) - 1).all()
    assert (counts <= np.ceil(expected + rounding) + 1).all()
    assert (counts[np.asarray(values) == 0] == 0).all()
    np.testing.assert_allclose(probabilities, np.asarray(values)[leaves] / tree.total, rtol=1e-15, atol=3e-308)


def test_draws_follow_the_exact_distribution():
    """The mass that finds each leaf, measured by bisection, is its value to 1e-14 of the total."""
    rng = np.random.default_rng(3)
    for scale in (1, 30, 300):
        values = 10.0 ** rng.uniform(-scale, scale, 37) * (rng.random(37) < 0.8)
        tree = tree_of(values)
        edges = []
        for leaf in range(37):
            low, high = 0.0, np.nextafter(tree.total, 0)
            if tree.find([high])[0] <= leaf:
                edges.append(tree.total)
                continue
            while np.nextafter(low, high) < high:  # the largest mass that finds at most this leaf
                middle = low + (high - low) / 2
                low, high = (middle, high) if tree.find([middle])[0] <= leaf else (low, middle)
            edges.append(high if tree.find([0.0])[0] <= leaf else 0.0)
        measured = np.diff([0.0, *edges])
        assert np.abs(measured - values).sum() / 2 <= 1e-14 * tree.total


def test_zero_leaves_are_never_drawn_in_ten_million_draws():
    """Over 600 decades of priorities, with zero leaves between them."""
    rng = np.random.default_rng(1)
    values = 10.0 ** rng.uniform(-300, 300, 5000) * (rng.random(5000) < 0.5)
    near = rng.random(5000) * (rng.random(5000) < 0.5)
    for tree, leaves in ((tree_of(values), values), (tree_of(near), near)):
        for _ in range(50 if not config.DISABLE_JIT else 1):
            drawn, _ = tree.draw(
                rng.random(100_000 if not config.DISABLE_JIT else 100),
                100_000 if not config.DISABLE_JIT else 100,
                "iid",
            )
            assert (leaves[drawn] > 0).all()
