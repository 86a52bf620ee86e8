"""tianshou: NumPy buffers with trees compiled by Numba. Inputs and outputs are Batch objects."""

from operator import itemgetter
from typing import Any

import numpy as np
import torch
from tianshou.algorithm.algorithm_base import Algorithm
from tianshou.data import (
    Batch,
    HERReplayBuffer,
    PrioritizedReplayBuffer,
    PrioritizedVectorReplayBuffer,
    ReplayBuffer,
    VectorReplayBuffer,
)

from benchmarks.adapters.base import (
    ALPHA,
    BETA,
    GAMMA,
    HINDSIGHT_RATIO,
    N_STEP,
    Buffer,
    Call,
    Library,
    NotOfferedError,
    settle_priorities,
)
from benchmarks.data import STACK, FrameTask, Steps, Task


class TianshouBuffer(Buffer):
    """A uniform or prioritized buffer of tianshou. A sample is a Batch and the indices."""

    indices_of = itemgetter(1)

    def __init__(self, replay: Any) -> None:
        self.replay = replay
        self.update = getattr(replay, "update_weight", None)  # type: ignore[assignment]

    def adding(self, step: Steps) -> Call:
        add, (obs, action, reward, next_obs, terminated, truncated) = self.replay.add, step
        return lambda: add(
            Batch(obs=obs, act=action, rew=reward, terminated=terminated, truncated=truncated, obs_next=next_obs)
        )

    def extending(self, steps: Steps) -> Call:
        raise NotOfferedError("stores one step a call")

    def sampling(self, batch_size: int) -> Call:
        sample = self.replay.sample
        return lambda: sample(batch_size)

    def gathering(self, indices: Call) -> Call:
        replay = self.replay
        return lambda: replay[indices()]

    def read(self, batch: Any) -> dict[str, Any]:
        fields, _ = batch
        names = {"obs": "obs", "act": "action", "rew": "reward", "obs_next": "next_obs", "terminated": "terminated"}
        return {ours: fields[name] for name, ours in (names | {"weight": "weights"}).items() if name in fields}


class TianshouSteps(TianshouBuffer):
    """Its algorithms compute n-step returns from a batch and the values of the last states of the windows."""

    def sampling(self, batch_size: int) -> Call:
        replay, no_values = self.replay, torch.zeros(batch_size)

        def sample() -> Any:
            batch, indices = replay.sample(batch_size)
            values = lambda _buffer, _indices: no_values  # noqa: E731
            return Algorithm.compute_nstep_return(batch, replay, indices, values, GAMMA, N_STEP), indices

        return sample

    def read(self, batch: Any) -> dict[str, Any]:
        """Without next_obs: the algorithm looks up the last observation when it computes its value."""
        fields = super().read(batch) | {"reward": batch[0].returns}
        del fields["next_obs"]
        return fields


class Tianshou(Library):
    name = "tianshou"
    distribution = "tianshou"
    importing = "from tianshou.data import ReplayBuffer"

    def uniform(self, task: Task) -> TianshouBuffer:
        if task.lanes > 1:
            return TianshouBuffer(_filled_step_by_step(VectorReplayBuffer(task.capacity, task.lanes), task))
        return TianshouBuffer(_filled(ReplayBuffer(task.capacity), task))

    def prioritized(self, task: Task) -> TianshouBuffer:
        if task.lanes > 1:
            replay = PrioritizedVectorReplayBuffer(task.capacity, task.lanes, alpha=ALPHA, beta=BETA)
            buffer = TianshouBuffer(_filled_step_by_step(replay, task))
        else:
            buffer = TianshouBuffer(_filled(PrioritizedReplayBuffer(task.capacity, alpha=ALPHA, beta=BETA), task))
        settle_priorities(buffer, task.capacity)
        return buffer

    def n_step(self, task: Task) -> TianshouSteps:
        return TianshouSteps(_filled(ReplayBuffer(task.capacity), task))

    def hindsight(self, task: Task) -> TianshouBuffer:
        """It rewrites the sampled episodes in the storage, and restores them before the next call."""
        no_reward = np.zeros(task.capacity * task.episode, np.float32)
        ratio = 1 / (1 - HINDSIGHT_RATIO)
        replay = HERReplayBuffer(task.capacity, lambda achieved, _: no_reward[: len(achieved)], task.episode, ratio)
        return TianshouBuffer(_filled(replay, task))

    def images(self, task: FrameTask, once: bool) -> TianshouBuffer:
        """Stacks stored unchanged, or the newest frame of each obs, stacked when sampled."""
        if not once:
            return TianshouBuffer(_filled(ReplayBuffer(task.capacity), task))
        replay = ReplayBuffer(task.capacity, stack_num=STACK, ignore_obs_next=True, save_only_last_obs=True)
        return TianshouBuffer(_filled_step_by_step(replay, task))


def _filled(replay: Any, task: Task | FrameTask) -> Any:
    """Fill with ``update``, which copies one buffer into another."""
    for steps in task.fill():
        obs, next_obs = (Batch(obs) if isinstance(obs, dict) else obs for obs in (steps.obs, steps.next_obs))
        done = steps.terminated | steps.truncated
        flags = (steps.terminated, steps.truncated, done)
        replay.update(ReplayBuffer.from_data(obs, steps.action, steps.reward, *flags, next_obs))
    return replay


def _filled_step_by_step(replay: Any, task: Task | FrameTask) -> Any:
    for steps in task.fill():
        for columns in zip(*steps, strict=True):
            TianshouBuffer(replay).adding(Steps(*columns))()
    return replay


LIBRARY = Tianshou()
