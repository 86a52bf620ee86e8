"""Stable-Baselines3: plain NumPy arrays of shape (capacity, lanes, ...), batches as tensors; no prioritized replay."""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from benchmarks.adapters.base import GAMMA, HINDSIGHT_RATIO, N_STEP, Buffer, Call, Library
from benchmarks.data import GOAL_KEYS, SCREEN, STACK, FrameTask, Steps, Task

torch.set_num_threads(1)


class Sb3Buffer(Buffer):
    """A uniform buffer of Stable-Baselines3. It takes the output of a vector environment, with an axis for lanes."""

    def __init__(self, replay: Any) -> None:
        self.replay = replay

    def adding(self, step: Steps) -> Call:
        replay, n_envs = self.replay, self.replay.n_envs
        obs, action, reward, next_obs, terminated, truncated = step
        if n_envs == 1:
            obs, next_obs = (_with_lane(value) for value in (obs, next_obs))
            action, reward, terminated, truncated = (
                np.asarray(value)[None] for value in (action, reward, terminated, truncated)
            )
        done, infos = terminated | truncated, [{"TimeLimit.truncated": bool(flag)} for flag in truncated]
        return lambda: replay.add(obs, next_obs, action, reward, done, infos)

    def extending(self, steps: Steps) -> Call:
        """Its extend is a loop over add."""
        extend, count = self.replay.extend, len(steps.reward)
        obs, action, reward, next_obs, terminated, truncated = (column.reshape(count, 1, -1) for column in steps)
        done, infos = terminated | truncated, [[{"TimeLimit.truncated": bool(flag)}] for flag in truncated.flat]
        reward, done = reward[..., 0], done[..., 0]
        return lambda: extend(obs, next_obs, action, reward, done, infos)

    def sampling(self, batch_size: int) -> Call:
        sample = self.replay.sample
        return lambda: sample(batch_size)

    def read(self, batch: Any) -> dict[str, Any]:
        return {
            "obs": batch.observations,
            "action": batch.actions,
            "reward": batch.rewards,
            "next_obs": batch.next_observations,
            "terminated": batch.dones,
        }


class StableBaselines3(Library):
    name = "stable_baselines3"
    distribution = "stable_baselines3"
    importing = "from stable_baselines3.common.buffers import ReplayBuffer"

    def uniform(self, task: Task) -> Sb3Buffer:
        replay = ReplayBuffer(task.capacity, *_spaces(task), device="cpu", n_envs=task.lanes)
        return Sb3Buffer(_filled(replay, task))

    def n_step(self, task: Task) -> Sb3Buffer:
        replay = NStepReplayBuffer(task.capacity, *_spaces(task), device="cpu", n_steps=N_STEP, gamma=GAMMA)
        return Sb3Buffer(_filled(replay, task))

    def hindsight(self, task: Task) -> Sb3Buffer:
        goals = round(HINDSIGHT_RATIO / (1 - HINDSIGHT_RATIO))
        env: Any = NoReward(task.capacity)
        replay = HerReplayBuffer(task.capacity, *_spaces(task), env=env, device="cpu", n_sampled_goal=goals)
        _filled(replay, task)
        starts = np.arange(task.capacity) // task.episode * task.episode
        replay.ep_start[:, 0] = starts
        replay.ep_length[:, 0] = task.episode
        return Sb3Buffer(replay)

    def images(self, task: FrameTask, once: bool) -> Sb3Buffer:
        """Stacks stored unchanged, or with ``optimize_memory_usage``, which stores each stack once."""
        box = spaces.Box(0, 255, (STACK, *SCREEN), np.uint8)
        options: dict[str, Any] = {"optimize_memory_usage": once, "handle_timeout_termination": not once}
        return Sb3Buffer(_filled(ReplayBuffer(task.capacity, box, spaces.Discrete(4), "cpu", **options), task))


class NoReward:
    """The part of a vector environment that the rewards of hindsight replay need."""

    def __init__(self, capacity: int) -> None:
        self.zeros = np.zeros(capacity, np.float32)

    def env_method(self, _name: str, achieved: Any, _desired: Any, _infos: Any, indices: Any) -> list[Any]:
        return [self.zeros[: len(achieved)]]


def _spaces(task: Task) -> tuple[spaces.Space[Any], spaces.Space[Any]]:
    sizes = (task.obs, task.goal, task.goal) if task.goal else (task.obs,)
    boxes = [spaces.Box(-np.inf, np.inf, (size,), np.float32) for size in sizes]
    obs = spaces.Dict(dict(zip(GOAL_KEYS, boxes, strict=True))) if task.goal else boxes[0]
    return obs, spaces.Box(-1.0, 1.0, (task.action,), np.float32) if task.action else spaces.Discrete(2)


def _filled(replay: Any, task: Task | FrameTask) -> Any:
    """Fill the arrays directly: ten million calls of add would take minutes."""
    start = 0
    for steps in task.fill():
        stop = start + len(steps.reward)
        here = slice(start, stop)
        _store(replay.observations, here, steps.obs)
        if not replay.optimize_memory_usage:
            _store(replay.next_observations, here, steps.next_obs)
        replay.actions[here] = steps.action.reshape(-1, *replay.actions.shape[1:])
        replay.rewards[here] = steps.reward.reshape(-1, replay.n_envs)
        replay.dones[here] = (steps.terminated | steps.truncated).reshape(-1, replay.n_envs)
        replay.timeouts[here] = steps.truncated.reshape(-1, replay.n_envs)
        start = stop
    replay.full, replay.pos = True, 0
    return replay


def _store(stored: Any, here: slice, obs: Any) -> None:
    if isinstance(obs, dict):
        for key in obs:
            _store(stored[key], here, obs[key])
    else:
        stored[here] = obs.reshape(-1, *stored.shape[1:])


def _with_lane(obs: Any) -> Any:
    return {key: value[None] for key, value in obs.items()} if isinstance(obs, dict) else obs[None]


LIBRARY = StableBaselines3()
