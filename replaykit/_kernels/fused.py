"""Kernels that make a whole batch in one call. They combine the kernels that draw, open, reduce and look ahead."""

import numpy as np

from replaykit._kernels.goals import look_ahead
from replaykit._kernels.jit import jit, view
from replaykit._kernels.tree import proportional_draw
from replaykit._kernels.windows import COUNT, META, ROW_BYTES, START, WEIGHTS, drawn_fields, transitions, uniform_draw


@jit
def uniform_batch(uniforms, bounds, rows, plan, powers, block, stage):
    """`uniform_draw`, then `transitions`. All weights are 1."""
    uniform_draw(uniforms, bounds, rows.shape[0] // plan[META, ROW_BYTES], *drawn_fields(plan, block))
    weights = view(block, plan[START, WEIGHTS], plan[META, COUNT], np.float32)
    for i in range(weights.shape[0]):
        weights[i] = 1.0
    transitions(bounds, rows, plan, powers, block, stage)


@jit
def proportional_batch(nodes, extremes, settled, points, scheme, bounds, rows, plan, powers, block, stage):
    """`proportional_draw`, then `transitions`. Weights are not computed."""
    capacity, drawn = rows.shape[0] // plan[META, ROW_BYTES], drawn_fields(plan, block)
    proportional_draw(nodes, extremes, settled, points, scheme, bounds, capacity, *drawn)
    transitions(bounds, rows, plan, powers, block, stage)


@jit
def uniform_look(uniforms, bounds, rows, plan, powers, block, stage, tables, chances, ratio, scope, columns, out):
    """`uniform_batch`, then `look_ahead`."""
    uniform_batch(uniforms, bounds, rows, plan, powers, block, stage)
    return look_ahead(bounds, rows, tables, plan, block, powers.shape[0] - 1, chances, ratio, scope, columns, out)


@jit
def proportional_look(
    nodes, extremes, settled, points, scheme, bounds, rows, plan, powers, block, stage,
    tables, chances, ratio, scope, columns, out,
):  # fmt: skip
    """`proportional_batch`, then `look_ahead`."""
    proportional_batch(nodes, extremes, settled, points, scheme, bounds, rows, plan, powers, block, stage)
    return look_ahead(bounds, rows, tables, plan, block, powers.shape[0] - 1, chances, ratio, scope, columns, out)
