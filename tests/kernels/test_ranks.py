"""The order of priorities, compared with a sorted list."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replaykit._kernels import ranks as names
from tests.kernels.forms import both, indices_in

PRIORITIES = [0.0, 0.5, 1.0, 1.0, 2.0, 7.0]


class Order:
    """The arrays of an order of this many slots, in blocks of `span` entries, and its expected contents."""

    def __init__(self, kernels, capacity, num_envs, span):
        self.kernels, self.capacity = kernels.ranks, capacity
        blocks = 3 * (capacity // span + 1) + 2
        self.table, self.limits = np.zeros((names.ROWS, blocks + 1), np.int64), np.zeros(blocks)
        self.keys, self.members = np.zeros(blocks * span), np.zeros(blocks * span, np.int64)
        self.arrays = self.table, self.limits, self.keys, self.members, np.zeros(capacity, np.int64)
        self.table[names.HEADER, [names.SPAN, names.TOP]] = span, 1 << (blocks.bit_length() - 1)
        self.priorities, self.settled = np.zeros(capacity), np.zeros((2, num_envs), np.int64)
        self.kernels.empty(self.table)
        self.of = {}

    def expected(self):
        return sorted(self.of, key=lambda index: (-self.of[index], -index))

    def sort(self):
        self.kernels.fill(*self.arrays, self.capacity, self.priorities, np.array(self.expected(), np.int64))

    def settle(self, bounds):
        """Advance to these bounds, in the kernel and in the dict."""
        stale = self.kernels.settle(*self.arrays, self.priorities, self.settled, bounds, self.capacity)
        stored = set(indices_in(bounds).tolist())
        slots = {index % self.capacity for index in stored - set(self.of)}
        left = [self.of[i] for i in self.of if i in stored or i % self.capacity in slots]
        first = max(left, default=0.0) or 1.0
        self.of = {index: self.of.get(index, first) for index in stored}
        if stale:
            self.sort()

    def update(self, bounds, indices, values):
        slots = indices % self.capacity
        stale = self.kernels.update(*self.arrays, self.priorities, bounds, self.capacity, slots, values)
        self.of |= dict(zip(indices.tolist(), values.tolist(), strict=True))
        if stale:
            self.sort()
        return stale

    def check(self):
        """Check that every rank is that of the sorted list, and that no two neighboring blocks fit into one."""
        expected, span = self.expected(), int(self.table[names.HEADER, names.SPAN])
        places = [self.kernels.position_of(self.table, rank) for rank in range(len(expected))]
        assert self.members[places].tolist() == expected
        assert self.keys[places].tolist() == [self.of[index] for index in expected]
        assert [self.priorities[index % self.capacity] for index in expected] == [self.of[i] for i in expected]
        table, _, keys, members, blocks = self.arrays
        found, indices = np.zeros(len(expected), np.int64), np.array(expected, np.int64)
        self.kernels.ranks(table, keys, members, blocks, self.priorities, indices % self.capacity, indices, found)
        assert found.tolist() == list(range(1, len(expected) + 1))
        used = table[names.HEADER, names.USED]
        counts = table[names.COUNT, table[names.DIRECTORY, :used]]
        assert (4 * (counts[1:] + counts[:-1]) > 3 * span).all()
        assert sorted(table[names.DIRECTORY, :-1].tolist()) == list(range(table.shape[1] - 1))


@both
@given(
    num_envs=st.integers(1, 3),
    length=st.integers(1, 25),
    span=st.sampled_from([4, 8]),
    moves=st.lists(st.sampled_from(["add", "add", "jump", "update", "update", "clear"]), max_size=30),
    seed=st.integers(0, 9999),
)
def test_the_order_is_that_of_a_sorted_list(kernels, num_envs, length, span, moves, seed):
    """The order stays right through adds in and out of step, laps, updates of few and of many, and clears."""
    rng, capacity = np.random.default_rng(seed), num_envs * length
    order, bounds = Order(kernels, capacity, num_envs, span), np.zeros((2, num_envs), np.int64)
    for move in moves:
        if move == "clear":
            bounds[0] = bounds[1]
        elif move == "update":
            stored = indices_in(bounds)
            if stored.size:
                indices = rng.choice(stored, rng.integers(1, 12))
                order.update(bounds, indices, rng.choice(PRIORITIES, indices.size))
        else:
            most = 3 if move == "add" else 3 * length
            bounds[1] += rng.integers(0, most, num_envs) if rng.random() < 0.5 else rng.integers(0, most)
            bounds[0] = np.maximum(bounds[0], bounds[1] - length)
        order.settle(bounds)
        order.check()


@both
def test_blocks_are_split_and_joined_through_many_single_changes(kernels):
    """Priorities that drift to one end and back fill some blocks and empty others."""
    rng, count = np.random.default_rng(0), 200
    order, bounds = Order(kernels, count, 1, 8), np.array([[0], [count]])
    order.settle(bounds)
    for center in (0.0, 5.0, -5.0, 0.0):
        for _ in range(60):
            indices = rng.integers(0, count, 9)
            assert not order.update(bounds, indices, np.abs(rng.normal(center, 1.0, 9)))
        order.check()


@both
@pytest.mark.parametrize("stratified", [True, False])
def test_draws_are_where_points_lie_on_the_masses(kernels, stratified):
    """Draws are the ranks whose masses contain the points, also at the edges of ranks."""
    for count in (1, 2, 5, 37):
        order, bounds = Order(kernels, count, 1, 8), np.array([[3 * count], [4 * count]])
        order.settle(bounds)
        rng = np.random.default_rng(count)
        order.update(bounds, indices_in(bounds), rng.choice(PRIORITIES, count))
        masses = np.concatenate(([0.0], np.cumsum(np.arange(1.0, count + 1.0) ** -0.7)))
        points = rng.random(50) if stratified else np.concatenate((masses[:-1] / masses[-1], rng.random(20)))
        indices, probabilities = np.zeros(points.size, np.int64), np.zeros(points.size)
        given_points = points.copy()
        draw = order.table, order.members, masses, given_points, stratified, 0.7, indices, probabilities
        order.kernels.draw(*draw)
        on_line = (np.arange(points.size) + points) / points.size if stratified else points
        ranks = (masses[None, 1:] <= (on_line * masses[-1])[:, None]).sum(axis=1)
        assert indices.tolist() == [order.expected()[rank] for rank in ranks]
        np.testing.assert_allclose(probabilities, (ranks + 1.0) ** -0.7 / masses[-1], rtol=1e-13)
