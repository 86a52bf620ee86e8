"""The writing kernel: it retires old steps, writes new ones, advances their episodes and publishes them.

The state of a storage is in three arrays. `rows` has the bytes of a packed row for each slot. `tables` has these rows:
NUMBER, the episode number in each slot; STARTS and STOPS, the first and the last index of each episode, at its number
modulo the capacity; and, once lanes hold different steps, STAMPS, when each slot was written. `header` begins with the
numbers named below. For each of FIRST to PLACE, E numbers follow. Then comes the layout of the row: the offset and the
size of each leaf. The last two leaves are `terminated` and `truncated`.
"""

import numpy as np

from replaykit._kernels.jit import inlined, jit, view

NUM_ENVS, LENGTH, ROW_BYTES, END, STORED, SPLIT, REWARD, REWARD_BYTES, REWARD_NUMBERS, LANES = range(10)
"""In a header: E; the maximum number of steps in a lane; the bytes of a row; the offset in a row of the flag that ends
an episode; the number of stored transitions; the first stamp in the tables (before it, the stamp of a transition is its
index); the offset of the reward in the leaves of an entry; the bytes of each number of the reward; and the number of
these numbers."""
FIRST, CURSOR, OVER, EPISODE, PLACE, LANE_ROWS = 0, 1, 2, 3, 4, 5
"""For each lane: its oldest step, its next step, whether its next step begins an episode, the number of its newest
episode, and the position of this episode in the tables."""
NUMBER, STARTS, STOPS, STAMPS = 0, 1, 2, 3
BOTH, RETIRE, PUBLISH = 0, 1, 2
"""The stages of `store`. Columns are written between RETIRE and PUBLISH."""


@jit
def store(data, steps, stage, header, rows, tables, indices):
    """Store `steps` steps of every lane, at most as many as it holds. If `steps` is 0, store the chosen entries.

    `data` has one leaf after another, each with the values of all entries, step by step and lane by lane. The indices
    of the entries are written to `indices`, or read from it if `steps` is 0. Returns -1. If a reward is not finite,
    returns the number of its entry and changes nothing.
    """
    if stage != PUBLISH:
        wrong = _not_finite(data, header, indices.shape[0])
        if wrong >= 0:
            return wrong
    num_envs, count, capacity = header[NUM_ENVS], indices.shape[0], rows.shape[0] // header[ROW_BYTES]
    first, cursor = view(header, LANES, num_envs, np.int64), view(header, LANES + num_envs, num_envs, np.int64)
    length, begin = header[LENGTH], cursor[0] * num_envs
    in_step, stamp, stored = steps > 0, 0, 0
    for e in range(num_envs):
        in_step &= cursor[e] == cursor[0]
        stamp += cursor[e]
    if stage != PUBLISH:  # retire the steps that the new ones replace
        for e in range(num_envs if steps > 0 else 0):
            first[e] = max(first[e], cursor[e] + steps - length)
        for j in range(count):
            if in_step:
                indices[j] = begin + j
            elif steps > 0:
                indices[j] = (cursor[j % num_envs] + j // num_envs) * num_envs + j % num_envs
            else:
                lane = indices[j] % num_envs
                first[lane] = max(first[lane], indices[j] // num_envs + 1 - length)
    if stage != RETIRE:
        _write(view(data, 0, len(data), np.uint8), in_step, header, rows, capacity, indices)
        _advance_episodes(stamp, in_step, steps, header, rows, tables, capacity, indices)
        for e in range(num_envs):  # publish
            cursor[e] += steps
        for j in range(0 if steps > 0 else count):
            cursor[indices[j] % num_envs] = indices[j] // num_envs + 1
    for e in range(num_envs):
        stored += cursor[e] - first[e]
    header[STORED] = stored
    return -1


@inlined
def _not_finite(data, header, count):
    """The first entry whose reward is NaN or infinite, or -1."""
    numbers, start, wrong = header[REWARD_NUMBERS], header[REWARD] * count, -1
    count *= numbers
    if header[REWARD_BYTES] == 4:
        short = view(data, start, count, np.float32)
        for j in range(count - 1, -1, -1):
            wrong = wrong if abs(short[j]) < np.inf else j
    else:
        long = view(data, start, count, np.float64)
        for j in range(count - 1, -1, -1):
            wrong = wrong if abs(long[j]) < np.inf else j
    return wrong // numbers


@inlined
def _write(values, in_step, header, rows, capacity, indices):
    """Copy the leaves of the entries to their rows, and set the flags that end an episode."""
    num_envs, row_bytes, end, count = header[NUM_ENVS], header[ROW_BYTES], np.uint64(header[END]), indices.shape[0]
    begin = LANES + LANE_ROWS * num_envs
    layout = view(header, begin, header.shape[0] - begin, np.int64)
    terminated, truncated = np.uint64(layout[layout.shape[0] - 4]), np.uint64(layout[layout.shape[0] - 2])
    values4, rows4 = view(values, 0, values.shape[0] // 4, np.uint32), view(rows, 0, rows.shape[0] // 4, np.uint32)
    done = 0
    while done < count:  # a run of consecutive slots at a time
        start, slot = 0, indices[done] % capacity
        run = min(count - done, capacity - slot) if in_step else 1
        for leaf in range(0, layout.shape[0], 2):
            place, size = slot * row_bytes + layout[leaf], layout[leaf + 1]
            source = start + done * size
            if place % 4 == 0 and size % 4 == 0 and source % 4 == 0:
                _scatter(values4, source // 4, run, size // 4, rows4, place // 4, row_bytes // 4)
            else:
                _scatter(values, source, run, size, rows, place, row_bytes)
            start += size * count
        for i in range(run):
            row = np.uint64((slot + i) * row_bytes)
            rows[row + end] = rows[row + terminated] | rows[row + truncated]
        done += run


@jit
def _scatter(values, start, count, words, rows, place, stride):
    """Copy `words` words to each of `count` rows, at offset `place`. Indices are unsigned, which is faster."""
    size, step = np.uint64(words), np.uint64(stride)
    if words <= 4:  # word by word, since a short inner loop costs more
        for k in range(words):
            source, target = np.uint64(start + k), np.uint64(place + k)
            for i in range(count):
                rows[target + np.uint64(i) * step] = values[source + np.uint64(i) * size]
    else:
        for i in range(count):
            source, target = np.uint64(start) + np.uint64(i) * size, np.uint64(place) + np.uint64(i) * step
            for k in range(words):
                rows[target + np.uint64(k)] = values[source + np.uint64(k)]


@inlined
def _advance_episodes(stamp, in_step, steps, header, rows, tables, capacity, indices):
    """Record the episodes of the entries, and when they were written. Their rows must have been written before."""
    num_envs, row_bytes, end, count = header[NUM_ENVS], header[ROW_BYTES], header[END], indices.shape[0]
    over, episode, at = LANES + OVER * num_envs, LANES + EPISODE * num_envs, LANES + PLACE * num_envs
    start = indices[0] % capacity if in_step and count else 0
    for first in range(num_envs if steps > 0 else count):  # the first of all entries of a lane, or a single entry
        index, j, stop = indices[first], first, count if steps > 0 else first + 1
        lane, slot = (first, start + first) if in_step else (index % num_envs, index % capacity)
        slot -= capacity if slot >= capacity else 0
        begins, number, place = header[over + lane], header[episode + lane], header[at + lane]
        while j < stop:
            if begins != 0:
                number += num_envs
                place = place + num_envs if place + num_envs < capacity else place + num_envs - capacity
                tables[STARTS, place] = index
            tables[NUMBER, np.uint64(slot)], tables[STOPS, np.uint64(place)] = number, index
            begins = np.int64(rows[np.uint64(slot * row_bytes + end)])
            if tables.shape[0] > STAMPS:
                tables[STAMPS, slot] = stamp + j
            slot = slot + num_envs if slot + num_envs < capacity else slot + num_envs - capacity
            j, index = j + num_envs, index + num_envs
        header[over + lane], header[episode + lane], header[at + lane] = begins, number, place


@jit
def number_entries(mask, bounds, indices, entries):
    """Compute the index of each entry of a mask (T E,); -1 where it is False. `entries` gets the indices without -1."""
    num_envs, count = bounds.shape[1], 0
    cursor = bounds[CURSOR].copy()
    for j in range(mask.shape[0]):
        indices[j] = -1
        if mask[j]:
            lane = j % num_envs
            indices[j] = entries[count] = cursor[lane] * num_envs + lane
            cursor[lane] += 1
            count += 1
    return count


@jit
def end_episodes(lanes, header, rows):
    """End the running episodes of lanes after their newest steps."""
    num_envs, row_bytes = header[NUM_ENVS], header[ROW_BYTES]
    for lane in lanes:
        cursor = header[LANES + CURSOR * num_envs + lane]
        header[LANES + OVER * num_envs + lane] = 1
        if cursor > header[LANES + lane]:
            slot = ((cursor - 1) * num_envs + lane) % (rows.shape[0] // row_bytes)
            rows[slot * row_bytes + header[END]] = 1


@jit
def clear(header):
    """Retire every step and end all episodes."""
    num_envs = header[NUM_ENVS]
    for e in range(num_envs):
        header[LANES + e] = header[LANES + CURSOR * num_envs + e]
        header[LANES + OVER * num_envs + e] = 1
    header[STORED] = 0


@jit
def begins_of(data, header, indices, begins):
    """Find whether an episode begins at each entry of `data`. The entries are the next steps of their lanes."""
    num_envs, count = header[NUM_ENVS], indices.shape[0]
    flags = view(data, len(data) - 2 * count, 2 * count, np.uint8)
    over = header[LANES + OVER * num_envs : LANES + (OVER + 1) * num_envs].copy()
    for j in range(indices.shape[0]):
        lane = indices[j] % num_envs if num_envs > 1 else 0
        begins[j] = over[lane] != 0
        over[lane] = flags[j] | flags[count + j]


@jit
def rebuild_tables(header, rows, tables, starts):
    """Rebuild the episode tables from the rows' end flags and the first index of each lane's oldest episode."""
    num_envs, row_bytes, capacity = header[NUM_ENVS], header[ROW_BYTES], rows.shape[0] // header[ROW_BYTES]
    for e in range(num_envs):
        newest, episode = header[LANES + CURSOR * num_envs + e] - 1, header[LANES + EPISODE * num_envs + e]
        for step in range(newest, header[LANES + e] - 1, -1):
            index = step * num_envs + e
            slot = index % capacity
            ends = rows[slot * row_bytes + header[END]] != 0
            if ends and step < newest:
                tables[STARTS, episode % capacity] = index + num_envs
                episode -= num_envs
            if ends or step == newest:
                tables[STOPS, episode % capacity] = index
            tables[NUMBER, slot], tables[STARTS, episode % capacity] = episode, starts[e]


@jit
def episodes_at(indices, bounds, tables, capacity, found):
    """Write the episode number of each index, and the episode's first and last index, to `found` (3, B).

    All three are -1 for the index -1. Returns the position of the first other index that is not stored, or -1.
    """
    num_envs = bounds.shape[1]
    for i in range(indices.shape[0]):
        index = indices[i]
        if index == -1:
            for k in range(3):
                found[k, i] = -1
            continue
        lane, step = index % num_envs, index // num_envs
        if step < bounds[FIRST, lane] or step >= bounds[CURSOR, lane]:
            return i
        number = tables[NUMBER, index % capacity]
        place = number % capacity
        found[0, i], found[1, i], found[2, i] = number, tables[STARTS, place], tables[STOPS, place]
    return -1
