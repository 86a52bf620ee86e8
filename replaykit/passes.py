"""Passes over what is stored: each episode as one batch, and each transition once."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from replaykit.batch import Batch, Window

Indices = npt.NDArray[np.int64]


class Episode(NamedTuple):
    """The stored steps of an episode, and whether the first of them begins it."""

    indices: Indices
    number: int
    lane: int
    has_beginning: bool


def episodes_of(replay: Any) -> list[Episode]:
    """Every episode that is stored, lane after lane, oldest first. O(N)."""
    stored = replay.stored()
    numbers, first, _ = replay.episode(stored)
    begins = np.flatnonzero(np.diff(numbers, prepend=-1)).tolist()
    return [
        Episode(indices, int(numbers[begin]), int(indices[0] % replay.successor), bool(first[begin] == indices[0]))
        for begin, indices in zip(begins, np.split(stored, begins[1:]), strict=False)  # one empty part of nothing
    ]


class Passes:
    """What looks at everything that is stored: every replay."""

    bounds: Any
    fetch: Callable[[Indices], dict[str, Any]]
    lock: Any
    reduce: Callable[[Window], dict[str, Any]]
    rng: np.random.Generator
    stored: Callable[[], Indices]
    successor: int
    window: Callable[[Indices], Window]
    checked_batch_size: Callable[[Any], int]
    capacity: Any
    __len__: Callable[[], int]

    @property
    def is_full(self) -> bool:
        """Whether every slot has a transition, so that each new one takes the place of another."""
        return bool(len(self) == self.capacity)

    def begins_row(self, indices: Indices) -> npt.NDArray[np.bool_]:
        """Whether a row of a batch can begin with each stored index: any does, unless rows are sequences."""
        return np.ones(len(indices), np.bool_)

    def episodes(self) -> Iterator[Batch]:
        """Each stored episode as one batch: its transitions in order. Lane after lane, the oldest first.

        They are the episodes that were stored when the iterator was made, without what is overwritten before it comes
        to them. Fields are those of :meth:`sample`, apart from `weights` and `probabilities`, and two of shape ():

        - ``has_beginning``, bool: whether the first transition begins the episode, or those before it are overwritten;
        - ``is_running``, bool: whether the last is the newest of its lane, and has no flag that ends the episode.

        With a ``HindsightReplay`` all transitions of an episode get one goal.

        Examples
        --------
        >>> from replaykit import Field, ReplayBuffer, Spec
        >>> buffer = ReplayBuffer(4, Spec(obs=Field(()), action=Field(())))
        >>> for step in range(6):
        ...     index = buffer.add(step, 0, 1.0, step + 1, step == 3, False)
        >>> for episode in buffer.episodes():
        ...     print(episode.obs, bool(episode.has_beginning), bool(episode.is_running))
        [2. 3.] False False
        [4. 5.] True True
        """
        with self.lock:
            found = episodes_of(self)
        return (batch for episode in found if (batch := self._episode(episode)) is not None)

    def _episode(self, episode: Episode) -> Batch | None:
        """What is still stored of an episode."""
        with self.lock:
            oldest, cursor = self.bounds[:, episode.lane] * self.successor + episode.lane
            indices = episode.indices[episode.indices >= oldest]
            if not indices.size:
                return None
            window = self.window(indices[None])
            fields = self.reduce(window)
            is_newest = bool(indices[-1] + self.successor == cursor)
        for name in window.added:  # has one row
            fields[name] = np.repeat(fields[name], len(indices), axis=0)
        has_ended = bool(fields["terminated"][-1] or fields["truncated"][-1])
        fields["has_beginning"] = np.array(episode.has_beginning and len(indices) == len(episode.indices))
        fields["is_running"] = np.array(is_newest and not has_ended)
        return Batch.of(fields | {"indices": indices})

    def epoch(self, batch_size: int) -> Iterator[Batch]:
        """Each stored transition once, in random order, in batches of `batch_size`; the last may be smaller.

        They are those that were stored when the iterator was made, without what is overwritten before it comes to them.
        Fields are those of :meth:`sample`. Every weight is 1, and every probability 1/N. The order is drawn from the
        generator of the buffer. Raises as :meth:`sample` does, unless the buffer is empty: then there are no batches.

        Examples
        --------
        >>> from replaykit import Field, ReplayBuffer, Spec
        >>> buffer = ReplayBuffer(100, Spec(obs=Field(()), action=Field(())), seed=0)
        >>> for step in range(5):
        ...     index = buffer.add(step, 0, 1.0, step + 1, False, False)
        >>> for batch in buffer.epoch(2):
        ...     print(batch.obs)
        [2. 4.]
        [3. 0.]
        [1.]
        """
        size = self.checked_batch_size(batch_size)
        with self.lock:
            stored = self.stored()
            order = self.rng.permutation(stored[self.begins_row(stored)])
        parts = (order[begin : begin + size] for begin in range(0, len(order), size))
        return (batch for part in parts if (batch := self._part(part, len(order))) is not None)

    def _part(self, indices: Indices, total: int) -> Batch | None:
        """A batch of those that are still stored."""
        with self.lock:
            step, lanes = np.divmod(indices, self.successor)
            indices = indices[step >= self.bounds[0, lanes]]
            if not indices.size:
                return None
            fields = self.fetch(indices)
        fields["weights"] = np.ones(len(indices), np.float32)
        return Batch.of(fields | {"probabilities": np.full(len(indices), 1.0 / total), "indices": indices})
