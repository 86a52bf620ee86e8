"""Kernels of the sum tree.

`nodes` is float64 of length 2P, P a power of two: leaf i is ``nodes[P + i]``, the children of node k are
``nodes[2k]`` and ``nodes[2k + 1]``, the root is ``nodes[1]`` and ``nodes[0]`` is unused. An inner node is
always recomputed as the sum of its children and never adjusted by a difference, so it is exactly 0 iff all
leaves under it are.

`marks` keeps the extreme leaves cheaply: ``[MAX]`` and ``[MIN]`` bound every positive leaf from above and from below,
and are attained unless ``[MAX_LOOSE]`` or ``[MIN_LOOSE]`` is 1. After these four come the peaks, which bound each
block of leaves from above in the same way, and then as many flags that tell for which blocks the bound may no longer
be attained.
"""

import math

import numpy as np

from replaykit._kernels.jit import jit

MAX, MAX_LOOSE, MIN, MIN_LOOSE, PEAKS = 0, 1, 2, 3, 4
STRATIFIED, IID, SYSTEMATIC = 0, 1, 2
ONE = np.uint64(1)  # indices are unsigned: for a signed one, each access would first ask whether it counts from the end
SMALLEST_PROBABILITY = 2.2250738585072014e-308


@jit
def find(nodes, masses, cursors):
    """Leaves into `cursors` at which the running sum first exceeds each mass; `masses` is consumed.

    All queries go down one level together: their memory reads overlap instead of waiting for each other.
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
    """Last positive leaf before a zero leaf on which a query landed.

    In exact arithmetic none lands there: a query is always less than the node it is in. A sum that was rounded up
    lets the remainder of a mass reach the sum of the right child, and the query then runs off its end; the
    positive leaf that it passed last is the answer.
    """
    size = nodes.shape[0] // 2
    node = cursor
    while node > 1 and (node % 2 == 0 or nodes[node - 1] == 0.0):
        node //= 2
    if node <= 1:  # no positive leaf before it: a query that is no number in [0, total)
        return cursor
    node -= 1
    while node < size:
        node = 2 * node + (nodes[2 * node + 1] > 0.0)
    return node


@jit
def draw(nodes, uniforms, scheme, batch_size, cursors, probabilities):
    """Leaves into `cursors` and their probabilities, for `uniforms` in [0, 1) and a scheme of drawing.

    Stratified: one uniform point in each of B equal parts of the mass. Systematic: the same point in each.
    """
    total = nodes[1]
    masses = np.empty(batch_size, np.float64)
    if scheme == IID:
        for i in range(batch_size):
            masses[i] = uniforms[i] * total
    elif scheme == STRATIFIED:
        for i in range(batch_size):
            masses[i] = (i + uniforms[i]) / batch_size * total
    else:
        for i in range(batch_size):
            masses[i] = (i + uniforms[0]) / batch_size * total
    find(nodes, masses, cursors)
    size = nodes.shape[0] // 2
    for i in range(batch_size):  # a quotient that underflows is still not 0: what is drawn has a probability
        probabilities[i] = max(nodes[size + cursors[i]] / total, SMALLEST_PROBABILITY)


@jit
def assign(nodes, marks, leaves, values):
    """Set `leaves` to `values` in order (the last duplicate wins), then recompute their ancestors once each.

    Level by level, dropping a parent equal to the one before it: leaves that come sorted, as those of a
    stratified draw do, share most of their ancestors. The levels with few nodes are recomputed as a whole.
    """
    size = nodes.shape[0] // 2
    peaks, loose = _peaks(marks)
    shift = _block_shift(nodes, peaks)
    touched = np.empty(leaves.shape[0], np.int64)
    for i in range(leaves.shape[0]):
        leaf = np.uint64(leaves[i])
        node = leaf + np.uint64(size)
        old = nodes[node]
        new = values[i]
        nodes[node] = new
        touched[i] = node
        block = leaf >> np.uint64(shift)
        if new >= peaks[block]:
            peaks[block] = new
            loose[block] = 0.0
        elif old == peaks[block]:
            loose[block] = 1.0
        _note(marks, old, new)
    count = leaves.shape[0]
    while size > 4 * count > 0:
        kept = np.uint64(0)
        previous = np.uint64(0)
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
    for i in range(1, size if count else 0):
        parent = np.uint64(size - i)
        child = parent << ONE
        nodes[parent] = nodes[child] + nodes[child + ONE]


@jit
def fill(nodes, marks, start, stop, value):
    """Set the leaves in [start, stop) to one value and recompute their ancestors, about two additions a leaf."""
    if stop <= start:
        return
    size = nodes.shape[0] // 2
    peaks, loose = _peaks(marks)
    shift = _block_shift(nodes, peaks)
    for leaf in range(start, stop):
        old = nodes[size + leaf]
        nodes[size + leaf] = value
        block = leaf >> shift
        if old == peaks[block]:
            loose[block] = 1.0
        _note(marks, old, value)
    for block in range(start >> shift, ((stop - 1) >> shift) + 1):
        if value >= peaks[block]:
            peaks[block] = value
            loose[block] = 0.0
    low, high = size + start, size + stop - 1
    while low > 1:
        low >>= 1
        high >>= 1
        for parent in range(low, high + 1):
            nodes[parent] = nodes[2 * parent] + nodes[2 * parent + 1]


@jit
def settle(nodes, marks, settled, bounds, capacity):
    """Give the leaves of the steps that all lanes have taken since ``settled`` the largest value there is, or 1.

    The lanes are in step: step s of all of them has the leaves from ``s * num_envs % capacity`` on. ``bounds[0]`` is
    the first step of each that is stored, ``bounds[1]`` the one that comes next.
    """
    num_envs, cursor = bounds.shape[1], bounds[1, 0]
    count = min(cursor - settled[0], cursor - bounds[0, 0]) * num_envs
    if count <= 0:
        return
    value = largest(nodes, marks)
    if value == 0.0:
        value = 1.0
    start = (cursor * num_envs - count) % capacity
    stop = start + count
    fill(nodes, marks, start, min(stop, capacity), value)
    fill(nodes, marks, start - start, stop - capacity, value)  # a plain 0 would have Numba compile it once more
    for lane in range(num_envs):
        settled[lane] = cursor


@jit
def _note(marks, old, new):
    """Keep the two bounds true when a leaf changes from `old` to `new`."""
    if new >= marks[MAX]:
        marks[MAX] = new
        marks[MAX_LOOSE] = 0.0
    elif old == marks[MAX]:
        marks[MAX_LOOSE] = 1.0
    if 0.0 < new <= marks[MIN]:
        marks[MIN] = new
        marks[MIN_LOOSE] = 0.0
    elif old == marks[MIN]:
        marks[MIN_LOOSE] = 1.0


@jit
def _peaks(marks):
    """The bounds of the blocks, and the flags of those that may not be attained."""
    blocks = (marks.shape[0] - PEAKS) // 2
    return marks[PEAKS : PEAKS + blocks], marks[PEAKS + blocks :]


@jit
def _block_shift(nodes, peaks):
    """log2 of the leaves in a block: both sizes are powers of two."""
    shift = 0
    while (peaks.shape[0] << shift) < nodes.shape[0] // 2:
        shift += 1
    return shift


@jit
def _place_of_largest(values, start, stop):
    """Of the values in [start, stop), the place of the first that no other exceeds."""
    best = start
    for i in range(start + 1, stop):
        if values[i] > values[best]:
            best = i
    return best


@jit
def largest(nodes, marks):
    """The largest leaf, 0 in an empty tree.

    Only a block that might hold it is scanned, so this takes O(sqrt(C)) unless every block has just lost its peak.
    """
    if marks[MAX_LOOSE] == 0.0:
        return marks[MAX]
    size = nodes.shape[0] // 2
    peaks, loose = _peaks(marks)
    shift = _block_shift(nodes, peaks)
    begin = size - size  # a plain 0 would have Numba compile what it is given to once more
    best = _place_of_largest(peaks, begin, peaks.shape[0])
    while loose[best] != 0.0:
        start = size + (best << shift)
        peaks[best] = nodes[_place_of_largest(nodes, start, start + (1 << shift))]
        loose[best] = 0.0
        best = _place_of_largest(peaks, begin, peaks.shape[0])
    marks[MAX] = peaks[best]
    marks[MAX_LOOSE] = 0.0
    return marks[MAX]


@jit
def smallest(nodes, marks):
    """The smallest positive leaf, inf in an empty tree; O(C) only after the leaf that held it has changed."""
    if marks[MIN_LOOSE] != 0.0:
        least = math.inf
        for leaf in range(nodes.shape[0] // 2, nodes.shape[0]):
            if 0.0 < nodes[leaf] < least:
                least = nodes[leaf]
        marks[MIN] = least
        marks[MIN_LOOSE] = 0.0
    return marks[MIN]
