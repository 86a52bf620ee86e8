"""Kernels of the ring and its lanes.

Index i belongs to lane ``i % num_envs``, is that lane's step number ``i // num_envs``, is followed in its lane by ``i
+ num_envs`` and lives in slot ``i % capacity``. Lane e holds the steps from ``bounds[FIRST, e]`` up to, and without,
``bounds[CURSOR, e]``.
"""

import math

import numpy as np

from replaykit._kernels.jit import jit, piece, prefetch

CHUNK = 64
"""Rows that a gather takes apart at a time."""
FIRST, CURSOR = 0, 1
NO_ROW = -1
"""Stands for the place in a row of a field that is in none."""


@jit
def slots_of(indices, bounds, capacity, slots):
    """Slots of living indices; -1 if all are, else the position of the first that is not."""
    num_envs = bounds.shape[1]
    if num_envs == 1:  # without a division: a living index is at most one lap behind
        oldest, stop = bounds[FIRST, 0], bounds[CURSOR, 0]
        lap = stop // capacity * capacity
        for i in range(indices.shape[0]):
            index = indices[i]
            if index < oldest or index >= stop:
                return i
            slots[i] = index - lap if index >= lap else index - lap + capacity
        return -1
    for i in range(indices.shape[0]):
        index = indices[i]
        if index < 0:
            return i
        lane, step = index % num_envs, index // num_envs
        if step < bounds[FIRST, lane] or step >= bounds[CURSOR, lane]:
            return i
        slots[i] = index % capacity
    return -1


@jit
def living(indices, errors, limit, eps, bounds, capacity, slots, kept):
    """Slots and ``abs(error) + eps`` of the indices that are not stale, in order, and how many they are.

    Returns ``-1 - i`` where entry i was never issued or its error is not a number of at most `limit` in magnitude.
    """
    num_envs = bounds.shape[1]
    count = 0
    for i in range(indices.shape[0]):
        index = indices[i]
        size = abs(errors[i])
        if index < 0 or not size <= limit:
            return -1 - i
        lane = index % num_envs if num_envs > 1 else 0
        step = index // num_envs if num_envs > 1 else index
        if step >= bounds[CURSOR, lane]:
            return -1 - i
        if step >= bounds[FIRST, lane]:
            slots[count] = index % capacity
            kept[count] = size + eps
            count += 1
    return count


@jit
def indices_of(slots, bounds, capacity, indices):
    """The newest index issued in each slot."""
    num_envs = bounds.shape[1]
    length = capacity // num_envs
    seam = bounds[CURSOR, 0] % length
    lap = bounds[CURSOR, 0] - seam
    for i in range(slots.shape[0]):
        slot = np.int64(slots[i])
        if num_envs == 1:
            indices[i] = lap + slot if slot < seam else lap - length + slot
        else:
            lane, row = slot % num_envs, slot // num_envs
            seam = bounds[CURSOR, lane] % length
            lap = bounds[CURSOR, lane] - seam
            step = lap + row if row < seam else lap - length + row
            indices[i] = step * num_envs + lane


@jit
def announce(rows, row_bytes, slot):
    """Start to load a row: it arrives while other work is done."""
    start = slot * row_bytes
    for byte in range(start, start + row_bytes - 1, 64):
        prefetch(rows, byte)
    prefetch(rows, start + row_bytes - 1)


@jit
def uniform(uniforms, bounds, rows, row_bytes, indices):
    """The ``floor(u N)``-th living index for each u in [0, 1), N the number of them; its row starts to be loaded.

    While all lanes hold the same steps, living indices are contiguous and are counted in the order of their
    slots where the ring is full; otherwise lane by lane. Returns N.
    """
    num_envs = bounds.shape[1]
    capacity = rows.shape[0] // row_bytes
    total = 0
    in_step = True
    for lane in range(num_envs):
        total += bounds[CURSOR, lane] - bounds[FIRST, lane]
        in_step &= bounds[FIRST, lane] == bounds[FIRST, 0] and bounds[CURSOR, lane] == bounds[CURSOR, 0]
    if in_step:
        start = bounds[FIRST, 0] * num_envs
        begin = start % capacity
        turn = begin if total == capacity else 0
        for i in range(uniforms.shape[0]):
            offset = int(uniforms[i] * total) - turn
            offset += capacity if offset < 0 else 0
            indices[i] = start + offset
            announce(rows, row_bytes, begin + offset - (capacity if begin + offset >= capacity else 0))
        return total
    for i in range(uniforms.shape[0]):
        rank = int(uniforms[i] * total)
        lane = 0
        while rank >= bounds[CURSOR, lane] - bounds[FIRST, lane]:
            rank -= bounds[CURSOR, lane] - bounds[FIRST, lane]
            lane += 1
        indices[i] = (bounds[FIRST, lane] + rank) * num_envs + lane
    return total


@jit
def gather(rows, row_bytes, indices, bounds, plan, block):
    """Copy fields of the packed rows of living `indices` to their segments of `block`.

    The columns of `plan` are the fields: the place of each in the row, and its bytes. Returns -1, or the position of
    the first index that is not stored; then the block is worth nothing.
    """
    slots = np.empty(indices.shape[0], np.int64)
    wrong = slots_of(indices, bounds, rows.shape[0] // row_bytes, slots)
    if wrong < 0:
        copy_fields(rows, row_bytes, slots, plan[0], plan[1], segments(plan[1], indices.shape[0]), block)
    return wrong


@jit
def segments(sizes, count):
    """Where in a block the segment of each field starts, `count` times its size long: at a multiple of 64 bytes."""
    starts = np.empty(sizes.shape[0], np.int64)
    start = 0
    for field in range(sizes.shape[0]):
        starts[field] = start
        start += (count * sizes[field] + 63) // 64 * 64
    return starts


@jit
def copy_fields(rows, row_bytes, slots, sources, sizes, starts, block):
    """Field f takes `sizes[f]` bytes from byte `sources[f]` of each row, to ``block[starts[f]]`` on; none if negative.

    Only bytes are moved, in the largest words that fit, so one compiled function serves every dtype. Rows are fetched
    64 at a time, one random read after another, and then taken apart in the cache.
    """
    chunk = np.empty(CHUNK * row_bytes, np.uint8)
    rows8 = piece(rows, 0, rows.shape[0] // 8, np.uint64)
    chunk8 = piece(chunk, 0, chunk.shape[0] // 8, np.uint64)
    chunk4 = piece(chunk, 0, chunk.shape[0] // 4, np.uint32)
    block4 = piece(block, 0, block.shape[0] // 4, np.uint32)
    for begin in range(0, slots.shape[0], CHUNK):
        count = min(CHUNK, slots.shape[0] - begin)
        _fetch(rows8, row_bytes // 8, slots[begin : begin + count], chunk8)
        for field in range(sources.shape[0]):
            source, size = sources[field], sizes[field]
            if source < 0:
                continue
            to = starts[field] + begin * size
            if source % 4 == 0 and size % 4 == 0:
                _take_apart(chunk4, row_bytes // 4, count, source // 4, size // 4, block4, to // 4)
            else:
                _take_apart(chunk, row_bytes, count, source, size, block, to)


@jit
def store(data, steps, bounds, rows, row_bytes, ended, plan, flags, indices):
    """Store as many steps of every lane, lanes that are in step; at most as many as a lane has slots.

    `data` holds field after field, in the order of the columns of `plan`: their places in the row, and their bytes.
    `flags` are the numbers of the two fields that end an episode. First the oldest steps are retired, then the new are
    written, and then they are published.
    """
    num_envs, capacity, count = bounds.shape[1], ended.shape[0], indices.shape[0]
    begin = bounds[CURSOR, 0] * num_envs
    first = max(bounds[FIRST, 0], bounds[CURSOR, 0] + steps - capacity // num_envs)
    for lane in range(num_envs):
        bounds[FIRST, lane] = first
    values, head = np.frombuffer(data, np.uint8), begin % capacity
    values4 = piece(values, 0, values.shape[0] // 4, np.uint32)
    rows4 = piece(rows, 0, rows.shape[0] // 4, np.uint32)
    starts = np.zeros(plan.shape[1] + 1, np.int64)
    for field in range(plan.shape[1]):
        starts[field + 1] = starts[field] + count * plan[1, field]
    done = 0
    while done < count:  # once, and again past the seam
        slot = (head + done) % capacity
        part = min(count - done, capacity - slot)
        for field in range(plan.shape[1]):
            place, size = plan[0, field], plan[1, field]
            start = starts[field] + done * size
            if place % 4 == 0 and size % 4 == 0 and start % 4 == 0:
                _put_together(values4, start // 4, part, size // 4, rows4, row_bytes // 4, slot, place // 4)
            else:
                _put_together(values, start, part, size, rows, row_bytes, slot, place)
        terminated, truncated = starts[flags[0]] + done, starts[flags[1]] + done
        for i in range(part):
            ended[slot + i] = (values[terminated + i] | values[truncated + i]) != 0
        done += part
    for i in range(count):
        indices[i] = begin + i
    for lane in range(num_envs):
        bounds[CURSOR, lane] += steps


# Indices are made unsigned below: for a signed one, each access would first ask whether it counts from the end.


@jit
def _fetch(rows, words, slots, chunk):
    """Copy the rows of `slots`, of `words` words each, one after another."""
    size = np.uint64(words)
    for i in range(slots.shape[0]):
        out_of, to = np.uint64(slots[i]) * size, np.uint64(i) * size
        for k in range(words):
            chunk[to + np.uint64(k)] = rows[out_of + np.uint64(k)]


@jit
def _take_apart(chunk, stride, count, source, words, block, to):
    """Copy `words` words of each row of a chunk; word by word where they are few, as a short inner loop costs more."""
    step, size = np.uint64(stride), np.uint64(words)
    if words <= 4:
        for k in range(words):
            out_of, into = np.uint64(source + k), np.uint64(to + k)
            for i in range(count):
                block[into + np.uint64(i) * size] = chunk[out_of + np.uint64(i) * step]
    else:
        for i in range(count):
            out_of, into = np.uint64(source) + np.uint64(i) * step, np.uint64(to) + np.uint64(i) * size
            for k in range(words):
                block[into + np.uint64(k)] = chunk[out_of + np.uint64(k)]


@jit
def _put_together(values, start, count, words, rows, stride, slot, place):
    """Copy `words` words for each of `count` rows from `slot` on, to `place` in the row; the reverse of the above."""
    step, size = np.uint64(stride), np.uint64(words)
    if words <= 4:
        for k in range(words):
            out_of, into = np.uint64(start + k), np.uint64(slot * stride + place + k)
            for i in range(count):
                rows[into + np.uint64(i) * step] = values[out_of + np.uint64(i) * size]
    else:
        for i in range(count):
            out_of, into = np.uint64(start) + np.uint64(i) * size, np.uint64(slot + i) * step + np.uint64(place)
            for k in range(words):
                rows[into + np.uint64(k)] = values[out_of + np.uint64(k)]


@jit
def window(indices, bounds, rewards, ended, reward, length):
    """Rewards (B, n) and lengths of the windows that start at living `indices` and end with their episode.

    One step of all windows after another, so that the random reads of a step overlap. Rewards past the end of
    a window are 0. Returns -1, or the position of the first index that is not stored.
    """
    num_envs, capacity = bounds.shape[1], ended.shape[0]
    batch_size, n_step = reward.shape
    slots = np.empty(batch_size, np.int64)
    wrong = slots_of(indices, bounds, capacity, slots)
    if wrong >= 0:
        return wrong
    for i in range(batch_size):
        reward[i, 0] = rewards[slots[i]]
        length[i] = 1
    for k in range(1, n_step):
        for i in range(batch_size):
            reward[i, k] = 0.0
            lane = indices[i] % num_envs if num_envs > 1 else 0
            if length[i] == k and not ended[slots[i]] and indices[i] + k * num_envs < bounds[CURSOR, lane] * num_envs:
                slots[i] += num_envs
                if slots[i] >= capacity:
                    slots[i] -= capacity
                reward[i, k] = rewards[slots[i]]
                length[i] = k + 1
    return -1


@jit
def n_step_return(reward, length, powers, total):
    """Sum of ``powers[k] * reward[:, k]`` over each window, added in the order of the steps, in float64."""
    for i in range(total.shape[0]):
        value = 0.0
        for k in range(length[i]):
            value += powers[k] * reward[i, k]
        total[i] = value


@jit
def note_episodes(bounds, synced, ended, over, latest, tables):
    """Bring the episode tables up to the newest step, each new step of each lane once.

    Of `tables` the first row has the episode's number for each slot, the others have the first and the last step of
    each episode. The e-th episode of a lane has number ``e * num_envs + lane``, and its place in these rows is its
    number modulo the capacity: no more episodes than steps can be alive. `latest` is the number of each lane's newest
    episode. A step begins another where the one before it ended: `over` tells so of the last step seen, which may
    have been overwritten since, and its row tells what was said of it since.
    """
    num_envs, capacity = bounds.shape[1], ended.shape[0]
    number, starts, ends = tables[0], tables[1], tables[2]
    for lane in range(num_envs):
        before = synced[lane] - 1
        first, cursor = bounds[FIRST, lane], bounds[CURSOR, lane]
        begins = over[lane] or (before >= first and ended[(before * num_envs + lane) % capacity])
        index = max(synced[lane], first) * num_envs + lane
        slot, episode, place = index % capacity, latest[lane], latest[lane] % capacity
        for _ in range(max(synced[lane], first), cursor):
            if begins:
                episode += num_envs
                place = episode % capacity
                starts[place] = index
            number[slot] = episode
            ends[place] = index
            begins = ended[slot]
            index += num_envs
            slot += num_envs
            if slot >= capacity:
                slot -= capacity
        latest[lane] = episode
        synced[lane] = cursor
        over[lane] = begins


@jit
def pick(indices, uniforms, scope, bounds, tables, picked):
    """The ``floor(u M)``-th of the M steps that are allowed to each living index, for its u in [0, 1).

    By `scope`, of the index's episode: 0, the index and all that follow; 1, the last; 2, all that are stored. Returns
    -1, or the position of the first index that is not stored.
    """
    num_envs, capacity = bounds.shape[1], tables.shape[1]
    number, starts, ends = tables[0], tables[1], tables[2]
    slots = np.empty(indices.shape[0], np.int64)
    wrong = slots_of(indices, bounds, capacity, slots)
    if wrong >= 0:
        return wrong
    for i in range(indices.shape[0]):
        episode = number[slots[i]]
        if episode >= capacity:  # a division takes longer than the rest
            episode %= capacity
        last = ends[episode]
        if scope == 0:
            begin = indices[i]
        elif scope == 1:
            begin = last
        else:
            lane = indices[i] % num_envs
            begin = max(starts[episode], bounds[FIRST, lane] * num_envs + lane)
        allowed = (last - begin if num_envs == 1 else (last - begin) // num_envs) + 1
        picked[i] = begin + int(uniforms[i] * allowed) * num_envs
    return -1


@jit
def first_not_finite(values):
    """The position of the first value that is infinite or no number, -1 if there is none."""
    for i in range(values.shape[0]):
        if not math.isfinite(values[i]):
            return i
    return -1


@jit
def put(values, places, into):
    """Put values at places."""
    for j in range(values.shape[0]):
        into[places[j]] = values[j]
