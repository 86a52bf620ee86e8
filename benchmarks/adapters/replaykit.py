"""replaykit: the buffers and wrappers as in its tutorial."""

from collections.abc import Callable
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
    NotOfferedError,
    settle_priorities,
)
from benchmarks.data import GOAL_KEYS, SCREEN, STACK, FrameTask, Steps, Task
from replaykit import CombinedReplay, Field, HindsightReplay, PrioritizedBuffer, Replay, ReplayBuffer, Spec

try:
    from replaykit import MixedReplay, SequenceReplay
except ImportError:  # a former version, for comparison
    MixedReplay = SequenceReplay = None  # type: ignore[assignment, misc]


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

    def adding_some(self, step: Steps, mask: Any) -> Call:
        add = self.replay.add
        return lambda: add(*step, mask=mask)

    def adding_to(self, lane: int, step: Steps) -> Call:
        if not hasattr(self.replay, "writer"):
            raise NotOfferedError("this version has no writers")
        add = self.replay.writer(lane).add
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
    distribution = "replaykit-rl"
    importing = "import replaykit"
    is_for_threads = True

    def uniform(self, task: Task) -> ReplaykitBuffer:
        return self.composed(task, ("uniform",))

    def empty(self, task: Task) -> ReplaykitBuffer:
        return ReplaykitBuffer(ReplayBuffer(task.capacity, _spec(task), num_envs=task.lanes, seed=0))

    def prioritized(self, task: Task) -> ReplaykitBuffer:
        return self.composed(task, ("prioritized",))

    def n_step(self, task: Task) -> ReplaykitBuffer:
        return self.composed(task, ("uniform",), N_STEP)

    def composed(self, task: Task, layers: tuple[str, ...], n_step: int = 1) -> ReplaykitBuffer:
        options: dict[str, Any] = {"num_envs": task.lanes, "n_step": n_step, "gamma": GAMMA, "seed": 0}
        replay: Replay
        if layers[0] in ("prioritized", "rank"):
            if layers[0] == "rank":  # former versions have proportional priorities only
                options["variant"] = "rank"
            replay = PrioritizedBuffer(task.capacity, _spec(task), alpha=ALPHA, beta=BETA, **options)
            settle_priorities(ReplaykitBuffer(_filled(replay, task)), task.capacity)
        else:
            replay = _filled(ReplayBuffer(task.capacity, _spec(task), **options), task)
        for layer in layers[1:]:
            replay = WRAPPERS[layer](replay)
        return ReplaykitBuffer(replay)

    def mixed(self, task: Task) -> ReplaykitBuffer:
        if MixedReplay is None:
            raise NotOfferedError("this version has no mixtures")
        halves = task.halved()
        first, second = (_filled(ReplayBuffer(halves.capacity, _spec(task), seed=seed), halves) for seed in range(2))
        shares = {"first": 0.5, "second": 0.5}
        return ReplaykitBuffer(MixedReplay({"first": first, "second": second}, shares=shares, add_to="first", seed=2))

    def sequences(self, task: Task | FrameTask, length: int) -> ReplaykitBuffer:
        if SequenceReplay is None:
            raise NotOfferedError("this version has no sequences")
        screen = Spec(obs=Field(SCREEN, np.uint8), action=Field((), np.int64))
        spec = _spec(task) if isinstance(task, Task) else screen
        return ReplaykitBuffer(SequenceReplay(_filled(ReplayBuffer(task.capacity, spec, seed=0), task), length))

    def hindsight(self, task: Task) -> ReplaykitBuffer:
        no_reward = np.zeros(task.capacity, np.float32)
        inner = _filled(ReplayBuffer(task.capacity, _spec(task), seed=0), task)
        replay = HindsightReplay(
            inner, lambda achieved, desired, info: no_reward[: len(achieved)], ratio=HINDSIGHT_RATIO
        )
        return ReplaykitBuffer(replay)

    def images(self, task: FrameTask, once: bool) -> ReplaykitBuffer:
        """Stacks stored unchanged, or single frames that the buffer stacks."""
        screen = Field(SCREEN if once else (STACK, *SCREEN), np.uint8)
        spec = Spec(obs=screen, action=Field((), np.int64))
        if not once:
            return ReplaykitBuffer(_filled(ReplayBuffer(task.capacity, spec, share="none", seed=0), task))
        replay = ReplayBuffer(task.capacity, spec, stack=STACK, seed=0)
        for steps in task.fill():
            replay.extend(*steps._replace(obs=steps.obs[:, -1], next_obs=steps.next_obs[:, -1]))
        return ReplaykitBuffer(replay)

    def stacks(self, task: FrameTask) -> ReplaykitBuffer:
        """Stacks whose equal frames are found and stored once."""
        spec = Spec(obs=Field((STACK, *SCREEN), np.uint8), action=Field((), np.int64))
        return ReplaykitBuffer(_filled(ReplayBuffer(task.capacity, spec, seed=0), task))

    def single_frames(self, task: FrameTask) -> ReplaykitBuffer:
        return self.images(task, once=True)


def _is_reached(achieved: Any, desired: Any, info: Any) -> Any:
    """A vectorized reward function with the lowest possible cost: 1 at the goal, by its first number."""
    return (achieved[:, 0] == desired[:, 0]).astype(np.float32)


WRAPPERS: dict[str, Callable[[Replay], Replay]] = {
    "combined": CombinedReplay,
    "hindsight": lambda inner: HindsightReplay(inner, _is_reached, ratio=HINDSIGHT_RATIO),
}


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
