"""Adding 84x84 frames: a single frame that the buffer stacks, or a stack of four frames from the environment.

The frames of an episode are separate arrays. As in an agent's loop, a step's next_obs is the same array as the next
step's obs.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from benchmarks.adapters.base import Library
from benchmarks.data import FrameTask, Steps
from benchmarks.floors import step_copies
from benchmarks.sections.rows import Shelf, in_turn, make_row
from benchmarks.timing import Row, Workload

TASK = FrameTask(2_000)
EPISODE = 64


def rows(libraries: list[Library], quick: bool) -> list[Row]:
    shelf, stacks = Shelf(), [stack.copy() for stack in next(TASK.fill()).obs[: EPISODE + 1]]
    frames = [stack[-1].copy() for stack in stacks]
    both = [library for library in libraries if library.name in ("replaykit", "stable_baselines3")]

    def build(kind: str, observations: list[Any]) -> Callable[[Library], Workload]:
        def workload(library: Library) -> Workload:
            buffer = shelf.get(library, kind, TASK)
            return in_turn([buffer.adding(step) for step in episode(observations)])

        return workload

    copies = {"both frames copied": step_copies(frames, TASK.capacity)}
    copies_of_stacks = {"both stacks copied": step_copies(stacks, TASK.capacity)}
    return [
        make_row("frame-single", "add 1 frame, which the buffer stacks", both, build("single_frames", frames), copies),
        make_row("frame-stack", "add 1 stack of 4 frames", both, build("stacks", stacks), copies_of_stacks),
    ]


def episode(observations: list[Any]) -> list[Steps]:
    """The steps between these observations. The last one is truncated."""
    last = len(observations) - 2
    return [Steps(obs, 1, 0.0, next_obs, False, k == last) for k, (obs, next_obs) in enumerate(pairwise(observations))]
