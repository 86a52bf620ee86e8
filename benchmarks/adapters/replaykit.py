"""replaykit: the buffers and wrappers as its tutorial has them."""

from operator import attrgetter
from typing import Any

import numpy as np

from benchmarks.adapters.base import (
    ALPHA,
    BETA,
    GAMMA,
    HINDSIGHT_RATIO,
    N_STEP,
    Buffer,
    Call,
    Library,
    settle_priorities,
)
from benchmarks.data import GOAL_KEYS, SCREEN, STACK, FrameTask, Steps, Task
from replaykit import Field, HindsightReplay, PrioritizedBuffer, Replay, ReplayBuffer, Spec


class ReplaykitBuffer(Buffer):
    """Any replay of replaykit."""

    indices_of = attrgetter("indices")

    def __init__(self, replay: Replay) -> None:
        self.replay = replay
        self.update = replay.update_priorities

    def adding(self, step: Steps) -> Call:
        add = self.replay.add
        obs, action, reward, next_obs, terminated, truncated = step
        return lambda: add(obs, action, reward, next_obs, terminated, truncated)

    def extending(self, steps: Steps) -> Call:
        extend = self.replay.extend
        return lambda: extend(*steps)

    def sampling(self, batch_size: int) -> Call:
        sample = self.replay.sample
        return lambda: sample(batch_size)

    def gathering(self, indices: Call) -> Call:
        window, reduce = self.replay.window, self.replay.reduce
        return lambda: reduce(window(indices()))

    def read(self, batch: Any) -> dict[str, Any]:
        names = ("obs", "action", "reward", "next_obs", "terminated", "weights")
        return {name: batch[name] for name in names}

    def random_indices(self, rng: np.random.Generator, shape: tuple[int, ...], capacity: int) -> Any:
        return rng.integers(self.replay.oldest[0], self.replay.newest[0] + 1, size=shape)


class Replaykit(Library):
    name = "replaykit"
    distribution = "replaykit"
    importing = "import replaykit"

    def uniform(self, task: Task) -> ReplaykitBuffer:
        return ReplaykitBuffer(_filled(ReplayBuffer(task.capacity, _spec(task), num_envs=task.lanes, seed=0), task))

    def prioritized(self, task: Task) -> ReplaykitBuffer:
        replay = PrioritizedBuffer(task.capacity, _spec(task), num_envs=task.lanes, alpha=ALPHA, beta=BETA, seed=0)
        buffer = ReplaykitBuffer(_filled(replay, task))
        settle_priorities(buffer, task.capacity)
        return buffer

    def n_step(self, task: Task) -> ReplaykitBuffer:
        return ReplaykitBuffer(
            _filled(ReplayBuffer(task.capacity, _spec(task), n_step=N_STEP, gamma=GAMMA, seed=0), task)
        )

    def hindsight(self, task: Task) -> ReplaykitBuffer:
        no_reward = np.zeros(task.capacity, np.float32)
        inner = _filled(ReplayBuffer(task.capacity, _spec(task), seed=0), task)
        replay = HindsightReplay(
            inner, lambda achieved, desired, info: no_reward[: len(achieved)], ratio=HINDSIGHT_RATIO
        )
        return ReplaykitBuffer(replay)

    def images(self, task: FrameTask, once: bool) -> ReplaykitBuffer:
        """Stacks stored as they come, or single frames that the buffer stacks."""
        screen = Field(SCREEN if once else (STACK, *SCREEN), np.uint8)
        spec = Spec(obs=screen, action=Field((), np.int64))
        if not once:
            return ReplaykitBuffer(_filled(ReplayBuffer(task.capacity, spec, share="none", seed=0), task))
        replay = ReplayBuffer(task.capacity, spec, stack=STACK, seed=0)
        for steps in task.fill():
            replay.extend(*steps._replace(obs=steps.obs[:, -1], next_obs=steps.next_obs[:, -1]))
        return ReplaykitBuffer(replay)


def _spec(task: Task) -> Spec:
    action = Field((task.action,)) if task.action else Field((), np.int64)
    if not task.goal:
        return Spec(obs=Field((task.obs,)), action=action)
    sizes = (task.obs, task.goal, task.goal)
    return Spec(obs={key: Field((size,)) for key, size in zip(GOAL_KEYS, sizes, strict=True)}, action=action)


def _filled(replay: Replay, task: Task | FrameTask) -> Replay:
    for steps in task.fill():
        replay.extend(*steps)
    return replay


LIBRARY = Replaykit()
