"""Whole batches in one call: compositions of the kernels that draw, open, reduce and look ahead."""

import numpy as np

from replaykit._kernels.goals import look_ahead
from replaykit._kernels.jit import jit, view
from replaykit._kernels.tree import proportional_draw
from replaykit._kernels.windows import (
    COUNT,
    INDICES,
    META,
    PROBABILITIES,
    ROW_BYTES,
    SLOTS,
    START,
    WEIGHTS,
    transitions,
    uniform_draw,
)


@jit
def uniform_batch(uniforms, bounds, rows, plan, powers, block, stage):
    """`uniform_draw`, then `transitions`. Every weight is 1."""
    count, capacity = plan[META, COUNT], rows.shape[0] // plan[META, ROW_BYTES]
    indices, slots = (
        view(block, plan[START, INDICES], count, np.int64),
        view(block, plan[START, SLOTS], count, np.int64),
    )
    probabilities = view(block, plan[START, PROBABILITIES], count, np.float64)
    weights = view(block, plan[START, WEIGHTS], count, np.float32)
    uniform_draw(uniforms, bounds, capacity, slots, indices, probabilities)
    for i in range(count):
        weights[i] = 1.0
    transitions(bounds, rows, plan, powers, block, stage)


@jit
def proportional_batch(nodes, extremes, settled, points, scheme, bounds, rows, plan, powers, block, stage):
    """`proportional_draw`, then `transitions`. Weights are left out."""
    count, capacity = plan[META, COUNT], rows.shape[0] // plan[META, ROW_BYTES]
    indices, slots = (
        view(block, plan[START, INDICES], count, np.int64),
        view(block, plan[START, SLOTS], count, np.int64),
    )
    probabilities = view(block, plan[START, PROBABILITIES], count, np.float64)
    proportional_draw(nodes, extremes, settled, points, scheme, bounds, capacity, slots, indices, probabilities)
    transitions(bounds, rows, plan, powers, block, stage)


@jit
def uniform_look(uniforms, bounds, rows, plan, powers, block, stage, tables, chances, ratio, scope, column, out):
    """`uniform_batch`, then `look_ahead`."""
    uniform_batch(uniforms, bounds, rows, plan, powers, block, stage)
    return look_ahead(bounds, rows, tables, plan, block, powers.shape[0] - 1, chances, ratio, scope, column, out)


@jit
def proportional_look(
    nodes, extremes, settled, points, scheme, bounds, rows, plan, powers, block, stage,
    tables, chances, ratio, scope, column, out,
):  # fmt: skip
    """`proportional_batch`, then `look_ahead`."""
    proportional_batch(nodes, extremes, settled, points, scheme, bounds, rows, plan, powers, block, stage)
    return look_ahead(bounds, rows, tables, plan, block, powers.shape[0] - 1, chances, ratio, scope, column, out)
