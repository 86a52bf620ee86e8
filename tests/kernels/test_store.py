"""The kernel that writes, compared with lists of the steps of each lane."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from replaykit._kernels import store as names
from tests.kernels.forms import PLAIN, both, indices_in

# Places and sizes of the leaves: words and single bytes, few and many, from places in the data that are whole words and
# that are not. The third is the reward, the last two are the flags; the flag that ends an episode follows, and the row
# is filled up.
LEAVES = [(0, 24), (24, 5), (32, 4), (36, 2), (38, 1), (39, 1)]
END, ROW_BYTES = 40, 48


class Model:
    """The contents of a ring of E lanes of L slots: the steps of each lane, as (index, bytes, ends, episode, stamp)."""

    def __init__(self, num_envs, length):
        self.num_envs, self.length = num_envs, length
        self.capacity = num_envs * length
        self.lanes = [[] for _ in range(num_envs)]
        self.cursor = [0] * num_envs
        self.over = [True] * num_envs
        self.episode = [e - num_envs for e in range(num_envs)]
        self.starts = {}
        self.rows = np.zeros((self.capacity, ROW_BYTES), np.uint8)

    def retire(self, lane, steps):
        """Remove the steps of a lane that `steps` new steps will overwrite."""
        while self.lanes[lane] and len(self.lanes[lane]) + steps > self.length:
            self.lanes[lane].pop(0)

    def write(self, lane, leaves, stamp):
        """Write one step of a lane."""
        index = self.cursor[lane] * self.num_envs + lane
        if self.over[lane]:
            self.episode[lane] += self.num_envs
            self.starts[self.episode[lane]] = index
        self.cursor[lane] += 1
        for (place, size), leaf in zip(LEAVES, leaves, strict=True):
            self.rows[index % self.capacity, place : place + size] = leaf
        ends = int(leaves[-1][0] or leaves[-2][0])
        self.rows[index % self.capacity, END] = ends
        self.over[lane] = bool(ends)
        self.lanes[lane].append(SimpleNamespace(index=index, ends=ends, episode=self.episode[lane], stamp=stamp))
        return index

    def first(self, lane):
        """The oldest step of a lane."""
        return self.cursor[lane] - len(self.lanes[lane])


def state_of(num_envs, length, has_stamps):
    """The arrays of an empty storage, as the module describes them."""
    header = np.zeros(names.LANES + names.LANE_ROWS * num_envs + 2 * len(LEAVES), np.int64)
    header[[names.NUM_ENVS, names.LENGTH, names.ROW_BYTES, names.END]] = num_envs, length, ROW_BYTES, END
    header[[names.REWARD, names.REWARD_BYTES, names.REWARD_NUMBERS]] = 24 + 5, 4, 1  # behind the leaves before it
    lanes = header[names.LANES : names.LANES + names.LANE_ROWS * num_envs].reshape(names.LANE_ROWS, num_envs)
    lanes[names.OVER] = 1
    lanes[names.EPISODE] = np.arange(num_envs) - num_envs
    lanes[names.PLACE] = lanes[names.EPISODE] % (num_envs * length)
    header[-2 * len(LEAVES) :] = np.array(LEAVES).reshape(-1)
    rows = np.zeros(num_envs * length * ROW_BYTES, np.uint8)
    tables = np.full((names.STAMPS + has_stamps, num_envs * length), -7, np.int64)
    return header, rows, tables, lanes


def assert_same(kernels, model, header, rows, tables, lanes):
    """Check that every number with a meaning equals that of the model."""
    capacity = model.capacity
    np.testing.assert_array_equal(rows.reshape(-1, ROW_BYTES), model.rows)
    assert lanes[names.FIRST].tolist() == [model.first(e) for e in range(model.num_envs)]
    assert lanes[names.CURSOR].tolist() == model.cursor
    assert lanes[names.OVER].tolist() == model.over
    assert lanes[names.EPISODE].tolist() == model.episode
    assert lanes[names.PLACE].tolist() == [number % capacity for number in model.episode]
    assert header[names.STORED] == sum(map(len, model.lanes))
    for lane in model.lanes:
        for step in lane:
            assert tables[names.NUMBER, step.index % capacity] == step.episode
            assert tables[names.STARTS, step.episode % capacity] == model.starts[step.episode]
            newest = max(other.index for other in lane if other.episode == step.episode)
            assert tables[names.STOPS, step.episode % capacity] == newest
            if len(tables) > names.STAMPS:
                assert tables[names.STAMPS, step.index % capacity] == step.stamp
    steps = [step for lane in model.lanes for step in lane]
    asked, found = np.array([*(step.index for step in steps), -1]), np.empty((3, len(steps) + 1), np.int64)
    assert kernels.store.episodes_at(asked, lanes[:2], tables, capacity, found) == -1
    assert found[0].tolist() == [*(step.episode for step in steps), -1]
    assert found[1].tolist() == [*(model.starts[step.episode] for step in steps), -1]
    assert found[2, -1] == -1
    for lane, first, cursor in zip(range(model.num_envs), *lanes[:2].tolist(), strict=True):
        for wrong in ((first - 1) * model.num_envs + lane, cursor * model.num_envs + lane, -2):
            if wrong != -1:
                assert kernels.store.episodes_at(np.array([-1, wrong]), lanes[:2], tables, capacity, found) == 1


def random_leaves(rng, count):
    """The bytes of each leaf for `count` entries. Both flags are rarely True."""
    leaves = [rng.integers(0, 256, (count, size), np.uint8) for _, size in LEAVES[:-2]]
    leaves[2][:, -1] &= 0x3F  # a finite float32
    return [*leaves, *((rng.random((2, count, 1)) < 0.25).astype(np.uint8))]


def joined(leaves):
    """All leaves, one after the other, as a block of bytes."""
    return b"".join(leaf.tobytes() for leaf in leaves)


@both
@pytest.mark.parametrize(
    ("num_envs", "length", "has_stamps"), [(1, 5, False), (1, 1, False), (3, 4, False), (3, 4, True), (2, 1, True)]
)
def test_steps_are_retired_written_and_published(kernels, num_envs, length, has_stamps):
    """Steps are stored correctly: of all lanes or some, at once or in stages, with ends and clears."""
    rng = np.random.default_rng(num_envs * 10 + length)
    for _ in range(12):
        model = Model(num_envs, length)
        header, rows, tables, lanes = state_of(num_envs, length, has_stamps)
        for _ in range(rng.integers(1, 40)):
            action = rng.choice(["store", "store", "store", "store", "some", "some", "end", "clear", "rebuild"])
            if action in ("store", "some"):
                steps, stages = int(rng.integers(0, length + 1)), rng.random() < 0.5
                mask = np.ones(steps * num_envs, np.bool_)
                if action == "some":
                    mask &= rng.random(mask.size) < rng.choice([0.2, 0.8])
                indices, entries = np.full(mask.size, -9), np.full(int(mask.sum()), -9)
                if action == "some":
                    count = kernels.store.number_entries(mask, lanes[:2], indices, entries)
                    assert count == entries.size
                    np.testing.assert_array_equal(indices[mask], entries)
                    assert (indices[~mask] == -1).all()
                leaves = random_leaves(rng, entries.size)
                data, given = joined(leaves), (0 if action == "some" else steps)
                found = entries if action == "some" else indices
                for e in range(num_envs):
                    model.retire(e, int(mask.reshape(-1, num_envs)[:, e].sum()))
                chosen = [j % num_envs for j in np.flatnonzero(mask)]
                if stages and not (action == "store" and steps == 0):
                    kernels.store.store(data, given, names.RETIRE, header, rows, tables, found)
                    assert_retired(model, header, rows, lanes)
                    begins = np.zeros(found.size, np.bool_)
                    ends = (leaves[-1] | leaves[-2]).reshape(-1).astype(np.bool_)
                    if not has_stamps or action == "some":
                        kernels.store.begins_of(data, header, found, begins)
                        assert begins.tolist() == begins_in(model, chosen, ends)
                    kernels.store.store(data, given, names.PUBLISH, header, rows, tables, found)
                else:
                    kernels.store.store(data, given, names.BOTH, header, rows, tables, found)
                stamp = sum(model.cursor)
                expected = [model.write(e, [leaf[j] for leaf in leaves], stamp + j) for j, e in enumerate(chosen)]
                assert found.tolist() == expected
            elif action == "end":
                ended = np.flatnonzero(rng.random(num_envs) < 0.6)
                kernels.store.end_episodes(ended, header, rows)
                for e in ended:
                    model.over[e] = True
                    if model.lanes[e]:
                        model.lanes[e][-1].ends = 1
                        model.rows[model.lanes[e][-1].index % model.capacity, END] = 1
            elif action == "clear":
                kernels.store.clear(header)
                model.lanes, model.over = [[] for _ in range(num_envs)], [True] * num_envs
            else:
                starts = np.array([model.starts[lane[0].episode] if lane else -5 for lane in model.lanes])
                tables[: names.STAMPS] = -3
                kernels.store.rebuild_tables(header, rows, tables, starts)
            assert_same(kernels, model, header, rows, tables, lanes)


@pytest.mark.parametrize("some", [False, True])
@pytest.mark.parametrize("num_envs", [1, 3])
def test_what_counts_as_stored_is_whole_at_every_line(num_envs, some):
    """Steps that count as stored are complete at every line: first retire, then write, then publish."""
    rng, length = np.random.default_rng(num_envs), 4
    capacity = num_envs * length
    header, rows, tables, lanes = state_of(num_envs, length, has_stamps=True)
    whole, looks = {}, 0

    def contents(header, rows, tables):
        indices = indices_in(header[names.LANES : names.LANES + 2 * num_envs].reshape(2, num_envs))
        slots = indices % capacity
        values = rows.reshape(-1, ROW_BYTES)[slots], tables[names.NUMBER, slots], tables[names.STAMPS, slots]
        return {i: (row.tobytes(), *of_tables) for i, row, *of_tables in zip(indices.tolist(), *values, strict=True)}

    def look(frame, event, _argument):
        nonlocal looks
        if frame.f_code.co_filename != names.__file__:
            return None
        if event == "line":
            looks += 1
            for index, found in contents(header, rows, tables).items():
                assert found == whole.get(index), f"{index} counts as stored and is not whole"
        return look

    for _ in range(12):
        mask = np.ones(2 * num_envs, np.bool_)
        if some:
            mask &= rng.random(mask.size) < 0.5
        indices, entries = np.full(mask.size, -1), np.full(int(mask.sum()), -1)
        if some:
            PLAIN.store.number_entries(mask, lanes[:2], indices, entries)
        found, steps = (entries, 0) if some else (indices, 2)
        data = joined(random_leaves(rng, found.size))
        after = [array.copy() for array in (header, rows, tables)]
        PLAIN.store.store(data, steps, names.BOTH, *after, found.copy())
        whole |= contents(*after)
        before = sys.gettrace()  # of coverage
        sys.settrace(look)
        try:
            PLAIN.store.store(data, steps, names.BOTH, header, rows, tables, found)
        finally:
            sys.settrace(before)
    assert looks > 1000


def assert_retired(model, header, rows, lanes):
    """Check that the oldest steps are retired and nothing else has changed."""
    np.testing.assert_array_equal(rows.reshape(-1, ROW_BYTES), model.rows)
    assert lanes[names.FIRST].tolist() == [model.first(e) for e in range(model.num_envs)]
    assert lanes[names.CURSOR].tolist() == model.cursor
    assert header[names.STORED] == sum(map(len, model.lanes)), "retired steps still count"


def begins_in(model, chosen, ends):
    """Whether an episode begins at each of the next entries of these lanes."""
    over, begins = list(model.over), []
    for lane, end in zip(chosen, ends.tolist(), strict=True):
        begins.append(over[lane])
        over[lane] = end
    return begins


@both
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("numbers", [1, 3])
def test_a_reward_that_is_not_finite_is_found_before_anything_changes(kernels, dtype, numbers):
    """The first reward that is not finite is reported, before a step is retired."""
    size = np.dtype(dtype).itemsize * numbers
    leaves, row_bytes = [(0, 16), (16, size), (16 + size, 1), (17 + size, 1)], 48
    largest = np.finfo(dtype).max
    for count in (1, 2, 7):
        for place in range(count):
            for wrong in (np.nan, np.inf, -np.inf):
                header = np.zeros(names.LANES + names.LANE_ROWS + 8, np.int64)
                header[[names.NUM_ENVS, names.LENGTH, names.ROW_BYTES, names.END]] = 1, 10, row_bytes, 18 + size
                header[[names.REWARD, names.REWARD_BYTES, names.REWARD_NUMBERS]] = 16, size // numbers, numbers
                header[-8:] = np.array(leaves).reshape(-1)
                header[names.LANES + names.CURSOR] = 4
                rows, tables = np.zeros(10 * row_bytes, np.uint8), np.zeros((3, 10), np.int64)
                rewards = np.full((count, numbers), largest, dtype)
                data = [np.zeros((count, 16), np.uint8), rewards, np.zeros(count, bool), np.zeros(count, bool)]
                indices, before = np.arange(4, 4 + count), header.copy()
                for steps, stage in ((count, names.BOTH), (count, names.RETIRE), (0, names.BOTH)):
                    rewards[place:, -1] = wrong
                    found = kernels.store.store(joined(data), steps, stage, header, rows, tables, indices)
                    assert found == place
                    assert (header == before).all() and not rows.any() and not tables.any()
                rewards[place:] = -largest
                assert kernels.store.store(joined(data), count, names.BOTH, header, rows, tables, indices) == -1
                assert header[names.STORED] == min(10, 4 + count)
