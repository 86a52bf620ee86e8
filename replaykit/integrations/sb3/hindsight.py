"""Hindsight for Stable-Baselines3."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from stable_baselines3 import HerReplayBuffer

from replaykit.batch import Strategy
from replaykit.buffer import Buffer
from replaykit.buffers import ReplayBuffer
from replaykit.checks import check_choice, check_count
from replaykit.field import Field
from replaykit.hindsight import HindsightReplay
from replaykit.integrations.sb3.buffers import SB3ReplayBuffer
from replaykit.replay import Replay
from replaykit.saving.checkpoint import Path

Array = npt.NDArray[Any]


class SB3HindsightBuffer(SB3ReplayBuffer, HerReplayBuffer):  # type: ignore[misc]
    """A `HindsightReplay` of replaykit, in place of Stable-Baselines3's `HerReplayBuffer`.

    Every stored transition can be drawn, also those of running episodes, whose goals are taken from the steps so far.
    So training can start before the first episode ends. Each transition gets another goal with the probability
    ``n_sampled_goal / (n_sampled_goal + 1)``; Stable-Baselines3 gives one to exactly this share of every batch.

    Parameters
    ----------
    buffer_size, observation_space, action_space, device, n_envs, optimize_memory_usage, handle_timeout_termination
        As those of `SB3ReplayBuffer`.
    env : VecEnv
        Its first environment has ``compute_reward(achieved_goal, desired_goal, infos)``; the model passes it.
    n_sampled_goal : int
        Other goals for each one that was meant.
    goal_selection_strategy : str or GoalSelectionStrategy
        "future", "final", "episode", or "random", which Stable-Baselines3 does not have.
    copy_info_dict : bool
        Whether `compute_reward` gets copies of the info dicts, which are kept for this, rather than empty dicts.
    n_steps, gamma, buffer_class, wrap, **options
        As those of `SB3ReplayBuffer`. Stable-Baselines3's own buffer has no n-step returns of goals.
    """

    def __init__(
        self, buffer_size: int, observation_space: Any, action_space: Any, env: Any, device: Any = "auto",
        n_envs: int = 1, optimize_memory_usage: bool = False, handle_timeout_termination: bool = True,
        n_sampled_goal: int = 4, goal_selection_strategy: Any = "future", copy_info_dict: bool = False, *,
        n_steps: int = 1, gamma: float | None = None, buffer_class: type[Buffer] = ReplayBuffer,
        wrap: Callable[[Any], Replay] | None = None, **options: Any,
    ) -> None:  # fmt: skip
        count = check_count("n_sampled_goal", n_sampled_goal, least=0)
        strategy: Any = getattr(goal_selection_strategy, "name", goal_selection_strategy)
        strategy = strategy.lower() if isinstance(strategy, str) else strategy
        check_choice("goal_selection_strategy", strategy, Strategy)
        self.copy_info_dict: bool = copy_info_dict
        self.n_sampled_goal: int = count
        self.goal_selection_strategy: Any = goal_selection_strategy
        self.her_ratio: float = count / (count + 1)
        super().__init__(
            buffer_size, observation_space, action_space, device, n_envs, optimize_memory_usage,
            handle_timeout_termination, n_steps=n_steps, gamma=gamma, buffer_class=buffer_class, wrap=wrap, **options,
        )  # fmt: skip
        self._compute_reward = _ComputeReward(env, self.replay.capacity if copy_info_dict else 0)
        self.replay = HindsightReplay(self.replay, self._compute_reward, strategy=strategy, ratio=self.her_ratio)
        self._needs_episodes = True

    def _extra_fields(self) -> dict[str, Field]:
        return {"info_slot": Field((), np.int64)} if self.copy_info_dict else {}

    def add(self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: Any) -> None:
        """Store one step of every environment; see `SB3ReplayBuffer.add`."""
        slots = self._info_slots() if self.copy_info_dict else None
        super().add(obs, next_obs, action, reward, done, infos)
        if slots is not None:
            self._compute_reward.infos[slots] = infos

    def _info_slots(self) -> Array:
        """Where the info dicts of the next step are kept."""
        return self.pos * self.n_envs + np.arange(self.n_envs)

    def _extras(self) -> dict[str, Array]:
        return {"info_slot": self._info_slots()} if self.copy_info_dict else {}

    @property
    def env(self) -> Any:
        """The environments that compute rewards, or None after the buffer was unpickled."""
        return self._compute_reward.env

    def set_env(self, env: Any) -> None:
        """Set the environments that compute rewards, after the buffer was unpickled."""
        if self.env is not None:
            raise ValueError("Trying to set env of already initialized environment; it was given to the constructor")
        self._compute_reward.env = env

    def truncate_last_trajectory(self) -> None:
        """End the running episodes: the next step of every environment begins a new one. Stored flags do not change."""
        self.end_episode()

    def save(self, path: Path, *, progress: bool = False) -> None:
        """Write a checkpoint to a directory; see `SB3ReplayBuffer.save`. Info dicts cannot be written."""
        if self.copy_info_dict:
            remedy = "call save_replay_buffer of the model, which pickles the buffer, or leave copy_info_dict out"
            raise ValueError(f"copy_info_dict is True; expected False, since a checkpoint has no dicts; {remedy}")
        super().save(path, progress=progress)


class _ComputeReward:
    """`compute_reward` of the first environment, with the info dicts of as many steps as are kept."""

    def __init__(self, env: Any, capacity: int) -> None:
        self.env, self.infos = env, np.empty(capacity, object)

    def __call__(self, achieved_goal: Array, desired_goal: Array, info: dict[str, Any]) -> Any:
        if self.env is None:
            raise RuntimeError("the buffer has no environment that computes rewards; call set_env(env) first")
        infos = copy.deepcopy(self.infos[info["info_slot"]].tolist()) if info else [{} for _ in achieved_goal]
        return self.env.env_method("compute_reward", achieved_goal, desired_goal, infos, indices=[0])[0]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"env": None}
