"""What a buffer was built with."""

from typing import NamedTuple

from replaykit.spec import Spec

_LARGE_BATCH, _LARGE_BATCH_BYTES = 1 << 16, 1 << 26
"""Batches of more transitions or bytes are compared with the memory of the machine."""


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
        """About how many bytes each transition takes while a batch is made."""
        size = 8 * min(self.n_step, self.capacity // self.num_envs)  # of the rewards of a window
        for leaf in self.spec.leaves:
            is_frame = leaf.name.partition(".")[0] in ("obs", "next_obs") and len(leaf.shape) >= 2
            size += leaf.field.nbytes * (self.stack if is_frame else 1)
        return size

    @property
    def large_batch(self) -> int:
        """How many transitions are so large a batch that it is compared with the memory of the machine."""
        return max(min(_LARGE_BATCH, _LARGE_BATCH_BYTES // self.bytes_each), 1)
