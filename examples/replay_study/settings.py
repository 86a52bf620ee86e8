"""What a run is: a protocol's settings for a task, a replay, and a seed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Protocol: TypeAlias = Literal["sound", "original"]
Loss: TypeAlias = Literal["huber", "squared"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How an agent is trained on a task. Steps are of the environment; an update is one batch."""

    env: str
    time_limit: int  # steps after which an episode is cut off
    steps: int | None = None  # a run ends after so many steps, or ...
    episodes: int | None = None  # ... episodes: one of the two
    scales: tuple[float, ...] = ()  # of the features; as they are, if there are none

    hidden: tuple[int, ...] = (128,)
    learning_rate: float = 1e-3
    loss: Loss = "huber"
    double: bool = True
    batch_size: int = 64
    learning_starts: int = 500  # steps before the first update
    train_every: int = 2  # steps from one round of updates to the next
    updates: int = 1  # in a round
    target_every: int | None = 1  # updates between two moves of the target network; None: each episode's end
    target_rate: float = 0.01  # how far it moves towards the online one; 1 copies it
    epsilon_steps: int = 5_000  # random actions have the share max(1 - step / epsilon_steps, epsilon_end)
    epsilon_end: float = 0.05

    gamma: float = 0.99
    capacity: int = 100_000
    beta_updates: int = 10_000  # over which beta goes from 0.4 to 1
    priority_eps: float = 0.01

    limit_terminates: bool = False  # a time limit is stored as the end of the task
    done_reward: float | None = None  # in place of an episode's last reward
    uses_weights: bool = True  # importance-sampling weights are in the loss
    refreshes_priorities: bool = True  # by each batch; else a priority is the TD error at insertion, for good

    snapshots: int = 10  # evenly over a run: greedy episodes and measures of batches
    greedy_episodes: int = 5  # at each


SOUND = {
    "CartPole-v1": Settings(env="CartPole-v1", time_limit=500, steps=20_000),
    "Acrobot-v1": Settings(env="Acrobot-v1", time_limit=500, steps=20_000),
    "MountainCar-v0": Settings(env="MountainCar-v0", time_limit=200, steps=40_000, scales=(1.0, 15.0, 1.0)),
}
