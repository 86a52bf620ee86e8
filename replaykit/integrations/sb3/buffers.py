"""The replay buffer for Stable-Baselines3."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer as BaseReplayBuffer
from stable_baselines3.common.preprocessing import get_action_dim, get_obs_shape
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
from stable_baselines3.common.utils import get_device

from replaykit.batch import Batch, Window
from replaykit.buffer import Buffer
from replaykit.buffers import ReplayBuffer
from replaykit.checks import check_count
from replaykit.field import Field
from replaykit.integrations.sb3.options import refuse_options, refuse_sb3_options
from replaykit.integrations.sb3.saving import verified
from replaykit.integrations.sb3.spaces import action_field, observation_fields, reshaped
from replaykit.replay import Replay
from replaykit.saving.checkpoint import Path
from replaykit.spec import Spec
from replaykit.trees import Tree, leaves_of
from replaykit.wrapper import ReplayWrapper

Array = npt.NDArray[Any]

_ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts", "infos")
"""The arrays of the buffers of Stable-Baselines3."""
_BOOL = np.dtype(np.bool_)


class SB3ReplayBuffer(BaseReplayBuffer):  # type: ignore[misc]
    """A replaykit buffer for the argument `replay_buffer_class` of DQN, SAC, TD3 and DDPG in Stable-Baselines3.

    By default it samples like the buffers of Stable-Baselines3. Observations can be a Dict. With `VecNormalize`,
    observations and rewards are stored unnormalized, and are normalized when they are sampled. Where `done`
    and ``infos["TimeLimit.truncated"]`` are True, a time limit is stored as `truncated`, and the target bootstraps.

    Parameters
    ----------
    buffer_size, observation_space, action_space, device, n_envs
        As in Stable-Baselines3's `ReplayBuffer`. The model passes them.
    optimize_memory_usage, handle_timeout_termination : bool
        Must have their defaults, False and True.
    n_steps : int
        Number of steps that a sampled transition spans.
    gamma : float, optional
        The `gamma` of the model. Required if `n_steps` is larger than 1.
    buffer_class : type
        `ReplayBuffer`, `PrioritizedBuffer` or `LatestBuffer` of replaykit.
    wrap : callable, optional
        ``wrap(buffer)`` returns a wrapper to sample from, such as ``CombinedReplay(buffer)``.
    **options
        Further options of `buffer_class`, such as `alpha`, `share` or `storage`. By default, `seed` is drawn from
        NumPy's global generator, which the model seeds with its own `seed`.

    Attributes
    ----------
    replay : Replay
        The buffer, or the wrapper around it.
    batch : Batch or None
        The last sampled batch, as arrays without normalization, with `weights` and `indices`.
    buffer_size : int
        Number of steps that are stored for each environment.

    Raises
    ------
    TypeError, ValueError
        If Stable-Baselines3 does not support a space, or an option does not exist or is not supported.
    """

    mark_rewards: Callable[[Any], Any] | None = None
    """A function that is applied to the rewards of each batch, so that results computed from them can be recognized."""

    def __init__(
        self, buffer_size: int, observation_space: Any, action_space: Any, device: Any = "auto", n_envs: int = 1,
        optimize_memory_usage: bool = False, handle_timeout_termination: bool = True, *, n_steps: int = 1,
        gamma: float | None = None, buffer_class: type[Buffer] = ReplayBuffer,
        wrap: Callable[[Any], Replay] | None = None, **options: Any,
    ) -> None:  # fmt: skip
        refuse_sb3_options(optimize_memory_usage, handle_timeout_termination)
        refuse_options(n_steps, gamma, buffer_class, options)
        extra_fields = self._extra_fields()
        spec = Spec(observation_fields(observation_space), action_field(action_space), **extra_fields)
        self.observation_space: spaces.Space[Any] = observation_space
        self.action_space: Any = action_space
        self.obs_shape: tuple[int, ...] = get_obs_shape(observation_space)
        self.action_dim: int = get_action_dim(action_space)
        self.buffer_size: int = max(check_count("buffer_size", buffer_size) // check_count("n_envs", n_envs), 1)
        self.n_envs: int = n_envs
        self.n_steps: int = n_steps
        self.gamma: float | None = gamma
        self.device = get_device(device)
        self.optimize_memory_usage: bool = False
        self.handle_timeout_termination: bool = True
        options = {"num_envs": n_envs, "n_step": n_steps} | options | ({} if gamma is None else {"gamma": gamma})
        if "seed" not in options:
            options["seed"] = int(np.random.randint(2**31))  # noqa: NPY002 - the generator that the model has seeded
        buffer = buffer_class(self.buffer_size * n_envs, spec, **options)  # type: ignore[arg-type]
        self.replay: Replay = buffer if wrap is None else wrap(buffer)
        if not isinstance(self.replay, Replay):
            raise TypeError(f"wrap returned a {type(self.replay).__name__}; expected the buffer or a wrapper around it")
        self.batch: Batch | None = None
        is_dict = isinstance(observation_space, spaces.Dict)
        entries = observation_space.spaces.values() if is_dict else (observation_space,)
        self._is_reshaped = any(isinstance(space, spaces.Discrete) for space in entries)
        self._action_shape = n_envs, self.action_dim
        self._no_timeouts, self._needs_episodes = np.zeros(n_envs, np.bool_), n_steps > 1
        self._has_extras = bool(extra_fields)
        self._expected: list[bytes] = []
        self._ended = b""

    def _extra_fields(self) -> dict[str, Field]:
        return {}

    def _extras(self) -> dict[str, Array]:
        """The extra fields of the next step."""
        return {}

    def add(self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: Any) -> None:
        """Store one step of every environment. At the end of an episode, `next_obs` is its last observation.

        If `obs` differs from the `next_obs` of the previous step, the environment was reset during the episode. The
        buffer then ends the episode, so that no n-step window and no hindsight goal crosses the reset.
        """
        if self._is_reshaped:
            obs, next_obs = self._in_rows(obs), self._in_rows(next_obs)
        if action.shape != self._action_shape:
            action = reshaped(action, self._action_shape)
        if done.dtype is not _BOOL:
            done = done.astype(np.bool_)
        terminated, truncated, ended = done, self._no_timeouts, done.tobytes()
        if 1 in ended:  # vector environments report a time limit only where `done` is True
            truncated = np.array([info.get("TimeLimit.truncated", False) for info in infos], np.bool_)
            terminated, ended = done & ~truncated, (done | truncated).tobytes()
        replay, needs_episodes = self.replay, self._needs_episodes
        if needs_episodes and (found := _bytes_of(obs)) != self._expected:
            self._end_interrupted_episodes(obs, found)
        if self._has_extras:
            replay.add(obs, action, reward, next_obs, terminated, truncated, **self._extras())
        else:
            replay.add(obs, action, reward, next_obs, terminated, truncated)
        if needs_episodes:
            self._expected, self._ended = _bytes_of(next_obs), ended

    def _in_rows(self, obs: Any) -> Any:
        """Observations in the shape of the fields. Discrete observations have the shape (1,)."""
        if isinstance(self.obs_shape, dict):
            return {key: reshaped(obs[key], (self.n_envs, *shape)) for key, shape in self.obs_shape.items()}
        return reshaped(obs, (self.n_envs, *self.obs_shape))

    def _end_interrupted_episodes(self, obs: Tree, found: list[bytes]) -> None:
        """End the running episodes of the environments that were reset since the previous step."""
        expected = self._expected
        if not len(self.replay):
            return
        if len(found) == len(expected) and 1 in self._ended:  # `obs` usually differs only after an end
            goes_on = ~np.frombuffer(self._ended, np.bool_)
            pairs = zip(found, expected, strict=True)
            if 0 not in self._ended or all(_are_equal(*pair, goes_on) for pair in pairs):
                return
        replay, newest, interrupted = self.replay, self.replay.newest, np.zeros(self.n_envs, np.bool_)
        for name, now in leaves_of(obs, "next_obs"):
            former = replay.read(newest, name)
            if now.shape == former.shape:  # the buffer refuses another shape
                interrupted |= _differ(now.astype(former.dtype), former)
        interrupted &= ~(replay.read(newest, "terminated") | replay.read(newest, "truncated"))
        if interrupted.any():
            replay.end_episode(interrupted)

    def end_episode(self) -> None:
        """End the running episodes: the next step of every environment begins a new one."""
        self.replay.end_episode()

    def reset(self) -> None:
        """Remove all stored transitions."""
        self.replay.clear()
        self._expected = []

    def sample(self, batch_size: int, env: Any = None) -> Any:
        """Sample a batch in the format of Stable-Baselines3. If `env` is a `VecNormalize`, it normalizes the batch.

        If `n_steps` is larger than 1, `discounts` has the discount of each transition. It is 0 after termination.
        The rewards of a window are normalized before they are summed.
        """
        if env is not None and self._has_windows:
            self.batch = _NormalizedRewards(self.replay, env).sample(batch_size)
        else:
            self.batch = self.replay.sample(batch_size)
        return self._samples_of(self.batch, env)

    def _get_samples(self, batch_inds: Array, env: Any = None) -> Any:
        """The steps at these positions in [0, buffer_size), each from a randomly drawn environment."""
        return self._samples_at(batch_inds, self.replay.rng.integers(self.n_envs, size=len(batch_inds)), env)

    def _samples_at(self, places: Array, lanes: Array, env: Any) -> Any:
        """The steps at these positions of these environments."""
        newest = self.replay.bounds[1, lanes] - 1
        indices = (newest - (newest - places) % self.buffer_size) * self.replay.successor + lanes
        is_summed = env is not None and self._has_windows
        replay = _NormalizedRewards(self.replay, env) if is_summed else self.replay
        return self._samples_of(Batch.of(replay.fetch(indices)), env)

    @property
    def _has_windows(self) -> bool:
        """Whether transitions span more than one step."""
        return self.n_steps > 1

    def _samples_of(self, batch: Batch, env: Any) -> Any:
        obs, next_obs, reward = batch.obs, batch.next_obs, batch.reward
        if env is not None:
            obs, next_obs = self._normalize_obs(obs, env), self._normalize_obs(next_obs, env)
            reward = reward if self._has_windows else self._normalize_reward(reward, env)
        fields = {"obs": obs, "action": batch.action, "next_obs": next_obs, "reward": reward}
        fields |= {"terminated": batch.terminated.astype(np.float32), "discount": batch.discount}
        tensors = Batch.of(fields).to_torch(self.device, column=True)
        reward = tensors.reward if self.mark_rewards is None else self.mark_rewards(tensors.reward)
        kind = DictReplayBufferSamples if isinstance(obs, dict) else ReplayBufferSamples
        discounts = tensors.discount if self._has_windows else None
        return kind(tensors.obs, tensors.action, tensors.next_obs, tensors.terminated, reward, discounts)

    def update_priorities(self, td_errors: Any) -> int:
        """Set the priorities of the last sampled batch. Does nothing if the buffer has no priorities."""
        if self.batch is None:
            raise RuntimeError("no batch was sampled, so no priorities can be updated; call sample first")
        return self.replay.update_priorities(self.batch.indices, td_errors)

    def size(self) -> int:
        """The number of stored steps of each environment."""
        return len(self.replay) // self.n_envs

    @property
    def pos(self) -> int:
        """The position, in [0, buffer_size), at which the next step is written."""
        return int(self.replay.bounds[1, 0]) % self.buffer_size

    @property
    def full(self) -> bool:
        """Whether the buffer is full, so that the next step overwrites the oldest one."""
        return self.size() == self.buffer_size

    def save(self, path: Path, *, progress: bool = False) -> None:
        """Write a checkpoint to a directory. If it crashes, the previous checkpoint is kept; see `Replay.save`."""
        self.replay.save(path, progress=progress)

    def load(self, path: Path, *, exact: bool = True, progress: bool = False) -> None:
        """Load a checkpoint that `save` wrote; see `Replay.load`."""
        self.replay.load(path, exact=exact, progress=progress)
        self._expected = []

    def __reduce_ex__(self, protocol: Any) -> Any:
        return verified(super().__reduce_ex__(protocol), protocol)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"batch": None, "mark_rewards": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __getattr__(self, name: str) -> Any:
        message = f"a {type(self).__name__} has no {name!r}"
        if name in _ARRAYS:
            example = "replay.read(replay.stored(), 'reward')"
            message += f", because its transitions are in its replay; read a field with {example}"
        raise AttributeError(message)


class _NormalizedRewards(ReplayWrapper):
    """A replay whose windows have normalized rewards; `env` is a `VecNormalize`."""

    def __init__(self, inner: Replay, env: Any) -> None:
        super().__init__(inner)
        self._env = env

    def change(self, window: Window) -> Window:
        window.reward = np.asarray(self._env.normalize_reward(window.reward), np.float64)
        return window


def _bytes_of(obs: Any) -> list[bytes]:
    """The bytes of an array, or of the arrays of a dict."""
    return [obs.tobytes()] if type(obs) is np.ndarray else [value.tobytes() for value in obs.values()]


def _are_equal(one: bytes, other: bytes, lanes: Array) -> bool:
    """Whether the bytes of these lanes are equal."""
    rows, others = (np.frombuffer(data, np.uint8).reshape(len(lanes), -1) for data in (one, other))
    return rows.shape == others.shape and bool((rows == others)[lanes].all())


def _differ(now: Array, former: Array) -> npt.NDArray[np.bool_]:
    """Whether each row of two arrays differs. NaN equals NaN."""
    unequal = (now != former) & ((now == now) | (former == former))
    return np.asarray(unequal.reshape(len(unequal), -1).any(axis=1))
