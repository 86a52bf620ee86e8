"""Replay buffers for reinforcement learning.

>>> import numpy as np
>>> from replaykit import Field, PrioritizedBuffer, Spec
>>> spec = Spec(obs=Field((4,)), action=Field((), "int64"))
>>> buffer = PrioritizedBuffer(100_000, spec, n_step=3, gamma=0.99, seed=0)
>>> for step in range(100):
...     index = buffer.add(np.full(4, step), 1, 1.0, np.full(4, step + 1), step % 10 == 9, False)
>>> batch = buffer.sample(32)
>>> q_next = np.zeros(32)
>>> td_errors = batch.reward + batch.discount * q_next - 0.0
>>> buffer.update_priorities(batch.indices, td_errors)
32
"""

from typing import TYPE_CHECKING, Any

from replaykit._version import __version__
from replaykit.batch import Batch
from replaykit.buffer import LatestBuffer, ReplayBuffer
from replaykit.combined import CombinedReplay
from replaykit.field import Field, FieldNameError
from replaykit.prioritized import LinearSchedule, PrioritizedBuffer
from replaykit.replay import Replay
from replaykit.spec import Spec
from replaykit.sum_tree import SumTree
from replaykit.wrapper import ReplayWrapper

if TYPE_CHECKING:
    from replaykit.recording import record

__all__ = [
    "Batch",
    "CombinedReplay",
    "Field",
    "FieldNameError",
    "LatestBuffer",
    "LinearSchedule",
    "PrioritizedBuffer",
    "Replay",
    "ReplayBuffer",
    "ReplayWrapper",
    "Spec",
    "SumTree",
    "__version__",
    "record",
]


def __getattr__(name: str) -> Any:
    """`record`, whose module needs Gymnasium, on first use."""
    if name == "record":
        from replaykit.recording import record

        return record
    raise AttributeError(f"module 'replaykit' has no attribute {name!r}")
