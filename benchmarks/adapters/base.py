"""What the benchmark asks of a library: a full buffer, and the calls on it that are timed."""

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
    """Why a library has no such buffer, or no such call."""


class Buffer(ABC):
    """A full buffer of some library.

    Every call is the library's public one. What it takes is built inside the call if it is an object of the library's
    own (a Batch, a TensorDict), and outside if it is what an environment or a network gives: arrays and numbers.
    Nothing is converted afterwards, and lazy output is waited for.
    """

    update: Callable[[Any, Any], Any]
    """``update(indices, errors)``: set priorities from the magnitudes of TD errors, float32."""

    indices_of: Callable[[Any], Any]
    """The indices of a batch, for `update`."""

    def adding(self, step: Steps) -> Call:
        """A call that stores one step of every lane."""
        raise NotOfferedError("not tried")

    def adding_some(self, step: Steps, mask: Any) -> Call:
        """A call that stores one step of the lanes in `mask`."""
        raise NotOfferedError("not tried")

    def adding_to(self, lane: int, step: Steps) -> Call:
        """A call that stores one step of one lane, as a thread does that has this lane alone."""
        raise NotOfferedError("not tried")

    def extending(self, steps: Steps) -> Call:
        """A call that stores a stretch of steps."""
        raise NotOfferedError("has no call for it")

    @abstractmethod
    def sampling(self, batch_size: int) -> Call:
        """A call that returns a batch."""

    def gathering(self, indices: Call) -> Call:
        """A call that returns the transitions at the indices that ``indices()`` gives, as a sample has them."""
        raise NotOfferedError("has no call for it")

    @abstractmethod
    def read(self, batch: Any) -> dict[str, Any]:
        """The arrays or tensors of a batch: obs, action, reward, next_obs, terminated; prioritized also weights.

        The library's own, with the axes it gives them.
        """

    def random_indices(self, rng: np.random.Generator, shape: tuple[int, ...], capacity: int) -> Any:
        """Indices of stored transitions, for `update`: slots, if not said otherwise."""
        return rng.integers(capacity, size=shape)


class Library:
    """A library, and how its users build a buffer. What it does not have raises `NotOfferedError`, with the reason."""

    name: str
    distribution: str
    importing: str
    """The statement that imports what its replay buffers need."""
    is_for_threads = False
    """Whether several threads may use a buffer: its documentation says so, or its methods take a lock."""

    def uniform(self, task: Task) -> Buffer:
        """A full buffer with uniform sampling."""
        raise NotOfferedError("has no uniform buffer")

    def empty(self, task: Task) -> Buffer:
        """A buffer with uniform sampling to which nothing was added."""
        raise NotOfferedError("not tried")

    def prioritized(self, task: Task) -> Buffer:
        """A full buffer with proportional priorities, those of a normal TD error."""
        raise NotOfferedError("has no prioritized buffer")

    def n_step(self, task: Task) -> Buffer:
        """A full buffer that samples returns of three steps."""
        raise NotOfferedError("has no n-step returns")

    def hindsight(self, task: Task) -> Buffer:
        """A full buffer that relabels four in five transitions with a goal achieved later; rewards cost nothing."""
        raise NotOfferedError("has no hindsight replay")

    def images(self, task: FrameTask, once: bool) -> Buffer:
        """A full buffer of stacked frames: stored as they come, or in the form that takes the least memory."""
        raise NotOfferedError("has no such storage of frames")

    def stacks(self, task: FrameTask) -> Buffer:
        """A full buffer to which stacks of frames are added, with the library's defaults."""
        return self.images(task, once=False)

    def single_frames(self, task: FrameTask) -> Buffer:
        """A full buffer to which single frames are added; a sample has stacks of them."""
        raise NotOfferedError("leaves stacks to the environment")

    def mixed(self, task: Task) -> Buffer:
        """Two full buffers with uniform sampling, each with half of the capacity, that each give half of a batch."""
        raise NotOfferedError("has no mixture of buffers")

    def sequences(self, task: Task | FrameTask, length: int) -> Buffer:
        """A full buffer with uniform sampling, of whose samples each row has so many successive transitions."""
        raise NotOfferedError("has no sequences")

    def composed(self, task: Task, layers: tuple[str, ...], n_step: int = 1) -> Buffer:
        """A full buffer, uniform or prioritized, in the wrappers hindsight or combined; the innermost layer first."""
        raise NotOfferedError("not tried")


def settle_priorities(buffer: Buffer, capacity: int) -> None:
    """Give every transition the priority of a normal TD error."""
    rng = np.random.default_rng(0)
    for start in range(0, capacity, 10_000):
        indices = np.arange(start, min(start + 10_000, capacity))
        buffer.update(indices, np.abs(rng.standard_normal(indices.size, np.float32)))
