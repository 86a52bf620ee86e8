"""Replay in several processes."""

from replaykit.distributed.shared import ProcessWriter, ProcessWriters

__all__ = ["ProcessWriter", "ProcessWriters"]
