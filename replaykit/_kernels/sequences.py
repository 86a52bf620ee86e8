"""Kernels for rows of sequences: spans of episodes, and the transitions of a row."""

import numpy as np

from replaykit._kernels.jit import jit


@jit
def spans_of(indices, first, last, bounds, stride, starts, stops):
    """Find the span of each index: the index of its first stored step, and the index that follows its last step.

    `first` and `last` are the first and the last index of each index's episode.
    """
    successor = bounds.shape[1]
    for i in range(indices.shape[0]):
        lane = indices[i] % successor
        begin = indices[i] - (indices[i] - first[i]) // successor % stride * successor
        starts[i] = max(begin, bounds[0, lane] * successor + lane)
        stops[i] = min(begin + stride * successor, last[i] + successor)


@jit
def open_rows(indices, first, last, successor, steps, served, mask, is_first):
    """Find the steps (B, T) of the row at each index, and the steps to read: beyond the end, the last step again."""
    for i in range(steps.shape[0]):
        for t in range(steps.shape[1]):
            steps[i, t] = indices[i] + t * successor
            served[i, t] = min(steps[i, t], last[i])
            mask[i, t] = steps[i, t] <= last[i]
            is_first[i, t] = t == 0 and indices[i] == first[i]


@jit
def close_rows(opened, is_first, steps, terminated, length, burn_in, mask, loss_mask, indices):
    """Find which opened steps belong to their row. A row ends at the first step that terminates, with the row's goal.

    `indices` gets the indices of these steps, and -1 elsewhere. Returns the number of steps outside all rows.
    """
    width, padding = opened.shape[1], 0
    for i in range(opened.shape[0]):
        end = width
        for t in range(width):
            if opened[i, t] and terminated[i * width + t]:
                end = min(end, t + length[i * width + t])
        for t in range(width):
            mask[i, t] = opened[i, t] and t < end
            loss_mask[i, t] = mask[i, t] and (t >= burn_in or is_first[i, 0])
            indices[i, t] = steps[i, t] if mask[i, t] else np.int64(-1)
            padding += not mask[i, t]
    return padding
