"""The leading axes of the steps that are passed to a writer. With one lane, the lane axis may be left out."""

from typing import Any

import numpy as np

from replaykit.field import Leaf


def axes_of_step(reward: Any, leaf: Leaf, num_envs: int) -> tuple[int, ...]:
    """``()`` or ``(num_envs,)``, for the reward of one step."""
    if num_envs == 1 and (type(reward) is float or np.shape(reward) == leaf.shape):
        return ()
    return (num_envs,)


def axes_of_steps(reward: Any, leaf: Leaf, num_envs: int) -> tuple[int, ...]:
    """``(T,)`` or ``(T, num_envs)``, for the rewards of T steps. Raises ValueError for a single step."""
    shape = np.shape(reward)
    count = len(shape) - len(leaf.shape)
    if count < 1:
        expected = ("T", num_envs, *leaf.shape)
        raise ValueError(f"reward has shape {shape}; expected {expected}; use add for a single step")
    return shape[:1] if num_envs == 1 and count == 1 else (shape[0], num_envs)
