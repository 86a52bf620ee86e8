"""TorchRL: inputs and outputs are tensors in TensorDicts.

A plain ReplayBuffer on a flat TensorDict is its fastest form, so it is measured if the task allows it.
"""

import logging
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torchrl.data import (
    HERReplayBuffer,
    LazyTensorStorage,
    ReplayBuffer,
    ReplayBufferEnsemble,
    SliceSampler,
    TensorDictPrioritizedReplayBuffer,
)
from torchrl.envs.transforms import MultiStepTransform

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
from benchmarks.data import FrameTask, Steps, Task

torch.set_num_threads(1)
logging.getLogger("torchrl").setLevel(logging.WARNING)  # it logs each storage that it creates


class TorchrlBuffer(Buffer):
    """A buffer of TorchRL that stores flat TensorDicts."""

    def __init__(self, replay: Any) -> None:
        self.replay = replay

    def adding(self, step: Steps) -> Call:
        add = self.replay.add if np.ndim(step.reward) == 0 else self.replay.extend
        return lambda: add(self.pack(step))

    def extending(self, steps: Steps) -> Call:
        return self.adding(steps)

    def pack(self, steps: Steps) -> TensorDict:
        """The library's input object, from arrays and numbers."""
        obs, action, reward, next_obs, terminated, _ = steps
        fields = {
            "observation": torch.from_numpy(obs),
            "action": torch.as_tensor(action),
            "reward": torch.as_tensor(reward),
            "next_observation": torch.from_numpy(next_obs),
            "terminated": torch.as_tensor(terminated),
        }
        return TensorDict(fields, np.shape(reward))

    def sampling(self, batch_size: int) -> Call:
        sample = self.replay.sample
        return lambda: sample(batch_size)

    def gathering(self, indices: Call) -> Call:
        replay = self.replay
        return lambda: replay[torch.from_numpy(indices())]

    def read(self, batch: Any) -> dict[str, Any]:
        names = {"observation": "obs", "next_observation": "next_obs"}
        fields = {names.get(name, name): batch[name] for name in batch.keys()}  # noqa: SIM118
        if "priority_weight" in fields:
            fields["weights"] = fields["priority_weight"]
        return fields


class TorchrlPrioritized(TorchrlBuffer):
    """A buffer with priorities, if the library's compiled part loads."""

    @staticmethod
    def indices_of(batch: Any) -> Any:
        return batch["index"]

    def __init__(self, replay: Any) -> None:
        super().__init__(replay)
        update = replay.update_priority
        self.update = lambda indices, errors: update(torch.as_tensor(indices), torch.from_numpy(errors))


class TorchrlSequences(TorchrlBuffer):
    """A buffer with the flag by which the library separates episodes. The rows of a batch are concatenated."""

    def __init__(self, replay: Any, length: int) -> None:
        super().__init__(replay)
        self.length = length

    def pack(self, steps: Steps) -> TensorDict:
        packed = super().pack(steps)
        return packed.set("done", torch.as_tensor(np.logical_or(steps.terminated, steps.truncated)))

    def sampling(self, batch_size: int) -> Call:
        sample, transitions = self.replay.sample, batch_size * self.length
        return lambda: sample(transitions)


class TorchrlNested(TorchrlBuffer):
    """A buffer of TensorDicts with outcomes nested under "next" and an additional axis, as in its environments."""

    def pack(self, steps: Steps) -> TensorDict:
        obs, action, reward, next_obs, terminated, truncated = steps
        done = np.logical_or(terminated, truncated)
        size = np.shape(reward)
        outcome = {"reward": reward, "terminated": terminated, "truncated": truncated, "done": done}
        after = {name: torch.as_tensor(value)[..., None] for name, value in outcome.items()} | _tensors(next_obs)
        return TensorDict(
            {**_tensors(obs), "action": torch.as_tensor(action), "next": TensorDict(after, size)},
            size,
        )

    def read(self, batch: Any) -> dict[str, Any]:
        goals = "desired_goal" in batch.keys()  # noqa: SIM118
        obs, next_obs = (
            {key: part[key] for key in part.keys() if part[key].dtype == torch.float32 and key != "reward"}  # noqa: SIM118
            for part in (batch.exclude("next", "action"), batch["next"])
        )
        return {
            "obs": obs if goals else batch["observation"],
            "action": batch["action"],
            "reward": batch["next", "reward"],
            "next_obs": next_obs if goals else batch["next", "observation"],
            "terminated": batch["next", "terminated"],
        }


class Torchrl(Library):
    name = "torchrl"
    distribution = "torchrl"
    importing = "from torchrl.data import LazyTensorStorage, ReplayBuffer"
    is_for_threads = True

    def uniform(self, task: Task) -> TorchrlBuffer:
        return _filled(TorchrlBuffer(ReplayBuffer(storage=_storage(task))), task)

    def prioritized(self, task: Task) -> TorchrlBuffer:
        try:
            replay = TensorDictPrioritizedReplayBuffer(alpha=ALPHA, beta=BETA, storage=_storage(task))
        except RuntimeError as error:
            raise NotOfferedError(f"its prioritized buffer does not load with torch {torch.__version__}") from error
        buffer = _filled(TorchrlPrioritized(replay), task)
        settle_priorities(buffer, task.capacity)
        return buffer

    def n_step(self, task: Task) -> TorchrlBuffer:
        """Returns are summed when transitions are added."""
        replay = ReplayBuffer(storage=_storage(task), transform=MultiStepTransform(N_STEP, GAMMA))
        return _filled(TorchrlNested(replay), task)

    def hindsight(self, task: Task) -> TorchrlBuffer:
        no_reward = torch.zeros(task.capacity, 1)
        replay = HERReplayBuffer(
            lambda batch: no_reward[: len(batch)],
            her_ratio=HINDSIGHT_RATIO,
            storage=_storage(task),
        )
        buffer = _filled(TorchrlNested(replay), task)
        buffer.adding(
            task.one()
        )()  # without it, the first sample after an add fails, because it compares the last written steps
        return buffer

    def mixed(self, task: Task) -> TorchrlBuffer:
        halves = task.halved()
        both = [_filled(TorchrlBuffer(ReplayBuffer(storage=_storage(halves))), halves).replay for _ in range(2)]
        ensemble = ReplayBufferEnsemble(*both, sample_from_all=True)  # a batch has the shape (2, B / 2)
        return TorchrlBuffer(ensemble)

    def sequences(self, task: Task | FrameTask, length: int) -> TorchrlBuffer:
        """The faster form, which caches the limits of episodes between samples."""
        sampler = SliceSampler(slice_len=length, end_key="done", cache_values=True)
        return _filled(TorchrlSequences(ReplayBuffer(storage=_storage(task), sampler=sampler), length), task)

    def images(self, task: FrameTask, once: bool) -> TorchrlBuffer:
        if once:
            raise NotOfferedError("stores each observation it is given")
        return _filled(TorchrlBuffer(ReplayBuffer(storage=_storage(task))), task)


def _storage(task: Task | FrameTask) -> LazyTensorStorage:
    return LazyTensorStorage(task.capacity)


def _tensors(obs: Any) -> dict[str, Any]:
    parts = obs if isinstance(obs, dict) else {"observation": obs}
    return {key: torch.from_numpy(part) for key, part in parts.items()}


def _filled(buffer: TorchrlBuffer, task: Task | FrameTask) -> TorchrlBuffer:
    for steps in task.fill():
        if isinstance(task, Task) and task.lanes > 1:
            steps = Steps(*(column.reshape(-1, *column.shape[2:]) for column in steps))
        if isinstance(task, FrameTask):  # read-only views, about which torch warns
            steps = steps._replace(obs=steps.obs.copy(), next_obs=steps.next_obs.copy())
        buffer.replay.extend(buffer.pack(steps))
    return buffer


LIBRARY = Torchrl()
