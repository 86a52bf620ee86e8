"""Hindsight experience replay for Stable-Baselines3."""

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
    """A `HindsightReplay` of replaykit that replaces the `HerReplayBuffer` of Stable-Baselines3.

    All stored transitions can be drawn, including those of running episodes, whose goals come from the steps so far.
    Training can therefore start before the first episode ends. Each transition is relabelled with the probability
    ``n_sampled_goal / (n_sampled_goal + 1)``. Stable-Baselines3 relabels exactly this share of every batch.

    Parameters
    ----------
    buffer_size, observation_space, action_space, device, n_envs, optimize_memory_usage, handle_timeout_termination
        As in `SB3ReplayBuffer`.
    env : VecEnv
        Its first environment has ``compute_reward(achieved_goal, desired_goal, infos)``. The model passes it.
    n_sampled_goal : int
        Number of relabelled transitions, on average, for each transition that keeps its goal.
    goal_selection_strategy : str or GoalSelectionStrategy
        "future", "final", "episode" or "random". Stable-Baselines3 does not have "random".
    copy_info_dict : bool
        If True, the info dicts are stored and `compute_reward` gets copies of them. Otherwise it gets empty dicts.
    n_steps, gamma, buffer_class, wrap, **options
        As in `SB3ReplayBuffer`. The `HerReplayBuffer` of Stable-Baselines3 has no n-step returns.
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
        """The positions at which the info dicts of the next step are stored."""
        return self.pos * self.n_envs + np.arange(self.n_envs)

    def _extras(self) -> dict[str, Array]:
        return {"info_slot": self._info_slots()} if self.copy_info_dict else {}

    @property
    def env(self) -> Any:
        """The environments that compute rewards. It is None after unpickling, until `set_env` is called."""
        return self._compute_reward.env

    def set_env(self, env: Any) -> None:
        """Set the environments that compute rewards. Required after unpickling."""
        if self.env is not None:
            raise ValueError(
                "env is already set, because it was passed to the constructor; build a new buffer for another env"
            )
        self._compute_reward.env = env

    def truncate_last_trajectory(self) -> None:
        """End the running episodes: the next step of every environment begins a new one. Stored flags do not change."""
        self.end_episode()

    def save(self, path: Path, *, progress: bool = False) -> None:
        """Write a checkpoint to a directory; see `SB3ReplayBuffer.save`. Not supported with `copy_info_dict`."""
        if self.copy_info_dict:
            remedy = "call save_replay_buffer of the model, which pickles the buffer, or leave copy_info_dict out"
            raise ValueError(f"copy_info_dict is True; expected False: a checkpoint cannot store infos; {remedy}")
        super().save(path, progress=progress)


class _ComputeReward:
    """Calls `compute_reward` of the first environment. Stores the info dicts of up to `capacity` transitions."""

    def __init__(self, env: Any, capacity: int) -> None:
        self.env, self.infos = env, np.empty(capacity, object)

    def __call__(self, achieved_goal: Array, desired_goal: Array, info: dict[str, Any]) -> Any:
        if self.env is None:
            raise RuntimeError("the buffer has no environment that computes rewards; call set_env(env) first")
        infos = copy.deepcopy(self.infos[info["info_slot"]].tolist()) if info else [{} for _ in achieved_goal]
        return self.env.env_method("compute_reward", achieved_goal, desired_goal, infos, indices=[0])[0]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"env": None}
