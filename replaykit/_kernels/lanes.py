"""Kernels that turn indices into slots and back.

Index i is step ``i // num_envs`` of lane ``i % num_envs``. It is stored in slot ``i % capacity``. The next step of the
lane has the index ``i + num_envs``. Lane e holds the steps in ``[bounds[FIRST, e], bounds[CURSOR, e])``.
"""

import numpy as np

from replaykit._kernels.jit import jit, prefetch

FIRST, CURSOR = 0, 1
TOO_LARGE = 3.4028235677973366e38
"""The least number that becomes infinite when it is rounded to float32."""


@jit
def slots_of(indices, bounds, capacity, slots):
    """Compute the slots of stored indices. Returns -1 if all are stored, else the position of the first that is not."""
    num_envs, lap = bounds.shape[1], bounds[CURSOR, 0] // capacity * capacity
    for i in range(indices.shape[0]):
        index = indices[i]
        lane, step = (index % num_envs, index // num_envs) if num_envs > 1 else (0, index)
        if step < bounds[FIRST, lane] or step >= bounds[CURSOR, lane]:
            return i
        if num_envs > 1:
            slots[i] = index % capacity
        else:  # without a division: a stored index is at most one lap behind
            slots[i] = index - lap if index >= lap else index - lap + capacity
    return -1


@jit
def indices_of(slots, bounds, capacity, indices):
    """Compute the index that is stored in each slot, or the last one that was."""
    num_envs, length, lane = bounds.shape[1], capacity // bounds.shape[1], 0
    seam = bounds[CURSOR, 0] % length
    for i in range(slots.shape[0]):
        row = slots[i]
        if num_envs > 1:
            lane, row = row % num_envs, row // num_envs
            seam = bounds[CURSOR, lane] % length
        step = bounds[CURSOR, lane] - seam + row
        indices[i] = (step if row < seam else step - length) * num_envs + lane


@jit
def nth_stored(uniforms, bounds, capacity, slots, indices):
    """Find the ``floor(u N)``-th stored index and its slot for each u in [0, 1). Returns N, the number of stored ones.

    If all lanes hold the same steps, indices are counted in their order, or in slot order once the ring is full.
    Otherwise they are counted lane by lane.
    """
    num_envs, total, in_step = bounds.shape[1], 0, True
    for lane in range(num_envs):
        total += bounds[CURSOR, lane] - bounds[FIRST, lane]
        in_step &= bounds[FIRST, lane] == bounds[FIRST, 0] and bounds[CURSOR, lane] == bounds[CURSOR, 0]
    start, begin = bounds[FIRST, 0] * num_envs, bounds[FIRST, 0] * num_envs % capacity
    turn = begin if total == capacity else 0
    for i in range(uniforms.shape[0]):
        rank = int(uniforms[i] * total)
        if in_step:
            offset = rank - turn
            offset += capacity if offset < 0 else 0
            slot = begin + offset
            indices[i], slots[i] = start + offset, slot - capacity if slot >= capacity else slot
        else:
            lane = 0
            while rank >= bounds[CURSOR, lane] - bounds[FIRST, lane]:
                rank -= bounds[CURSOR, lane] - bounds[FIRST, lane]
                lane += 1
            indices[i] = (bounds[FIRST, lane] + rank) * num_envs + lane
            slots[i] = indices[i] % capacity
    return total


@jit
def select_stored(indices, values, limit, eps, bounds, capacity, slots, kept):
    """Find slots and ``abs(value) + eps`` of the indices that are not stale, in order. Returns their number.

    Returns ``-1 - i`` if index i was never returned by the buffer, or value i is NaN or above `limit` in magnitude.
    """
    num_envs, count = bounds.shape[1], 0
    for i in range(indices.shape[0]):
        index, size = indices[i], abs(values[i])
        if index < 0 or not size <= limit:
            return -1 - i
        lane, step = (index % num_envs, index // num_envs) if num_envs > 1 else (0, index)
        if step >= bounds[CURSOR, lane]:
            return -1 - i
        if step >= bounds[FIRST, lane]:
            slots[count], kept[count] = index % capacity, size + eps
            count += 1
    return count


@jit
def prefetch_row(rows, row_bytes, slot):
    """Start to load the row of a slot into the cache."""
    start = slot * row_bytes
    for byte in range(start, start + row_bytes - 1, 64):
        prefetch(rows, byte)
    prefetch(rows, start + row_bytes - 1)


@jit
def narrow(values, narrowed):
    """Round float64 to float32. Returns the position of the first finite value that becomes infinite, or -1."""
    for i in range(values.shape[0]):
        if abs(values[i]) >= TOO_LARGE and not np.isinf(values[i]):
            return i
        narrowed[i] = values[i]
    return -1
