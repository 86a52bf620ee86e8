"""Kernels of an order by priority, which quickly finds the entry of a rank and the rank of an entry.

An entry is an index with its priority. Entries are ordered by priority, largest first. Among equal priorities, the
larger index, which is the newer transition of a lane, comes first. `keys` and `members` hold the priorities and the
indices in blocks of up to SPAN entries. Inserting or removing an entry therefore moves only the entries of one block.

In `table`, DIRECTORY has the blocks in their order, followed by the free ones, and PLACE is its inverse. COUNT is the
number of entries of each block. SUM is a Fenwick tree of these numbers in directory order, which counts ranks. The
block in place k has the entries from its limit, with the priority ``limits[k]`` and the index ``LIMIT[k]``, up to the
limit of the next block. HEADER contains the numbers USED to TOP. For example, with SPAN = 4::

    priority      9    7  |  7    4    2  |  1         rank of (4, index 3): 2 entries of the blocks before it,
    index         5    8  |  6    3    9  |  0                               and the second of its own: 4
    limit                  (7, 6)          (1, 0)

A full block is split in two. Two neighboring blocks whose entries fit into three quarters of a block are joined. There
are therefore at most ``8 N / (3 SPAN) + 1`` blocks. If the order is STALE, priorities of slots have changed since it
was built, and it must be rebuilt.
"""

import numpy as np

from replaykit._kernels.jit import inlined, jit, prefetch
from replaykit._kernels.lanes import indices_of

DIRECTORY, PLACE, COUNT, SUM, LIMIT, HEADER = 0, 1, 2, 3, 4, 5
ROWS = 6
USED, SIZE, STALE, SPAN, TOP = 0, 1, 2, 3, 4
HEADERS = 5
FEW = 8
"""This many changes, plus one for every eighth entry, are made one by one. With more changes, the order is rebuilt."""
AHEAD, LINE = 16, 8
"""Number of updates whose blocks are prefetched, and of numbers in a cache line."""
SMALLEST_PROBABILITY = 2.2250738585072014e-308


@inlined
def precedes(priority, index, other_priority, other_index):
    """Whether an entry comes before another."""
    return priority > other_priority or (priority == other_priority and index > other_index)


@jit
def place_of(table, limits, priority, index):
    """The place in the directory of the block that an entry belongs to."""
    low, high = 0, table[HEADER, USED]
    while high - low > 1:
        middle = (low + high) // 2
        if precedes(priority, index, limits[middle], table[LIMIT, middle]):
            high = middle
        else:
            low = middle
    return low


@jit
def offset_of(keys, members, start, stop, priority, index):
    """The position of the first entry in [start, stop) that does not precede this one."""
    while start < stop:
        middle = (start + stop) // 2
        if precedes(keys[middle], members[middle], priority, index):
            start = middle + 1
        else:
            stop = middle
    return start


@jit
def count_one(table, place, change):
    """Change the number of entries of the block at a place by 1 or -1."""
    block, node = table[DIRECTORY, place], place + 1
    table[COUNT, block] += change
    table[HEADER, SIZE] += change
    while node < table.shape[1]:
        table[SUM, node] += change
        node += node & -node


@jit
def count_all(table, begin):
    """Record the places of the blocks from place `begin` on, and recompute all sums."""
    used, nodes = table[HEADER, USED], table.shape[1]
    for place in range(begin, used):
        table[PLACE, table[DIRECTORY, place]] = place
    for node in range(1, nodes):
        table[SUM, node] = table[COUNT, table[DIRECTORY, node - 1]] if node <= used else 0
    for node in range(1, nodes):
        parent = node + (node & -node)
        if parent < nodes:
            table[SUM, parent] += table[SUM, node]


@jit
def before(table, place):
    """The number of entries of the blocks before a place."""
    total, node = 0, place
    while node > 0:
        total += table[SUM, node]
        node -= node & -node
    return total


@jit
def position_of(table, rank):
    """The position of the entry with a rank, counted from 0."""
    place, step, nodes = 0, table[HEADER, TOP], table.shape[1]
    while step > 0:
        node = place + step
        if node < nodes and table[SUM, node] <= rank:
            place = node
            rank -= table[SUM, node]
        step >>= 1
    return table[DIRECTORY, place] * table[HEADER, SPAN] + rank


@jit
def move(keys, members, blocks, capacity, start, stop, to, block):
    """Move the entries in [start, stop) to the position `to` of another block."""
    for i in range(stop - start):
        index = members[start + i]
        keys[to + i], members[to + i] = keys[start + i], index
        blocks[index % capacity] = block


@jit
def join(table, limits, keys, members, blocks, capacity, place):
    """If the block at `place` and the next one are small, move the entries of the next one to it, and free that one."""
    used, span = table[HEADER, USED], table[HEADER, SPAN]
    if place < 0 or place + 1 >= used:
        return
    kept, freed = table[DIRECTORY, place], table[DIRECTORY, place + 1]
    count, more = table[COUNT, kept], table[COUNT, freed]
    if 4 * (count + more) > 3 * span:
        return
    move(keys, members, blocks, capacity, freed * span, freed * span + more, kept * span + count, kept)
    table[COUNT, kept], table[COUNT, freed] = count + more, 0
    for k in range(place + 1, used - 1):
        table[DIRECTORY, k], table[LIMIT, k], limits[k] = table[DIRECTORY, k + 1], table[LIMIT, k + 1], limits[k + 1]
    table[DIRECTORY, used - 1] = freed
    table[HEADER, USED] = used - 1
    count_all(table, place)


@jit
def split(table, limits, keys, members, blocks, capacity, place):
    """Move the second half of the full block at `place` to a free block after it."""
    used, span = table[HEADER, USED], table[HEADER, SPAN]
    full, free = table[DIRECTORY, place], table[DIRECTORY, used]
    middle = full * span + span // 2
    move(keys, members, blocks, capacity, middle, (full + 1) * span, free * span, free)
    table[COUNT, full], table[COUNT, free] = span // 2, span - span // 2
    for k in range(used, place + 1, -1):
        table[DIRECTORY, k], table[LIMIT, k], limits[k] = table[DIRECTORY, k - 1], table[LIMIT, k - 1], limits[k - 1]
    table[DIRECTORY, place + 1], table[LIMIT, place + 1], limits[place + 1] = free, members[middle], keys[middle]
    table[HEADER, USED] = used + 1
    count_all(table, place)
    join(table, limits, keys, members, blocks, capacity, place + 1)
    join(table, limits, keys, members, blocks, capacity, place - 1)


@jit
def take_out(table, limits, keys, members, blocks, capacity, slot, index):
    """Remove the entry of an index. O(SPAN), occasionally O(blocks)."""
    block = blocks[slot]
    start, place = block * table[HEADER, SPAN], table[PLACE, block]
    position = start + table[COUNT, block] - 1
    key, member = keys[position], members[position]
    while member != index and position > start:
        position -= 1
        key, keys[position] = keys[position], key
        member, members[position] = members[position], member
    count_one(table, place, -1)
    join(table, limits, keys, members, blocks, capacity, place)
    join(table, limits, keys, members, blocks, capacity, place - 1)


@jit
def put_in(table, limits, keys, members, blocks, capacity, slot, index, priority, place):
    """Insert an entry. `place` is a guess of its block, which is checked. O(SPAN), occasionally O(blocks)."""
    used, span = table[HEADER, USED], table[HEADER, SPAN]
    is_right = place == 0 or (place < used and not precedes(priority, index, limits[place], table[LIMIT, place]))
    if is_right and place + 1 < used:
        is_right = precedes(priority, index, limits[place + 1], table[LIMIT, place + 1])
    if not is_right:
        place = place_of(table, limits, priority, index)
    if table[COUNT, table[DIRECTORY, place]] == span:
        split(table, limits, keys, members, blocks, capacity, place)
        place = place_of(table, limits, priority, index)
    block = table[DIRECTORY, place]
    start = block * span
    position = start + table[COUNT, block]
    while position > start and precedes(priority, index, keys[position - 1], members[position - 1]):
        keys[position], members[position] = keys[position - 1], members[position - 1]
        position -= 1
    keys[position], members[position], blocks[slot] = priority, index, block
    count_one(table, place, 1)


@jit
def empty(table):
    """Remove every entry."""
    for block in range(table.shape[1] - 1):
        table[DIRECTORY, block], table[PLACE, block], table[COUNT, block] = block, block, 0
    table[HEADER, USED], table[HEADER, SIZE], table[HEADER, STALE] = 1, 0, 0
    count_all(table, table[HEADER, SIZE])


@jit
def fill(table, limits, keys, members, blocks, capacity, priorities, indices):
    """Fill the order with these indices, which are already sorted. O(N)."""
    empty(table)
    span, count = table[HEADER, SPAN], indices.shape[0]
    each = 3 * span // 4
    for i in range(count):
        block, index = i // each, indices[i]
        position = block * span + i % each
        slot = index % capacity
        keys[position], members[position], blocks[slot] = priorities[slot], index, block
        if position == block * span:
            limits[block], table[LIMIT, block] = keys[position], index
        table[COUNT, block] += 1
    table[HEADER, USED], table[HEADER, SIZE] = max((count + each - 1) // each, 1), count
    count_all(table, count - count)


@jit
def settle(table, limits, keys, members, blocks, priorities, settled, bounds, capacity):
    """Give new steps the largest priority, or 1, and remove retired ones. Returns whether the order is stale.

    `settled` are the bounds for which the order is up to date. They become `bounds`.
    """
    num_envs, length = bounds.shape[1], capacity // bounds.shape[1]
    left, changes, first = 0, 0, 0
    for e in range(num_envs):
        left += max(settled[1, e] - max(settled[0, e], bounds[0, e]), 0)
        changes += bounds[1, e] - settled[1, e] + bounds[0, e] - settled[0, e]
    if changes == 0 or table[HEADER, STALE]:
        return table[HEADER, STALE] == 1
    replaced = False
    for e in range(num_envs):
        replaced |= settled[0, e] < min(settled[1, e], bounds[1, e] - length)
    if left == 0 and not replaced:
        empty(table)
    else:  # remove retired steps whose slots have not been used again
        for e in range(num_envs):
            for step in range(max(settled[0, e], bounds[1, e] - length), min(bounds[0, e], settled[1, e])):
                index = step * num_envs + e
                take_out(table, limits, keys, members, blocks, capacity, index % capacity, index)
    priority = 0.0
    if table[HEADER, SIZE] > 0:
        priority = keys[position_of(table, first)]
    if priority == 0.0:
        priority = 1.0
    stale = changes > FEW + table[HEADER, SIZE] // 8
    table[HEADER, STALE] = stale
    for is_new in range(2):
        for e in range(num_envs):
            begin, stop = settled[0, e], min(settled[1, e], bounds[1, e] - length)
            if is_new:
                begin, stop = max(settled[1, e], bounds[0, e]), bounds[1, e]
            for step in range(begin, stop):
                index = step * num_envs + e
                slot = index % capacity
                if is_new:
                    priorities[slot] = priority
                    if not stale:
                        put_in(table, limits, keys, members, blocks, capacity, slot, index, priority, first)
                elif not stale:
                    take_out(table, limits, keys, members, blocks, capacity, slot, index)
    for e in range(num_envs):
        settled[0, e], settled[1, e] = bounds[0, e], bounds[1, e]
    return stale


@jit
def places_of(table, limits, priorities, indices, places):
    """`place_of` for many entries. They take each step together, so that their memory reads overlap."""
    used, step = table[HEADER, USED], 1
    while 2 * step < used:
        step *= 2
    for i in range(places.shape[0]):
        places[i] = 0
    while step > 0:
        for i in range(places.shape[0]):
            place = places[i] + step
            if place < used and not precedes(priorities[i], indices[i], limits[place], table[LIMIT, place]):
                places[i] = place
        step >>= 1


@inlined
def prefetch_end(table, keys, members, block):
    """Start to load the second half of a block."""
    last = block * table[HEADER, SPAN] + table[COUNT, block] - 1
    for position in range(last, last - table[COUNT, block] // 2, -LINE):
        prefetch(keys, position)
        prefetch(members, position)


@jit
def update(table, limits, keys, members, blocks, priorities, bounds, capacity, slots, values):
    """Set the priorities of slots. The last of several values for a slot counts. Returns whether the order is stale."""
    count = slots.shape[0]
    if count > FEW + table[HEADER, SIZE] // 8:
        table[HEADER, STALE] = 1
        for i in range(count):
            priorities[slots[i]] = values[i]
        return True
    for i in range(count):
        prefetch(blocks, slots[i])
        prefetch(priorities, slots[i])
    indices, places = np.empty(count, np.int64), np.empty(count, np.int64)
    indices_of(slots, bounds, capacity, indices)
    places_of(table, limits, values, indices, places)
    for begin in range(0, count, AHEAD):
        stop = min(begin + AHEAD, count)
        for i in range(begin, stop):
            prefetch_end(table, keys, members, blocks[slots[i]])
            prefetch_end(table, keys, members, table[DIRECTORY, places[i]])
        for i in range(begin, stop):
            slot, index, new = slots[i], indices[i], values[i]
            if priorities[slot] != new:
                take_out(table, limits, keys, members, blocks, capacity, slot, index)
                priorities[slot] = new
                put_in(table, limits, keys, members, blocks, capacity, slot, index, new, places[i])
    return False


@jit
def draw(table, members, masses, points, stratified, alpha, indices, probabilities):
    """Draw indices for B numbers in [0, 1), with their probabilities. ``masses[r]`` is the total of the first r ranks.

    All queries take each step together, so that their memory reads overlap. Overwrites `points`.
    """
    size, batch_size, nodes = table[HEADER, SIZE], points.shape[0], table.shape[1]
    total, step, places = masses[size], 1, np.zeros(batch_size, np.int64)
    for i in range(batch_size):
        points[i] = ((i + points[i]) / batch_size if stratified else points[i]) * total
        indices[i] = 0
    while 2 * step < size:
        step *= 2
    while step > 0:  # find the last rank, from 0, with at most this mass before it
        for i in range(batch_size):
            rank = indices[i] + step
            indices[i] = rank if rank < size and masses[rank] <= points[i] else indices[i]
        step >>= 1
    for i in range(batch_size):
        probabilities[i] = max((indices[i] + 1.0) ** -alpha / total, SMALLEST_PROBABILITY)
    step = table[HEADER, TOP]
    while step > 0:  # as in position_of
        for i in range(batch_size):
            node = places[i] + step
            if node < nodes and table[SUM, node] <= indices[i]:
                places[i] = node
                indices[i] -= table[SUM, node]
        step >>= 1
    for i in range(batch_size):
        indices[i] += table[DIRECTORY, places[i]] * table[HEADER, SPAN]
        prefetch(members, indices[i])
    for i in range(batch_size):
        indices[i] = members[indices[i]]


@jit
def ranks(table, keys, members, blocks, priorities, slots, indices, found):
    """The ranks of stored indices, counted from 1."""
    for i in range(indices.shape[0]):
        block, priority = blocks[slots[i]], priorities[slots[i]]
        start = block * table[HEADER, SPAN]
        position = offset_of(keys, members, start, start + table[COUNT, block], priority, indices[i])
        found[i] = before(table, table[PLACE, block]) + position - start + 1
