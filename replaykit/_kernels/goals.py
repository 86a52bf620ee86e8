"""Kernels that give single steps of a batch another goal, in the block that the batch is made of; see `batches`."""

import numpy as np

from replaykit._kernels.jit import jit, piece, prefetch
from replaykit._kernels.lanes import pick, segments, slots_of, uniform

RANDOM = 3
"""In place of a scope of `pick`: any stored step."""
ACHIEVED, DESIRED, NEXT_DESIRED, PLACE = 0, 1, 2, 3
"""In `goal`: the numbers of three fields, and the place of the achieved goal of next_obs in the row."""


@jit
def relabel(indices, uniforms, ratio, scope, bounds, rows, row_bytes, tables, plan, goal, block, chosen, places, spare):
    """Give a share of these transitions another desired goal, and tell which and how many they are.

    A transition is chosen where ``uniforms[0]`` is below `ratio`, and ``uniforms[1]`` chooses the step that its goal
    was achieved in. `places` are those of the chosen in the batch; the first half of `spare` takes what they
    achieved, the second their goals.
    """
    count, capacity, sizes = indices.shape[0], rows.shape[0] // row_bytes, plan[1]
    total = 0
    for i in range(count):
        chosen[i] = uniforms[0, i] < ratio
        places[total] = i
        total += chosen[i]
    anchors, chances = np.empty(total, np.int64), np.empty(total, np.float64)
    steps, slots = np.empty(total, np.int64), np.empty(total, np.int64)
    for j in range(total):
        anchors[j], chances[j] = indices[places[j]], uniforms[1, places[j]]
    if scope == RANDOM:
        uniform(chances, bounds, rows, row_bytes, steps)
    else:
        pick(anchors, chances, scope, bounds, tables, steps)
    slots_of(steps, bounds, capacity, slots)
    place, size, half = goal[PLACE], sizes[goal[ACHIEVED]], spare.shape[0] // 2
    for j in range(total):
        slots[j] = slots[j] * row_bytes + place
        prefetch(rows, slots[j])
    starts = segments(sizes, count)
    achieved, desired, next_desired = starts[goal[ACHIEVED]], starts[goal[DESIRED]], starts[goal[NEXT_DESIRED]]
    if place % 4 == 0 and size % 4 == 0:
        for j in range(total):
            slots[j] //= 4
        rows4 = piece(rows, 0, rows.shape[0] // 4, np.uint32)
        block4 = piece(block, 0, block.shape[0] // 4, np.uint32)
        spare4 = piece(spare, 0, spare.shape[0] // 4, np.uint32)
        _copy(places, total, size // 4, achieved // 4, block4, spare4)
        _spread(places, slots, size // 4, desired // 4, next_desired // 4, half // 4, rows4, block4, spare4)
    else:
        _copy(places, total, size, achieved, block, spare)
        _spread(places, slots, size, desired, next_desired, half, rows, block, spare)
    return total


@jit
def _copy(places, total, words, start, block, spare):
    """What is at some places of a segment, one after another."""
    source = block[start:]
    for j in range(total):
        for k in range(words):
            spare[j * words + k] = source[places[j] * words + k]


@jit
def _spread(places, slots, words, one, other, half, rows, block, spare):
    """Words of the rows to places in two segments, and one after another to the second half of `spare`."""
    first, second, copy = block[one:], block[other:], spare[half:]
    for j in range(slots.shape[0]):
        for k in range(words):
            word = rows[np.uint64(slots[j] + k)]
            first[places[j] * words + k] = word
            second[places[j] * words + k] = word
            copy[j * words + k] = word
