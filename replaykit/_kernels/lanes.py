"""Kernels of the ring and its lanes.

Index i belongs to lane ``i % num_envs``, is that lane's step number ``i // num_envs``, is followed in its lane
by ``i + num_envs`` and lives in slot ``i % capacity``. Lane e holds the steps in ``[first[e], cursor[e])``.
"""

import math

import numpy as np

from replaykit._kernels.jit import jit, prefetch

CHUNK = 64
"""Rows that a gather takes apart at a time."""
DISCOUNT, LENGTH, WEIGHT, SHARE, INDICES = -1, -2, -3, -4, -5
"""Fields of a batch that are in no row: gamma or 0 where terminated, 1, 1, the share of each, and the indices."""


@jit
def slots_of(indices, first, cursor, capacity, slots):
    """Slots of living indices; -1 if all are, else the position of the first that is not."""
    num_envs = first.shape[0]
    if num_envs == 1:  # without a division: a living index is at most one lap behind
        oldest, stop = first[0], cursor[0]
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
        if step < first[lane] or step >= cursor[lane]:
            return i
        slots[i] = index % capacity
    return -1


@jit
def living(indices, errors, limit, eps, first, cursor, capacity, slots, kept):
    """Slots and ``abs(error) + eps`` of the indices that are not stale, in order, and how many they are.

    Returns ``-1 - i`` where entry i was never issued or its error is not a number of at most `limit` in magnitude.
    """
    num_envs = first.shape[0]
    count = 0
    for i in range(indices.shape[0]):
        index = indices[i]
        size = abs(errors[i])
        if index < 0 or not size <= limit:
            return -1 - i
        lane = index % num_envs if num_envs > 1 else 0
        step = index // num_envs if num_envs > 1 else index
        if step >= cursor[lane]:
            return -1 - i
        if step >= first[lane]:
            slots[count] = index % capacity
            kept[count] = size + eps
            count += 1
    return count


@jit
def indices_of(slots, cursor, rows, row_bytes, indices):
    """The newest index issued in each slot; its row will be gathered soon and starts to be loaded."""
    num_envs = cursor.shape[0]
    length = rows.shape[0] // row_bytes // num_envs
    seam = cursor[0] % length
    lap = cursor[0] - seam
    for i in range(slots.shape[0]):
        slot = np.int64(slots[i])
        _announce(rows, row_bytes, slot)
        if num_envs == 1:
            indices[i] = lap + slot if slot < seam else lap - length + slot
        else:
            lane, row = slot % num_envs, slot // num_envs
            seam = cursor[lane] % length
            lap = cursor[lane] - seam
            step = lap + row if row < seam else lap - length + row
            indices[i] = step * num_envs + lane


@jit
def _announce(rows, row_bytes, slot):
    """Start to load a row: it arrives while other work is done."""
    start = slot * row_bytes
    for byte in range(start, start + row_bytes - 1, 64):
        prefetch(rows, byte)
    prefetch(rows, start + row_bytes - 1)


@jit
def uniform(uniforms, first, cursor, rows, row_bytes, indices):
    """The ``floor(u N)``-th living index for each u in [0, 1), N the number of them; its row starts to be loaded.

    While all lanes hold the same steps, living indices are contiguous and are counted in the order of their
    slots where the ring is full; otherwise lane by lane. Returns N.
    """
    num_envs = first.shape[0]
    capacity = rows.shape[0] // row_bytes
    total = 0
    in_step = True
    for lane in range(num_envs):
        total += cursor[lane] - first[lane]
        in_step &= first[lane] == first[0] and cursor[lane] == cursor[0]
    if in_step:
        start = first[0] * num_envs
        begin = start % capacity
        turn = begin if total == capacity else 0
        for i in range(uniforms.shape[0]):
            offset = int(uniforms[i] * total) - turn
            offset += capacity if offset < 0 else 0
            indices[i] = start + offset
            _announce(rows, row_bytes, begin + offset - (capacity if begin + offset >= capacity else 0))
        return total
    for i in range(uniforms.shape[0]):
        rank = int(uniforms[i] * total)
        lane = 0
        while rank >= cursor[lane] - first[lane]:
            rank -= cursor[lane] - first[lane]
            lane += 1
        indices[i] = (first[lane] + rank) * num_envs + lane
    return total


@jit
def gather(rows, row_bytes, indices, first, cursor, sources, sizes, block):
    """Copy fields of the packed rows of living `indices` to consecutive segments of `block`, one segment a field.

    Returns -1, or the position of the first index that is not stored; then the block is worth nothing.
    """
    slots = np.empty(indices.shape[0], np.int64)
    wrong = slots_of(indices, first, cursor, rows.shape[0] // row_bytes, slots)
    if wrong < 0:
        _copy_fields(rows, row_bytes, slots, sources, sizes, block)
    return wrong


@jit
def uniform_batch(uniforms, first, cursor, rows, row_bytes, sources, sizes, flag, gamma, block):
    """As `uniform`, and then `gather`, with the fields that a batch of single steps has besides."""
    indices, slots = np.empty(uniforms.shape[0], np.int64), np.empty(uniforms.shape[0], np.int64)
    total = uniform(uniforms, first, cursor, rows, row_bytes, indices)
    slots_of(indices, first, cursor, rows.shape[0] // row_bytes, slots)
    _copy_fields(rows, row_bytes, slots, sources, sizes, block)
    _derive_fields(indices, sources, sizes, flag, gamma, 1.0 / total, block)


@jit
def batch_of_slots(slots, cursor, rows, row_bytes, sources, sizes, flag, gamma, block):
    """As `indices_of`, and then `gather`, with the fields that a batch of single steps has besides."""
    indices = np.empty(slots.shape[0], np.int64)
    indices_of(slots, cursor, rows, row_bytes, indices)
    _copy_fields(rows, row_bytes, slots, sources, sizes, block)
    _derive_fields(indices, sources, sizes, flag, gamma, 1.0, block)


@jit
def _copy_fields(rows, row_bytes, slots, sources, sizes, block):
    """Field f takes `sizes[f]` bytes from byte `sources[f]` of each row; segments start at multiples of 64 bytes.

    Only bytes are moved, in the largest words that fit, so one compiled function serves every dtype. Rows are fetched
    64 at a time, one random read after another, and then taken apart in the cache.
    """
    chunk = np.empty(CHUNK * row_bytes, np.uint8)
    rows8, chunk8, block8 = rows.view(np.uint64), chunk.view(np.uint64), block.view(np.uint64)
    chunk4, block4 = chunk.view(np.uint32), block.view(np.uint32)
    for begin in range(0, slots.shape[0], CHUNK):
        count = min(CHUNK, slots.shape[0] - begin)
        _fetch(rows8, row_bytes // 8, slots[begin : begin + count], chunk8)
        start = 0
        for field in range(sources.shape[0]):
            source, size = sources[field], sizes[field]
            to = start + begin * size
            start += (slots.shape[0] * size + 63) // 64 * 64
            if source < 0:
                continue
            if source % 8 == 0 and size % 8 == 0:
                _take_apart(chunk8, row_bytes // 8, count, source // 8, size // 8, block8, to // 8)
            elif source % 4 == 0 and size % 4 == 0:
                _take_apart(chunk4, row_bytes // 4, count, source // 4, size // 4, block4, to // 4)
            else:
                _take_apart(chunk, row_bytes, count, source, size, block, to)


@jit
def _derive_fields(indices, sources, sizes, flag, gamma, share, block):
    """Fill the segments of the fields that are in no row, which `sources` tells by negative numbers.

    Field number `flag` is the one that tells where discounts are 0.
    """
    int64, float32, float64 = block.view(np.int64), block.view(np.float32), block.view(np.float64)
    start, ended = 0, np.uint64(0)
    for field in range(sources.shape[0]):
        source, size = sources[field], sizes[field]
        if field == flag:
            ended = np.uint64(start)
        at = np.uint64(start // max(size, 1))
        start += (indices.shape[0] * size + 63) // 64 * 64
        if source >= 0:
            continue
        if source in (INDICES, LENGTH):
            for i in range(indices.shape[0]):
                int64[at + np.uint64(i)] = indices[i] if source == INDICES else 1
            continue
        value = gamma if source == DISCOUNT else share if source == SHARE else 1.0
        for i in range(indices.shape[0]):
            here = 0.0 if source == DISCOUNT and block[ended + np.uint64(i)] else value
            if size == 4:
                float32[at + np.uint64(i)] = here
            else:
                float64[at + np.uint64(i)] = here


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
def window(indices, first, cursor, rewards, ended, reward, length):
    """Rewards (B, n) and lengths of the windows that start at living `indices` and end with their episode.

    One step of all windows after another, so that the random reads of a step overlap. Rewards past the end of
    a window are 0. Returns -1, or the position of the first index that is not stored.
    """
    num_envs, capacity = first.shape[0], ended.shape[0]
    batch_size, n_step = reward.shape
    slots = np.empty(batch_size, np.int64)
    wrong = slots_of(indices, first, cursor, capacity, slots)
    if wrong >= 0:
        return wrong
    for i in range(batch_size):
        reward[i, 0] = rewards[slots[i]]
        length[i] = 1
    for k in range(1, n_step):
        for i in range(batch_size):
            reward[i, k] = 0.0
            lane = indices[i] % num_envs if num_envs > 1 else 0
            if length[i] == k and not ended[slots[i]] and indices[i] + k * num_envs < cursor[lane] * num_envs:
                slots[i] += num_envs
                if slots[i] >= capacity:
                    slots[i] -= capacity
                reward[i, k] = rewards[slots[i]]
                length[i] = k + 1
    return -1


@jit
def n_step(indices, first, cursor, rewards, terminated, ended, powers, reward, discount, length, last):
    """What the windows that start at living `indices` come to, as `window` and `n_step_return` would tell.

    That is n-step returns of at most ``powers.shape[0] - 1`` steps, summed in float64, discounts, lengths, and the
    indices of the last steps. Returns -1, or the position of the first index that is not stored.
    """
    num_envs, capacity = first.shape[0], ended.shape[0]
    count, steps = indices.shape[0], powers.shape[0] - 1
    slots = np.empty(count, np.int64)
    wrong = slots_of(indices, first, cursor, capacity, slots)
    if wrong >= 0:
        return wrong
    for i in range(count):
        lane = indices[i] % num_envs if num_envs > 1 else 0
        stop = cursor[lane] * num_envs
        slot, index, k = np.uint64(slots[i]), indices[i], 1
        value = 0.0
        value += powers[0] * rewards[slot]
        while k < steps and not ended[slot] and index + num_envs < stop:
            index += num_envs
            slot += np.uint64(num_envs)
            if slot >= np.uint64(capacity):
                slot -= np.uint64(capacity)
            value += powers[k] * rewards[slot]
            k += 1
        reward[i] = value
        discount[i] = 0.0 if terminated[slot] else powers[k]
        length[i] = k
        last[i] = index
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
def note_episodes(first, synced, cursor, ended, over, latest, number, starts, ends):
    """Bring the episode tables up to `cursor`, each new step of each lane once.

    The e-th episode of a lane has number ``e * num_envs + lane``, so its row in `starts` and `ends` is its
    number modulo the capacity: no more episodes than steps can be alive. `latest` is the number of each lane's
    newest episode. A step begins another where the one before it ended: `over` tells so of the last step seen, which
    may have been overwritten since, and its row tells what was said of it since.
    """
    num_envs, capacity = first.shape[0], ended.shape[0]
    for lane in range(num_envs):
        before = synced[lane] - 1
        begins = over[lane] or (before >= first[lane] and ended[(before * num_envs + lane) % capacity])
        for step in range(max(synced[lane], first[lane]), cursor[lane]):
            index = step * num_envs + lane
            if begins:
                latest[lane] += num_envs
                starts[latest[lane] % capacity] = index
            number[index % capacity] = latest[lane]
            ends[latest[lane] % capacity] = index
            begins = ended[index % capacity]
        synced[lane] = cursor[lane]
        over[lane] = begins


@jit
def pick(indices, uniforms, scope, first, cursor, number, starts, ends, picked):
    """The ``floor(u M)``-th of the M steps that are allowed to each living index, for its u in [0, 1).

    By `scope`, of the index's episode: 0, the index and all that follow; 1, the last; 2, all that are stored. Returns
    -1, or the position of the first index that is not stored.
    """
    num_envs, capacity = first.shape[0], number.shape[0]
    slots = np.empty(indices.shape[0], np.int64)
    wrong = slots_of(indices, first, cursor, capacity, slots)
    if wrong >= 0:
        return wrong
    for i in range(indices.shape[0]):
        episode = number[slots[i]] % capacity
        last = ends[episode]
        if scope == 0:
            begin = indices[i]
        elif scope == 1:
            begin = last
        else:
            lane = indices[i] % num_envs
            begin = max(starts[episode], first[lane] * num_envs + lane)
        allowed = (last - begin) // num_envs + 1
        picked[i] = begin + int(uniforms[i] * allowed) * num_envs
    return -1


@jit
def first_not_finite(values):
    """The position of the first value that is infinite or no number, -1 if there is none."""
    for i in range(values.shape[0]):
        if not math.isfinite(values[i]):
            return i
    return -1
