"""Replay in several processes and on several machines, on engines for distributed computing."""

from replaykit.distributed.ray_replay import RayReplay
from replaykit.distributed.writers import ShardWriter

__all__ = ["RayReplay", "ShardWriter"]
