"""The stored data: transitions of an artificial environment, the same for every library.

The first number of an observation and the reward are the step of the episode. A batch therefore shows whether its rows
are complete transitions: ``next_obs[0] == obs[0] + 1 == reward + 1``. All other numbers are noise.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

PART = 10_000
"""Number of transitions written at once when a buffer is filled. A multiple of the episode length."""

GOAL_KEYS = ("observation", "achieved_goal", "desired_goal")
STACK = 4
SCREEN = (84, 84)


class Steps(NamedTuple):
    """One step, or several along a leading axis. Observations of a task with goals are dicts."""

    obs: Any
    action: Any
    reward: Any
    next_obs: Any
    terminated: Any
    truncated: Any


@dataclass(frozen=True)
class Task:
    """The task of a buffer.

    Parameters
    ----------
    capacity : int
        Number of transitions. Every buffer is full when it is measured.
    obs : int
        Size of an observation, float32.
    action : int
        Size of an action, float32; 0 for a discrete action, int64.
    lanes : int
        Number of parallel environments. With several, steps have a leading axis for them.
    goal : int
        Size of a goal; 0 for observations without goals. With goals, episodes are truncated and not terminated.
    episode : int
        Number of steps in an episode.
    """

    capacity: int
    obs: int = 4
    action: int = 0
    lanes: int = 1
    goal: int = 0
    episode: int = 200

    def halved(self) -> "Task":
        """The same task with half the capacity."""
        return replace(self, capacity=self.capacity // 2)

    @property
    def row_bytes(self) -> int:
        """Size of a transition in bytes: two observations, action, reward and two flags, without padding."""
        return 2 * 4 * (self.obs + 2 * self.goal) + (4 * self.action or 8) + 4 + 2

    def fill(self) -> Iterator[Steps]:
        """All transitions of a buffer, in parts of at most `PART` transitions."""
        steps = self.capacity // self.lanes
        size = max(PART // self.lanes, 1)
        for start in range(0, steps, size):
            yield self.stretch(start, min(size, steps - start))

    def stretch(self, start: int, count: int) -> Steps:
        """`count` steps from step `start` on: arrays of shape (count, ...), or (count, lanes, ...)."""
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
        """One step in the middle of an episode, as an environment returns it; only arrays with several lanes."""
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
    """Stacks of four 84x84 frames, as in Atari games. A step's next_obs is the obs of the following step.

    Episodes are `PART_OF_FRAMES` steps long and end by truncation.
    """

    capacity: int

    @property
    def row_bytes(self) -> int:
        """Size of a transition with both stacks in bytes."""
        return 2 * STACK * SCREEN[0] * SCREEN[1] + 8 + 4 + 2

    def fill(self) -> Iterator[Steps]:
        """All transitions of a buffer, one episode at a time. Stacks are views of frames, of shape (T, 4, 84, 84)."""
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
    """A `FrameTask` with single frames."""

    @property
    def row_bytes(self) -> int:
        """Size of a transition with both frames in bytes."""
        return 2 * SCREEN[0] * SCREEN[1] + 8 + 4 + 2

    def fill(self) -> Iterator[Steps]:
        """All transitions of a buffer, one episode at a time."""
        for steps in super().fill():
            yield steps._replace(obs=steps.obs[:, -1].copy(), next_obs=steps.next_obs[:, -1].copy())


PART_OF_FRAMES = 1000


def _frames(start: int, count: int) -> Any:
    """Noise frames. All are different: the first four bytes number them."""
    frames = np.resize(_screen_noise(), (count, *SCREEN))
    frames[:, 0, :4] = np.arange(start, start + count, dtype=np.int32).view(np.uint8).reshape(-1, 4)
    return frames


@lru_cache
def _screen_noise() -> Any:
    return np.random.default_rng(0).integers(256, size=(PART_OF_FRAMES + STACK, *SCREEN), dtype=np.uint8)


def _noise(lead: tuple[int, ...], size: int, seed: int) -> Any:
    """A new array of standard normal numbers of shape (*lead, size), the same for each stretch."""
    count = int(np.prod(lead))
    return np.resize(_noise_of(size, seed)[: min(count, PART)], (*lead, size))


@lru_cache
def _noise_of(size: int, seed: int) -> Any:
    return np.random.default_rng(seed).standard_normal((PART, size), np.float32)
