"""What is stored: transitions of a made-up environment, the same for every library.

The first number of an observation is the step of its episode, and so is the reward, so that a batch shows whether its
rows are whole: ``next_obs[0] == obs[0] + 1 == reward + 1``. All else is noise.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

PART = 10_000
"""Transitions that are written at once when a buffer is filled; episodes divide it."""

GOAL_KEYS = ("observation", "achieved_goal", "desired_goal")
STACK = 4
SCREEN = (84, 84)


class Steps(NamedTuple):
    """One step, or a stretch of steps along a leading axis. Observations of a task with goals are dicts."""

    obs: Any
    action: Any
    reward: Any
    next_obs: Any
    terminated: Any
    truncated: Any


@dataclass(frozen=True)
class Task:
    """What a buffer is for.

    Parameters
    ----------
    capacity : int
        Transitions it holds; every buffer is full when it is measured.
    obs : int
        Numbers in an observation, float32.
    action : int
        Numbers in an action, float32; 0 for a discrete action, int64.
    lanes : int
        Parallel environments. With several, steps have a leading axis for them.
    goal : int
        Numbers in a goal; 0 for observations without goals. With goals, episodes are truncated and not terminated.
    episode : int
        Steps of an episode.
    """

    capacity: int
    obs: int = 4
    action: int = 0
    lanes: int = 1
    goal: int = 0
    episode: int = 200

    def halved(self) -> "Task":
        """The same with half of the capacity."""
        return replace(self, capacity=self.capacity // 2)

    @property
    def row_bytes(self) -> int:
        """Bytes of a transition: the two observations, the action, the reward and the two flags, without padding."""
        return 2 * 4 * (self.obs + 2 * self.goal) + (4 * self.action or 8) + 4 + 2

    def fill(self) -> Iterator[Steps]:
        """Everything a buffer holds, in stretches of at most `PART` transitions."""
        steps = self.capacity // self.lanes
        size = max(PART // self.lanes, 1)
        for start in range(0, steps, size):
            yield self.stretch(start, min(size, steps - start))

    def stretch(self, start: int, count: int) -> Steps:
        """`count` steps from the given one on: arrays of shape (count, ...), or (count, lanes, ...)."""
        lead = (count,) if self.lanes == 1 else (count, self.lanes)
        time = np.broadcast_to(
            (np.arange(start, start + count) % self.episode).reshape(-1, *[1] * (len(lead) - 1)), lead
        )
        last = time == self.episode - 1
        never = np.zeros(lead, np.bool_)
        if self.action:
            action: Any = _noise(lead, self.action, seed=2)
        else:
            action = np.zeros(lead, np.int64)
        return Steps(
            obs=self._observe(time, lead, seed=0),
            action=action,
            reward=time.astype(np.float32),
            next_obs=self._observe(time + 1, lead, seed=1),
            terminated=never if self.goal else last,
            truncated=last if self.goal else never,
        )

    def _observe(self, time: Any, lead: tuple[int, ...], seed: int) -> Any:
        obs = _noise(lead, self.obs, seed)
        obs[..., 0] = time
        if not self.goal:
            return obs
        achieved = _noise(lead, self.goal, seed + 10)
        achieved[..., 0] = time
        return dict(zip(GOAL_KEYS, (obs, achieved, np.full((*lead, self.goal), -1.0, np.float32)), strict=True))

    def one(self) -> Steps:
        """One step that ends no episode, as an environment gives it: arrays and numbers, of several lanes arrays."""
        steps = self.stretch(0, 1)
        if self.lanes > 1:
            return Steps(*(column[0] for column in steps))
        obs, next_obs = (
            {key: obs[key][0] for key in obs} if self.goal else obs[0] for obs in (steps.obs, steps.next_obs)
        )
        action = steps.action[0] if self.action else 1
        return Steps(obs, action, 0.0, next_obs, False, False)


@dataclass(frozen=True)
class FrameTask:
    """Stacks of four 84x84 frames, as of an Atari game: a step's next_obs is the obs of the step after it.

    Episodes are `PART_OF_FRAMES` steps long and end by truncation.
    """

    capacity: int

    @property
    def row_bytes(self) -> int:
        """Bytes of a transition with both stacks."""
        return 2 * STACK * SCREEN[0] * SCREEN[1] + 8 + 4 + 2

    def fill(self) -> Iterator[Steps]:
        """Everything a buffer holds, an episode at a time; the stacks are views of frames, of shape (T, 4, 84, 84)."""
        for start in range(0, self.capacity, PART_OF_FRAMES):
            count = min(PART_OF_FRAMES, self.capacity - start)
            frames = _frames(start, count + STACK)
            stacks = np.moveaxis(np.lib.stride_tricks.sliding_window_view(frames, STACK, axis=0), -1, 1)
            time = np.arange(count)
            never = np.zeros(count, np.bool_)
            yield Steps(
                stacks[:-1], np.zeros(count, np.int64), time.astype(np.float32), stacks[1:], never, time == count - 1
            )


@dataclass(frozen=True)
class ScreenTask(FrameTask):
    """The same with single frames."""

    @property
    def row_bytes(self) -> int:
        """Bytes of a transition with both frames."""
        return 2 * SCREEN[0] * SCREEN[1] + 8 + 4 + 2

    def fill(self) -> Iterator[Steps]:
        """Everything a buffer holds, an episode at a time."""
        for steps in super().fill():
            yield steps._replace(obs=steps.obs[:, -1].copy(), next_obs=steps.next_obs[:, -1].copy())


PART_OF_FRAMES = 1000


def _frames(start: int, count: int) -> Any:
    """Noise, of which no two frames are equal: the first four bytes number them."""
    frames = np.resize(_screen_noise(), (count, *SCREEN))
    frames[:, 0, :4] = np.arange(start, start + count, dtype=np.int32).view(np.uint8).reshape(-1, 4)
    return frames


@lru_cache
def _screen_noise() -> Any:
    return np.random.default_rng(0).integers(256, size=(PART_OF_FRAMES + STACK, *SCREEN), dtype=np.uint8)


def _noise(lead: tuple[int, ...], size: int, seed: int) -> Any:
    """Fresh standard normal numbers of shape (*lead, size), the same for each stretch."""
    count = int(np.prod(lead))
    return np.resize(_noise_of(size, seed)[: min(count, PART)], (*lead, size))


@lru_cache
def _noise_of(size: int, seed: int) -> Any:
    return np.random.default_rng(seed).standard_normal((PART, size), np.float32)
