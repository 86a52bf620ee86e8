"""The rivals on a GPU: replaykit, plain tensors in two layouts, TorchRL and flashbax."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from replaykit import Field, PrioritizedBuffer, ReplayBuffer, Spec

Call: TypeAlias = Callable[[], Any]
Steps: TypeAlias = dict[str, torch.Tensor]
OBS, ACTION, GAMMA, ALPHA, BETA = 17, 6, 0.99, 0.6, 0.4
SPEC = Spec(obs=Field((OBS,)), action=Field((ACTION,)))


class NotOfferedError(Exception):
    """A rival does not have a feature, or is not installed."""


@dataclass(frozen=True)
class Task:
    """A full buffer of `rows` transitions of `lanes` environments on a device. Batches span `n_step` steps."""

    device: torch.device
    rows: int
    lanes: int = 1
    n_step: int = 1
    prioritized: bool = False

    def steps(self, count: int, seed: int = 0) -> Steps:
        """`count` steps of every lane on the device: (count, E, ...). An episode ends after 200 steps on average."""
        generator = torch.Generator(self.device).manual_seed(seed)

        def noise(*shape: int) -> torch.Tensor:
            return torch.rand(count, self.lanes, *shape, device=self.device, generator=generator)

        ends = noise() < 0.005
        return {
            "obs": noise(OBS), "action": noise(ACTION), "reward": noise(), "next_obs": noise(OBS),
            "terminated": ends, "truncated": torch.zeros_like(ends),
        }  # fmt: skip


class Rival(ABC):
    """A full buffer of a library, or one of plain tensors."""

    def __init__(self, task: Task) -> None:
        self.task = task

    @abstractmethod
    def sampling(self, batch_size: int) -> Call:
        """A call that draws a batch."""

    def cycling(self, batch_size: int, td_errors: torch.Tensor) -> Call:
        """A call that draws a batch with weights, and updates its priorities."""
        raise NotOfferedError("has no priorities")

    def adding(self) -> Call:
        """A call that adds one step of every lane."""
        raise NotOfferedError("was not measured")


class Replaykit(Rival):
    """replaykit on the device."""

    options: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        kind, options = (PrioritizedBuffer if task.prioritized else ReplayBuffer), self.options
        options = {"device": task.device, "num_envs": task.lanes, "n_step": task.n_step, "seed": 0} | options
        options = {name: value for name, value in options.items() if value is not None}
        if task.prioritized:
            options |= {"alpha": ALPHA, "beta": BETA}
        self.buffer: Any = kind(task.rows, SPEC, gamma=GAMMA, **options)
        stretch = max(10_000 // task.lanes, 1)
        for begin in range(0, task.rows // task.lanes, stretch):
            self.buffer.extend(**self.given(task.steps(stretch, begin)))
        assert len(self.buffer) == task.rows, "the buffer is not full"
        if task.prioritized:
            stored = self.buffer.stored()
            self.buffer.update_priorities(stored, np.random.default_rng(0).random(len(stored)))

    def given(self, steps: Steps) -> Any:
        """Steps in the form that the buffer accepts."""
        return {name: value if self.task.lanes > 1 else value[:, 0] for name, value in steps.items()}

    def sampling(self, batch_size: int) -> Call:
        return lambda: self.buffer.sample(batch_size)

    def cycling(self, batch_size: int, td_errors: torch.Tensor) -> Call:
        sample, update = self.sampling(batch_size), self.buffer.update_priorities
        return lambda: update(sample().indices, td_errors)

    def adding(self) -> Call:
        step = {name: value[0] for name, value in self.given(self.task.steps(1)).items()}
        return lambda: self.buffer.add(**step)


class OnTheCpu(Replaykit):
    """replaykit on the CPU, whose batches are copied to the device."""

    options = {"device": None}  # noqa: RUF012

    def given(self, steps: Steps) -> Any:
        return {name: value.cpu().numpy() for name, value in super().given(steps).items()}

    def sampling(self, batch_size: int) -> Call:
        return lambda: self.buffer.sample(batch_size).to_torch(self.task.device)

    def cycling(self, batch_size: int, td_errors: torch.Tensor) -> Call:
        sample, update, device = self.buffer.sample, self.buffer.update_priorities, self.task.device

        def cycle() -> None:
            batch = sample(batch_size)
            batch.to_torch(device)
            update(batch.indices, td_errors)

        return cycle

    def adding(self) -> Call:
        step = {name: value[0] for name, value in super().given(self.task.steps(1)).items()}
        return lambda: self.buffer.add(**{name: value.cpu().numpy() for name, value in step.items()})


class Pinned(OnTheCpu):
    """replaykit in pinned memory of the CPU, from which the device draws."""

    options = {"pin_memory": True}  # noqa: RUF012

    def sampling(self, batch_size: int) -> Call:
        return Replaykit.sampling(self, batch_size)

    def cycling(self, batch_size: int, td_errors: torch.Tensor) -> Call:
        return Replaykit.cycling(self, batch_size, td_errors)


class TensorPerField(Rival):
    """A buffer as users write it by hand: one tensor and one gather for each field. Without n-step returns."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        if task.n_step > 1:
            raise NotOfferedError("has one step")
        steps = task.steps(-(-task.rows // task.lanes))
        self.fields = {name: value.flatten(0, 1)[: task.rows].clone() for name, value in steps.items()}
        self.place = 0

    def sampling(self, batch_size: int) -> Call:
        fields, rows, device = self.fields, self.task.rows, self.task.device

        def sample() -> Steps:
            indices = torch.randint(rows, (batch_size,), device=device)
            return {name: value.index_select(0, indices) for name, value in fields.items()}

        return sample

    def adding(self) -> Call:
        lanes, step = self.task.lanes, {name: value[0] for name, value in self.task.steps(1).items()}

        def add() -> None:
            for name, value in step.items():
                self.fields[name][self.place : self.place + lanes] = value
            self.place = (self.place + lanes) % (self.task.rows - self.task.rows % lanes)

        return add


class LanesBySteps(Rival):
    """A tensor (lanes, steps, ...) for each field, as in agents for GPU simulators, with n-step returns when drawn."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.length = task.rows // task.lanes
        self.fields = {name: value.transpose(0, 1).clone() for name, value in task.steps(self.length).items()}
        self.place = 0

    def sampling(self, batch_size: int) -> Call:
        fields, length, device, n = self.fields, self.length, self.task.device, self.task.n_step
        powers = GAMMA ** torch.arange(n, device=device)

        def sample() -> Steps:
            lane = torch.randint(self.task.lanes, (batch_size,), device=device)
            step = torch.randint(length, (batch_size,), device=device)
            batch = {name: fields[name][lane, step] for name in ("obs", "action")}
            if n == 1:
                return batch | {name: fields[name][lane, step] for name in fields.keys() - batch.keys()}
            steps, lanes = (step[:, None] + torch.arange(n, device=device)) % length, lane[:, None]
            terminated, truncated = fields["terminated"][lanes, steps], fields["truncated"][lanes, steps]
            ended = (terminated | truncated).long()
            runs = (ended.cumsum(1) - ended) == 0
            last = runs.sum(1) - 1
            reward = (fields["reward"][lanes, steps] * runs * powers).sum(1)
            at = steps.gather(1, last[:, None])[:, 0]
            after = {name: fields[name][lane, at] for name in ("next_obs", "terminated", "truncated")}
            return batch | after | {"reward": reward, "discount": GAMMA ** (last + 1)}

        return sample

    def adding(self) -> Call:
        step = {name: value[0] for name, value in self.task.steps(1).items()}

        def add() -> None:
            for name, value in step.items():
                self.fields[name][:, self.place] = value
            self.place = (self.place + 1) % self.length

        return add


class Torchrl(Rival):
    """TorchRL's buffers with a LazyTensorStorage on the device."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        try:
            from tensordict import TensorDict
            from torchrl.data import LazyTensorStorage, ReplayBuffer, TensorDictPrioritizedReplayBuffer
        except ImportError as error:
            raise NotOfferedError("is not installed") from error
        if task.n_step > 1:
            raise NotOfferedError("computes returns when steps are added")
        self.make: Any = TensorDict
        storage = LazyTensorStorage(task.rows, device=task.device)
        try:
            options = {"alpha": ALPHA, "beta": BETA} if task.prioritized else {}
            kind = TensorDictPrioritizedReplayBuffer if task.prioritized else ReplayBuffer
            self.replay: Any = kind(storage=storage, **options)
        except RuntimeError as error:
            raise NotOfferedError(f"its tree does not load with torch {torch.__version__}") from error
        self.replay.extend(self.pack(task.steps(-(-task.rows // task.lanes)), task.rows))

    def pack(self, steps: Steps, count: int) -> Any:
        """The first `count` transitions as a TensorDict."""
        return self.make({name: value.flatten(0, 1)[:count] for name, value in steps.items()}, [count])

    def sampling(self, batch_size: int) -> Call:
        return lambda: self.replay.sample(batch_size)

    def cycling(self, batch_size: int, td_errors: torch.Tensor) -> Call:
        def cycle() -> None:
            batch = self.replay.sample(batch_size)
            self.replay.update_priority(batch["index"], td_errors)

        return cycle

    def adding(self) -> Call:
        packed = self.pack(self.task.steps(1), self.task.lanes)
        return lambda: self.replay.extend(packed)


class Flashbax(Rival):
    """flashbax's item buffers. XLA compiles their functions, and the state is donated. JAX must use the GPU."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        try:
            import flashbax
            import jax
        except ImportError as error:
            raise NotOfferedError("is not installed") from error
        if (jax.default_backend() == "gpu") != (task.device.type == "cuda"):
            raise NotOfferedError(f"is on another device: JAX uses the {jax.default_backend()}")
        if task.n_step > 1:
            raise NotOfferedError("its trajectories may cross the end of an episode")
        self.jit, self.split, self.asarray = jax.jit, jax.random.split, jax.numpy.asarray
        self.key = jax.random.PRNGKey(0)
        options = {"max_length": task.rows, "min_length": 2}
        if task.prioritized:
            device = "gpu" if task.device.type == "cuda" else "cpu"
            self.make: Any = lambda size: flashbax.make_prioritised_item_buffer(
                sample_batch_size=size, priority_exponent=ALPHA, device=device, add_sequences=True, **options
            )
        else:
            self.make = lambda size: flashbax.make_item_buffer(sample_batch_size=size, add_sequences=True, **options)
        steps = task.steps(-(-task.rows // task.lanes))
        packed = {name: value.flatten(0, 1)[: task.rows].cpu().numpy() for name, value in steps.items()}
        self.state = self.make(1).init({name: jax.numpy.asarray(value[0]) for name, value in packed.items()})
        add: Any = jax.jit(self.make(1).add, donate_argnums=0)
        self.state = add(self.state, packed)

    def sampling(self, batch_size: int) -> Call:
        sample, split = self.jit(self.make(batch_size).sample), self.split

        def call() -> Any:
            self.key, used = split(self.key)
            return sample(self.state, used)

        return call

    def cycling(self, batch_size: int, td_errors: torch.Tensor) -> Call:
        buffer, split = self.make(batch_size), self.split
        errors = self.asarray(td_errors.cpu().numpy())

        def cycle(state: Any, key: Any) -> Any:
            key, used = split(key)
            batch = buffer.sample(state, used)
            weights = batch.probabilities**-BETA
            return buffer.set_priorities(state, batch.indices, errors), key, batch, weights / weights.max()

        compiled = self.jit(cycle, donate_argnums=0)

        def call() -> Any:
            self.state, self.key, batch, weights = compiled(self.state, self.key)
            return batch, weights

        return call


RIVALS: dict[str, type[Rival]] = {
    "replaykit": Replaykit,
    "replaykit, pinned": Pinned,
    "replaykit, CPU": OnTheCpu,
    "a tensor per field": TensorPerField,
    "lanes by steps": LanesBySteps,
    "torchrl": Torchrl,
    "flashbax": Flashbax,
}
