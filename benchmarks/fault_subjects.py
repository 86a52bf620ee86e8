"""The buffers of each library with a common interface, for :mod:`benchmarks.faults`.

A subject is a buffer of 8 transitions with an observation of 3 numbers and a discrete action. Step t has the
observation (t, t, t), the reward t and the next observation (t + 1/2, t + 1/2, t + 1/2).
"""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

CAPACITY, N_STEP, GAMMA = 8, 3, 0.5


class NotOfferedError(Exception):
    """The library does not have this feature."""


class Subject:
    """A buffer of a library."""

    def __init__(self, **options: Any) -> None:
        """Build the buffer: `capacity`, `prioritized`, `n_step`, and the `dtype` of observations."""

    def store(self, step: dict[str, Any]) -> None:
        """Add one transition: obs, action, reward, next_obs, terminated, truncated."""
        raise NotImplementedError

    def sample(self, batch_size: int) -> dict[str, Any]:
        """A batch with obs, action, reward, next_obs, and indices and weights if there are any, as arrays.

        With n-step returns, it also has `is_terminal`: whether the target of a row adds no value of `next_obs`.
        """
        raise NotImplementedError

    def update(self, indices: Any, td_errors: Any) -> None:
        """Report TD errors."""
        raise NotOfferedError("there are no priorities")

    @property
    def buffer(self) -> Any:
        """The library's own object."""
        raise NotImplementedError


def step(t: float, dtype: Any = np.float32, **changes: Any) -> dict[str, Any]:
    fields = {"obs": np.full(3, t, dtype), "action": 1, "reward": float(t), "next_obs": np.full(3, t + 0.5, dtype)}
    return fields | {"terminated": False, "truncated": False} | changes


class Replaykit(Subject):
    def __init__(
        self, capacity: int = CAPACITY, prioritized: bool = False, n_step: int = 1, dtype: Any = np.float32
    ) -> None:
        from replaykit import Field, PrioritizedBuffer, ReplayBuffer, Spec

        spec = Spec(obs=Field((3,), dtype), action=Field((), np.int64))
        options: dict[str, Any] = {"n_step": n_step, "gamma": GAMMA, "seed": 0}
        if prioritized:
            self.replay: Any = PrioritizedBuffer(capacity, spec, alpha=1.0, eps=0.0, **options)
        else:
            self.replay = ReplayBuffer(capacity, spec, **options)

    def store(self, step: dict[str, Any]) -> None:
        self.replay.add(**step)

    def sample(self, batch_size: int) -> dict[str, Any]:
        batch = self.replay.sample(batch_size)
        return dict(batch.items()) | {"is_terminal": batch.discount == 0.0}

    def update(self, indices: Any, td_errors: Any) -> None:
        self.replay.update_priorities(indices, td_errors)

    @property
    def buffer(self) -> Any:
        return self.replay


class Cpprb(Subject):
    def __init__(
        self, capacity: int = CAPACITY, prioritized: bool = False, n_step: int = 1, dtype: Any = np.float32
    ) -> None:
        import cpprb

        obs = {"shape": 3, "dtype": dtype}
        fields: dict[str, Any] = {"obs": obs, "act": {"dtype": np.int64}, "rew": {}, "next_obs": obs, "done": {}}
        steps = {"size": n_step, "gamma": GAMMA, "rew": "rew", "next": "next_obs"}
        options: dict[str, Any] = {"Nstep": steps} if n_step > 1 else {}
        if prioritized:
            self.replay: Any = cpprb.PrioritizedReplayBuffer(capacity, fields, alpha=1.0, eps=0.0, **options)
        else:
            self.replay = cpprb.ReplayBuffer(capacity, fields, **options)

    def store(self, step: dict[str, Any]) -> None:
        names = {"obs": "obs", "action": "act", "reward": "rew", "next_obs": "next_obs", "terminated": "done"}
        self.replay.add(**{names[name]: value for name, value in step.items() if name in names})
        if step["terminated"] or step["truncated"]:
            self.replay.on_episode_end()

    def sample(self, batch_size: int) -> dict[str, Any]:
        batch = self.replay.sample(batch_size)
        names = {"obs": "obs", "act": "action", "rew": "reward", "next_obs": "next_obs", "weights": "weights"}
        names |= {"indexes": "indices", "done": "is_terminal"}
        fields = {ours: batch[theirs] for theirs, ours in names.items() if theirs in batch}
        columns = ("action", "reward", "is_terminal")
        return {name: value[:, 0] if name in columns else value for name, value in fields.items()}

    def update(self, indices: Any, td_errors: Any) -> None:
        """Its argument is an array of priorities, so the caller passes absolute values."""
        if not hasattr(self.replay, "update_priorities"):
            raise NotOfferedError("there are no priorities")
        self.replay.update_priorities(np.asarray(indices), np.abs(td_errors))

    @property
    def buffer(self) -> Any:
        return self.replay


class Tianshou(Subject):
    def __init__(
        self, capacity: int = CAPACITY, prioritized: bool = False, n_step: int = 1, dtype: Any = np.float32
    ) -> None:
        from tianshou.data import PrioritizedReplayBuffer, ReplayBuffer

        self.n_step = n_step
        self.replay: Any = (
            PrioritizedReplayBuffer(capacity, alpha=1.0, beta=0.4) if prioritized else ReplayBuffer(capacity)
        )

    def store(self, step: dict[str, Any]) -> None:
        from tianshou.data import Batch

        names = {"action": "act", "reward": "rew", "next_obs": "obs_next"}
        self.replay.add(Batch(**{names.get(name, name): value for name, value in step.items()}))

    def sample(self, batch_size: int) -> dict[str, Any]:
        batch, indices = self.replay.sample(batch_size)
        fields = {"obs": batch.obs, "action": batch.act, "reward": batch.rew, "next_obs": batch.obs_next}
        fields |= {"indices": indices} | ({"weights": batch.weight} if "weight" in batch else {})
        if self.n_step > 1:
            fields |= self.returns(batch, indices)
        return fields

    def returns(self, batch: Any, indices: Any) -> dict[str, Any]:
        """The returns, and the last observations. The algorithm reads these to compute their values.

        A row is terminal if its target does not depend on these values.
        """
        import torch
        from tianshou.algorithm.algorithm_base import Algorithm

        asked: list[Any] = []

        def targets(value: float) -> Any:
            def values(_buffer: Any, last: Any) -> Any:
                asked.append(self.replay[last].obs_next)
                return torch.full((len(last),), value)

            made = Algorithm.compute_nstep_return(batch, self.replay, indices, values, GAMMA, self.n_step)
            return np.asarray(made.returns).reshape(-1)

        returns = targets(0.0)
        return {"reward": returns, "next_obs": asked[-1], "is_terminal": targets(1.0) == returns}

    def update(self, indices: Any, td_errors: Any) -> None:
        if not hasattr(self.replay, "update_weight"):
            raise NotOfferedError("there are no priorities")
        self.replay.update_weight(np.asarray(indices), np.asarray(td_errors))

    @property
    def buffer(self) -> Any:
        return self.replay


class StableBaselines3(Subject):
    def __init__(
        self, capacity: int = CAPACITY, prioritized: bool = False, n_step: int = 1, dtype: Any = np.float32
    ) -> None:
        from gymnasium import spaces
        from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer

        if prioritized:
            raise NotOfferedError("there is no prioritized buffer")
        box = spaces.Box(0, 255, (3,), np.uint8) if dtype == np.uint8 else spaces.Box(-np.inf, np.inf, (3,))
        if n_step > 1:
            self.replay: Any = NStepReplayBuffer(capacity, box, spaces.Discrete(4), "cpu", n_steps=n_step, gamma=GAMMA)
        else:
            self.replay = ReplayBuffer(capacity, box, spaces.Discrete(4), "cpu")

    def store(self, step: dict[str, Any]) -> None:
        names = ("obs", "next_obs", "action", "reward")
        values = [np.asarray(step[name])[None] if name != "obs" else step[name][None] for name in names]
        done = np.array([step["terminated"] or step["truncated"]])
        self.replay.add(*values, done, [{"TimeLimit.truncated": step["truncated"]}])

    def sample(self, batch_size: int) -> dict[str, Any]:
        batch = self.replay.sample(batch_size)
        names = {"observations": "obs", "actions": "action", "rewards": "reward", "next_observations": "next_obs"}
        names |= {"dones": "is_terminal"}
        fields = {ours: getattr(batch, theirs).numpy() for theirs, ours in names.items()}
        columns = ("action", "reward", "is_terminal")
        return {name: value[:, 0] if name in columns else value for name, value in fields.items()}

    @property
    def buffer(self) -> Any:
        return self.replay


class Torchrl(Subject):
    def __init__(
        self, capacity: int = CAPACITY, prioritized: bool = False, n_step: int = 1, dtype: Any = np.float32
    ) -> None:
        import torch
        from torchrl.data import LazyTensorStorage, ReplayBuffer, TensorDictPrioritizedReplayBuffer
        from torchrl.envs.transforms import MultiStepTransform

        self.n_step = n_step
        storage = LazyTensorStorage(capacity)
        if prioritized:
            try:
                self.replay: Any = TensorDictPrioritizedReplayBuffer(alpha=1.0, beta=0.4, eps=0.0, storage=storage)
            except RuntimeError as error:
                reason = f"its prioritized buffer does not load with torch {torch.__version__}"
                raise NotOfferedError(reason) from error
        else:
            options = {"transform": MultiStepTransform(n_step, GAMMA)} if n_step > 1 else {}
            self.replay = ReplayBuffer(storage=storage, **options)

    def store(self, step: dict[str, Any]) -> None:
        import torch
        from tensordict import TensorDict

        done = step["terminated"] or step["truncated"]
        after = {"observation": torch.as_tensor(step["next_obs"]), "reward": torch.tensor([step["reward"]])}
        flags = {"terminated": step["terminated"], "truncated": step["truncated"], "done": done}
        after |= {name: torch.tensor([flag]) for name, flag in flags.items()}
        now = {"observation": torch.as_tensor(step["obs"]), "action": torch.as_tensor(step["action"])}
        row = TensorDict({**now, "next": TensorDict(after, [])}, [])
        self.replay.extend(row[None]) if self.n_step > 1 else self.replay.add(row)

    def sample(self, batch_size: int) -> dict[str, Any]:
        batch = self.replay.sample(batch_size)
        fields = {"obs": batch["observation"], "action": batch["action"], "reward": batch["next", "reward"][:, 0]}
        fields |= {"next_obs": batch["next", "observation"], "is_terminal": batch["next", "terminated"][:, 0]}
        if "index" in batch.keys():  # noqa: SIM118
            fields |= {"indices": batch["index"], "weights": batch["priority_weight"]}
        return {name: value.numpy() for name, value in fields.items()}

    def update(self, indices: Any, td_errors: Any) -> None:
        import torch

        self.replay.update_priority(torch.as_tensor(indices), torch.as_tensor(td_errors))

    @property
    def buffer(self) -> Any:
        return self.replay


class Flashbax(Subject):
    def __init__(
        self, capacity: int = CAPACITY, prioritized: bool = False, n_step: int = 1, dtype: Any = np.float32
    ) -> None:
        import flashbax
        import jax
        import jax.numpy as jnp

        if n_step > 1:
            raise NotOfferedError("sequences are sampled, and n-step returns are left to the caller")
        self.options: dict[str, Any] = {"max_length": capacity, "min_length": 1}
        self.make: Callable[..., Any] = flashbax.make_item_buffer
        if prioritized:
            self.make, self.options = flashbax.make_prioritised_item_buffer, self.options | {"priority_exponent": 1.0}
        self.key = jax.random.PRNGKey(0)
        self.functions = self.make(sample_batch_size=1, **self.options)
        self.add = jax.jit(self.functions.add)
        self.draws = jax.jit(jax.vmap(self.functions.sample, in_axes=(None, 0)))
        self.state = self.functions.init({name: jnp.asarray(value) for name, value in step(0.0, dtype).items()})

    def store(self, step: dict[str, Any]) -> None:
        self.state = self.add(self.state, step)

    def sample(self, batch_size: int) -> dict[str, Any]:
        """A batch cannot be larger than the buffer, so batches of one are drawn, a thousand at a time."""
        import jax

        if not self.functions.can_sample(self.state):
            raise ValueError("can_sample is False")
        self.key, used = jax.random.split(self.key)
        rows = [self.draw(key) for key in jax.random.split(used, -(-batch_size // 1000))]
        return {name: np.concatenate([row[name] for row in rows])[:batch_size] for name in rows[0]}

    def draw(self, key: Any) -> dict[str, Any]:
        """A thousand draws, by field name."""
        import jax

        batch = self.draws(self.state, jax.random.split(key, 1000))
        fields = dict(batch.experience)
        if hasattr(batch, "indices"):
            fields |= {"indices": batch.indices, "weights": 1.0 / batch.probabilities}
        return {name: np.concatenate(np.asarray(value)) for name, value in fields.items()}

    def update(self, indices: Any, td_errors: Any) -> None:
        import jax
        import jax.numpy as jnp

        if not hasattr(self.functions, "set_priorities"):
            raise NotOfferedError("there are no priorities")
        priorities = jnp.abs(jnp.asarray(td_errors, jnp.float32))
        self.state = jax.jit(self.functions.set_priorities)(self.state, jnp.asarray(indices), priorities)

    @property
    def buffer(self) -> Any:
        return self


SUBJECTS: dict[str, type[Subject]] = {
    "replaykit": Replaykit,
    "cpprb": Cpprb,
    "tianshou": Tianshou,
    "stable_baselines3": StableBaselines3,
    "torchrl": Torchrl,
    "flashbax": Flashbax,
}


CALLS: dict[str, dict[str, str]] = {
    "replaykit": {
        "make": "ReplayBuffer, PrioritizedBuffer",
        "add": "add(obs, action, reward, next_obs, terminated, truncated)",
        "sample": "sample(B)",
        "update": "update_priorities(indices, td_errors)",
    },
    "cpprb": {
        "make": "ReplayBuffer, PrioritizedReplayBuffer",
        "add": "add(obs=, act=, rew=, next_obs=, done=), on_episode_end()",
        "sample": "sample(B)",
        "update": "update_priorities(indexes, abs(td_errors))",
    },
    "tianshou": {
        "make": "ReplayBuffer, PrioritizedReplayBuffer",
        "add": "add(Batch(obs=, act=, rew=, terminated=, truncated=, obs_next=))",
        "sample": "sample(B); Algorithm.compute_nstep_return",
        "update": "update_weight(indices, td_errors)",
    },
    "stable_baselines3": {
        "make": "ReplayBuffer, NStepReplayBuffer",
        "add": "add(obs, next_obs, action, reward, done, infos)",
        "sample": "sample(B)",
        "update": "",
    },
    "torchrl": {
        "make": "ReplayBuffer(storage=LazyTensorStorage(C)), MultiStepTransform",
        "add": "add(TensorDict)",
        "sample": "sample(B)",
        "update": "update_priority(indices, td_errors)",
    },
    "flashbax": {
        "make": "make_item_buffer, make_prioritised_item_buffer",
        "add": "add(state, item)",
        "sample": "sample(state, key)",
        "update": "set_priorities(state, indices, abs(td_errors))",
    },
}
"""The methods called to build a buffer, to add, to sample and to update priorities."""


def installed(name: str) -> bool:
    """Whether the library can be imported."""
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True
