"""The settings of a buffer."""

import math
from typing import NamedTuple

from replaykit.spec import Spec

PARTS = (
    *("settings", "lock", "rng", "successor", "inner", "sources", "bytes_each", "large_batch", "is_conditional"),
    *("has_least", "rate_limit", "backend"),
)
"""Attributes of a replay that are set once, by the constructor."""


class Settings(NamedTuple):
    """The settings of a buffer, which its wrappers share. `stack` is the number of frames in an observation."""

    spec: Spec
    capacity: int
    num_envs: int
    n_step: int
    gamma: float
    stack: int

    @property
    def bytes_each(self) -> int:
        """Approximate memory per transition in bytes while a batch is made."""
        steps = min(self.n_step, self.capacity // self.num_envs)
        size: int = 8 * steps * math.prod(self.spec["reward"].shape)  # the rewards of a window
        for leaf in self.spec.leaves:
            is_frame = leaf.name.partition(".")[0] in ("obs", "next_obs") and len(leaf.shape) >= 2
            size += leaf.field.nbytes * (self.stack if is_frame else 1)
        return size
