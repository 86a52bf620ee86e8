"""Kernels of hindsight: they choose new goals for a batch, and write the rewards for these goals to its windows."""

import numpy as np

from replaykit._kernels.jit import jit, view
from replaykit._kernels.lanes import FIRST, TOO_LARGE, nth_stored
from replaykit._kernels.store import NUMBER, STARTS, STOPS
from replaykit._kernels.windows import COUNT, LENGTH, META, ONLY, ROW_BYTES, SIZE, START, drawn_fields, gather

FUTURE, FINAL, EPISODE, RANDOM = 0, 1, 2, 3
"""The steps that goals come from: the step itself and later steps of its episode; the last step of its episode; all
steps of its episode; all stored steps."""


@jit
def look_ahead(bounds, rows, tables, plan, block, n, uniforms, ratio, scope, columns, out):
    """Choose some groups of windows in a block, and for each of them a step whose achieved goal becomes its goal.

    A group is a row of a batch. It has one or more windows, and one of the G columns of `uniforms`. Group g is chosen
    if ``uniforms[0, g] < ratio``, and ``uniforms[1, g]`` chooses the step. Returns the number of chosen windows and the
    number of their steps. `columns` are the columns of the achieved goals. `out` receives several arrays. Each starts
    at a multiple of 8 bytes and has room for all groups, windows or steps: whether each group is chosen; the numbers of
    the chosen windows; the position of each step in the windows' rewards; and for each column the achieved goal of each
    step, the new goal of each step, and the new goal of each window.
    """
    num_envs, groups, count, row_bytes = bounds.shape[1], uniforms.shape[1], plan[META, COUNT], plan[META, ROW_BYTES]
    width, most, capacity = count // groups, count * n, rows.shape[0] // row_bytes
    slots, indices, _ = drawn_fields(plan, block)
    lengths, chosen = view(block, plan[START, LENGTH], count, np.int64), view(out, 0, groups, np.uint8)
    to = (groups + 7) // 8 * 8
    windows, places = view(out, to, count, np.int64), view(out, to + 8 * count, most, np.int64)
    to += 8 * (count + most)
    owners, chances, total = np.empty(groups, np.int64), np.empty(groups, np.float64), 0
    for g in range(groups):
        chosen[g] = uniforms[0, g] < ratio
        owners[total], chances[total] = g, uniforms[1, g]
        total += int(chosen[g])
    sources, found = np.empty(total, np.int64), np.empty(total, np.int64)
    if scope == RANDOM:
        nth_stored(chances[:total], bounds, capacity, sources, found)
    else:
        for j in range(total):  # a short loop body, so that many reads from memory overlap
            sources[j] = tables[NUMBER, slots[owners[j] * width]]
        for j in range(total):
            window = owners[j] * width
            episode, index = sources[j], indices[window]
            if episode >= capacity:  # avoids the division in most cases, which is slow
                episode %= capacity
            last, begin = tables[STOPS, episode], index
            if scope == FINAL:
                begin = last
            elif scope == EPISODE:
                lane = index % num_envs
                begin = max(tables[STARTS, episode], bounds[FIRST, lane] * num_envs + lane)
            allowed = (last - begin if num_envs == 1 else (last - begin) // num_envs) + 1
            slot = slots[window] + begin - index + int(chances[j] * allowed) * num_envs
            sources[j] = slot - capacity if slot >= capacity else slot + capacity if slot < 0 else slot
    achieved, wanted, goals, steps = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(count, np.int64), 0
    for j in range(total):
        for t in range(width):
            window, slot = owners[j] * width + t, slots[owners[j] * width + t]
            windows[j * width + t], goals[j * width + t] = window, sources[j]
            for k in range(lengths[window]):
                places[steps], achieved[steps], wanted[steps] = window * n + k, slot, sources[j]
                slot = slot + num_envs if slot + num_envs < capacity else slot + num_envs - capacity
                steps += 1
    for part in range(3 * columns.shape[0]):  # a single call of gather, so that it is compiled only once
        column, kind = columns[part // 3], part % 3
        source, last = (achieved, steps) if kind == 0 else (wanted, steps) if kind == 1 else (goals, total * width)
        gather(rows, row_bytes, source, 0, last, plan[ONLY, column], plan[SIZE, column], out, to)
        to += (most * plan[SIZE, column] + 7) // 8 * 8
    return total * width, steps


@jit
def put_rewards(rewards, places, numbers, reward, is_short):
    """Write rewards of `numbers` components to these positions, rounded to float32 if `is_short`.

    Returns the position in `rewards` of the first number that is not finite after rounding, or -1.
    """
    wrong = -1
    for j in range(places.shape[0]):
        for c in range(numbers):
            value = np.float64(rewards[j * numbers + c])
            if not np.isfinite(value) or (is_short and abs(value) >= TOO_LARGE):
                wrong = j * numbers + c if wrong < 0 else wrong
            elif is_short:
                value = np.float64(np.float32(value))
            reward[places[j] * numbers + c] = value
    return wrong


@jit
def combine(drawn, shares, newest, of_newest, indices, mixed):
    """Join B - k draws and the k newest: write the indices, and ``q = ((B - k) P + [is newest]) / B`` of each.

    `shares` are the probabilities P of the draws, and `of_newest` those of the newest transitions.
    """
    k, size = drawn.shape[0], indices.shape[0]
    for i in range(k):
        extra = 0.0
        for j in range(newest.shape[0]):
            extra = 1.0 if newest[j] == drawn[i] else extra
        indices[i], mixed[i] = drawn[i], (k * shares[i] + extra) / size
    for j in range(newest.shape[0]):
        indices[k + j], mixed[k + j] = newest[j], (k * of_newest[j] + 1.0) / size
