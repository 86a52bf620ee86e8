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

from replaykit._version import __version__
from replaykit.batch import Batch
from replaykit.buffer import Buffer
from replaykit.buffers import LatestBuffer, PrioritizedBuffer, ReplayBuffer, load
from replaykit.combined import CombinedReplay
from replaykit.distributions.sum_tree import SumTree
from replaykit.field import Field, FieldNameError
from replaykit.hindsight import HindsightReplay
from replaykit.large_batch import LargeBatchReplay
from replaykit.mixed import MixedReplay
from replaykit.rate_limit import RateLimit, RateLimitedReplay
from replaykit.recent import RecentReplay
from replaykit.recording import record
from replaykit.replay import Replay
from replaykit.schedules import ERESchedule, LinearSchedule
from replaykit.sequences import SequenceReplay
from replaykit.spec import Spec
from replaykit.wrapper import ReplayWrapper

__all__ = [
    "Batch",
    "Buffer",
    "CombinedReplay",
    "ERESchedule",
    "Field",
    "FieldNameError",
    "HindsightReplay",
    "LargeBatchReplay",
    "LatestBuffer",
    "LinearSchedule",
    "MixedReplay",
    "PrioritizedBuffer",
    "RateLimit",
    "RateLimitedReplay",
    "RecentReplay",
    "Replay",
    "ReplayBuffer",
    "ReplayWrapper",
    "SequenceReplay",
    "Spec",
    "SumTree",
    "__version__",
    "load",
    "record",
]
