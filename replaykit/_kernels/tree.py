"""Kernels of the sum tree.

`nodes` is float64 of length 2P, P a power of two. Leaf i is ``nodes[P + i]``, the children of node k are ``nodes[2k]``
and ``nodes[2k + 1]``, the root is ``nodes[1]``, and ``nodes[0]`` is unused. An inner node is always recomputed as the
sum of its children and never adjusted by a difference. So it is exactly 0 if and only if all leaves under it are 0.

`extremes` keeps track of the largest and the smallest leaf. ``[MAX]`` and ``[MIN]`` bound every positive leaf from
above and from below. Unless ``[MAX_LOOSE]`` or ``[MIN_LOOSE]`` is 1, a leaf has this value. From BLOCKS on, there is an
upper bound for each block of leaves, and then a flag for each block: 1 if possibly no leaf has the value of the bound.
"""

import math

import numpy as np

from replaykit._kernels.jit import jit
from replaykit._kernels.lanes import indices_of, slots_of

MAX, MAX_LOOSE, MIN, MIN_LOOSE, BLOCKS = 0, 1, 2, 3, 4
STRATIFIED, IID = 0, 1
ONE = np.uint64(1)  # indices are unsigned: with a signed index, each access first checks whether it is negative
SMALLEST_PROBABILITY = 2.2250738585072014e-308


@jit
def find(nodes, masses, cursors):
    """Find the leaves at which the running sum first exceeds each mass. They are written to `cursors`.

    Overwrites `masses`. All queries descend one level together, so that their memory reads overlap.
    """
    size = nodes.shape[0] // 2
    for i in range(masses.shape[0]):
        cursors[i] = 1
    level = 1
    while level < size:
        for i in range(masses.shape[0]):
            child = np.uint64(cursors[i]) << ONE
            left = nodes[child]
            goes_right = masses[i] >= left
            masses[i] -= left * goes_right
            cursors[i] = child + np.uint64(goes_right)
        level *= 2
    for i in range(masses.shape[0]):
        if nodes[np.uint64(cursors[i])] == 0.0:
            cursors[i] = _last_positive_before(nodes, cursors[i])
        cursors[i] -= size


@jit
def _last_positive_before(nodes, cursor):
    """The last positive leaf before this leaf of value 0, which a query reached because a sum was rounded up."""
    size, node = nodes.shape[0] // 2, cursor
    while node > 1 and (node % 2 == 0 or nodes[node - 1] == 0.0):
        node //= 2
    if node <= 1:  # no positive leaf before it: the query was outside [0, total)
        return cursor
    node -= 1
    while node < size:
        node = 2 * node + (nodes[2 * node + 1] > 0.0)
    return node


@jit
def draw(nodes, uniforms, scheme, cursors, probabilities):
    """Draw leaves into `cursors`, with their probabilities, for B numbers in [0, 1).

    STRATIFIED draws one point in each of B equal parts of the total, IID draws each point from the whole.
    """
    total, size, count = nodes[1], nodes.shape[0] // 2, uniforms.shape[0]
    masses = np.empty(count, np.float64)
    for i in range(count):
        masses[i] = (i + uniforms[i]) / count * total if scheme == STRATIFIED else uniforms[i] * total
    find(nodes, masses, cursors)
    for i in range(count):  # a drawn leaf has a positive probability even if the quotient underflows
        probabilities[i] = max(nodes[size + cursors[i]] / total, SMALLEST_PROBABILITY)


@jit
def assign(nodes, extremes, leaves, values):
    """Set `leaves` to `values` in order (the last duplicate wins), then recompute their ancestors level by level.

    A parent equal to the previous one is skipped. This saves time if leaves are sorted, as in a stratified draw: they
    share most of their ancestors. Levels with few nodes are recomputed completely.
    """
    size, count = nodes.shape[0] // 2, leaves.shape[0]
    maxima, loose, shift = _blocks(nodes, extremes)
    touched = np.empty(count, np.int64)
    for i in range(count):
        leaf, new = np.uint64(leaves[i]), values[i]
        node = leaf + np.uint64(size)
        old = nodes[node]
        nodes[node], touched[i] = new, node
        block = leaf >> np.uint64(shift)
        if new >= maxima[block]:
            maxima[block], loose[block] = new, 0.0
        elif old == maxima[block]:
            loose[block] = 1.0
        _note(extremes, old, new)
    while size > 4 * count:
        kept, previous = np.uint64(0), np.uint64(0)
        for i in range(count):
            parent = np.uint64(touched[i]) >> ONE
            touched[kept] = parent
            kept += np.uint64(parent != previous)
            previous = parent
        count = int(kept)
        for i in range(count):
            parent = np.uint64(touched[i])
            child = parent << ONE
            nodes[parent] = nodes[child] + nodes[child + ONE]
        size >>= 1
    for k in range(size - 1, 0, -1):
        nodes[k] = nodes[2 * k] + nodes[2 * k + 1]


@jit
def fill(nodes, extremes, start, stop, value):
    """Set the leaves in [start, stop) to one value and recompute their ancestors. About two additions per leaf."""
    if stop <= start:
        return
    size, (maxima, loose, shift) = nodes.shape[0] // 2, _blocks(nodes, extremes)
    for leaf in range(start, stop):
        old, block = nodes[size + leaf], leaf >> shift
        nodes[size + leaf] = value
        if old == maxima[block]:
            loose[block] = 1.0
        _note(extremes, old, value)
    for block in range(start >> shift, ((stop - 1) >> shift) + 1):
        if value >= maxima[block]:
            maxima[block], loose[block] = value, 0.0
    low, high = size + start, size + stop - 1
    while low > 1:
        low, high = low >> 1, high >> 1
        for parent in range(low, high + 1):
            nodes[parent] = nodes[2 * parent] + nodes[2 * parent + 1]


@jit
def _note(extremes, old, new):
    """Update the two bounds for a leaf that changes from `old` to `new`."""
    if new >= extremes[MAX]:
        extremes[MAX], extremes[MAX_LOOSE] = new, 0.0
    elif old == extremes[MAX]:
        extremes[MAX_LOOSE] = 1.0
    if 0.0 < new <= extremes[MIN]:
        extremes[MIN], extremes[MIN_LOOSE] = new, 0.0
    elif old == extremes[MIN]:
        extremes[MIN_LOOSE] = 1.0


@jit
def _blocks(nodes, extremes):
    """The bounds of the blocks, the flags of the bounds, and log2 of the number of leaves in a block."""
    count, shift = (extremes.shape[0] - BLOCKS) // 2, 0
    while (count << shift) < nodes.shape[0] // 2:  # both are powers of two
        shift += 1
    return extremes[BLOCKS : BLOCKS + count], extremes[BLOCKS + count :], shift


@jit
def _place_of_largest(values, start, stop):
    """The position of the first largest value in [start, stop)."""
    best = start
    for i in range(start + 1, stop):
        if values[i] > values[best]:
            best = i
    return best


@jit
def largest(nodes, extremes):
    """The largest leaf; 0 in an empty tree. O(sqrt C), unless every block has just lost its largest leaf."""
    size, (maxima, loose, shift) = nodes.shape[0] // 2, _blocks(nodes, extremes)
    begin = size - size  # a literal 0 would make Numba compile the called kernel again
    while extremes[MAX_LOOSE] != 0.0:
        best = _place_of_largest(maxima, begin, maxima.shape[0])
        if loose[best] == 0.0:
            extremes[MAX], extremes[MAX_LOOSE] = maxima[best], 0.0
        else:
            start = size + (best << shift)
            maxima[best], loose[best] = nodes[_place_of_largest(nodes, start, start + (1 << shift))], 0.0
    return extremes[MAX]


@jit
def smallest(nodes, extremes):
    """The smallest positive leaf; inf in an empty tree. O(C) only after the leaf that held it has changed."""
    if extremes[MIN_LOOSE] != 0.0:
        least = math.inf
        for leaf in range(nodes.shape[0] // 2, nodes.shape[0]):
            if 0.0 < nodes[leaf] < least:
                least = nodes[leaf]
        extremes[MIN], extremes[MIN_LOOSE] = least, 0.0
    return extremes[MIN]


@jit
def settle(nodes, extremes, settled, bounds, capacity):
    """Give new steps the largest value of all leaves, or 1. Set steps that were retired and not replaced to 0.

    `settled` are the bounds for which the leaves are up to date. They become `bounds`.
    """
    num_envs, length = bounds.shape[1], capacity // bounds.shape[1]
    together, is_settled = True, True
    for e in range(num_envs):
        together &= bounds[0, e] == bounds[0, 0] and bounds[1, e] == bounds[1, 0]
        together &= settled[0, e] == settled[0, 0] and settled[1, e] == settled[1, 0]
        is_settled &= bounds[0, e] == settled[0, e] and bounds[1, e] == settled[1, e]
    if is_settled:
        return
    value, width = 0.0, num_envs if together else 1
    for is_new in range(2):  # one call of fill, so that it is compiled once
        if is_new:
            value = largest(nodes, extremes) or 1.0
        for e in range(1 if together else num_envs):
            begin, stop = max(settled[0, e], bounds[1, e] - length), bounds[0, e]
            if is_new:
                begin, stop = max(settled[1, e], bounds[0, e]), bounds[1, e]
            while begin < stop:  # a run of consecutive slots at a time
                slot = (begin * num_envs + e) % capacity
                steps = min(stop - begin, (capacity - slot) // num_envs) if together else 1
                fill(nodes, extremes, slot, slot + steps * width, value)
                begin += steps
    for e in range(num_envs):
        settled[0, e], settled[1, e] = bounds[0, e], bounds[1, e]


@jit
def proportional_draw(nodes, extremes, settled, points, scheme, bounds, capacity, slots, indices, probabilities):
    """`settle`, then draw stored indices. Overwrites `points` with the probabilities divided by the least of them."""
    settle(nodes, extremes, settled, bounds, capacity)
    draw(nodes, points, scheme, slots, probabilities)
    least = math.inf
    for i in range(points.shape[0]):
        least = min(least, probabilities[i])
    for i in range(points.shape[0]):
        points[i] = probabilities[i] / least
    indices_of(slots, bounds, capacity, indices)


@jit
def proportional_shares(nodes, extremes, settled, bounds, capacity, indices, shares):
    """`settle`, then compute the probabilities of indices. Returns the position of the first not stored, or -1."""
    slots, size = np.empty(indices.shape[0], np.int64), nodes.shape[0] // 2
    wrong = slots_of(indices, bounds, capacity, slots)
    if wrong < 0:
        settle(nodes, extremes, settled, bounds, capacity)
        for i in range(indices.shape[0]):
            shares[i] = nodes[size + slots[i]] / nodes[1] if nodes[1] > 0.0 else 0.0
    return wrong


@jit
def update(nodes, extremes, settled, bounds, capacity, leaves, values):
    """`settle`, then set leaves."""
    settle(nodes, extremes, settled, bounds, capacity)
    assign(nodes, extremes, leaves, values)
