"""What a buffer was built with."""

from typing import NamedTuple

from replaykit.spec import Spec

PARTS = (
    *("settings", "lock", "rng", "successor", "inner", "sources", "bytes_each", "large_batch", "is_conditional"),
    "rate_limit",
)
"""Attributes of a replay that are set once, by the constructor."""


class Settings(NamedTuple):
    """What a buffer was built with. Its wrappers have the same settings."""

    spec: Spec
    capacity: int
    num_envs: int
    n_step: int
    gamma: float
    stack: int

    @property
    def bytes_each(self) -> int:
        """About how many bytes a transition takes while a batch is made."""
        size = 8 * min(self.n_step, self.capacity // self.num_envs)  # of the rewards of a window
        for leaf in self.spec.leaves:
            is_frame = leaf.name.partition(".")[0] in ("obs", "next_obs") and len(leaf.shape) >= 2
            size += leaf.field.nbytes * (self.stack if is_frame else 1)
        return size
