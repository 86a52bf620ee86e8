"""Stable-Baselines3: buffers for `replay_buffer_class`, and DQN, SAC and TD3 with prioritized replay.

    model = SAC("MlpPolicy", env, replay_buffer_class=SB3ReplayBuffer)

Importing this module needs Stable-Baselines3: ``pip install "replaykit[sb3]"``.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

try:
    import torch
    from gymnasium import spaces
    from stable_baselines3 import DQN, SAC, TD3, HerReplayBuffer
    from stable_baselines3.common.buffers import ReplayBuffer as BaseReplayBuffer
    from stable_baselines3.common.preprocessing import get_action_dim, get_obs_shape
    from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
    from stable_baselines3.common.utils import get_device
    from torch.nn import functional
except ImportError as error:
    remedy = "replaykit.integrations.sb3 needs Stable-Baselines3: pip install 'replaykit[sb3]'"
    raise ImportError(f"{error}; {remedy}") from error

from replaykit.batch import Batch, Strategy, Window
from replaykit.buffer import Buffer
from replaykit.buffers import PrioritizedBuffer, ReplayBuffer
from replaykit.checks import check_choice, check_count
from replaykit.field import Field
from replaykit.hindsight import HindsightReplay
from replaykit.replay import Replay
from replaykit.saving.checkpoint import Path
from replaykit.spec import Spec
from replaykit.trees import Tree, leaves_of
from replaykit.wrapper import ReplayWrapper

__all__ = ["PrioritizedDQN", "PrioritizedSAC", "PrioritizedTD3", "SB3HindsightBuffer", "SB3ReplayBuffer"]

Array = npt.NDArray[Any]

_ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts", "infos")
"""The arrays that Stable-Baselines3's own buffers have."""
_BOOL = np.dtype(np.bool_)
_RENAMED = {"capacity": "buffer_size", "num_envs": "n_envs", "n_step": "n_steps", "spec": "observation_space"}
"""Arguments of replaykit's buffers that have another name in Stable-Baselines3."""


class SB3ReplayBuffer(BaseReplayBuffer):  # type: ignore[misc]
    """A buffer of replaykit, for `replay_buffer_class` of DQN, SAC, TD3 and DDPG of Stable-Baselines3.

    With its defaults it samples as Stable-Baselines3's own buffers do. Observations may be a Dict. With `VecNormalize`,
    observations and rewards are stored as they are, and normalised when they are sampled. A time limit,
    ``infos["TimeLimit.truncated"]``, is stored as `truncated`, and does not stop the bootstrap.

    Parameters
    ----------
    buffer_size, observation_space, action_space, device, n_envs
        As those of Stable-Baselines3's `ReplayBuffer`; the model passes them.
    optimize_memory_usage, handle_timeout_termination : bool
        Only False and True, which are the defaults.
    n_steps : int
        Steps that a sampled transition spans.
    gamma : float, optional
        Discount of a step: that of the model. Required if `n_steps` is larger than 1.
    buffer_class : type
        `ReplayBuffer`, `PrioritizedBuffer` or `LatestBuffer` of replaykit.
    wrap : callable, optional
        ``wrap(buffer)`` returns what batches are sampled from, such as ``CombinedReplay(buffer)``.
    **options
        Further options of `buffer_class`, such as `alpha`, `share` or `storage`. If `seed` is left out, it is drawn
        from NumPy's global generator, which the model seeds with its own `seed`.

    Attributes
    ----------
    replay : Replay
        The buffer, or the wrapper around it.
    batch : Batch or None
        The batch that was sampled last, as arrays that are not normalised, with `weights` and `indices`.
    buffer_size : int
        Steps that are kept of each environment.

    Raises
    ------
    TypeError, ValueError
        For a space that Stable-Baselines3 does not support, or an option that does not exist or cannot be honoured.
    """

    def __init__(
        self, buffer_size: int, observation_space: Any, action_space: Any, device: Any = "auto", n_envs: int = 1,
        optimize_memory_usage: bool = False, handle_timeout_termination: bool = True, *, n_steps: int = 1,
        gamma: float | None = None, buffer_class: type[Buffer] = ReplayBuffer,
        wrap: Callable[[Any], Replay] | None = None, **options: Any,
    ) -> None:  # fmt: skip
        _refuse_sb3_options(optimize_memory_usage, handle_timeout_termination)
        _refuse_options(n_steps, gamma, buffer_class, options)
        spec = Spec(_observation_fields(observation_space), _action_field(action_space), **self._extra_fields())
        self.observation_space, self.action_space = observation_space, action_space
        self.obs_shape, self.action_dim = get_obs_shape(observation_space), get_action_dim(action_space)
        self.buffer_size = max(check_count("buffer_size", buffer_size) // check_count("n_envs", n_envs), 1)
        self.n_envs, self.device, self.n_steps, self.gamma = n_envs, get_device(device), n_steps, gamma
        self.optimize_memory_usage, self.handle_timeout_termination = False, True
        options = {"num_envs": n_envs, "n_step": n_steps} | options | ({} if gamma is None else {"gamma": gamma})
        if "seed" not in options:
            options["seed"] = int(np.random.randint(2**31))  # noqa: NPY002 - the generator that the model has seeded
        buffer = buffer_class(self.buffer_size * n_envs, spec, **options)  # type: ignore[arg-type]
        self.replay: Replay = buffer if wrap is None else wrap(buffer)
        if not isinstance(self.replay, Replay):
            raise TypeError(f"wrap returned a {type(self.replay).__name__}; expected the buffer or a wrapper around it")
        self.batch: Batch | None = None
        self.weighted_loss: _WeightedLoss | None = None
        is_dict = isinstance(observation_space, spaces.Dict)
        entries = observation_space.spaces.values() if is_dict else (observation_space,)
        self._is_reshaped = any(isinstance(space, spaces.Discrete) for space in entries)
        self._action_shape = n_envs, self.action_dim
        self._no_timeouts, self._needs_episodes = np.zeros(n_envs, np.bool_), n_steps > 1
        self._expected: bytes | None = None

    def _extra_fields(self) -> dict[str, Field]:
        return {}

    def _extras(self, infos: Any) -> dict[str, Array]:
        """The extra fields of one step."""
        return {}

    def add(self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: Any) -> None:
        """Store one step of every environment. At an episode's end `next_obs` is the last observation of the episode.

        Where `obs` is not the `next_obs` of the step before, the environment was reset in the middle of an episode. The
        episode is ended there, so that no n-step window and no hindsight goal crosses the reset.
        """
        if self._is_reshaped:
            obs, next_obs = self._in_rows(obs), self._in_rows(next_obs)
        if action.shape != self._action_shape:
            action = _reshaped(action, self._action_shape)
        terminated, truncated = done, self._no_timeouts
        timeouts = [info.get("TimeLimit.truncated", False) for info in infos]
        if True in timeouts or done.dtype is not _BOOL:
            truncated = np.array(timeouts, np.bool_)
            terminated = np.asarray(done, np.bool_) & ~truncated
        if self._needs_episodes and self._expected != _bytes_of(obs):
            self._end_interrupted_episodes(obs)
        extras = self._extras(infos)
        self.replay.add(obs, action, reward, next_obs, terminated, truncated, **extras)
        if self._needs_episodes:
            self._expected = _bytes_of(next_obs)

    def _in_rows(self, obs: Any) -> Any:
        """Observations in the shape of the fields: a Discrete one has the shape (1,)."""
        if isinstance(self.obs_shape, dict):
            return {key: _reshaped(obs[key], (self.n_envs, *shape)) for key, shape in self.obs_shape.items()}
        return _reshaped(obs, (self.n_envs, *self.obs_shape))

    def _end_interrupted_episodes(self, obs: Tree) -> None:
        """End the running episodes of the environments that were reset since the step before."""
        if not len(self.replay):
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
        """Forget everything that is stored."""
        self.replay.clear()
        self._expected = None

    def sample(self, batch_size: int, env: Any = None) -> Any:
        """A batch as Stable-Baselines3 takes it. With `env`, a `VecNormalize`, it is normalised.

        With `n_steps` larger than 1, `discounts` has the discount of each transition, 0 where the episode terminated.
        Every reward of a window is normalised before they are added up.
        """
        if env is not None and self._has_windows:
            self.batch = _NormalizedRewards(self.replay, env).sample(batch_size)
        else:
            self.batch = self.replay.sample(batch_size)
        return self._samples_of(self.batch, env)

    def _get_samples(self, batch_inds: Array, env: Any = None) -> Any:
        """The steps at these positions, from 0 to `buffer_size`, each of an environment that is drawn."""
        lanes = self.replay.rng.integers(self.n_envs, size=len(batch_inds))
        newest = self.replay.bounds[1, lanes] - 1
        indices = (newest - (newest - batch_inds) % self.buffer_size) * self.replay.successor + lanes
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
        reward = tensors.reward if self.weighted_loss is None else _targets(tensors.reward, self.weighted_loss)
        kind = DictReplayBufferSamples if isinstance(obs, dict) else ReplayBufferSamples
        discounts = tensors.discount if self._has_windows else None
        return kind(tensors.obs, tensors.action, tensors.next_obs, tensors.terminated, reward, discounts)

    def update_priorities(self, td_errors: Any) -> int:
        """Set the priorities of the batch that was sampled last; does nothing if the buffer has none."""
        if self.batch is None:
            raise RuntimeError("no batch was sampled, so there is none to update; call sample first")
        return self.replay.update_priorities(self.batch.indices, td_errors)

    def size(self) -> int:
        """Steps stored of each environment."""
        return len(self.replay) // self.n_envs

    @property
    def pos(self) -> int:
        """The position of the step that is written next, from 0 to `buffer_size`."""
        return int(self.replay.bounds[1, 0]) % self.buffer_size

    @property
    def full(self) -> bool:
        """Whether the next step replaces the oldest."""
        return self.size() == self.buffer_size

    def save(self, path: Path, *, progress: bool = False) -> None:
        """Write a checkpoint to a directory. A crash in the middle leaves the former one; see `Replay.save`."""
        self.replay.save(path, progress=progress)

    def load(self, path: Path, *, exact: bool = True, progress: bool = False) -> None:
        """Take everything from a checkpoint that `save` wrote; see `Replay.load`."""
        self.replay.load(path, exact=exact, progress=progress)
        self._expected = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"batch": None, "weighted_loss": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __getattr__(self, name: str) -> Any:
        message = f"a {type(self).__name__} has no {name!r}"
        if name in _ARRAYS:
            example = "replay.read(replay.stored(), 'reward')"
            message += f", since its transitions are in its replay; read a field by {example}"
        raise AttributeError(message)


class SB3HindsightBuffer(SB3ReplayBuffer, HerReplayBuffer):  # type: ignore[misc]
    """A `HindsightReplay` of replaykit, in place of Stable-Baselines3's `HerReplayBuffer`.

    Every stored transition can be drawn, also those of running episodes, whose goals are taken from the steps so far.
    So training can start before the first episode ends. Each transition gets another goal with the probability
    ``n_sampled_goal / (n_sampled_goal + 1)``; Stable-Baselines3 gives one to exactly this share of every batch.

    Parameters
    ----------
    buffer_size, observation_space, action_space, device, n_envs, optimize_memory_usage, handle_timeout_termination
        As those of `SB3ReplayBuffer`.
    env : VecEnv
        Its first environment has ``compute_reward(achieved_goal, desired_goal, infos)``; the model passes it.
    n_sampled_goal : int
        Other goals for each one that was meant.
    goal_selection_strategy : str or GoalSelectionStrategy
        "future", "final", "episode", or "random", which Stable-Baselines3 does not have.
    copy_info_dict : bool
        Whether `compute_reward` gets copies of the info dicts, which are kept for this, rather than empty dicts.
    n_steps, gamma, buffer_class, wrap, **options
        As those of `SB3ReplayBuffer`. Stable-Baselines3's own buffer has no n-step returns of goals.
    """

    def __init__(
        self, buffer_size: int, observation_space: Any, action_space: Any, env: Any, device: Any = "auto",
        n_envs: int = 1, optimize_memory_usage: bool = False, handle_timeout_termination: bool = True,
        n_sampled_goal: int = 4, goal_selection_strategy: Any = "future", copy_info_dict: bool = False, *,
        n_steps: int = 1, gamma: float | None = None, buffer_class: type[Buffer] = ReplayBuffer,
        wrap: Callable[[Any], Replay] | None = None, **options: Any,
    ) -> None:  # fmt: skip
        count = (
            0 if type(n_sampled_goal) is int and n_sampled_goal == 0 else check_count("n_sampled_goal", n_sampled_goal)
        )
        strategy: Any = getattr(goal_selection_strategy, "name", goal_selection_strategy)
        strategy = strategy.lower() if isinstance(strategy, str) else strategy
        check_choice("goal_selection_strategy", strategy, Strategy)
        self.copy_info_dict, self.n_sampled_goal = copy_info_dict, count
        self.goal_selection_strategy, self.her_ratio = goal_selection_strategy, count / (count + 1)
        super().__init__(
            buffer_size, observation_space, action_space, device, n_envs, optimize_memory_usage,
            handle_timeout_termination, n_steps=n_steps, gamma=gamma, buffer_class=buffer_class, wrap=wrap, **options,
        )  # fmt: skip
        self._compute_reward = _ComputeReward(env, self.replay.capacity if copy_info_dict else 0)
        self.replay = HindsightReplay(self.replay, self._compute_reward, strategy=strategy, ratio=self.her_ratio)
        self._needs_episodes = True

    def _extra_fields(self) -> dict[str, Field]:
        return {"info_slot": Field((), np.int64)} if self.copy_info_dict else {}

    def _extras(self, infos: Any) -> dict[str, Array]:
        return {"info_slot": self._compute_reward.keep(infos, self.pos * self.n_envs)} if self.copy_info_dict else {}

    @property
    def env(self) -> Any:
        """The environments that compute rewards, or None after the buffer was unpickled."""
        return self._compute_reward.env

    def set_env(self, env: Any) -> None:
        """Set the environments that compute rewards, after the buffer was unpickled."""
        if self.env is not None:
            raise ValueError("Trying to set env of already initialized environment; it was given to the constructor")
        self._compute_reward.env = env

    def truncate_last_trajectory(self) -> None:
        """End the running episodes: the next step of every environment begins a new one. Stored flags do not change."""
        self.end_episode()

    def save(self, path: Path, *, progress: bool = False) -> None:
        """Write a checkpoint to a directory; see `SB3ReplayBuffer.save`. Info dicts cannot be written."""
        if self.copy_info_dict:
            remedy = "call save_replay_buffer of the model, which pickles the buffer, or leave copy_info_dict out"
            raise ValueError(f"copy_info_dict is True; expected False, since a checkpoint has no dicts; {remedy}")
        super().save(path, progress=progress)


class _ComputeReward:
    """`compute_reward` of the first environment, with the info dicts of as many steps as are kept."""

    def __init__(self, env: Any, capacity: int) -> None:
        self.env, self._infos = env, np.empty(capacity, object)

    def keep(self, infos: Any, begin: int) -> Array:
        """Keep the dicts of one step from this slot on; returns their slots."""
        slots = np.arange(begin, begin + len(infos))
        self._infos[slots] = infos
        return slots

    def __call__(self, achieved_goal: Array, desired_goal: Array, info: dict[str, Any]) -> Any:
        if self.env is None:
            raise RuntimeError("the buffer has no environment that computes rewards; call set_env(env) first")
        infos = copy.deepcopy(self._infos[info["info_slot"]].tolist()) if info else [{} for _ in achieved_goal]
        return self.env.env_method("compute_reward", achieved_goal, desired_goal, infos, indices=[0])[0]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"env": None}


class _NormalizedRewards(ReplayWrapper):
    """A replay whose windows have normalised rewards; `env` is a `VecNormalize`."""

    def __init__(self, inner: Replay, env: Any) -> None:
        super().__init__(inner)
        self._env = env

    def change(self, window: Window) -> Window:
        window.reward = np.asarray(self._env.normalize_reward(window.reward), np.float64)
        return window


class _WeightedLoss:
    """While it is active, a mean loss of the buffer's last batch is weighted, and its TD errors become priorities.

    A loss is recognised by its function, by its targets, which are computed from the rewards of the batch, and by the
    shape (B, 1). An algorithm with several critics has a loss for each; their mean absolute TD error counts.
    """

    def __init__(self, buffer: SB3ReplayBuffer) -> None:
        self.losses = 0
        self._buffer, self._batch = buffer, buffer.batch
        self._errors: list[Array] = []

    def __enter__(self) -> "_WeightedLoss":
        self._buffer.weighted_loss = self
        return self

    def __exit__(self, *_: Any) -> None:
        self._buffer.weighted_loss = None

    def mean(self, losses: Any, td_errors: Any) -> Any:
        """The weighted mean of the losses of a batch."""
        batch = self._buffer.batch
        if batch is None or losses.shape != (len(batch), 1):
            return losses.mean()
        if batch is not self._batch:
            self._batch, self._errors = batch, []
        self.losses += 1
        self._errors.append(td_errors.detach().reshape(-1).abs().cpu().numpy())
        self._buffer.update_priorities(np.mean(self._errors, axis=0))
        return (torch.from_numpy(batch.weights).to(losses.device).reshape(-1, 1) * losses).mean()


class _Targets(torch.Tensor):
    """The rewards of a batch, and all tensors computed from them. A mean loss of them is weighted by `loss`."""

    loss: _WeightedLoss

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        loss = next((getattr(each, "loss", None) for each in (*args, *options.values()) if isinstance(each, cls)), None)
        with torch._C.DisableTorchFunctionSubclass():
            if loss and function in _LOSSES and len(args) == 2 and options.get("reduction", "mean") == "mean":
                return loss.mean(function(*args, **options | {"reduction": "none"}), args[1] - args[0])
            result = function(*args, **options)
        return _targets(result, loss) if loss and type(result) is torch.Tensor else result


def _targets(tensor: Any, loss: _WeightedLoss) -> _Targets:
    targets = tensor.as_subclass(_Targets)
    targets.loss = loss
    return targets  # type: ignore[no-any-return]


_LOSSES = (functional.smooth_l1_loss, functional.mse_loss)
"""The losses of Stable-Baselines3's critics: the first in `DQN.train`, the second in `SAC.train` and `TD3.train`."""


class _Prioritized:
    """An off-policy algorithm of Stable-Baselines3 that weights its loss and feeds TD errors back.

    Its own `train` runs as it is. While it does, its line ``loss = F.smooth_l1_loss(current_q_values,
    target_q_values)``, or ``F.mse_loss(current_q, target_q_values)`` for each critic, computes the weighted mean.
    """

    replay_buffer: Any
    replay_buffer_class: Any
    replay_buffer_kwargs: Any
    observation_space: Any
    n_steps: int
    gamma: float

    def _setup_model(self) -> None:
        self.replay_buffer_class = self.replay_buffer_class or SB3ReplayBuffer
        if not issubclass(self.replay_buffer_class, SB3ReplayBuffer):
            wanted = "expected SB3ReplayBuffer or SB3HindsightBuffer, whose batches have weights"
            raise TypeError(f"replay_buffer_class is {self.replay_buffer_class.__name__}; {wanted}")
        given, n_steps = self.replay_buffer_kwargs, self.n_steps
        self.replay_buffer_kwargs = self._options()
        self.n_steps = 1  # other numbers make Stable-Baselines3 warn that it ignores them
        try:
            super()._setup_model()  # type: ignore[misc]
        finally:
            self.replay_buffer_kwargs, self.n_steps = given, n_steps

    def _options(self) -> dict[str, Any]:
        """`replay_buffer_kwargs` with a `PrioritizedBuffer`, and the `n_steps` and the `gamma` of the model."""
        of_model = {"n_steps": self.n_steps, "gamma": self.gamma}
        options: dict[str, Any] = {"buffer_class": PrioritizedBuffer} | self.replay_buffer_kwargs
        for name, value in of_model.items():
            is_default = name == "n_steps" and value == 1
            if options.setdefault(name, value) != value and not is_default:
                got = f"replay_buffer_kwargs has {name}={options[name]!r}"
                raise ValueError(f"{got}; expected {value!r}, that of the model; leave it out there")
        return options

    def train(self, gradient_steps: int, batch_size: int) -> None:
        """`train` of the algorithm, with a weighted loss."""
        with _WeightedLoss(self.replay_buffer) as weighted:
            super().train(gradient_steps, batch_size)  # type: ignore[misc]
        if gradient_steps and not weighted.losses:
            wanted = "expected one of smooth_l1_loss or mse_loss, of values and targets of shape (B, 1)"
            raise RuntimeError(f"train of {type(self).__name__} computed no loss that can be weighted; {wanted}")


class PrioritizedDQN(_Prioritized, DQN):  # type: ignore[misc]
    """`DQN` of Stable-Baselines3 with prioritized replay.

    The arguments are those of `DQN`. `replay_buffer_class` is `SB3ReplayBuffer` by default, and may be
    `SB3HindsightBuffer`. `replay_buffer_kwargs` may have options of `PrioritizedBuffer`, such as `alpha` and `beta`.
    """


class PrioritizedSAC(_Prioritized, SAC):  # type: ignore[misc]
    """`SAC` of Stable-Baselines3 with prioritized replay. The arguments are those of `SAC`; see `PrioritizedDQN`."""


class PrioritizedTD3(_Prioritized, TD3):  # type: ignore[misc]
    """`TD3` of Stable-Baselines3 with prioritized replay. The arguments are those of `TD3`; see `PrioritizedDQN`."""


def _refuse_sb3_options(optimize_memory_usage: bool, handle_timeout_termination: bool) -> None:
    """Raise ValueError for options of Stable-Baselines3's buffers that cannot be honoured."""
    if optimize_memory_usage:
        remedy = "leave it out: large observations are kept once, and with share='all' small ones, too"
        raise ValueError(f"optimize_memory_usage is {optimize_memory_usage}; expected False; {remedy}")
    if not handle_timeout_termination:
        remedy = "leave it out; if a time limit shall stop the bootstrap, let the environment terminate there"
        raise ValueError(f"handle_timeout_termination is {handle_timeout_termination}; expected True; {remedy}")


def _refuse_options(n_steps: Any, gamma: float | None, buffer_class: Any, options: dict[str, Any]) -> None:
    """Raise for options of replaykit that do not fit. Those of the buffer itself are checked by its constructor."""
    if not (isinstance(buffer_class, type) and issubclass(buffer_class, Buffer)):
        wanted = "expected ReplayBuffer, PrioritizedBuffer or LatestBuffer of replaykit"
        raise TypeError(f"buffer_class is {buffer_class!r}; {wanted}; pass wrappers as wrap=")
    for name, meant in _RENAMED.items():
        if name in options:
            raise TypeError(f"{name} is no option of this buffer; use {meant}, as Stable-Baselines3 does")
    if options.get("stack", 1) != 1:
        remedy = "stack frames with VecFrameStack, and they are kept once"
        raise ValueError(f"stack is {options['stack']!r}; expected 1, since the policy acts on stacks itself; {remedy}")
    if check_count("n_steps", n_steps) > 1 and gamma is None:
        remedy = f"add it: replay_buffer_kwargs=dict(n_steps={n_steps}, gamma=...)"
        raise ValueError(f"n_steps is {n_steps}, but gamma is missing; expected the gamma of the model; {remedy}")


def _observation_fields(space: Any) -> Tree:
    """The fields of observations as Stable-Baselines3 keeps them."""
    if isinstance(space, spaces.Dict):
        return {key: _field(entry, f"observation_space[{key!r}]") for key, entry in space.spaces.items()}
    return _field(space, "observation_space")


def _action_field(space: Any) -> Field:
    """The field of actions as Stable-Baselines3 keeps them: in one axis, and float32 for float64."""
    dtype = _field(space, "action_space").dtype
    return Field((get_action_dim(space),), np.float32 if dtype == np.float64 else dtype)


def _field(space: Any, name: str) -> Field:
    if isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return Field(get_obs_shape(space), space.dtype)
    got = f"{name} is a {type(space).__name__} space"
    wanted = "Box, Discrete, MultiDiscrete or MultiBinary, as Stable-Baselines3 does, or a Dict of them as observations"
    raise TypeError(f"{got}; expected {wanted}; use gymnasium.wrappers.FlattenObservation")


def _reshaped(value: Any, shape: tuple[int, ...]) -> Any:
    """An array in this shape if it has as many entries; the buffer refuses others."""
    array = np.asarray(value)
    return array.reshape(shape) if array.shape != shape and array.size == math.prod(shape) else array


def _bytes_of(obs: Any) -> bytes:
    """The bytes of an array, or of the arrays of a dict."""
    if not isinstance(obs, dict):
        return bytes(obs.tobytes())
    return b"".join([value.tobytes() for value in obs.values()])


def _differ(now: Array, former: Array) -> npt.NDArray[np.bool_]:
    """In which rows two arrays differ; NaN equals NaN."""
    unequal = (now != former) & ((now == now) | (former == former))
    return np.asarray(unequal.reshape(len(unequal), -1).any(axis=1))
