"""The kernels in two forms: compiled, and as the plain Python from which they are compiled."""

from types import FunctionType, SimpleNamespace

import numpy as np
import pytest
from numba import config

from replaykit._kernels import frames, fused, goals, jit, lanes, ranks, sequences, store, tree, windows

MODULES = [lanes, store, windows, goals, tree, ranks, frames, sequences, fused]


def _plain():
    """All modules of kernels, with the Python function in place of each compiled function."""
    spaces = {module.__name__: dict(vars(module)) for module in MODULES}
    made = {}
    for space in spaces.values():
        for name, value in space.items():
            if value is jit.view:
                space[name] = jit._view_of
            elif value is jit.prefetch:
                space[name] = jit._no_prefetch
            elif hasattr(value, "py_func"):
                function = value.py_func
                if function not in made:
                    made[function] = FunctionType(function.__code__, spaces[function.__module__], function.__name__)
                space[name] = made[function]
    return SimpleNamespace(**{name.rpartition(".")[2]: SimpleNamespace(**space) for name, space in spaces.items()})


COMPILED = SimpleNamespace(**{module.__name__.rpartition(".")[2]: module for module in MODULES})
PLAIN = _plain()

FORMS = {"plain": PLAIN} if config.DISABLE_JIT else {"compiled": COMPILED, "plain": PLAIN}
both = pytest.mark.parametrize("kernels", FORMS.values(), ids=FORMS)


def random_bounds(rng, num_envs, length):
    """Bounds of lanes that hold up to `length` steps. In every third case all are equal, and some are empty."""
    cursor = rng.integers(0, 4 * length, num_envs)
    if rng.random() < 0.35:
        cursor[:] = cursor[0]
    first = np.maximum(cursor - rng.integers(0, length + 1, num_envs), 0)
    if (cursor == cursor[0]).all():
        first[:] = max(cursor[0] - length, 0) if rng.random() < 0.5 else first[0]
    return np.array([first, cursor])


def indices_in(bounds):
    """Every stored index, one lane after the other."""
    num_envs = bounds.shape[1]
    lanes = [[step * num_envs + e for step in range(*bounds[:, e])] for e in range(num_envs)]
    return np.array([index for lane in lanes for index in lane], np.int64)
