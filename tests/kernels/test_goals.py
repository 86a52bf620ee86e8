"""The kernels of hindsight and of the combined draw, compared with loops, and combined calls with their parts."""

import numpy as np
import pytest

from replaykit import Field, Spec
from replaykit._kernels import goals as names
from replaykit._kernels import windows
from tests.kernels.forms import both, random_bounds
from tests.kernels.test_windows import Ring, every_size

SPECS = [
    Spec(obs={"goal": Field((3,)), "x": Field(())}, action=Field(())),
    Spec(obs={"goal": Field((5,), np.uint8), "x": Field(())}, action=Field((2,), np.int16)),
]


class Episodes(Ring):
    """A ring with the tables of its episodes. The oldest episode may have begun before the oldest step."""

    def __init__(self, rng, spec, num_envs, length, n):
        super().__init__(rng, spec, num_envs, length, n)
        self.tables = np.full((3, self.capacity), -99, np.int64)
        self.episode_of = {}
        for lane in range(num_envs):
            number, steps = lane + num_envs * int(rng.integers(0, 9)), range(*self.bounds[:, lane])
            run = []
            for step in steps:
                run.append(step * num_envs + lane)
                if self.ends[run[-1] % self.capacity] or step == steps[-1]:
                    is_oldest = run[0] == steps[0] * num_envs + lane
                    start = run[0] - int(rng.integers(0, 4)) * num_envs if is_oldest else run[0]
                    self.tables[0, [index % self.capacity for index in run]] = number
                    self.tables[1:, number % self.capacity] = start, run[-1]
                    self.episode_of |= {index: list(run) for index in run}
                    number, run = number + num_envs, []

    def allowed(self, index, scope):
        """The steps from which a goal for the window at an index may come, in order."""
        episode = self.episode_of[index]
        return {
            names.FUTURE: [step for step in episode if step >= index],
            names.FINAL: episode[-1:],
            names.EPISODE: episode,
            names.RANDOM: self.all_stored(),
        }[scope]

    def all_stored(self):
        """All stored steps, in the order in which they are counted."""
        order, is_full = self.stored.tolist(), self.stored.size == self.capacity
        if (self.bounds == self.bounds[:, :1]).all():
            order.sort(key=lambda index: index % self.capacity if is_full else index)
        return order


def room_of(groups, count, n, leaves):
    """The size of the answer in bytes."""
    return 16 + 8 * (groups + count * (n + 1)) + 3 * sum(count * n * leaf.field.nbytes + 8 for leaf in leaves)


def answer_of(out, groups, count, n, leaves, found):
    """The arrays that `look_ahead` has written to the memory."""
    chosen, steps = found
    at, parts = (groups + 7) // 8 * 8, [np.ndarray(groups, np.bool_, out)]
    for length, room in ((chosen, count), (steps, count * n)):
        parts.append(np.ndarray(length, np.int64, out, at))
        at += 8 * room
    for leaf in leaves:
        for length in (steps, steps, chosen):
            parts.append(np.ndarray((length, *leaf.shape), leaf.dtype, out, at))
            at += (count * n * leaf.field.nbytes + 7) // 8 * 8
    return parts


@both
@every_size
@pytest.mark.parametrize("scope", [names.FUTURE, names.FINAL, names.EPISODE, names.RANDOM])
def test_goals_are_those_of_the_chosen_steps(kernels, num_envs, n, scope):
    """Goals are those of the chosen steps, in rows of one window or two, for any share of chosen rows."""
    rng = np.random.default_rng(100 * scope + 10 * num_envs + n)
    for trial in range(16):
        ring = Episodes(rng, SPECS[trial % 2], num_envs, 5, n)
        if not ring.stored.size:
            continue
        width, groups = 1 + trial % 3 // 2, int(rng.integers(1, 80)) if trial else 300  # more than a uint8 counts
        indices = rng.choice(ring.stored, groups * width)
        plan, block, fields = ring.block(indices)
        columns = np.array([ring.names.index(f"next_obs.{key}") for key in (["goal"], ["x", "goal"])[trial // 2 % 2]])
        leaves = [ring.leaves[column] for column in columns]
        out = np.zeros(room_of(groups, indices.size, n, leaves), np.uint8)
        uniforms, ratio = rng.random((2, groups)), float(rng.choice([0.0, 0.5, 1.0]))
        uniforms[1, rng.random(groups) < 0.2] = np.nextafter(1.0, 0.0)
        looking = uniforms, ratio, scope, columns, out
        kernels.windows.transitions(ring.bounds, ring.rows, plan, ring.powers, block, windows.OPEN)
        if rng.random() < 0.4:
            fields["length"][:] = rng.integers(1, fields["length"] + 1)
        found = kernels.goals.look_ahead(ring.bounds, ring.rows, ring.tables, plan, block, n, *looking)
        chosen, at, places, *parts = answer_of(out, groups, indices.size, n, leaves, found)
        expected = [[], [], [], [], []]
        for group in np.flatnonzero(uniforms[0] < ratio).tolist():
            allowed = ring.allowed(int(indices[group * width]), scope)
            goal = allowed[int(uniforms[1, group] * len(allowed))]
            for window in range(group * width, (group + 1) * width):
                expected[0].append(window)
                expected[4].append(goal)
                for k in range(int(fields["length"][window])):
                    expected[1].append(window * n + k)
                    expected[2].append(int(indices[window]) + k * num_envs)
                    expected[3].append(goal)
        assert chosen.tolist() == (uniforms[0] < ratio).tolist()
        assert at.tolist() == expected[0]
        assert places.tolist() == expected[1]
        for number, got in enumerate(parts):
            values = [ring.value(step, leaves[number // 3].name) for step in expected[2 + number % 3]]
            assert got.tobytes() == b"".join(value.tobytes() for value in values)


@both
@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rewards_are_put_in_their_places(kernels, dtype):
    """New rewards are rounded to the stored dtype. The first that is not finite is reported."""
    for is_short in (True, False):
        reward, rewards = np.full(8, 5.0), np.array([0.1, -3.0, 2.0**60], dtype)
        assert kernels.goals.put_rewards(rewards, np.array([6, 0, 3]), 1, reward, is_short) == -1
        expected = [float(np.float32(value)) if is_short else float(value) for value in rewards]
        assert reward.tolist() == [expected[1], 5.0, 5.0, expected[2], 5.0, 5.0, expected[0], 5.0]
        for wrong in (np.nan, np.inf, -np.inf):
            values = np.array([1.0, wrong, np.nan], dtype)
            assert kernels.goals.put_rewards(values, np.arange(3), 1, np.zeros(3), is_short) == 1
            assert kernels.goals.put_rewards(np.append(0.0, values), np.arange(2), 2, np.zeros(4), is_short) == 2
        pairs, reward = np.array([1.0, 2.0, 3.0, 4.0], dtype), np.zeros(6)
        assert kernels.goals.put_rewards(pairs, np.array([2, 0]), 2, reward, is_short) == -1
        assert reward.tolist() == [3.0, 4.0, 0.0, 0.0, 1.0, 2.0]
    if dtype is np.float64:
        for value in (1e300, -3.5e38):
            assert kernels.goals.put_rewards(np.array([0.0, value]), np.arange(2), 1, np.zeros(2), True) == 1
            assert kernels.goals.put_rewards(np.array([0.0, value]), np.arange(2), 1, np.zeros(2), False) == -1
    assert kernels.goals.put_rewards(np.zeros(0, dtype), np.zeros(0, np.int64), 1, np.zeros(1), True) == -1


@both
def test_draws_and_the_newest_are_combined(kernels):
    """The probabilities include the newest transitions, also for draws of them."""
    rng = np.random.default_rng(0)
    for k, newest in ((5, [7]), (1, [3, 4]), (8, [9, 2, 5])):
        drawn, shares, of_newest = rng.integers(0, 10, k), rng.random(k), rng.random(len(newest))
        size = k + len(newest)
        indices, mixed = np.empty(size, np.int64), np.empty(size)
        kernels.goals.combine(drawn, shares, np.array(newest), of_newest, indices, mixed)
        assert indices.tolist() == [*drawn.tolist(), *newest]
        expected = [(k * p + (index in newest)) / size for index, p in zip(drawn.tolist(), shares, strict=True)]
        np.testing.assert_array_equal(mixed, [*expected, *((k * p + 1.0) / size for p in of_newest)])


# -- Several kernels at once ---------------------------------------------------------------------------------------


def tree_over(kernels, ring, rng):
    """The arrays of a tree with the priorities of a ring's transitions."""
    size = 1 << (ring.capacity - 1).bit_length()
    nodes, extremes = np.zeros(2 * size), np.zeros(4 + 2 * (1 << (size.bit_length() - 1) // 2))
    extremes[2] = np.inf
    slots = ring.stored % ring.capacity
    kernels.tree.assign(nodes, extremes, slots, rng.uniform(0.5, 2.0, slots.size))
    return nodes, extremes, ring.bounds.copy()


@both
@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("is_prioritized", [False, True])
def test_a_batch_at_once_is_its_parts_one_after_another(kernels, num_envs, is_prioritized):
    """One call or several calls to draw, open, reduce and look ahead give the same bits."""
    rng, kind = np.random.default_rng(num_envs), "proportional" if is_prioritized else "uniform"
    for trial in range(12):
        ring = Episodes(rng, SPECS[trial % 2], num_envs, 5, 3)
        if not ring.stored.size:
            continue
        count, columns = 20, np.array([ring.names.index("next_obs.goal"), ring.names.index("next_obs.x")])
        leaves = [ring.leaves[column] for column in columns]
        tree, points = tree_over(kernels, ring, rng), rng.random(count)
        uniforms, room = rng.random((2, count)), room_of(count, count, 3, leaves)
        outs = [np.zeros(room, np.uint8) for _ in range(2)]
        looking = ring.tables, uniforms, 0.5, names.FUTURE, columns
        blocks, found = [], []
        for at_once in (True, False):
            plan, block, fields = ring.block(np.full(count, ring.stored[0]))
            given = (*(array.copy() for array in tree), points.copy(), 1) if is_prioritized else (points,)
            rest = ring.bounds, ring.rows, plan, ring.powers, block
            if at_once and trial % 2:
                stage = windows.OPEN
                look = getattr(kernels.fused, f"{kind}_look")
                found.append(look(*given, *rest, stage, *looking, outs[0]))
            elif at_once:
                getattr(kernels.fused, f"{kind}_batch")(*given, *rest, windows.BOTH)
            else:
                drawn = ring.bounds, ring.capacity, ring.slots, fields["indices"], fields["probabilities"]
                draw = kernels.tree.proportional_draw if is_prioritized else kernels.windows.uniform_draw
                draw(*given, *drawn)
                if not is_prioritized:
                    fields["weights"][:] = 1.0
                kernels.windows.transitions(*rest, windows.OPEN if trial % 2 else windows.BOTH)
                if trial % 2:
                    state = ring.bounds, ring.rows, looking[0], plan, block, 3
                    found.append(kernels.goals.look_ahead(*state, *looking[1:], outs[1]))
            blocks.append(block.tobytes())
            if is_prioritized:
                blocks[-1] += given[3].tobytes()
        assert blocks[0] == blocks[1]
        assert found[:1] == found[1:]
        assert outs[0].tobytes() == outs[1].tobytes()


def test_bounds_of_the_tests_are_of_every_kind():
    """The bounds in these tests include equal and unequal, full, partly filled and empty lanes."""
    rng = np.random.default_rng(0)
    found = [random_bounds(rng, 3, 4) for _ in range(300)]
    in_step = [bool((bounds == bounds[:, :1]).all()) for bounds in found]
    full = [bool((bounds[1] - bounds[0] == 4).all()) for bounds in found]
    kinds = set(zip(in_step, full, strict=True))
    assert {(True, True), (True, False), (False, False)} <= kinds
    assert any((bounds[1] == bounds[0]).any() for bounds in found)
