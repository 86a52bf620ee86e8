"""Every kernel does what its plain Python does, compiled or not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replaykit._kernels import lanes, lazy, tree

both = pytest.mark.parametrize("form", ["compiled", "plain"])


def kernel(module, name, form):
    """A kernel, or the Python function that it is compiled from."""
    function = getattr(module, name)
    return getattr(function, "py_func", function) if form == "plain" else function


@both
@given(values=st.lists(st.sampled_from([0.0, 1.0, 2.5, 1e-9]), min_size=1, max_size=40), seed=st.integers(0, 99))
def test_tree_kernels_against_a_running_sum(form, values, seed):
    """assign, fill, find, draw, largest and smallest against sums written out."""
    size = 1 << (len(values) - 1).bit_length()
    depth = size.bit_length() - 1
    nodes, marks = np.zeros(2 * size), np.zeros(tree.PEAKS + (2 << depth // 2))
    marks[tree.MIN] = np.inf
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(values))
    kernel(tree, "fill", form)(nodes, marks, 0, len(values), 3.0)
    assert nodes[1] == 3.0 * len(values)
    kernel(tree, "assign", form)(nodes, marks, order, np.array(values)[order])
    np.testing.assert_array_equal(nodes[size : size + len(values)], values)
    np.testing.assert_array_equal(nodes[1:size], nodes[2::2] + nodes[3::2])
    assert kernel(tree, "largest", form)(nodes, marks) == max(values)
    positive = [value for value in values if value > 0]
    assert kernel(tree, "smallest", form)(nodes, marks) == min(positive, default=np.inf)
    if positive:
        for scheme, count in ((tree.STRATIFIED, 8), (tree.IID, 8), (tree.SYSTEMATIC, 1)):
            uniforms = rng.random(count)
            cursors, probabilities = np.empty(8, np.int32), np.empty(8)
            kernel(tree, "draw", form)(nodes, uniforms, scheme, 8, cursors, probabilities)
            offsets = {tree.STRATIFIED: (np.arange(8) + uniforms) / 8, tree.IID: uniforms}
            masses = offsets.get(scheme, (np.arange(8) + uniforms) / 8) * nodes[1]
            expected = np.searchsorted(np.cumsum(values), masses, side="right").clip(max=len(values) - 1)
            agree = cursors == expected
            edges = np.cumsum(values)[np.minimum(cursors, expected)]
            assert (agree | np.isclose(masses, edges, rtol=1e-12, atol=0)).all()
            np.testing.assert_array_equal(probabilities, np.array(values)[cursors] / nodes[1])


@both
@pytest.mark.parametrize("num_envs", [1, 3])
def test_lane_kernels_against_arithmetic(form, num_envs):
    """Slots, indices, living entries, uniform ranks, windows and gathers against the definitions."""
    length, rng = 5, np.random.default_rng(num_envs)
    capacity = length * num_envs
    for _ in range(40):
        cursor = rng.integers(1, 23, num_envs)
        first = np.maximum(cursor - rng.integers(1, length + 1, num_envs), 0)
        bounds = np.array([first, cursor])
        alive = np.array([step * num_envs + e for e in range(num_envs) for step in range(first[e], cursor[e])])
        slots = np.empty(alive.size, np.int64)
        assert kernel(lanes, "slots_of", form)(alive, bounds, capacity, slots) == -1
        np.testing.assert_array_equal(slots, alive % capacity)
        for wrong in (-1, int(cursor[0]) * num_envs, int(first[0] - 1) * num_envs):
            bad = np.array([alive[0], wrong])
            assert kernel(lanes, "slots_of", form)(bad, bounds, capacity, np.empty(2, np.int64)) == 1
        rows = rng.integers(0, 255, capacity * 24).astype(np.uint8)
        back = np.empty(alive.size, np.int64)
        kernel(lanes, "indices_of", form)(slots, bounds, capacity, back)
        np.testing.assert_array_equal(back, alive)

        ranks = (np.arange(alive.size) + 0.5) / alive.size
        drawn = np.empty(alive.size, np.int64)
        kernel(lanes, "uniform", form)(ranks, bounds, rows, 24, drawn)
        np.testing.assert_array_equal(np.sort(drawn), np.sort(alive))

        sources, sizes = np.array([0, 16, 20, 21]), np.array([16, 4, 1, 3])
        offsets = np.cumsum([0, *[(alive.size * size + 63) // 64 * 64 for size in sizes]])
        block = np.zeros(offsets[-1], np.uint8)
        assert kernel(lanes, "gather", form)(rows, 24, alive, bounds, np.array([sources, sizes]), block) == -1
        for source, size, offset in zip(sources, sizes, offsets[:-1], strict=True):
            expected = rows.reshape(capacity, 24)[alive % capacity, source : source + size]
            np.testing.assert_array_equal(block[offset : offset + alive.size * size].reshape(-1, size), expected)

        stale = first[0] > 0
        entries = np.array([alive[-1], *([0] if stale and first[0] > 0 else []), alive[0]])
        values = np.arange(1.0, entries.size + 1)
        out, kept = np.empty(entries.size, np.int64), np.empty(entries.size)
        living = np.isin(entries, alive)
        count = kernel(lanes, "living", form)(entries, -values, 9.0, 0.5, bounds, capacity, out, kept)
        assert count == living.sum()
        np.testing.assert_array_equal(out[:count], entries[living] % capacity)
        np.testing.assert_array_equal(kept[:count], values[living] + 0.5)
        for value in (np.nan, np.inf, 10.0):
            wrong = np.array([1.0, value])
            assert kernel(lanes, "living", form)(alive[[0, 0]], wrong, 9.0, 0.0, bounds, capacity, out, kept) == -2

        ended, rewards = rng.random(capacity) < 0.3, rng.random(capacity)
        episodes = np.zeros((3, capacity), np.int64)
        number = episodes[0]
        over, latest = np.ones(num_envs, np.bool_), np.arange(num_envs) - num_envs
        kernel(lanes, "note_episodes", form)(
            bounds, first.copy(), ended, over, latest, episodes
        )  # fmt: skip
        for scope in (0, 1, 2):
            for u in (0.0, 0.5, np.nextafter(1.0, 0.0)):
                picked = np.empty(alive.size, np.int64)
                uniforms = np.full(alive.size, u)
                tables = (bounds, episodes, picked)
                assert kernel(lanes, "pick", form)(alive, uniforms, scope, *tables) == -1
                for index, got in zip(alive, picked, strict=True):
                    episode = [i for i in alive if number[i % capacity] == number[index % capacity]]
                    allowed = {0: [i for i in episode if i >= index], 1: episode[-1:], 2: episode}[scope]
                    assert got == allowed[int(u * len(allowed))]
            bad = np.array([alive[0], cursor[0] * num_envs])
            assert kernel(lanes, "pick", form)(bad, uniforms[:1].repeat(2), scope, *tables) == 1

        reward, lengths = np.full((alive.size, 3), np.nan), np.empty(alive.size, np.int64)
        assert kernel(lanes, "window", form)(alive, bounds, rewards, ended, reward, lengths) == -1
        total, powers = np.empty(alive.size), 0.9 ** np.arange(4)
        kernel(lanes, "n_step_return", form)(reward, lengths, powers, total)
        for row, index in enumerate(alive):
            window = [index]
            while len(window) < 3 and not ended[window[-1] % capacity] and window[-1] + num_envs in alive:
                window.append(window[-1] + num_envs)
            assert lengths[row] == len(window)
            expected = [rewards[i % capacity] for i in window] + [0.0] * (3 - len(window))
            assert reward[row].tolist() == expected
            assert total[row] == sum(powers[k] * expected[k] for k in range(len(window)))


@both
def test_the_first_number_that_is_not_finite(form):
    """Its position, in either width, and -1 where all are."""
    for dtype in (np.float32, np.float64):
        find = kernel(lanes, "first_not_finite", form)
        assert find(np.array([], dtype)) == find(np.array([1.0, -2.0], dtype)) == -1
        assert find(np.array([1.0, np.nan, np.inf], dtype)) == 1
        assert find(np.array([-np.inf, 3.0], dtype)) == 0


def test_kernel_modules_are_found_by_name():
    """A kernel module that does not exist is an error at once."""
    with pytest.raises(ModuleNotFoundError, match="no kernel module"):
        lazy("nothing")
