"""The kernel that writes observations and stores each frame once.

Every slot has a row of 2K frame numbers in `table`: the K frames of obs, oldest first, and the K of next_obs. An added
step has P frames of each: all K, or only the newest. Frame f consists of `size` bytes, from byte ``f * size`` of `pool`
on. `overflow` continues `pool`. Frame 0 contains only zeros. The number 0 also stands for no frame.

A slot owns the frames in its row until the row is overwritten, whether or not its step is stored. A frame is shared
only with the row of the previous slot in the lane, or within a row. Rows that share a frame are therefore neighbors,
and an overwritten row frees the frames that neither neighbor has.
"""

import numpy as np

from replaykit._kernels.jit import jit
from replaykit._kernels.store import PUBLISH, RETIRE, begins_of, store

NUM_ENVS, CAPACITY, GIVEN, KEPT, SIZE, ZERO, SHARES = 0, 1, 2, 3, 4, 5, 6
"""Entries of `shape`: E, C, P, K, the size of a frame, whether padding is zeros, whether frames are shared."""
COUNT, KNOWN, NUMBERS = 0, 1, 2
"""Entries of `free`: how many frames are free, how many exist; from NUMBERS on the numbers of the free frames."""
STEP = 256
"""Number of bytes compared at a time."""


@jit
def store_at_once(
    data, steps, header, rows, tables, indices, obs, next_obs, shape, written, table, pool, overflow, free
):
    """`store` and `write` in one call. Without an effect and False if frames may run out or a reward is not finite."""
    count = indices.shape[0]
    if free[COUNT] < 2 * shape[GIVEN] * count or store(data, steps, RETIRE, header, rows, tables, indices) >= 0:
        return False
    begins = np.empty(count, np.bool_)
    begins_of(data, header, indices, begins)
    write(0, obs, next_obs, indices, begins, shape, written, table, pool, overflow, free)
    store(data, steps, PUBLISH, header, rows, tables, indices)
    return True


@jit
def write(done, obs, next_obs, indices, begins, shape, written, table, pool, overflow, free):
    """Write the observations of the steps from number `done` on. Stops if no frame is free. Returns the steps done.

    `obs` and `next_obs` contain the bytes of P frames for each step, in the order of the steps. `begins` is True where
    an episode begins. `written` (E,) is the step after the last written one of each lane. If it is larger than the step
    to write, an earlier write was not published: its steps are undone first, the last one first.
    """
    num_envs, capacity, given, kept = shape[NUM_ENVS], shape[CAPACITY], shape[GIVEN], shape[KEPT]
    size, shares, width = shape[SIZE], shape[SHARES] != 0, 2 * shape[KEPT]
    row, no_frames = np.empty(width, np.int64), np.zeros(width, np.int64)
    for j in range(done, indices.shape[0]):
        lane = indices[j] % num_envs if num_envs > 1 else 0
        step, slot = (indices[j] // num_envs if num_envs > 1 else indices[j]), indices[j] % capacity
        while written[lane] > step:
            written[lane] -= 1
            _replace_row(table, (written[lane] * num_envs + lane) % capacity, no_frames, num_envs, capacity, free)
        if free[COUNT] < 2 * given:
            return j
        before = (slot - num_envs if slot >= num_envs else slot - num_envs + capacity) * width
        for p in range(given):
            start, place = (j * given + p) * size, kept - given + p
            number = np.int64(table[before + width - given + p])
            if shares and _is_frame(obs, start, number, size, pool, overflow):
                row[place] = number
            elif shares and p > 0 and _same(obs, start, obs, start - size, size):
                row[place] = row[place - 1]
            else:
                row[place] = _store_frame(obs, start, size, pool, overflow, free)
        for p in range(given):
            start, number = (j * given + p) * size, np.int64(0)
            if shares:
                for ahead in range(1, given - p + 1):  # the frame of obs one place on, two on, ..., in the same place
                    q = p + ahead if ahead < given - p else p
                    if _same(next_obs, start, obs, (j * given + q) * size, size):
                        number = row[kept - given + q]
                        break
                if number == 0 and p > 0 and _same(next_obs, start, next_obs, start - size, size):
                    number = row[width - given + p - 1]
            row[width - given + p] = number if number else _store_frame(next_obs, start, size, pool, overflow, free)
        for k in range(kept - given - 1, -1, -1):  # older frames are those of the step before; a first step has none
            row[k] = table[before + k + 1] if not begins[j] else 0 if shape[ZERO] else row[kept - 1]
            row[kept + k] = row[k + 1]
        _replace_row(table, slot, row, num_envs, capacity, free)
        written[lane] = step + 1
    return indices.shape[0]


@jit
def _same(one, a, other, b, size):
    """Whether `size` bytes are equal. They are compared in parts, and into a bool, so that the compiler vectorizes."""
    for at in range(0, size, STEP):
        start, other_start, differs = np.uint64(a + at), np.uint64(b + at), False
        for i in range(min(STEP, size - at)):
            differs |= one[start + np.uint64(i)] != other[other_start + np.uint64(i)]
        if differs:
            return False
    return True


@jit
def _is_frame(values, at, number, size, pool, overflow):
    """Whether the bytes from `at` on equal those of frame `number`."""
    start = number * size
    memory, start = (pool, start) if start < pool.shape[0] else (overflow, start - pool.shape[0])
    return number != 0 and _same(values, at, memory, start, size)


@jit
def _store_frame(values, at, size, pool, overflow, free):
    """Copy the bytes from `at` on to a free frame. Returns its number."""
    free[COUNT] -= 1
    number = np.int64(free[NUMBERS + free[COUNT]])
    start = number * size
    memory, start = (pool, start) if start < pool.shape[0] else (overflow, start - pool.shape[0])
    source, target = np.uint64(at), np.uint64(start)
    for i in range(size):
        memory[target + np.uint64(i)] = values[source + np.uint64(i)]
    return number


@jit
def _replace_row(table, slot, row, num_envs, capacity, free):
    """Replace the row of a slot. Frames that are neither in the new row nor in a neighbor become free."""
    width = row.shape[0]
    before = slot - num_envs if slot >= num_envs else slot - num_envs + capacity
    after = slot + num_envs if slot + num_envs < capacity else slot + num_envs - capacity
    for s in range(width):
        number = np.int64(table[slot * width + s])
        is_kept = number == 0 or _contains(row, 0, width, number)
        for neighbor in (before, after):
            is_kept = is_kept or (neighbor != slot and _contains(table, neighbor * width, width, number))
        if not is_kept and not _contains(table, slot * width, s, number):  # once
            free[NUMBERS + free[COUNT]] = number
            free[COUNT] += 1
    for s in range(width):
        table[slot * width + s] = row[s]


@jit
def _contains(table, start, width, number):
    for k in range(start, start + width):
        if table[k] == number:
            return True
    return False


@jit
def encode_rows(table, begin, indices, first, num_envs, capacity, codes):
    """Encode where to find each frame of these rows.

    The code is 0 for no frame, 1 for a new one, -1 - k for frame k of the previous row in the lane, and -1 - 2K - k for
    frame k of the same row. The previous row counts if its step is at least `first` (E,) and its slot at least `begin`.
    """
    width = table.shape[1]
    for i in range(indices.shape[0]):
        slot, lane = indices[i] % capacity, indices[i] % num_envs
        has_previous = slot - num_envs >= begin and indices[i] // num_envs > first[lane]
        for j in range(width):
            number = table[slot, j]
            code = 0 if number == 0 else 1
            for k in range(width if number != 0 and has_previous else 0):
                if code == 1 and table[slot - num_envs, k] == number:
                    code = -1 - k
            for k in range(j if number != 0 else 0):
                if code == 1 and table[slot, k] == number:
                    code = -1 - width - k
            codes[i, j] = code


@jit
def decode_rows(codes, indices, num_envs, numbers):
    """Decode frame numbers. New frames get the numbers from 1 on. Returns their count, or -1 for invalid codes."""
    width, count = codes.shape[1], 0
    newest = np.full(num_envs, -1, np.int64)  # the row of each lane that came last
    for i in range(indices.shape[0]):
        lane = indices[i] % num_envs
        before = newest[lane]
        if before >= 0 and indices[before] != indices[i] - num_envs:
            before = -1
        for j in range(width):
            k = -1 - np.int64(codes[i, j])
            if k < -2 or k >= width + j or (0 <= k < width and before < 0):
                return -1
            if k >= width:
                numbers[i, j] = numbers[i, k - width]
            elif k >= 0:
                numbers[i, j] = numbers[before, k]
            else:
                count += codes[i, j]
                numbers[i, j] = count if codes[i, j] == 1 else 0
        newest[lane] = i
    return count


@jit
def add_free_frames(free, total):
    """Add free frames, so that `total` frames exist. The lowest numbers are used first."""
    count, known = free[COUNT], max(free[KNOWN], 1)
    for k in range(count - 1, -1, -1):
        free[NUMBERS + total - known + k] = free[NUMBERS + k]
    for k in range(total - known):
        free[NUMBERS + k] = total - 1 - k
    free[COUNT], free[KNOWN] = count + total - known, total
