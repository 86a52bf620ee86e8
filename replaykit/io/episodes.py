"""The parts that reading and writing share: stored episodes, and their distribution over lanes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from replaykit.buffers import ReplayBuffer
from replaykit.checks import check_count
from replaykit.field import Array
from replaykit.replay import Replay
from replaykit.spec import CORE, Spec
from replaykit.storage.base import Indices


def as_added(replay: Replay, indices: Indices, name: str) -> Array:
    """The values of a leaf as they were added. If the buffer stacks frames, only the newest frame of each stack.

    The result is a NumPy array, also for a buffer on a device.
    """
    values = replay.backend.host(name, replay.read(indices, name))
    leaf = next(leaf for leaf in replay.spec.leaves if leaf.name == name)
    return values[:, -1] if values.ndim > len(leaf.shape) + 1 else values


def refuse_no_replay(buffer: Any) -> None:
    """Raise TypeError if `buffer` is not a replay."""
    if not isinstance(buffer, Replay):
        raise TypeError(f"buffer is a {type(buffer).__name__}; expected a buffer or a wrapper around one")


class Target:
    """The buffer to fill: the given one, or a new `ReplayBuffer` with these options."""

    def __init__(self, buffer: Any, spec: Spec, capacity: Any, options: Mapping[str, Any]) -> None:
        if buffer is not None:
            refuse_no_replay(buffer)
            given = ["capacity"] * (capacity is not None) + list(options)
            if given:
                raise TypeError(
                    f"{given[0]} is an option of a new buffer; pass either buffer or the options of a new one"
                )
        self.buffer: Any = buffer
        self._spec, self._capacity, self._options = spec, capacity, dict(options)
        self.keeps_what_it_gets: bool = buffer is not None or self._options.get("storage") is not None
        """Whether a failure would leave some transitions in the buffer."""

    def num_envs(self, default: int = 1) -> int:
        """The number of lanes."""
        if self.buffer is not None:
            return int(self.buffer.num_envs)
        return check_count("num_envs", self._options.setdefault("num_envs", default))

    def make(self, lengths: Sequence[int], lanes: Sequence[int]) -> Replay:
        """The buffer. By default, a new buffer has room for parts of episodes with these lengths in these lanes."""
        if self.buffer is not None:
            self.buffer.writer(slice(None)).close()  # raises an error if a lane already has a writer
            return self.buffer  # type: ignore[no-any-return]
        capacity = self._capacity
        if capacity is None:
            capacity = max(int(np.bincount(lanes, weights=lengths).max(initial=0)), 1) * self.num_envs()
        return ReplayBuffer(capacity, self._spec, **self._options)


def spread(lengths: Sequence[int], num_envs: int) -> list[int]:
    """A lane for each episode: the lane with the fewest steps so far."""
    loads, lanes = np.zeros(num_envs, np.int64), []
    for length in lengths:
        lanes.append(int(loads.argmin()))
        loads[lanes[-1]] += length
    return lanes


def add_episode(replay: Replay, lane: int, fields: Mapping[str, Any]) -> None:
    """Store the steps of an episode or of a part of one, separate from the episodes before and after it."""
    with replay.writer(lane) as writer:
        writer.extend(**fields)


def checked(spec: Spec, fields: Mapping[str, Any], steps: int) -> list[Array]:
    """The leaves of `steps` steps as they will be stored. Raises the same errors as adding them."""
    values = tuple(fields[name] for name in CORE)
    flat = spec.flatten(values, {name: value for name, value in fields.items() if name not in CORE})
    leaves = [leaf.coerce(value, (steps,)) for leaf, value in zip(spec.leaves, flat, strict=True)]
    rewards = leaves[[leaf.name for leaf in spec.leaves].index("reward")]
    if not np.isfinite(rewards).all():
        raise ValueError(f"reward contains {rewards[~np.isfinite(rewards)][0]}; expected finite numbers")
    return leaves
