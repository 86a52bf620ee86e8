"""Passes over the stored transitions: each episode as one batch, and each transition once."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from replaykit.backend import Backend
from replaykit.batch import Batch, Window

Indices = npt.NDArray[np.int64]


class Episode(NamedTuple):
    """The indices of the stored steps of an episode, and whether they include its first step."""

    indices: Indices
    number: int
    lane: int
    has_beginning: bool


def episodes_of(replay: Any) -> list[Episode]:
    """Every stored episode, lane by lane, oldest first. O(N)."""
    stored = replay.stored()
    numbers, first, _ = (replay.backend.host("episode", each) for each in replay.episode(stored))
    begins = np.flatnonzero(np.diff(numbers, prepend=-1)).tolist()
    return [
        Episode(indices, int(numbers[begin]), int(indices[0] % replay.successor), bool(first[begin] == indices[0]))
        for begin, indices in zip(begins, np.split(stored, begins[1:]), strict=False)  # of nothing: one part
    ]


class Passes:
    """The methods of every replay that pass over all stored transitions."""

    backend: Backend
    bounds: Any
    fetch: Callable[[Indices], dict[str, Any]]
    lock: Any
    reduce: Callable[[Window], dict[str, Any]]
    rng: Any
    stored: Callable[[], Indices]
    successor: int
    window: Callable[[Indices], Window]
    checked_batch_size: Callable[[Any], int]
    capacity: Any
    __len__: Callable[[], int]

    @property
    def is_full(self) -> bool:
        """Whether every slot has a transition. Each new transition then overwrites an old one."""
        return bool(len(self) == self.capacity)

    def begins_row(self, indices: Indices) -> npt.NDArray[np.bool_]:
        """Whether a row of a batch can begin at each stored index. Always True, except for sequences."""
        return np.ones(len(indices), np.bool_)

    def episodes(self) -> Iterator[Batch]:
        """An iterator over the stored episodes, lane by lane, oldest first. Each is a batch of ordered transitions.

        The iterator covers the episodes stored at its creation, without transitions that are overwritten in the
        meantime. The fields are those of :meth:`sample`, without `weights` and `probabilities`, and two of shape ():

        - ``has_beginning``, bool: whether the batch contains the first transition of the episode. It is False if that
          transition has been overwritten;
        - ``is_running``, bool: whether the last transition is the newest of its lane and does not end the episode.

        With a ``HindsightReplay`` all transitions of an episode get the same goal.

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
        """The transitions of an episode that are still stored."""
        with self.lock:
            oldest, cursor = self.bounds[:, episode.lane] * self.successor + episode.lane
            indices = episode.indices[episode.indices >= oldest]
            if not indices.size:
                return None
            window = self.window(self.backend.array(indices[None]))
            fields = self.reduce(window)
            is_newest = bool(indices[-1] + self.successor == cursor)
        for name in window.added:  # has one row
            fields[name] = fields[name][[0] * len(indices)]
        has_ended = bool(fields["terminated"][-1] or fields["truncated"][-1])
        has_beginning = episode.has_beginning and len(indices) == len(episode.indices)
        flags = {"has_beginning": np.array(has_beginning), "is_running": np.array(is_newest and not has_ended)}
        return Batch.of(
            fields | {name: self.backend.array(each) for name, each in (flags | {"indices": indices}).items()}
        )

    def epoch(self, batch_size: int) -> Iterator[Batch]:
        """An iterator over the stored transitions, each once, in random order, in batches. The last may be smaller.

        The iterator covers the transitions stored at its creation, without those that are overwritten in the meantime.
        Fields are those of :meth:`sample`. Every weight is 1, and every probability is 1/N. The buffer's generator
        draws the order. With a ``SequenceReplay``, it covers rows. Errors are those of :meth:`sample`, but an empty
        buffer is no error: there are no batches.

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
        """A batch of the `indices` that are still stored."""
        with self.lock:
            step, lanes = np.divmod(indices, self.successor)
            indices = indices[step >= self.bounds[0, lanes]]
            if not indices.size:
                return None
            fields = self.fetch(self.backend.array(indices))
        count = len(indices)
        others = {
            "weights": np.ones(count, np.float32),
            "probabilities": np.full(count, 1.0 / total),
            "indices": indices,
        }
        return Batch.of(fields | {name: self.backend.array(each) for name, each in others.items()})
