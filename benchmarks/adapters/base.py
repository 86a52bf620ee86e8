"""The interface of an adapter: full buffers, and the timed calls on them."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from benchmarks.data import FrameTask, Steps, Task

Call: TypeAlias = Callable[[], Any]

ALPHA, BETA, GAMMA = 0.6, 0.4, 0.99
N_STEP = 3
HINDSIGHT_RATIO = 0.8


class NotOfferedError(Exception):
    """A library does not have this buffer or call. The message is the reason."""


class Buffer(ABC):
    """A full buffer of a library.

    Every call is a public call of the library. If its argument is an object of the library (a Batch, a TensorDict), the
    object is built inside the timed call. Arrays and numbers, as returned by an environment or a network, are built
    outside. The output is not converted. If it is lazy, the call waits for it.
    """

    update: Callable[[Any, Any], Any]
    """``update(indices, errors)``: set priorities from absolute TD errors, float32."""

    indices_of: Callable[[Any], Any]
    """The indices of a batch, for `update`."""

    def adding(self, step: Steps) -> Call:
        """A call that stores one step of every lane."""
        raise NotOfferedError("not tried")

    def adding_some(self, step: Steps, mask: Any) -> Call:
        """A call that stores one step of the lanes in `mask`."""
        raise NotOfferedError("not tried")

    def adding_to(self, lane: int, step: Steps) -> Call:
        """A call that stores one step of one lane, for a thread that has only this lane."""
        raise NotOfferedError("not tried")

    def extending(self, steps: Steps) -> Call:
        """A call that stores several steps."""
        raise NotOfferedError("has no call for it")

    @abstractmethod
    def sampling(self, batch_size: int) -> Call:
        """A call that returns a batch."""

    def gathering(self, indices: Call) -> Call:
        """A call that returns the transitions at ``indices()``, in the format of a sample."""
        raise NotOfferedError("has no call for it")

    @abstractmethod
    def read(self, batch: Any) -> dict[str, Any]:
        """The arrays or tensors of a batch: obs, action, reward, next_obs, terminated, and weights if prioritized.

        They are the library's own arrays, with their original axes.
        """

    def random_indices(self, rng: np.random.Generator, shape: tuple[int, ...], capacity: int) -> Any:
        """Indices of stored transitions, for `update`: slots by default."""
        return rng.integers(capacity, size=shape)


class Library:
    """A library, and how its users build a buffer. Missing features raise `NotOfferedError` with the reason."""

    name: str
    distribution: str
    importing: str
    """The import statement for its replay buffers."""
    is_for_threads = False
    """Whether several threads may use a buffer, because this is documented or its methods take a lock."""

    def uniform(self, task: Task) -> Buffer:
        """A full buffer with uniform sampling."""
        raise NotOfferedError("has no uniform buffer")

    def empty(self, task: Task) -> Buffer:
        """An empty buffer with uniform sampling."""
        raise NotOfferedError("not tried")

    def prioritized(self, task: Task) -> Buffer:
        """A full buffer with proportional priorities from normally distributed TD errors."""
        raise NotOfferedError("has no prioritized buffer")

    def n_step(self, task: Task) -> Buffer:
        """A full buffer that samples three-step returns."""
        raise NotOfferedError("has no n-step returns")

    def hindsight(self, task: Task) -> Buffer:
        """A full buffer that relabels four of five transitions with a goal achieved later. Rewards cost nothing."""
        raise NotOfferedError("has no hindsight replay")

    def images(self, task: FrameTask, once: bool) -> Buffer:
        """A full buffer of stacked frames: stored unchanged, or in the form that takes the least memory."""
        raise NotOfferedError("has no such storage of frames")

    def stacks(self, task: FrameTask) -> Buffer:
        """A full buffer to which stacks of frames are added, with the library's defaults."""
        return self.images(task, once=False)

    def single_frames(self, task: FrameTask) -> Buffer:
        """A full buffer to which single frames are added; a sample has stacks of them."""
        raise NotOfferedError("leaves stacks to the environment")

    def mixed(self, task: Task) -> Buffer:
        """Two full buffers with uniform sampling. Each has half of the capacity and contributes half of a batch."""
        raise NotOfferedError("has no mixture of buffers")

    def sequences(self, task: Task | FrameTask, length: int) -> Buffer:
        """A full buffer with uniform sampling. Each row of a sample has `length` consecutive transitions."""
        raise NotOfferedError("has no sequences")

    def composed(self, task: Task, layers: tuple[str, ...], n_step: int = 1) -> Buffer:
        """A full buffer, uniform or prioritized, with hindsight or combined wrappers, innermost layer first."""
        raise NotOfferedError("not tried")


def settle_priorities(buffer: Buffer, capacity: int) -> None:
    """Give every transition the priority of a normally distributed TD error."""
    rng = np.random.default_rng(0)
    for start in range(0, capacity, 10_000):
        indices = np.arange(start, min(start + 10_000, capacity))
        buffer.update(indices, np.abs(rng.standard_normal(indices.size, np.float32)))
