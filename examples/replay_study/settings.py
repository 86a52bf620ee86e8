"""The settings of a protocol for each task."""

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

Protocol: TypeAlias = Literal["sound", "original"]
Loss: TypeAlias = Literal["huber", "squared"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How an agent is trained on a task. Steps are environment steps; an update is one batch."""

    env: str
    time_limit: int  # steps after which an episode is cut off
    steps: int | None = None  # a run ends after this many steps, or ...
    episodes: int | None = None  # ... this many episodes: exactly one of the two is given
    scales: tuple[float, ...] = ()  # of the features; empty for no scaling

    hidden: tuple[int, ...] = (128,)
    learning_rate: float = 1e-3
    loss: Loss = "huber"
    double: bool = True
    batch_size: int = 64
    learning_starts: int = 500  # steps before the first update
    train_every: int = 1  # steps from one round of updates to the next
    updates: int = 1  # per round
    target_every: int | None = 1  # updates between two moves of the target network; None: each episode's end
    target_rate: float = 0.01  # how far it moves towards the online one; 1 copies it
    epsilon_steps: int = 5_000  # the share of random actions is max(1 - step / epsilon_steps, epsilon_end)
    epsilon_end: float = 0.05

    gamma: float = 0.99
    capacity: int = 100_000
    alpha: float = 0.6
    beta_updates: int = 14_500  # over which beta increases from 0.4 to 1
    priority_eps: float = 0.01

    limit_terminates: bool = False  # a time limit is stored as the end of the task
    done_reward: float | None = None  # replaces an episode's last reward
    uses_weights: bool = True  # importance-sampling weights are in the loss
    refreshes_priorities: bool = True  # with each batch; else a priority always stays the TD error at insertion

    snapshots: int = 10  # evenly spaced over a run: greedy episodes and measures of batches
    greedy_episodes: int = 5  # at each snapshot

    def shortened(self, length: float) -> "Settings":
        """The same for a share of the steps or episodes. Schedules are shortened accordingly."""
        if self.episodes is not None:
            return replace(self, episodes=max(round(length * self.episodes), 1))
        assert self.steps is not None
        return replace(
            self,
            steps=max(round(length * self.steps), 1),
            epsilon_steps=max(round(length * self.epsilon_steps), 1),
            beta_updates=max(round(length * self.beta_updates), 1),
        )


def sound_settings() -> dict[str, Settings]:
    """Settings tuned by hand on uniform replay for each task. All replays of a task share them."""
    return {
        "CartPole-v1": Settings(env="CartPole-v1", time_limit=500, steps=15_000),
        "Acrobot-v1": Settings(env="Acrobot-v1", time_limit=500, steps=15_000, learning_rate=5e-4),
        "MountainCar-v0": Settings(
            env="MountainCar-v0",
            time_limit=200,
            steps=30_000,
            scales=(1.0, 15.0, 1.0),  # a speed is at most 0.07
            hidden=(64, 64),
            learning_rate=2e-3,
            train_every=2,
            target_rate=0.02,
        ),
    }


def original_settings() -> dict[str, Settings]:
    """The settings of the original study, including their flaws."""

    def of(env: str, time_limit: int) -> Settings:
        return Settings(
            env=env,
            time_limit=time_limit,
            episodes=300,
            loss="squared",
            double=False,
            learning_starts=64,
            target_every=None,
            target_rate=1.0,
            epsilon_steps=1_000,
            gamma=0.8,
            capacity=10_000,
            beta_updates=600,  # from 0.4, plus 0.001 with each
            limit_terminates=True,
            done_reward=-10.0,
            uses_weights=False,
            refreshes_priorities=False,
        )

    return {
        "CartPole-v1": of("CartPole-v1", 200),  # equals CartPole-v0
        "Acrobot-v1": of("Acrobot-v1", 500),
        "MountainCar-v0": of("MountainCar-v0", 200),
    }


PROTOCOLS: dict[Protocol, dict[str, Settings]] = {"sound": sound_settings(), "original": original_settings()}
GOAL_TASKS = ("MountainCar-v0",)
