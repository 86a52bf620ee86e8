"""Kernels that make a whole batch in one call: what those of the tree and the lanes do one after another.

A batch is one `block` of memory with a segment for each field. The columns of `plan` are the fields: ``plan[SOURCE]``
is the place of a field in the packed row, `NO_ROW` of one that is in none, ``plan[SIZE]`` its bytes, and
``plan[OF_LAST]`` is 1 if it is of the last step of a window and not of the first. The last five are `discount`,
`length`, `weights`, `probabilities` and `indices`; ``numbers[REWARD]`` and ``numbers[TERMINATED]`` are the numbers of
two others.
"""

import math

import numpy as np

from replaykit._kernels.jit import jit, piece
from replaykit._kernels.lanes import CURSOR, NO_ROW, announce, copy_fields, indices_of, segments, slots_of, uniform
from replaykit._kernels.tree import draw, settle

SOURCE, SIZE, OF_LAST = 0, 1, 2
DISCOUNT, LENGTH, WEIGHTS, PROBABILITIES, INDICES = -5, -4, -3, -2, -1
REWARD, TERMINATED = 0, 1


@jit
def uniform_batch(uniforms, bounds, rows, row_bytes, plan, numbers, gamma, block):
    """A batch of single steps: the ``floor(u N)``-th living index for each u in [0, 1), N their number; of weight 1."""
    count, fields = uniforms.shape[0], plan.shape[1]
    starts = segments(plan[SIZE], count)
    indices, slots = piece(block, starts[fields + INDICES], count, np.int64), np.empty(count, np.int64)
    share = 1.0 / uniform(uniforms, bounds, rows, row_bytes, indices)
    slots_of(indices, bounds, rows.shape[0] // row_bytes, slots)
    copy_fields(rows, row_bytes, slots, plan[SOURCE], plan[SIZE], starts, block)
    _derive(count, plan, numbers, gamma, starts, block)
    weights = piece(block, starts[fields + WEIGHTS], count, np.float32)
    probabilities = piece(block, starts[fields + PROBABILITIES], count, np.float64)
    for i in range(count):
        weights[i] = 1.0
        probabilities[i] = share


@jit
def prioritized_batch(
    nodes, marks, settled, points, scheme, bounds, rows, row_bytes, plan, numbers, gamma, block
):  # fmt: skip
    """A batch of single steps drawn from the tree by the uniform numbers in `points`, as many as the scheme needs.

    These become the ratios of the probabilities to the least of the batch. Before that `settle`, for lanes that are in
    step. Weights are left out.
    """
    count, fields = points.shape[0], plan.shape[1]
    capacity = rows.shape[0] // row_bytes
    settle(nodes, marks, settled, bounds, capacity)
    starts = segments(plan[SIZE], count)
    probabilities = piece(block, starts[fields + PROBABILITIES], count, np.float64)
    indices = piece(block, starts[fields + INDICES], count, np.int64)
    cursors, slots = np.empty(count, np.int32), np.empty(count, np.int64)
    draw(nodes, points, scheme, count, cursors, probabilities)
    least = math.inf
    for i in range(count):
        slots[i] = cursors[i]
        announce(rows, row_bytes, slots[i])
        least = min(least, probabilities[i])
    for i in range(count):
        points[i] = probabilities[i] / least
    indices_of(slots, bounds, capacity, indices)
    copy_fields(rows, row_bytes, slots, plan[SOURCE], plan[SIZE], starts, block)
    _derive(count, plan, numbers, gamma, starts, block)


@jit
def batch_at(indices, bounds, rows, row_bytes, plan, numbers, gamma, block):
    """A batch of single steps at these indices, without weights, probabilities and indices.

    Returns -1, or the position of the first index that is not stored; then the block is worth nothing.
    """
    slots = np.empty(indices.shape[0], np.int64)
    wrong = slots_of(indices, bounds, rows.shape[0] // row_bytes, slots)
    if wrong < 0:
        starts = segments(plan[SIZE], indices.shape[0])
        copy_fields(rows, row_bytes, slots, plan[SOURCE], plan[SIZE], starts, block)
        _derive(indices.shape[0], plan, numbers, gamma, starts, block)
    return wrong


@jit
def n_step_batch_at(indices, bounds, rows, row_bytes, ended, powers, plan, numbers, block):
    """As `batch_at`, of windows of at most ``powers.shape[0] - 1`` steps, where ``powers[k]`` is ``gamma**k``.

    Returns are summed in float64, in the order of the steps.
    """
    count, fields = indices.shape[0], plan.shape[1]
    slots = np.empty(count, np.int64)
    wrong = slots_of(indices, bounds, ended.shape[0], slots)
    if wrong >= 0:
        return wrong
    steps, reward = powers.shape[0] - 1, numbers[REWARD]
    for i in range(count):
        announce(rows, row_bytes, slots[i])
        announce(rows, row_bytes, min(slots[i] + (steps - 1) * bounds.shape[1], ended.shape[0] - 1))
    starts, sources = segments(plan[SIZE], count), np.empty(fields, np.int64)
    for field in range(fields):
        sources[field] = NO_ROW if plan[OF_LAST, field] or field == reward else plan[SOURCE, field]
    copy_fields(rows, row_bytes, slots, sources, plan[SIZE], starts, block)

    lengths = piece(block, starts[fields + LENGTH], count, np.int64)
    if plan[SIZE, reward] == 4:
        rewards = piece(rows, 0, rows.shape[0] // 4, np.float32)
        returns = piece(block, starts[reward], count, np.float32)
        discounts = piece(block, starts[fields + DISCOUNT], count, np.float32)
        _reduce(
            indices, slots, bounds, rows, row_bytes, ended, powers, plan, numbers, rewards, returns, discounts, lengths
        )
    else:
        rewards = piece(rows, 0, rows.shape[0] // 8, np.float64)
        returns = piece(block, starts[reward], count, np.float64)
        discounts = piece(block, starts[fields + DISCOUNT], count, np.float64)
        _reduce(
            indices, slots, bounds, rows, row_bytes, ended, powers, plan, numbers, rewards, returns, discounts, lengths
        )

    for field in range(fields):
        sources[field] = plan[SOURCE, field] if plan[OF_LAST, field] else NO_ROW
    copy_fields(rows, row_bytes, slots, sources, plan[SIZE], starts, block)
    return wrong


@jit
def _reduce(
    indices, slots, bounds, rows, row_bytes, ended, powers, plan, numbers, rewards, returns, discounts, lengths
):  # fmt: skip
    """Returns, discounts and lengths; `slots` go on to the last step of each window. `rewards` are the rows as such."""
    num_envs, capacity, steps = bounds.shape[1], np.uint64(ended.shape[0]), powers.shape[0] - 1
    size = plan[SIZE, numbers[REWARD]]
    at, width = np.uint64(plan[SOURCE, numbers[REWARD]] // size), np.uint64(row_bytes // size)
    flag = np.uint64(plan[SOURCE, numbers[TERMINATED]])
    for i in range(indices.shape[0]):
        stop = bounds[CURSOR, indices[i] % num_envs if num_envs > 1 else 0] * num_envs
        slot, index, k = np.uint64(slots[i]), indices[i], 1
        value = 0.0
        value += powers[0] * rewards[slot * width + at]
        while k < steps and not ended[slot] and index + num_envs < stop:
            index += num_envs
            slot += np.uint64(num_envs)
            if slot >= capacity:
                slot -= capacity
            value += powers[k] * rewards[slot * width + at]
            k += 1
        returns[i] = value
        discounts[i] = 0.0 if rows[slot * np.uint64(row_bytes) + flag] else powers[k]
        lengths[i] = k
        slots[i] = slot


@jit
def _derive(count, plan, numbers, gamma, starts, block):
    """Discounts and lengths of single steps, whose flags are in the block."""
    fields = plan.shape[1]
    terminated = block[starts[numbers[TERMINATED]] :]
    lengths = piece(block, starts[fields + LENGTH], count, np.int64)
    for i in range(count):
        lengths[i] = 1
    if plan[SIZE, fields + DISCOUNT] == 4:
        _discount(terminated, gamma, piece(block, starts[fields + DISCOUNT], count, np.float32))
    else:
        _discount(terminated, gamma, piece(block, starts[fields + DISCOUNT], count, np.float64))


@jit
def _discount(terminated, gamma, discounts):
    """Discounts of single steps."""
    for i in range(discounts.shape[0]):
        discounts[i] = 0.0 if terminated[i] else gamma
