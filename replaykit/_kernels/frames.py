"""Kernels of frames kept once: which frame of a step is one that is stored already, and where the others go.

Every slot has a row of 2K frame numbers in `table`: the K frames of obs, oldest first, and the K of next_obs. A step
is given with P frames of each: all K of them, or with a stack the newest, P = 1. Frame f is ``pool[f]``, or
``overflow[f - len(pool)]``; `free` holds the numbers that nothing refers to, `free_count[0]` of them.

A step's frames are new, or those of the step before it in its lane, or others of its own. So once a frame is missing
from a row, no later row of the lane has it, and a step that is retired frees what its successor does not have.
"""

import numpy as np

from replaykit._kernels.jit import jit

NEW = -1


@jit
def plan(
    indices, ends, obs, next_obs, shares, zero, first, cursor, ended, table, pool, overflow, free_count, links, sources
):  # fmt: skip
    """Where the frames of n new steps come from, before anything is changed; how many free numbers are lacking.

    Fills for each step the row of `links`: the slot of the step before it in its lane or -1, whether it begins an
    episode, and whether it takes the slot of a stored step; and the row of `sources` for its P frames of obs and P of
    next_obs: `NEW`, or the place among the 2K of the step before, or 2K more than the place among its own. A frame is
    the same only if all its bits are.
    """
    num_envs, capacity = first.shape[0], table.shape[0]
    count, given = obs.shape[0], obs.shape[1]
    width = table.shape[1]
    kept = width // 2
    length = capacity // num_envs
    latest = np.full(num_envs, -1, np.int64)
    level, lowest = free_count[0], 0
    for j in range(count):
        index = indices[j]
        lane, step = index % num_envs, index // num_envs
        before = latest[lane]
        latest[lane] = j
        links[j, 0] = -1
        links[j, 1] = 1
        if before >= 0:
            links[j, 0] = indices[before] % capacity
            links[j, 1] = ends[before]
        elif step > first[lane] and step == cursor[lane]:
            links[j, 0] = (index - num_envs) % capacity
            links[j, 1] = ended[links[j, 0]]
        links[j, 2] = step - length >= first[lane]
        for p in range(given):
            place = width - given + p
            sources[j, p] = NEW
            if not shares:
                continue
            if links[j, 0] >= 0:
                other = next_obs[before, p] if before >= 0 else _frame(pool, overflow, table[links[j, 0], place])
                if _equal(obs[j, p], other):
                    sources[j, p] = place
            if sources[j, p] == NEW and p > 0 and _equal(obs[j, p], obs[j, p - 1]):
                sources[j, p] = width + kept - given + p - 1
        for p in range(given):
            sources[j, given + p] = NEW
            if not shares:
                continue
            for ahead in range(1, given - p + 1):  # the frame of obs one place on, two on, ..., in the same place
                q = p + ahead if ahead < given - p else p
                if _equal(next_obs[j, p], obs[j, q]):
                    sources[j, given + p] = width + kept - given + q
                    break
            if sources[j, given + p] == NEW and p > 0 and _equal(next_obs[j, p], next_obs[j, p - 1]):
                sources[j, given + p] = width + width - given + p - 1
        for s in range(2 * given):
            level -= sources[j, s] == NEW
        lowest = min(lowest, level)
        if links[j, 2] and step - length + 1 < cursor[lane]:
            slot, successor = index % capacity, (index + num_envs) % capacity
            for s in range(width):
                level += _is_dropped(table[slot], s, table[successor], zero)
    return -lowest


@jit
def write(indices, num_envs, obs, next_obs, links, sources, zero, table, pool, overflow, free, free_count):
    """Store the frames of n steps as planned, and free those of the steps whose slots they take.

    At an episode's first step a stack is filled up with frame number `zero`, or with the first frame if that is -1.
    """
    capacity, width = table.shape
    given, kept = obs.shape[1], width // 2
    row = np.empty(width, table.dtype)
    for j in range(indices.shape[0]):
        slot, before = indices[j] % capacity, links[j, 0]
        row[:] = -1
        # First what is shared with the step before, which may be the one that was in this slot
        if links[j, 1] == 0:
            for k in range(kept - given):
                row[k] = table[before, k + 1]
        for s in range(2 * given):
            if 0 <= sources[j, s] < width:
                row[_place(s, given, width)] = table[before, sources[j, s]]
        if links[j, 2]:
            successor = (slot + num_envs) % capacity
            survivors = row if successor == slot else table[successor]
            for s in range(width):
                if _is_dropped(table[slot], s, survivors, zero):
                    free[free_count[0]] = table[slot, s]
                    free_count[0] += 1
        for s in range(2 * given):
            place = _place(s, given, width)
            if sources[j, s] >= width:
                row[place] = row[sources[j, s] - width]
            elif sources[j, s] == NEW:
                free_count[0] -= 1
                row[place] = free[free_count[0]]
                frame = _frame(pool, overflow, row[place])
                frame[:] = obs[j, s] if s < given else next_obs[j, s - given]
        if links[j, 1] != 0:
            for k in range(kept - given):
                row[k] = zero if zero >= 0 else row[kept - 1]
        for k in range(kept - given):
            row[kept + k] = row[k + 1]
        table[slot] = row


@jit
def _place(source, given, width):
    """Where among the 2K of a row the frame is that is given as number `source`: those of obs, then of next_obs."""
    return width // 2 - given + source if source < given else width - 2 * given + source


@jit
def _frame(pool, overflow, number):
    """Frame `number`."""
    return pool[number] if number < pool.shape[0] else overflow[number - pool.shape[0]]


@jit
def _equal(one, other):
    """Whether two frames are the same, word for word."""
    for i in range(one.shape[0]):
        if one[i] != other[i]:
            return False
    return True


@jit
def _is_dropped(row, s, survivors, zero):
    """Whether the frame at place s of a row, here for the first time, is neither among the survivors nor `zero`."""
    if row[s] == zero:
        return False
    for k in range(s):
        if row[k] == row[s]:
            return False
    for k in range(survivors.shape[0]):
        if survivors[k] == row[s]:
            return False
    return True
