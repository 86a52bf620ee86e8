"""The fields of a transition in the format of Stable-Baselines3."""

import math
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_action_dim, get_obs_shape

from replaykit.field import Field
from replaykit.trees import Tree


def observation_fields(space: Any) -> Tree:
    """The fields of observations, in the format of Stable-Baselines3."""
    if isinstance(space, spaces.Dict):
        return {key: _field(entry, f"observation_space[{key!r}]") for key, entry in space.spaces.items()}
    return _field(space, "observation_space")


def action_field(space: Any) -> Field:
    """The field of actions, in the format of Stable-Baselines3: with one axis, and float32 instead of float64."""
    dtype = _field(space, "action_space").dtype
    return Field((get_action_dim(space),), np.float32 if dtype == np.float64 else dtype)


def _field(space: Any, name: str) -> Field:
    if isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return Field(get_obs_shape(space), space.dtype)
    got = f"{name} is a {type(space).__name__} space"
    wanted = "Box, Discrete, MultiDiscrete or MultiBinary, as Stable-Baselines3 does, or a Dict of them as observations"
    raise TypeError(f"{got}; expected {wanted}; use gymnasium.wrappers.FlattenObservation")


def reshaped(value: Any, shape: tuple[int, ...]) -> Any:
    """Reshape an array if the number of entries fits. Otherwise return it unchanged, and the buffer raises an error."""
    array = np.asarray(value)
    return array.reshape(shape) if array.shape != shape and array.size == math.prod(shape) else array
