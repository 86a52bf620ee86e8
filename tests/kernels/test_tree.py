"""The kernels of the sum tree, compared with plain sums, and priorities, compared with a dict."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replaykit._kernels import tree as names
from tests.kernels.forms import both, indices_in


def empty(capacity):
    """The arrays of an empty tree with this many leaves: nodes and extremes."""
    depth = (capacity - 1).bit_length()
    nodes, extremes = np.zeros(2 << depth), np.zeros(names.BLOCKS + (2 << depth // 2))
    extremes[names.MIN] = np.inf
    return nodes, extremes


def assert_tree(kernels, nodes, extremes, leaves):
    """Check that every node is the sum of its children, and that the extremes are those of the leaves."""
    size = nodes.size // 2
    np.testing.assert_array_equal(nodes[size : size + len(leaves)], leaves)
    assert not nodes[size + len(leaves) :].any()
    np.testing.assert_array_equal(nodes[1:size], nodes[2::2] + nodes[3::2])
    assert kernels.tree.largest(nodes, extremes) == max(leaves)
    assert kernels.tree.smallest(nodes, extremes) == min((v for v in leaves if v > 0), default=np.inf)
    maxima, loose, shift = kernels.tree._blocks(nodes, extremes)
    blocks = nodes[size:].reshape(maxima.size, -1).max(axis=1)
    assert maxima.size << shift == size
    assert (blocks <= maxima).all()
    assert (blocks == maxima)[loose == 0.0].all()


@both
@given(
    capacity=st.integers(1, 40),
    calls=st.lists(st.lists(st.sampled_from([0.0, 1.0, 2.5, 1e-9, 7.0]), min_size=1, max_size=12), max_size=6),
    seed=st.integers(0, 999),
)
def test_leaves_are_set_one_by_one_and_in_runs(kernels, capacity, calls, seed):
    """Leaves can be sorted or not. Of repeated leaves, the last value is kept."""
    rng = np.random.default_rng(seed)
    (nodes, extremes), leaves = empty(capacity), [0.0] * capacity
    for number, values in enumerate(calls):
        if rng.random() < 0.3:
            start, stop = np.sort(rng.integers(0, capacity + 1, 2)).tolist()
            kernels.tree.fill(nodes, extremes, start, stop, values[0])
            leaves[start:stop] = [values[0]] * (stop - start)
        else:
            places = rng.integers(0, capacity, len(values))
            places = np.sort(places) if number % 2 else places
            kernels.tree.assign(nodes, extremes, places, np.array(values))
            for place, value in zip(places.tolist(), values, strict=True):
                leaves[place] = value
        if rng.random() < 0.7:
            assert_tree(kernels, nodes, extremes, leaves)
    assert_tree(kernels, nodes, extremes, leaves)


@both
@given(values=st.lists(st.sampled_from([0.0, 1.0, 2.5, 0.25]), min_size=1, max_size=40), seed=st.integers(0, 99))
def test_draws_fall_where_the_running_sum_exceeds_them(kernels, values, seed):
    """With exact sums, the first leaf at which the running sum exceeds the mass is found."""
    nodes, extremes = empty(len(values))
    kernels.tree.assign(nodes, extremes, np.arange(len(values)), np.array(values))
    total = sum(values)
    if total == 0.0:
        return
    rng = np.random.default_rng(seed)
    running = np.cumsum(values)
    for scheme in (names.STRATIFIED, names.IID):
        uniforms = rng.integers(0, 64, 8) / 64.0
        cursors, probabilities = np.empty(8, np.int64), np.empty(8)
        kernels.tree.draw(nodes, uniforms, scheme, cursors, probabilities)
        masses = [(i + u) / 8 * total if scheme == names.STRATIFIED else u * total for i, u in enumerate(uniforms)]
        assert cursors.tolist() == [int(np.flatnonzero(running > mass)[0]) for mass in masses]
        np.testing.assert_array_equal(probabilities, np.array(values)[cursors] / total)


@both
def test_a_mass_that_runs_off_a_rounded_sum_finds_the_last_positive_leaf(kernels):
    """A mass that rounding places beyond all leaves finds the last positive leaf."""
    nodes, extremes = empty(8)
    kernels.tree.assign(nodes, extremes, np.arange(8), np.array([0.0, 0.3, 0.0, 0.0, 0.1, 0.0, 0.0, 0.0]))
    for mass, expected in ((0.4, 4), (10.0, 4), (0.35, 4), (0.0, 1), (0.29, 1)):
        cursors = np.empty(1, np.int64)
        kernels.tree.find(nodes, np.array([mass]), cursors)
        assert cursors.tolist() == [expected]
    kernels.tree.assign(nodes, extremes, np.array([4]), np.array([0.0]))
    cursors = np.empty(1, np.int64)
    kernels.tree.find(nodes, np.array([0.3]), cursors)
    assert cursors.tolist() == [1]
    none, _ = empty(4)
    kernels.tree.find(none, np.array([0.0]), cursors)  # not a mass of this tree: some leaf, without reading past it
    assert 0 <= cursors[0] < 4


@both
def test_what_is_drawn_has_a_positive_probability(kernels):
    """A drawn leaf has a positive probability, even if the quotient underflows."""
    nodes, extremes = empty(2)
    kernels.tree.assign(nodes, extremes, np.arange(2), np.array([1e-300, 1e300]))
    cursors, probabilities = np.empty(1, np.int64), np.empty(1)
    kernels.tree.draw(nodes, np.array([0.0]), names.IID, cursors, probabilities)
    assert cursors.tolist() == [0]
    assert probabilities.tolist() == [np.finfo(np.float64).tiny]


class Priorities:
    """A dict of index to priority, which learns of new bounds late, like a distribution."""

    def __init__(self, capacity):
        self.capacity, self.values = capacity, {}

    def settle(self, stored):
        """Give new steps the largest priority just before they were added, or 1.

        Steps that were retired and not replaced do not count.
        """
        filled = {index % self.capacity for index in stored}
        initial = max((v for index, v in self.values.items() if index % self.capacity in filled), default=0.0) or 1.0
        self.values = {index: self.values.get(index, initial) for index in stored}


@both
@pytest.mark.parametrize(("num_envs", "length"), [(1, 1), (1, 6), (1, 16), (3, 1), (3, 4), (2, 8)])
def test_priorities_follow_the_bounds(kernels, num_envs, length):
    """Priorities follow the bounds of lanes, after many or few adds, wrapping and clears."""
    rng, capacity = np.random.default_rng(num_envs * length), num_envs * length
    for _ in range(12):
        (nodes, extremes), model = empty(capacity), Priorities(capacity)
        bounds, settled = np.zeros((2, num_envs), np.int64), np.zeros((2, num_envs), np.int64)
        state = nodes, extremes, settled, bounds, capacity
        together = rng.random() < 0.5
        for _ in range(rng.integers(1, 15)):
            steps = rng.integers(0, 2 * length + 1, num_envs) // rng.integers(1, 4)
            bounds[1] += steps[0] if together else steps
            if rng.random() < 0.3:  # lanes come into step
                bounds[1] = bounds[1].max()
            bounds[0] = np.maximum(bounds[0], bounds[1] - length)
            if rng.random() < 0.1:
                bounds[0] = bounds[1]
            action, stored = rng.integers(0, 5), indices_in(bounds)
            if action == 0:  # more is added before anyone asks
                continue
            model.settle(stored.tolist())
            if action == 1:
                kernels.tree.settle(*state)
            elif action == 2:
                chosen = rng.choice(stored, rng.integers(0, stored.size + 1))
                values = rng.choice([0.0, 0.5, 3.0], chosen.size)
                kernels.tree.update(*state, chosen % capacity, values)
                model.values.update(zip(chosen.tolist(), values.tolist(), strict=True))
            elif action == 3:
                shares, total = np.empty(stored.size), sum(model.values.values())
                assert kernels.tree.proportional_shares(*state, stored, shares) == -1
                assert shares.tolist() == [model.values[i] / total if total else 0.0 for i in stored.tolist()]
                wrong = np.append(stored, bounds[1, 0] * num_envs)
                before = nodes.tobytes()
                assert kernels.tree.proportional_shares(*state, wrong, np.empty(wrong.size)) == stored.size
                assert nodes.tobytes() == before
            elif sum(model.values.values()):
                points = rng.random(5)
                drawn, slots, indices, shares = points.copy(), *np.empty((2, 5), np.int64), np.empty(5)
                kernels.tree.proportional_draw(
                    nodes, extremes, settled, drawn, names.IID, bounds, capacity, slots, indices, shares
                )
                total = sum(model.values.values())
                by_slot = sorted(model.values, key=lambda index: index % capacity)
                running = np.cumsum([model.values[index] for index in by_slot])
                assert indices.tolist() == [by_slot[int(np.flatnonzero(running > u * total)[0])] for u in points]
                assert slots.tolist() == [index % capacity for index in indices]
                assert shares.tolist() == [model.values[index] / total for index in indices.tolist()]
                assert drawn.tolist() == (shares / shares.min()).tolist()
            else:
                kernels.tree.settle(*state)
            np.testing.assert_array_equal(settled, bounds)
            leaves = [0.0] * capacity
            for index, value in model.values.items():
                leaves[index % capacity] = value
            assert_tree(kernels, nodes, extremes, leaves)
