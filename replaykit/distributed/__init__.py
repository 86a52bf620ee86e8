"""Replay in several processes and on several machines."""

from replaykit.distributed.ray_replay import RayReplay
from replaykit.distributed.shared import ProcessWriter, ProcessWriters
from replaykit.distributed.writers import ShardWriter

__all__ = ["ProcessWriter", "ProcessWriters", "RayReplay", "ShardWriter"]
