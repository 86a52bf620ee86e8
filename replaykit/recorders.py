"""The Gymnasium wrappers that `record` puts around an environment. Importing this module needs Gymnasium."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from replaykit.replay import Replay
from replaykit.spec import Spec
from replaykit.trees import leaves_of, map_tree


def recorder_of(env: Any, buffer: Replay) -> "RecordSingle | RecordVector":
    """`env` wrapped for `buffer`; see :func:`replaykit.record`."""
    if not isinstance(buffer, Replay):
        raise TypeError(f"buffer is a {type(buffer).__name__}; expected a replaykit buffer or a wrapper around one")
    if not isinstance(env, gymnasium.Env | gymnasium.vector.VectorEnv):
        raise TypeError(f"env is a {type(env).__name__}; expected a Gymnasium environment, single or vector")
    num_envs = env.num_envs if isinstance(env, gymnasium.vector.VectorEnv) else 1
    if num_envs != buffer.num_envs:
        raise ValueError(f"env has {num_envs} environments; expected {buffer.num_envs}, the buffer's num_envs")
    if buffer.spec.extra:
        extra = f"the extra fields {buffer.spec.extra}, which an environment does not give"
        raise ValueError(f"the buffer's spec has {extra}; add its transitions by hand")
    spec = Spec.from_env(env)
    if [(leaf.name, leaf.shape) for leaf in spec.leaves] != [(leaf.name, leaf.shape) for leaf in buffer.spec.leaves]:
        raise ValueError(f"env gives transitions of {spec}; expected the buffer's {buffer.spec}")
    return RecordVector(env, buffer) if isinstance(env, gymnasium.vector.VectorEnv) else RecordSingle(env, buffer)


class RecordSingle(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A single environment whose steps are stored; see `record`."""

    def __init__(self, env: gymnasium.Env[Any, Any], buffer: Replay) -> None:
        super().__init__(env)
        self.buffer = buffer
        self._obs: Any = None
        self._over = True
        layer, self._autoreset = env, False
        while isinstance(layer, gymnasium.Wrapper):
            self._autoreset |= isinstance(layer, gymnasium.wrappers.Autoreset)
            layer = layer.env

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment; an episode that was running ends here."""
        self._obs = None  # not known until the reset is done
        obs, info = self.env.reset(seed=seed, options=options)
        if not self._over:
            self.buffer.end_episode()
        self._obs, self._over = _copy(obs), False
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment and store the transition."""
        if self._obs is None or (self._over and not self._autoreset):
            reason = "the episode is over or has not begun, or its last step raised"
            raise gymnasium.error.ResetNeeded(f"{reason}; call reset() before step()")
        before, taken = self._obs, _copy(action)  # the environment may change either
        self._obs = None  # not known until the step has been stored
        obs, reward, terminated, truncated, info = self.env.step(action)
        if not self._over:
            self.buffer.add(before, taken, reward, obs, terminated, truncated)
        self._obs, self._over = _copy(obs), bool(terminated or truncated)
        return obs, reward, terminated, truncated, info


class RecordVector(gymnasium.vector.VectorWrapper[Any, Any, Any, Any, Any]):
    """A vector environment whose steps are stored; see `record`."""

    def __init__(self, env: gymnasium.vector.VectorEnv[Any, Any, Any], buffer: Replay) -> None:
        super().__init__(env)
        self.buffer = buffer
        self._obs: Any = None
        self._over = np.ones(env.num_envs, np.bool_)
        self._mode = _autoreset_mode(env)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environments, or those in ``options["reset_mask"]``; episodes that were running there end here."""
        options = None if options is None else dict(options)  # Gymnasium takes the mask out of the dict it is given
        mask = (options or {}).get("reset_mask")
        lanes = np.ones(self.num_envs, np.bool_) if mask is None else np.array(mask, np.bool_)
        interrupted, self._obs = self._obs is None, None  # not known until the reset is done
        obs, info = self.env.reset(seed=seed, options=options)
        self.buffer.end_episode(~self._over if interrupted else lanes & ~self._over)
        self._over = self._over & ~lanes
        self._obs = _copy(obs)
        return obs, info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step the environments and store their transitions."""
        if self._obs is None:
            raise gymnasium.error.ResetNeeded(
                "no episode has begun, or the last step raised; call reset() before step()"
            )
        before, taken = self._obs, _copy(actions)  # the environments may change either
        self._obs = None  # not known until the step has been stored
        obs, rewards, terminated, truncated, info = self.env.step(actions)
        next_obs = self._with_final(obs, info) if self._mode == AutoresetMode.SAME_STEP else obs
        self._store(before, taken, rewards, next_obs, terminated, truncated)
        done = np.logical_or(terminated, truncated)
        if self._mode == AutoresetMode.NEXT_STEP:
            self._over = done
        elif self._mode == AutoresetMode.DISABLED:
            self._over = self._over | done
        self._obs = _copy(obs)
        return obs, rewards, terminated, truncated, info

    def _store(self, *step: Any) -> None:
        if self.num_envs > 1:
            self.buffer.add(*step, mask=~self._over if self._over.any() else None)
        elif not self._over[0]:
            self.buffer.add(*(_entry(values, 0) for values in step))

    def _with_final(self, obs: Any, info: dict[str, Any]) -> Any:
        """`obs` with the true last observation where an episode has just ended."""
        if "final_obs" not in info:
            return obs
        obs = _copy(obs)
        for lane in np.flatnonzero(info["_final_obs"]).tolist():
            final = dict(leaves_of(_entry(info["final_obs"], lane)))  # its keys may be in another order
            for path, array in leaves_of(obs):
                array[lane] = final[path]
        return obs


def _autoreset_mode(env: gymnasium.vector.VectorEnv[Any, Any, Any]) -> AutoresetMode:
    # The attribute first: the metadata are shared between environments of a class, whatever the mode of each
    mode = getattr(env.unwrapped, "autoreset_mode", None) or env.metadata.get("autoreset_mode")
    if mode is None:
        remedy = "set env.metadata['autoreset_mode'] to one of gymnasium.vector.AutoresetMode"
        raise ValueError(f"env does not tell its autoreset mode; {remedy}")
    return mode if isinstance(mode, AutoresetMode) else AutoresetMode(mode)


def _copy(obs: Any) -> Any:
    """A copy that the environment cannot change: many reuse their arrays."""
    return map_tree(lambda value, _path: np.array(value), obs)


def _entry(values: Any, lane: int) -> Any:
    """One lane of a structure of arrays with a leading axis."""
    return map_tree(lambda value, _path: value[lane], values)
