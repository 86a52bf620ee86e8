"""Every replay of the study by name, built in the same way for every task."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from goal_mountain_car import GoalMountainCar

from replaykit import (
    CombinedReplay,
    Field,
    HindsightReplay,
    LatestBuffer,
    LinearSchedule,
    PrioritizedBuffer,
    Replay,
    ReplayBuffer,
    Spec,
)

from .samplers import BlockReplay, DealtReplay, newest_share
from .settings import GOAL_TASKS, Protocol, Settings

Kind: TypeAlias = Literal["none", "uniform", "prioritized", "combined", "hindsight", "blocks", "newest", "dealt"]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A replay and the arguments of its kind."""

    kind: Kind
    label: str  # in tables and figures
    length: int = 1
    share: float = 1.0


REPLAYS = {
    "none": Choice(kind="none", label="none"),
    "uniform": Choice(kind="uniform", label="uniform"),
    "prioritized": Choice(kind="prioritized", label="prioritized"),
    "combined": Choice(kind="combined", label="combined"),
    "hindsight": Choice(kind="hindsight", label="hindsight"),
    "blocks-8": Choice(kind="blocks", label="runs of 8", length=8),
    "blocks-64": Choice(kind="blocks", label="runs of 64", length=64),
    "newest-4th": Choice(kind="newest", label="newest quarter", share=1 / 4),
    "newest-16th": Choice(kind="newest", label="newest 16th", share=1 / 16),
    "dealt": Choice(kind="dealt", label="prioritized, dealt"),
}
AS_USED = ("none", "uniform", "prioritized", "combined", "hindsight")  # the others vary one factor each


def replays_for(protocol: Protocol, env: str) -> list[str]:
    """The names of the replays compared on a task."""
    names = list(REPLAYS) if protocol == "sound" else list(AS_USED)
    return [name for name in names if name != "hindsight" or env in GOAL_TASKS]


def make_replay(name: str, settings: Settings, env: Any, seed: Any) -> Replay:
    """An empty buffer for the transitions of `env`. The rest of a run does not depend on its kind."""
    choice = REPLAYS[name]
    spec = Spec.from_env(env, insertion_error=Field(()))
    shared: dict[str, Any] = {"gamma": settings.gamma, "seed": seed}
    if choice.kind in ("prioritized", "dealt"):
        beta = LinearSchedule(0.4, 1.0, settings.beta_updates)
        shared |= {"alpha": settings.alpha, "beta": beta, "eps": settings.priority_eps}
        buffer: Replay = PrioritizedBuffer(settings.capacity, spec, **shared)
        return DealtReplay(buffer) if choice.kind == "dealt" else buffer
    if choice.kind == "none":
        return LatestBuffer(settings.capacity, spec, **shared)
    buffer = ReplayBuffer(settings.capacity, spec, **shared)
    if choice.kind == "combined":
        return CombinedReplay(buffer)
    if choice.kind == "blocks":
        return BlockReplay(buffer, choice.length)
    if choice.kind == "newest":
        return newest_share(buffer, choice.share)
    if choice.kind == "hindsight":
        reward_fn = partial(goal_reward, settings.done_reward)
        return HindsightReplay(buffer, reward_fn, terminated_fn=GoalMountainCar.compute_terminated)
    return buffer


def goal_reward(done_reward: float | None, achieved: Any, desired: Any, info: Any) -> npt.NDArray[np.float64]:
    """The reward of MountainCar for other goals. A protocol may replace the last reward of an episode."""
    reward = GoalMountainCar.compute_reward(achieved, desired, info)
    if done_reward is None:
        return reward
    return np.where(GoalMountainCar.compute_terminated(achieved, desired, info), done_reward, reward)
