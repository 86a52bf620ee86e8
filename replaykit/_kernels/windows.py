"""The two kernels that make a batch: one opens windows, the other reduces each window to one transition.

A batch is a `block` of bytes. `plan` has a column for each field of the batch: first the fields of a transition, and
then the fields from DISCOUNT on. ``plan[START]`` is the position of a field in the block, and ``plan[SIZE]`` its number
of bytes per row. ``plan[FIRST]`` and ``plan[LAST]`` are the positions, within a stored row, of the fields that are
copied from the first and the last step of a window. ``plan[ONLY]`` has the positions for windows of a single step. All
other entries of these three rows are NO_ROW. ``plan[META]`` has the numbers that are named below.
"""

import numpy as np

from replaykit._kernels.jit import inlined, jit, view
from replaykit._kernels.lanes import CURSOR, nth_stored, prefetch_row, slots_of

START, SIZE, FIRST, LAST, ONLY, META, PLAN_ROWS = 0, 1, 2, 3, 4, 5, 6
COUNT, ROW_BYTES, END, REWARD, TERMINATED, TRUNCATED, REWARD_PLACE, TERMINATED_PLACE, TRUNCATED_PLACE = range(9)
"""In plan[META]: the number of windows in the block, the bytes per row, the position of the flag that ends an episode,
the columns of three fields, and the positions of these fields in the row."""
DISCOUNT, LENGTH, WEIGHTS, PROBABILITIES, INDICES, SLOTS, REWARDS = -7, -6, -5, -4, -3, -2, -1
NO_ROW = -1
BOTH, OPEN, REDUCE = 0, 1, 2
"""The stages of `transitions`."""
CHUNK = 64
"""Number of rows from which all fields are copied at a time. It is so small that the rows stay in the cache."""


@jit
def transitions(bounds, rows, plan, powers, block, stage):
    """Open windows at the indices and slots in a block (OPEN), reduce them to transitions (REDUCE), or do BOTH.

    Windows have at most ``n = powers.shape[0] - 1`` steps; ``powers[k]`` is ``gamma**k``. After REDUCE, the slots in
    the block are the slots of the windows' last steps.
    """
    count, n, row_bytes = plan[META, COUNT], powers.shape[0] - 1, plan[META, ROW_BYTES]
    slots, indices, _ = drawn_fields(plan, block)
    lengths = view(block, plan[START, LENGTH], count, np.int64)
    reward = view(block, plan[START, REWARDS], count * n * _numbers(plan), np.float64)
    if stage != REDUCE:
        span, last = (n - 1) * bounds.shape[1], rows.shape[0] // row_bytes - 1
        for i in range(count):
            prefetch_row(rows, row_bytes, slots[i])
            if n > 1:
                prefetch_row(rows, row_bytes, min(slots[i] + span, last))
        _open_windows(bounds, rows, plan, n, slots, indices, lengths, reward, block)
    if stage != OPEN:
        _reduce_windows(bounds.shape[1], rows, plan, powers, slots, lengths, reward, block)


@inlined
def _numbers(plan):
    """The number of components of a reward, k. A discount has the size of one component."""
    return plan[SIZE, plan[META, REWARD]] // plan[SIZE, DISCOUNT]


@inlined
def _open_windows(bounds, rows, plan, n, slots, indices, lengths, reward, block):
    """Fill in the rewards (B, n, k), the length and the flags of each window. Rewards past its length are 0."""
    count, num_envs, meta, numbers = slots.shape[0], bounds.shape[1], plan[META], _numbers(plan)
    room, size, row_bytes, end = n * numbers, plan[SIZE, DISCOUNT], np.uint64(meta[ROW_BYTES]), np.uint64(meta[END])
    place, width = np.uint64(meta[REWARD_PLACE] // size), np.uint64(meta[ROW_BYTES] // size)
    rows4, rows8 = view(rows, 0, rows.shape[0] // 4, np.float32), view(rows, 0, rows.shape[0] // 8, np.float64)
    capacity, is_short = np.uint64(rows.shape[0] // meta[ROW_BYTES]), size == 4
    terminated = view(block, plan[START, meta[TERMINATED]], count, np.uint8)
    truncated = view(block, plan[START, meta[TRUNCATED]], count, np.uint8)
    for i in range(count):  # a short loop body, so that many reads from memory overlap
        word = np.uint64(slots[i]) * width + place
        reward[np.uint64(i * room)] = rows4[word] if is_short else rows8[word]
    for i in range(count):
        slot, index, k = np.uint64(slots[i]), indices[i], 1
        stop = bounds[CURSOR, index % num_envs if num_envs > 1 else 0] * num_envs if n > 1 else 0
        while k < n and rows[slot * row_bytes + end] == 0 and index + num_envs < stop:
            index += num_envs
            slot += np.uint64(num_envs)
            slot -= capacity if slot >= capacity else np.uint64(0)
            word = slot * width + place
            reward[np.uint64(i * room + k * numbers)] = rows4[word] if is_short else rows8[word]
            k += 1
        lengths[i] = k
        terminated[i] = rows[slot * row_bytes + np.uint64(meta[TERMINATED_PLACE])]
        truncated[i] = rows[slot * row_bytes + np.uint64(meta[TRUNCATED_PLACE])]
        for j in range(i * room + k * numbers, i * room + room):
            reward[np.uint64(j)] = 0.0
    for c in range(1, numbers):  # a separate loop, so that scalar rewards stay fast
        for i in range(count):
            slot = np.uint64(slots[i])
            for k in range(lengths[i]):
                word = slot * width + place + np.uint64(c)
                reward[np.uint64(i * room + k * numbers + c)] = rows4[word] if is_short else rows8[word]
                slot += np.uint64(num_envs)
                slot -= capacity if slot >= capacity else np.uint64(0)


@inlined
def _reduce_windows(num_envs, rows, plan, powers, slots, lengths, reward, block):
    """Fill in the fields of the first and the last step of each window, its return and its discount."""
    count, n, row_bytes = slots.shape[0], powers.shape[0] - 1, plan[META, ROW_BYTES]
    capacity = rows.shape[0] // row_bytes
    for step in range(1 if n == 1 else 2):
        for i in range(count if step == 1 else 0):
            slots[i] += (lengths[i] - 1) * num_envs
            slots[i] -= capacity if slots[i] >= capacity else 0
        places = plan[ONLY if n == 1 else FIRST + step]
        for begin in range(0, count, CHUNK):
            stop = min(begin + CHUNK, count)
            for field in range(plan.shape[1]):
                if places[field] >= 0:
                    size, start = plan[SIZE, field], plan[START, field]
                    gather(rows, row_bytes, slots, begin, stop, places[field], size, block, start)
    ends = view(block, plan[START, plan[META, TERMINATED]], count, np.uint8)
    to, by = plan[START, plan[META, REWARD]], plan[START, DISCOUNT]
    numbers, is_short = _numbers(plan), plan[SIZE, DISCOUNT] == 4
    returns4, discounts4 = view(block, to, count * numbers, np.float32), view(block, by, count, np.float32)
    returns8, discounts8 = view(block, to, count * numbers, np.float64), view(block, by, count, np.float64)
    for c in range(numbers):
        for i in range(count):
            start = i * n * numbers + c
            value = reward[start]
            for k in range(1, lengths[i]):
                value += powers[k] * reward[start + k * numbers]
            discount = 0.0 if ends[i] else powers[lengths[i]]
            if is_short:
                returns4[i * numbers + c], discounts4[i] = value, discount
            else:
                returns8[i * numbers + c], discounts8[i] = value, discount


@jit
def gather(rows, row_bytes, slots, begin, stop, place, size, block, start):
    """Copy `size` bytes from the rows of ``slots[begin:stop]`` to the same positions of the field at `start`."""
    if place % 4 == 0 and size % 4 == 0:
        rows4, block4 = view(rows, 0, rows.shape[0] // 4, np.uint32), view(block, 0, block.shape[0] // 4, np.uint32)
        _gather_words(rows4, row_bytes // 4, slots, begin, stop, place // 4, size // 4, block4, start // 4)
    else:
        _gather_words(rows, row_bytes, slots, begin, stop, place, size, block, start)


@jit
def _gather_words(rows, width, slots, begin, stop, place, words, block, start):
    if words <= 20:  # the loop over words is outside: short inner loops are slow, and more memory reads overlap
        for k in range(words):
            for i in range(begin, stop):
                block[np.uint64(start + i * words + k)] = rows[np.uint64(slots[np.uint64(i)] * width + place + k)]
    else:
        for i in range(begin, stop):
            target, source = np.uint64(start + i * words), np.uint64(slots[np.uint64(i)] * width + place)
            for k in range(words):
                block[target + np.uint64(k)] = rows[source + np.uint64(k)]


@inlined
def drawn_fields(plan, block):
    """The slots, the indices and the probabilities in a block."""
    count, start = plan[META, COUNT], plan[START]
    slots, indices = view(block, start[SLOTS], count, np.int64), view(block, start[INDICES], count, np.int64)
    return slots, indices, view(block, start[PROBABILITIES], count, np.float64)


@jit
def transitions_at(given, bounds, rows, plan, powers, block, stage):
    """`transitions` at the given indices. Returns the position of the first index that is not stored, or -1."""
    slots, indices, _ = drawn_fields(plan, block)
    wrong = slots_of(given, bounds, rows.shape[0] // plan[META, ROW_BYTES], slots)
    if wrong < 0:
        for i in range(given.shape[0]):
            indices[i] = given[i]
        transitions(bounds, rows, plan, powers, block, stage)
    return wrong


@jit
def uniform_draw(uniforms, bounds, capacity, slots, indices, probabilities):
    """Draw the ``floor(u N)``-th stored index for each u in [0, 1)."""
    total = nth_stored(uniforms, bounds, capacity, slots, indices)
    for i in range(probabilities.shape[0]):
        probabilities[i] = 1.0 / total


@jit
def first_outside(numbers, least, most):
    """The position of the first number that is not in [least, most], or -1."""
    for j in range(numbers.shape[0]):
        if numbers[j] < least or numbers[j] > most:
            return j
    return -1


@jit
def rewrite(plan, block, columns, rows, values):
    """Write values to rows of these columns of a block. All columns have the same size.

    Returns the position in `rows` of the first row that is not in the block, or -1.
    """
    wrong = first_outside(rows, 0, plan[META, COUNT] - 1)
    if wrong >= 0:
        return wrong
    for c in range(columns.shape[0]):
        size, start = plan[SIZE, columns[c]], plan[START, columns[c]]
        for j in range(rows.shape[0]):
            target, source = np.uint64(start + rows[j] * size), np.uint64(j * size)
            for k in range(size):
                block[target + np.uint64(k)] = values[source + np.uint64(k)]
    return -1


@jit
def reduce_rewritten(bounds, rows, plan, powers, block, stage, columns, places, values):
    """Call `transitions`, and then `rewrite`. Returns the result of `rewrite`."""
    transitions(bounds, rows, plan, powers, block, stage)  # with a literal stage, Numba would compile it again
    return rewrite(plan, block, columns, places, values)
