"""flashbax: pure functions on arrays of JAX, compiled by XLA.

Its item buffers store each transition with its next_obs, like the other libraries. They sample slightly faster than its
flat buffers, which store each observation once. The state is donated, so nothing is copied.
"""

from dataclasses import replace
from typing import Any

import flashbax
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.adapters.base import ALPHA, BETA, Buffer, Call, Library, settle_priorities
from benchmarks.data import FrameTask, Steps, Task

jax.config.update("jax_cpu_enable_async_dispatch", False)  # slightly faster on one core


class FlashbaxBuffer(Buffer):
    """An item or flat buffer: a state, and functions on it that are rebuilt for each batch size."""

    def __init__(self, make: Any, task: Task | FrameTask, **options: Any) -> None:
        self.make_buffer = make
        self.options = {"max_length": task.capacity, "min_length": 2, **options}
        self.state: Any = None
        self.key = jax.random.PRNGKey(0)

    def make(self, batch_size: int = 1, **options: Any) -> Any:
        """The functions on the state, for one batch size."""
        return self.make_buffer(sample_batch_size=batch_size, **self.options, **options)

    def fill(self, task: Task | FrameTask) -> None:
        """Add everything in parts of one size, to limit compilation."""
        sequences = jax.jit(self.make(add_sequences=True).add, donate_argnums=0)
        for steps in task.fill():
            if self.state is None:
                self.state = self.make().init({name: jnp.asarray(value[0]) for name, value in self.pack(steps).items()})
            self.state = sequences(self.state, self.pack(steps))

    def pack(self, steps: Steps) -> dict[str, Any]:
        """The stored pytree."""
        obs, action, reward, next_obs, terminated, _ = steps
        action = np.asarray(action)
        return {
            "obs": obs,
            "action": action if action.dtype == np.float32 else action.astype(np.int32),
            "reward": np.asarray(reward, np.float32),
            "next_obs": next_obs,
            "terminated": np.asarray(terminated),
        }

    def adding(self, step: Steps) -> Call:
        return self._storing(self.make().add, step)

    def extending(self, steps: Steps) -> Call:
        return self._storing(self.make(add_sequences=True).add, steps)

    def _storing(self, function: Any, steps: Steps) -> Call:
        add, wait, packed = jax.jit(function, donate_argnums=0), jax.block_until_ready, self.pack(steps)

        def store() -> None:
            self.state = add(self.state, packed)
            wait(self.state)

        return store

    def sampling(self, batch_size: int) -> Call:
        """The same compiled function splits the random key and computes weights."""
        buffer, wait = self.make(batch_size), jax.block_until_ready

        def drawn(state: Any, key: Any) -> Any:
            key, used = jax.random.split(key)
            batch = buffer.sample(state, used)
            if not hasattr(batch, "probabilities"):
                return key, (batch, None)
            weights = batch.probabilities**-BETA
            return key, (batch, weights / weights.max())

        draw = jax.jit(drawn)

        def sample() -> Any:
            self.key, batch = draw(self.state, self.key)
            return wait(batch)

        return sample

    def read(self, batch: Any) -> dict[str, Any]:
        sampled, weights = batch
        return {**sampled.experience, **({} if weights is None else {"weights": weights})}


class FlashbaxPrioritized(FlashbaxBuffer):
    @staticmethod
    def indices_of(batch: Any) -> Any:
        return batch[0].indices

    def __init__(self, make: Any, task: Task, **options: Any) -> None:
        super().__init__(make, task, priority_exponent=ALPHA, device="cpu", **options)
        set_priorities, wait = jax.jit(self.make().set_priorities, donate_argnums=0), jax.block_until_ready

        def update(indices: Any, errors: Any) -> None:
            self.state = set_priorities(self.state, indices, errors)
            wait(self.state)

        self.update = update


class FlashbaxPairs(FlashbaxBuffer):
    """A flat buffer: next_obs is the obs of the next stored step."""

    def pack(self, steps: Steps) -> dict[str, Any]:
        packed = super().pack(steps)
        del packed["next_obs"]
        return packed

    def read(self, batch: Any) -> dict[str, Any]:
        first, second = batch[0].experience.first, batch[0].experience.second
        return {**first, "next_obs": second["obs"]}


class FlashbaxTrajectories(FlashbaxBuffer):
    """A trajectory buffer of one environment. Sequences may cross the end of an episode."""

    def __init__(self, task: Task | FrameTask, length: int) -> None:
        super().__init__(flashbax.make_trajectory_buffer, task)
        self.options = {
            "add_batch_size": 1,
            "sample_sequence_length": length,
            "period": 1,
            "min_length_time_axis": length,
            "max_length_time_axis": task.capacity,
        }

    def fill(self, task: Task | FrameTask) -> None:
        add = jax.jit(self.make().add, donate_argnums=0)
        for steps in task.fill():
            packed = {name: jnp.asarray(value)[None] for name, value in self.pack(steps).items()}
            if self.state is None:
                self.state = self.make().init({name: value[0, 0] for name, value in packed.items()})
            self.state = add(self.state, packed)


class Flashbax(Library):
    name = "flashbax"
    distribution = "flashbax"
    importing = "import flashbax"

    def uniform(self, task: Task) -> FlashbaxBuffer:
        buffer = FlashbaxBuffer(flashbax.make_item_buffer, task)
        buffer.fill(replace(task, lanes=1))
        if task.lanes > 1:
            buffer.options["add_batches"] = True
        return buffer

    def prioritized(self, task: Task) -> FlashbaxBuffer:
        buffer = FlashbaxPrioritized(flashbax.make_prioritised_item_buffer, task)
        buffer.fill(task)
        settle_priorities(buffer, task.capacity)
        return buffer

    def sequences(self, task: Task | FrameTask, length: int) -> FlashbaxBuffer:
        buffer = FlashbaxTrajectories(task, length)
        buffer.fill(task)
        return buffer

    def images(self, task: FrameTask, once: bool) -> FlashbaxBuffer:
        """Stacks stored unchanged, or each stack once."""
        if once:
            buffer: FlashbaxBuffer = FlashbaxPairs(flashbax.make_flat_buffer, task)
        else:
            buffer = FlashbaxBuffer(flashbax.make_item_buffer, task)
        buffer.fill(task)
        return buffer


LIBRARY = Flashbax()
