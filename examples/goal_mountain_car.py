"""MountainCar as a task with a goal. Hindsight can be used with every such task."""

from typing import Any, TypeAlias

import gymnasium
import numpy as np
import numpy.typing as npt

Obs: TypeAlias = dict[str, npt.NDArray[np.float32]]

ENV_ID = "GoalMountainCar-v0"
TIME_LIMIT = 200
FLAG, TOLERANCE = 0.55, 0.05  # MountainCar ends where its position is 0.5 to 0.6


class GoalMountainCar(gymnasium.Wrapper[Any, int, Any, int]):
    """MountainCar with a goal position. The reward is 0 at the goal, where the episode ends, and -1 elsewhere.

    A goal is reached at positions within TOLERANCE of it. If every position to the right of a goal also counted, most
    hindsight goals would already be behind the car. Any action would reach them, so they would teach nothing. A step is
    never longer than 0.07, so a step cannot skip a goal. FLAG is reached exactly where MountainCar ends.
    """

    def __init__(self, env: gymnasium.Env[Any, int]) -> None:
        super().__init__(env)
        assert isinstance(env.observation_space, gymnasium.spaces.Box)
        position = gymnasium.spaces.Box(env.observation_space.low[:1], env.observation_space.high[:1])
        self.observation_space = gymnasium.spaces.Dict(
            observation=env.observation_space, achieved_goal=position, desired_goal=position
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Obs, dict[str, Any]]:
        state, info = self.env.reset(seed=seed, options=options)
        return self.observe(state), info

    def step(self, action: int) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        state, _, _, truncated, info = self.env.step(action)
        obs = self.observe(state)
        goals = obs["achieved_goal"], obs["desired_goal"], info
        return obs, float(self.compute_reward(*goals)), bool(self.compute_terminated(*goals)), truncated, info

    @staticmethod
    def observe(state: npt.NDArray[np.float32]) -> Obs:
        """Position and velocity (2,), the position (1,), and the goal position (1,)."""
        return {"observation": state, "achieved_goal": state[:1], "desired_goal": np.array([FLAG], np.float32)}

    @staticmethod
    def compute_terminated(achieved_goal: Any, desired_goal: Any, info: Any) -> npt.NDArray[np.bool_]:
        """For any number of goals at once: (..., 1) -> (...)."""
        reached: npt.NDArray[np.bool_] = (np.abs(achieved_goal - desired_goal) <= TOLERANCE).all(-1)
        return reached

    @staticmethod
    def compute_reward(achieved_goal: Any, desired_goal: Any, info: Any) -> npt.NDArray[np.float64]:
        """For any number of goals at once: (..., 1) -> (...)."""
        reached = GoalMountainCar.compute_terminated(achieved_goal, desired_goal, info)
        return np.where(reached, 0.0, -1.0)


def make_env(**options: Any) -> gymnasium.Env[Any, int]:
    """The environment that `gymnasium.make` creates for ENV_ID."""
    return GoalMountainCar(gymnasium.make("MountainCar-v0", max_episode_steps=TIME_LIMIT, **options))


gymnasium.register(ENV_ID, make_env)
