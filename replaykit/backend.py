"""The array operations of replays: with NumPy here, with torch on a device in `replaykit.on_device.backend`."""

import math
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from replaykit._kernels import lazy
from replaykit.batch import Ahead, Look, Window
from replaykit.checks import check_generator_state
from replaykit.field import Leaf, as_array, as_float64, as_indices, refuse_negative, refuse_too_large

goals: Any = lazy("goals")
lanes: Any = lazy("lanes")
sequences: Any = lazy("sequences")
_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)


class Backend:
    """Operations on NumPy arrays. A subclass has the same methods for tensors on a device.

    A replay has the backend of its storage. Wrappers call these methods, so that each of them works on any device.
    """

    xp: Any = np
    """The module with `where`, `minimum`, `maximum`, `abs`, `amax` and `concatenate` of these arrays."""
    is_numpy = True
    """Whether arrays are NumPy's."""
    device: Any = None
    """The torch device of the tensors, or None for NumPy arrays."""
    indices: Any = staticmethod(as_indices)
    float64: Any = staticmethod(as_float64)
    coerce: Any = staticmethod(Leaf.coerce)
    refuse_too_large: Any = staticmethod(refuse_too_large)
    refuse_negative: Any = staticmethod(refuse_negative)

    def values(self, name: str, value: Any) -> Any:
        """`value` as an array of any dtype and shape."""
        return as_array(name, value, True)

    def host(self, name: str, value: Any) -> npt.NDArray[Any]:
        """`value` as a NumPy array."""
        return np.asarray(value)

    def array(self, array: npt.NDArray[Any]) -> Any:
        """A NumPy array as an array of this backend."""
        return array

    def window_starts(self, indices: Any) -> Any:
        """`indices` as int64, of shape (B,) or (B, T)."""
        is_whole = type(indices) is np.ndarray and indices.dtype == np.int64 and indices.ndim == 2
        return indices if is_whole else as_indices("indices", indices)

    def chosen(self, values: Any, mask: npt.NDArray[np.bool_]) -> Any:
        """The values where a NumPy array of flags is True."""
        return values[mask]

    def full(self, count: int, value: float) -> Any:
        """An array of `count` float64 with the same value."""
        return np.full(count, value)

    def zeros(self, like: Any, count: int) -> Any:
        """An array of `count` entries of zeros. Each has the dtype and the shape of the entries of `like`."""
        return np.zeros((count, *like.shape[1:]), like.dtype)

    def numbers(self, numbers: list[Any]) -> Any:
        """These numbers as one array of float64."""
        return np.array(numbers, np.float64)

    def contiguous(self, array: Any) -> Any:
        """An array whose entries are consecutive in memory."""
        return np.ascontiguousarray(array)

    def refuse_not_finite(self, name: str, checked: Any, given: Any) -> None:
        """Raise ValueError for the first value of `given` at which `checked` is NaN or infinite."""
        wrong = ~np.isfinite(checked)
        if wrong.any():
            raise ValueError(f"{name} contains {given[wrong][0]}; expected finite numbers where the mask is True")

    def generator(self, seed: Any) -> Any:
        """A random generator."""
        return np.random.default_rng(seed)

    def seeded_state(self, generator: Any, seed: Any) -> Any:
        """The state of a new generator of the same kind with this seed."""
        return type(generator.bit_generator)(seed).state

    def check_generator_state(self, generator: Any, state: Any) -> None:
        """Raise ValueError for a state that `generator` cannot have, unless it is that of another backend."""
        if self.is_own_state(generator, state):
            check_generator_state(generator.bit_generator, state)

    def set_generator_state(self, generator: Any, state: Any) -> None:
        """Set the state of `generator`. A state of another backend's generator only serves as its seed."""
        if not self.is_own_state(generator, state):
            state = self.seeded_state(generator, zlib.crc32(str(state).encode()))
        generator.bit_generator.state = state

    def is_own_state(self, generator: Any, state: Any) -> bool:
        """Whether a state does not come from the generator of another backend."""
        return not (isinstance(state, dict) and str(state.get("bit_generator")).startswith("torch."))

    def combine(self, drawn: Any, shares: Any, newest: Any, of_newest: Any) -> tuple[Any, Any]:
        """Join B - k draws and the k newest. Returns the indices, and ``q = ((B - k) P + [is newest]) / B`` of each.

        `shares` are the probabilities P of the draws, and `of_newest` those of the newest transitions.
        """
        size = len(drawn) + len(newest)
        indices, mixed = np.empty(size, np.int64), np.empty(size)
        goals.combine(drawn, shares, newest, of_newest, indices, mixed)
        return indices, mixed

    def is_in(self, indices: Any, others: Any) -> Any:
        """Whether each index occurs in `others`."""
        return np.isin(indices, others)

    def union(self, indices: Any, others: Any) -> Any:
        """The indices in either array, each once."""
        return np.union1d(indices, others)

    def difference(self, indices: Any, others: Any) -> Any:
        """The indices that do not occur in `others`, each once."""
        return np.setdiff1d(indices, others)

    def least_positive(self, numbers: Any) -> Any:
        """The smallest positive number, or inf."""
        return float(numbers.min(initial=np.inf, where=numbers > 0.0))

    def minimum(self, one: Any, other: Any) -> Any:
        """The smaller of two numbers, or of the entries of two arrays."""
        return np.minimum(one, other)

    def spans_of(self, indices: Any, first: Any, last: Any, bounds: Any, stride: int) -> tuple[Any, Any]:
        """The span of each index: the index of its first stored step, and the index that follows its last step."""
        spans = np.empty((2, len(indices)), np.int64)
        sequences.spans_of(indices, first, last, bounds, stride, spans[0], spans[1])
        return spans[0], spans[1]

    def sum_over_spans(self, starts: Any, stops: Any, successor: int, stride: int, function: Any) -> Any:
        """The sum of ``function(indices)`` over the indices of each span. A span has at most `stride` indices."""
        counts = (stops - starts) // successor
        steps, _ = self.spread(starts, stops, counts, successor, stride)
        values = function(steps)
        return np.asarray(np.add.reduceat(values, counts.cumsum() - counts)) if counts.size else values

    def spread(self, starts: Any, stops: Any, values: Any, successor: int, stride: int) -> tuple[Any, Any]:
        """All indices of these spans, and for each index the value of its span."""
        counts = (stops - starts) // successor
        begins = counts.cumsum() - counts
        steps = (starts - begins * successor).repeat(counts) + np.arange(counts.sum()) * successor
        return steps, values.repeat(counts)

    def count(self, flags: Any) -> Any:
        """The number of flags that are True."""
        return int(flags.sum())

    def open_rows(self, indices: Any, first: Any, last: Any, width: int, successor: int) -> tuple[Any, ...]:
        """For the row at each index: its steps (B, T), the steps to read, and the fields `mask` and `is_first`.

        Beyond the end of the episode, the step to read is the last step of the episode.
        """
        shape = len(indices), width
        (steps, served), (mask, is_first) = np.empty((2, *shape), np.int64), np.empty((2, *shape), np.bool_)
        sequences.open_rows(indices, first, last, successor, steps, served, mask, is_first)
        return steps, served, mask, is_first

    def close_rows(self, opened: Any, is_first: Any, steps: Any, window: Any, burn_in: int) -> tuple[Any, ...]:
        """`mask`, `loss_mask` and `step_indices`, and the positions of padding for `clear`; None without padding."""
        mask, loss_mask, indices = np.empty_like(opened), np.empty_like(opened), np.empty_like(steps)
        ends = np.ascontiguousarray(window.terminated, np.bool_), np.ascontiguousarray(window.length, np.int64)
        count = sequences.close_rows(opened, is_first, steps, *ends, burn_in, mask, loss_mask, indices)
        return mask, loss_mask, indices, np.flatnonzero(~mask) if count else None

    def clear(self, array: Any, padding: Any) -> None:
        """Set the rows at the positions in `padding` to 0."""
        array[padding] = 0

    # Hindsight

    def result(self, name: str, value: Any) -> Any:
        """The result of a user's function as an array."""
        return as_array(name, value)

    def kind(self, array: Any) -> str:
        """The kind of an array's dtype: ``"b"``, ``"i"``, ``"u"``, ``"f"``, ``"c"``, or another letter of NumPy's."""
        return array.dtype.kind  # type: ignore[no-any-return]

    def copy(self, array: Any) -> Any:
        """A copy of an array."""
        return np.copy(array)

    def look_ahead(self, source: Any, window: Window, look: Look, uniforms: Any) -> Ahead:
        """Choose rows of a batch and new goals for them. `source` is a storage or a replay, used to read steps.

        ``uniforms`` has shape (2, B). Row r is chosen if ``uniforms[0, r] < look.ratio``. ``uniforms[1, r]`` then
        chooses one of the steps that the strategy allows, with equal probability.
        """
        width, stride, chosen = math.prod(window.shape[1:]), window.stride, uniforms[0] < look.ratio
        rows = np.flatnonzero(chosen)
        first, chances = window.indices[rows * width], uniforms[1, rows]
        if look.strategy == "random":
            steps = np.empty(rows.size, np.int64)
            lanes.nth_stored(chances, source.bounds, source.capacity, np.empty_like(steps), steps)
        else:
            _, start, last = source.episode(first)
            oldest = source.bounds[0, first % stride] * stride + first % stride
            begin = {"future": first, "final": last, "episode": np.maximum(start, oldest)}[look.strategy]
            steps = begin + (chances * ((last - begin) // stride + 1)).astype(np.int64) * stride
        goals = tuple(np.repeat(source.read(steps, leaf), width, axis=0) for leaf in look.leaves)
        windows = (rows[:, None] * width + np.arange(width)).reshape(-1)
        lengths = window.length[windows]
        owner, begins = np.repeat(windows, lengths), np.repeat(lengths.cumsum() - lengths, lengths)
        step = np.arange(owner.size) - begins
        at = window.indices[owner] + step * stride
        achieved = tuple(source.read(at, leaf) for leaf in look.leaves)
        wanted = tuple(np.repeat(goal, lengths, axis=0) for goal in goals)
        return Ahead(chosen, windows, owner * window.reward.shape[1] + step, achieved, wanted, goals)

    def put_rewards(self, window: Window, ahead: Ahead, rewards: Any, dtype: np.dtype[Any]) -> Any:
        """Write new rewards (S, ...), rounded to `dtype`, for the steps of `ahead`.

        Returns the first reward that is not finite, or None.
        """
        rewards = rewards if rewards.ndim == 1 else rewards.reshape(-1)
        if rewards.dtype is not _FLOAT32 and rewards.dtype is not _FLOAT64:
            with np.errstate(over="ignore"):
                rewards = np.asarray(rewards, dtype)
        elif not rewards.flags.carray:
            rewards = rewards.copy()
        reward = window.reward
        if reward.dtype is not _FLOAT64 or not reward.flags.c_contiguous:
            reward = window.reward = np.ascontiguousarray(reward, _FLOAT64)
        numbers = math.prod(reward.shape[2:])
        wrong = goals.put_rewards(rewards, ahead.places, numbers, reward.reshape(-1), dtype.itemsize == 4)
        return rewards[wrong] if wrong >= 0 else None

    def shorten(self, window: Window, ahead: Ahead, ends: Any) -> None:
        """End windows at their first step of `ahead` where `ends` (S,) is True, and set their flags accordingly."""
        lengths, reward = window.length[ahead.windows], window.reward
        begins = lengths.cumsum() - lengths
        place = ahead.places % reward.shape[1]
        length = np.minimum.reduceat(np.where(ends, place + 1, np.repeat(lengths, lengths)), begins)
        reward.reshape(-1, *reward.shape[2:])[ahead.places[place >= np.repeat(length, lengths)]] = 0.0
        window.terminated[ahead.windows] = ends[begins + length - 1]
        window.truncated[ahead.windows] &= length == lengths
        window.length[ahead.windows] = length


NUMPY = Backend()
