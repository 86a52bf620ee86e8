"""Indices, slots and the kernels that convert them, compared with their definitions."""

import numpy as np
import pytest

from replaykit._kernels import lazy
from tests.kernels.forms import both, indices_in, random_bounds

NONE = np.zeros(0, np.int64)


def cases(num_envs):
    """Bounds of lanes of five slots, empty and full, of equal and different lengths."""
    rng = np.random.default_rng(num_envs)
    for _ in range(60):
        yield rng, random_bounds(rng, num_envs, 5), 5 * num_envs


@both
@pytest.mark.parametrize("num_envs", [1, 3])
def test_slots_are_indices_modulo_the_capacity(kernels, num_envs):
    """The kernel stops at the first index that is not stored: stale, future or negative."""
    for rng, bounds, capacity in cases(num_envs):
        stored = rng.permutation(indices_in(bounds))
        slots = np.empty(stored.size, np.int64)
        assert kernels.lanes.slots_of(stored, bounds, capacity, slots) == -1
        np.testing.assert_array_equal(slots, stored % capacity)
        for lane in range(num_envs):
            for wrong in ((bounds[0, lane] - 1) * num_envs + lane, bounds[1, lane] * num_envs + lane, -1, -num_envs):
                bad = np.append(stored, wrong)
                place = kernels.lanes.slots_of(bad, bounds, capacity, np.empty(bad.size, np.int64))
                assert place == stored.size, wrong


@both
@pytest.mark.parametrize("num_envs", [1, 3])
def test_indices_are_found_from_slots(kernels, num_envs):
    """Indices are computed from slots, also for huge indices."""
    for rng, bounds, capacity in cases(num_envs):
        bounds = bounds + 2**40
        stored = rng.permutation(indices_in(bounds))
        indices = np.empty(stored.size, np.int64)
        kernels.lanes.indices_of(stored % capacity, bounds, capacity, indices)
        np.testing.assert_array_equal(indices, stored)


@both
@pytest.mark.parametrize("num_envs", [1, 3])
def test_the_nth_stored_index_is_counted_in_order(kernels, num_envs):
    """Stored indices are counted by index, by slot in full lanes, and otherwise lane by lane."""
    for _, bounds, capacity in cases(num_envs):
        order = indices_in(bounds)
        if (bounds == bounds[:, :1]).all():
            order = np.sort(order)
            order = order[np.argsort(order % capacity)] if order.size == capacity else order
        ranks = (np.arange(order.size) + 0.5) / max(order.size, 1)
        slots, indices = np.empty(order.size, np.int64), np.empty(order.size, np.int64)
        assert kernels.lanes.nth_stored(ranks, bounds, capacity, slots, indices) == order.size
        np.testing.assert_array_equal(indices, order)
        np.testing.assert_array_equal(slots, order % capacity)
        if order.size:
            ends, (slots, indices) = np.array([0.0, np.nextafter(1.0, 0.0)]), np.empty((2, 2), np.int64)
            kernels.lanes.nth_stored(ends, bounds, capacity, slots, indices)
            assert indices.tolist() == [order[0], order[-1]]


@both
@pytest.mark.parametrize("num_envs", [1, 3])
def test_stale_entries_are_left_out(kernels, num_envs):
    """An index that was never returned, or a value that is NaN or too large, is reported."""
    for rng, bounds, capacity in cases(num_envs):
        issued = [step * num_envs + e for e in range(num_envs) for step in range(bounds[1, e])]
        entries = rng.permutation(issued).astype(np.int64)
        values = rng.uniform(-9.0, 9.0, entries.size)
        slots, kept = np.empty(entries.size, np.int64), np.empty(entries.size)
        is_stored = np.isin(entries, indices_in(bounds))
        count = kernels.lanes.select_stored(entries, values, 9.0, 0.5, bounds, capacity, slots, kept)
        assert count == is_stored.sum()
        np.testing.assert_array_equal(slots[:count], entries[is_stored] % capacity)
        np.testing.assert_array_equal(kept[:count], np.abs(values[is_stored]) + 0.5)
        room = np.empty(entries.size + 1, np.int64), np.empty(entries.size + 1)
        for index in (-1, int(bounds[1, 0]) * num_envs, int(bounds[1, -1]) * num_envs + num_envs - 1):
            bad = np.append(entries, index), np.append(values, 0.0)
            assert kernels.lanes.select_stored(*bad, 9.0, 0.0, bounds, capacity, *room) == -1 - entries.size
        for value in (np.nan, np.inf, -np.inf, 9.5, -9.5):
            bad = np.append(entries, entries[:1]), np.append(values, [value] * len(entries[:1]))
            expected = -1 - entries.size if entries.size else 0
            assert kernels.lanes.select_stored(*bad, 9.0, 0.0, bounds, capacity, *room) == expected


@both
def test_loading_a_row_ahead_changes_nothing(kernels):
    """Prefetching a row changes nothing, also for the last row of the memory."""
    for row_bytes in (8, 64, 200):
        rows = np.arange(3 * row_bytes).astype(np.uint8)
        for slot in range(3):
            kernels.lanes.prefetch_row(rows, row_bytes, slot)
        np.testing.assert_array_equal(rows, np.arange(3 * row_bytes).astype(np.uint8))


@both
@pytest.mark.filterwarnings("ignore:overflow")
def test_the_first_number_that_rounds_to_infinity_is_found(kernels):
    """Numbers are rounded as NumPy does. The first that becomes infinite is reported."""
    largest = float(np.finfo(np.float32).max)
    fine = np.array([0.1, -0.0, np.nan, np.inf, -np.inf, largest, 1e-320, -largest - 2.0**102])
    narrowed = np.empty(fine.size, np.float32)
    assert kernels.lanes.narrow(fine, narrowed) == -1
    assert narrowed.tobytes() == fine.astype(np.float32).tobytes()
    too_large = largest + 2.0**103  # halfway to the number that would come next
    assert np.isinf(np.float32(too_large)) and not np.isinf(np.float32(np.nextafter(too_large, 0)))
    for wrong in (too_large, -too_large, 1e300):
        assert kernels.lanes.narrow(np.append(fine, wrong), np.empty(fine.size + 1, np.float32)) == fine.size
    assert kernels.lanes.narrow(np.array([np.nextafter(too_large, 0)]), narrowed[:1]) == -1


def test_kernel_modules_are_found_by_name():
    """Kernel modules are imported by name. A missing one raises an error at the first kernel."""
    with pytest.raises(ModuleNotFoundError, match="nothing"):
        _ = lazy("nothing").draw
    with pytest.raises(AttributeError, match="__wrapped__"):
        _ = lazy("lanes").__wrapped__
