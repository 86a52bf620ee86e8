"""The array operations of a replay on a device."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from replaykit.backend import Backend
from replaykit.batch import Ahead, Look
from replaykit.field import Leaf, as_array, as_float64, as_indices
from replaykit.on_device.errors import LateErrors
from replaykit.on_device.generator import DeviceGenerator
from replaykit.on_device.rows import torch_dtype

_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)


class TorchBackend(Backend):
    """Operations on tensors on one device. None waits for the device, unless its docstring says so.

    Parameters
    ----------
    device : torch.device

    Attributes
    ----------
    late : LateErrors
        The errors of the storage that this backend belongs to.
    """

    xp = torch
    is_numpy = False
    late: LateErrors

    def __init__(self, device: torch.device) -> None:
        self.device: torch.device = device

    def array(self, array: npt.NDArray[Any]) -> torch.Tensor:
        """A NumPy array as a tensor on the device."""
        is_plain = array.flags.writeable and array.flags.c_contiguous and min(array.strides, default=0) >= 0
        array = array if is_plain else array.copy()
        return self.send(torch.from_numpy(array))

    def send(self, tensor: torch.Tensor) -> torch.Tensor:
        """A CPU tensor, copied to the device through pinned memory, so that the CPU does not wait."""
        if self.device.type != "cuda" or tensor.device.type != "cpu":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def is_here(self, name: str, value: Any) -> bool:
        """Whether `value` is a tensor on the device. Raises TypeError for a tensor on another device."""
        if not isinstance(value, torch.Tensor):
            return False
        if value.device != self.device:
            remedy = f"pass .to({str(self.device)!r}), or a NumPy array, which is copied there"
            raise TypeError(f"{name} is a tensor on {value.device}; expected one on {self.device}: {remedy}")
        return True

    def indices(self, name: str, value: Any, detach: bool = False) -> torch.Tensor:
        """`value` as int64 of shape (B,) on the device. Raises TypeError for floats, booleans and other devices."""
        if not self.is_here(name, value):
            return self.array(as_indices(name, value))
        if value.ndim != 1:
            raise ValueError(f"{name} has shape {tuple(value.shape)}; expected (B,)")
        if value.dtype not in _INTEGERS:
            raise TypeError(f"{name} has dtype {value.dtype}; expected integers, such as indices from sample")
        return value.long()  # type: ignore[no-any-return]

    def float64(self, name: str, value: Any, detach: bool = False) -> torch.Tensor:
        """`value` as float64 on the device. Raises TypeError for values that are not real numbers."""
        if not self.is_here(name, value):
            return self.array(as_float64(name, value))
        if value.is_complex():
            raise TypeError(f"{name} has dtype {value.dtype}; expected real numbers")
        return value.detach().to(torch.float64)  # type: ignore[no-any-return]

    def values(self, name: str, value: Any) -> Any:
        return value.detach() if self.is_here(name, value) else self.array(as_array(name, value))

    def host(self, name: str, value: Any) -> npt.NDArray[Any]:
        """`value` as a NumPy array. Waits for the device if it is a tensor there."""
        return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)

    def window_starts(self, indices: Any) -> torch.Tensor:
        is_whole = self.is_here("indices", indices) and indices.ndim == 2 and indices.dtype == torch.int64
        return indices if is_whole else self.indices("indices", indices)

    def chosen(self, values: Any, mask: npt.NDArray[np.bool_]) -> Any:
        if isinstance(values, np.ndarray):
            return values[mask]
        places = np.flatnonzero(mask)
        return values.reshape(-1)[self.array(places)]

    def full(self, count: int, value: float) -> torch.Tensor:
        return torch.full((count,), value, dtype=torch.float64, device=self.device)

    def zeros(self, like: Any, count: int) -> Any:
        return like.new_zeros((count, *like.shape[1:]))

    def numbers(self, numbers: list[Any]) -> Any:
        return torch.stack([self.number(each) for each in numbers])

    def number(self, number: Any) -> torch.Tensor:
        """A number as a tensor without axes, float64."""
        return number.double() if isinstance(number, torch.Tensor) else self.full(1, number)[0]

    def contiguous(self, array: Any) -> Any:
        return array.contiguous()

    def coerce(self, leaf: Leaf, value: Any, lead: tuple[int, ...]) -> Any:
        """A value of a leaf with these leading axes. The storage checks the dtype."""
        if not isinstance(value, torch.Tensor) or value.device != self.device:
            return self.array(leaf.coerce(value, lead))
        if tuple(value.shape) != lead + leaf.shape:
            raise ValueError(leaf.wrong_shape(tuple(value.shape), lead))
        return value

    def refuse_negative(self, priorities: Any) -> None:
        """Do nothing: the storage records such priorities, and the error is raised later."""

    def refuse_too_large(self, name: str, values: Any, limit: float) -> None:
        """Do nothing: the storage records such values, and the error is raised later."""

    def refuse_not_finite(self, name: str, checked: Any, given: Any) -> None:
        """Do nothing: `update_priorities` records such TD errors, and the error is raised later."""

    def generator(self, seed: Any) -> DeviceGenerator:
        return DeviceGenerator(seed, self.device)

    def seeded_state(self, generator: Any, seed: Any) -> Any:
        return DeviceGenerator(seed, self.device).state

    def check_generator_state(self, generator: Any, state: Any) -> None:
        try:
            if self.is_own_state(generator, state):
                self.generator(0).state = state
        except (ValueError, TypeError, KeyError, RuntimeError, AttributeError) as error:
            raise ValueError(f"the state of the generator does not fit {self.device}: {error}") from error

    def is_own_state(self, generator: Any, state: Any) -> bool:
        return generator.fits(state)  # type: ignore[no-any-return]

    def combine(self, drawn: Any, shares: Any, newest: Any, of_newest: Any) -> tuple[Any, Any]:
        k, size = len(drawn), len(drawn) + len(newest)
        extra = self.is_in(drawn, newest)
        mixed = torch.cat(((k * shares + extra) / size, (k * of_newest + 1.0) / size))
        return torch.cat((drawn, newest)), mixed

    def is_in(self, indices: Any, others: Any) -> Any:
        if not len(others):
            return torch.zeros(indices.shape, dtype=torch.bool, device=self.device)
        ordered = others.sort().values  # torch.isin waits for the device if there are many
        return ordered[torch.searchsorted(ordered, indices).clamp_(max=len(ordered) - 1)] == indices

    def union(self, indices: Any, others: Any) -> Any:
        """The indices that are in one of the tensors or in both, each once. Waits for the device."""
        return torch.unique(torch.cat((indices, others)))

    def difference(self, indices: Any, others: Any) -> Any:
        """The indices that are not among the others, each once. Waits for the device."""
        return torch.unique(indices[~torch.isin(indices, others)])

    def least_positive(self, numbers: Any) -> Any:
        infinite = torch.full((1,), torch.inf, dtype=torch.float64, device=self.device)
        return torch.cat((torch.where(numbers > 0.0, numbers, torch.inf), infinite)).min()

    def minimum(self, one: Any, other: Any) -> Any:
        return torch.minimum(self.number(one), self.number(other))

    def spans_of(self, indices: Any, first: Any, last: Any, bounds: Any, stride: int) -> tuple[Any, Any]:
        successor = bounds.shape[1]
        lanes = indices % successor
        begin = indices - (indices - first) // successor % stride * successor
        oldest = self.array(bounds[0])[lanes] * successor + lanes
        return torch.maximum(begin, oldest), torch.minimum(begin + stride * successor, last + successor)

    def spread(self, starts: Any, stops: Any, values: Any, successor: int, stride: int) -> tuple[Any, Any]:
        """As in `Backend`, but each span has `stride` entries. Entries past the end of a span have the index -1."""
        steps = starts[:, None] + torch.arange(stride, device=self.device) * successor
        steps = torch.where(steps < stops[:, None], steps, -1)
        return steps.reshape(-1), values[:, None].expand(steps.shape).reshape(-1)

    def count(self, flags: Any) -> Any:
        return flags.sum()

    def sum_over_spans(self, starts: Any, stops: Any, successor: int, stride: int, function: Any) -> Any:
        steps = starts[:, None] + torch.arange(stride, device=self.device) * successor
        is_inside = steps < stops[:, None]
        values = function(torch.where(is_inside, steps, starts[:, None]).reshape(-1)).view(steps.shape)
        return torch.where(is_inside, values, 0.0).sum(1)

    def open_rows(self, indices: Any, first: Any, last: Any, width: int, successor: int) -> tuple[Any, ...]:
        steps = indices[:, None] + torch.arange(width, device=self.device) * successor
        is_first = torch.zeros(steps.shape, dtype=torch.bool, device=self.device)
        is_first[:, 0] = indices == first
        return steps, torch.minimum(steps, last[:, None]), steps <= last[:, None], is_first

    def close_rows(self, opened: Any, is_first: Any, steps: Any, window: Any, burn_in: int) -> tuple[Any, ...]:
        width = opened.shape[1]
        places = torch.arange(width, device=self.device)
        ends = opened & window.terminated.view(opened.shape)
        end = torch.where(ends, places + window.length.view(opened.shape), width).amin(1)
        mask = opened & (places < end[:, None])
        loss_mask = mask & ((places >= burn_in) | is_first[:, :1])
        return mask, loss_mask, torch.where(mask, steps, -1), ~mask.reshape(-1)

    def clear(self, array: Any, padding: Any) -> None:
        array.masked_fill_(padding.view(-1, *(1 for _ in array.shape[1:])), 0)

    # Hindsight

    def result(self, name: str, value: Any) -> Any:
        if self.is_here(name, value):
            return value.detach()
        array = as_array(name, value)
        return self.array(array) if array.dtype.kind in "biuf" else array

    def kind(self, array: Any) -> str:
        if isinstance(array, np.ndarray):
            return str(array.dtype.kind)
        return "b" if array.dtype == torch.bool else "c" if array.is_complex() else "f"

    def copy(self, array: Any) -> Any:
        return array.clone()

    def look_ahead(self, source: Any, window: Any, look: Look, uniforms: Any) -> Ahead:
        """As in `Backend`, but all windows get new goals, and every window has n steps.

        ``windows`` are flags of shape (M,): whether each window belongs to a chosen row. Past the end of a window, its
        last step is repeated.
        """
        width, stride, n = math.prod(window.shape[1:]), window.stride, window.reward.shape[1]
        chosen, chances, first = uniforms[0] < look.ratio, uniforms[1], window.indices[::width]
        if look.strategy == "random":
            steps, _ = self.nth_stored(chances, self._bounds_of(source))
        else:
            _, begin, last = source.episode(first)
            if look.strategy == "episode":
                lanes = first % stride
                begin = torch.maximum(begin, self._bounds_of(source)[0, lanes] * stride + lanes)
            begin = {"future": first, "final": last, "episode": begin}[look.strategy]
            steps = begin + (chances * ((last - begin) // stride + 1)).long() * stride
        goals = tuple(source.read(steps, leaf).repeat_interleave(width, 0) for leaf in look.leaves)
        step = torch.minimum(torch.arange(n, device=self.device), window.length[:, None] - 1)
        at = (window.indices[:, None] + step * stride).view(-1)
        achieved = tuple(source.read(at, leaf) for leaf in look.leaves)
        wanted = tuple(goal.repeat_interleave(n, 0) for goal in goals)
        places = torch.arange(len(step), device=self.device)[:, None] * n + step
        return Ahead(chosen, chosen.repeat_interleave(width), places.view(-1), achieved, wanted, goals)

    def _bounds_of(self, source: Any) -> torch.Tensor:
        """The bounds of the lanes of a storage or a replay."""
        bounds = getattr(source, "device_bounds", None)
        return self.array(source.bounds) if bounds is None else bounds

    def nth_stored(self, uniforms: torch.Tensor, bounds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The ``floor(u N)``-th stored index for each u in [0, 1), counted lane by lane, and N."""
        first, cursor = bounds
        counts = cursor - first
        stops = counts.cumsum(0)
        rank = (uniforms * stops[-1]).long()
        if len(counts) == 1:
            return first + rank, stops[-1]
        lanes = torch.searchsorted(stops, rank, right=True)
        return (first[lanes] + rank - (stops - counts)[lanes]) * len(counts) + lanes, stops[-1]

    def put_rewards(self, window: Any, ahead: Ahead, rewards: Any, dtype: np.dtype[Any]) -> None:
        """As in `Backend`, but rewards that are not finite are recorded, and the error is raised later."""
        if rewards.dtype not in (torch.float32, torch.float64):
            rewards = rewards.to(torch_dtype(dtype, "reward"))
        rewards = (rewards.float() if dtype.itemsize == 4 else rewards).double().reshape(window.reward.shape)
        is_step = torch.arange(rewards.shape[1], device=self.device) < window.length[:, None]
        is_new = self._along(ahead.windows[:, None] & is_step, rewards)
        self.late.note("reward_fn", is_new & ~torch.isfinite(rewards))
        window.reward = torch.where(is_new, rewards, window.reward)

    def shorten(self, window: Any, ahead: Any, ends: Any) -> None:
        lengths, is_new, n = window.length, ahead.windows, window.reward.shape[1]
        numbers = torch.arange(1, n + 1, device=self.device)
        ends = ends.view(len(lengths), n)
        length = torch.where(ends & is_new[:, None], numbers, lengths[:, None]).amin(1)
        window.reward = torch.where(self._along(numbers <= length[:, None], window.reward), window.reward, 0.0)
        window.terminated = torch.where(is_new, ends.gather(1, length[:, None] - 1)[:, 0], window.terminated)
        window.truncated = window.truncated & (length == lengths)
        window.length = length

    def rewritten(self, leaf: torch.Tensor, rows: Any, values: Any) -> torch.Tensor:
        """A leaf (M, ...) with new values for the windows in `rows`: their numbers, or flags (M,) with M values."""
        values = self.send(torch.as_tensor(values, dtype=leaf.dtype))
        if isinstance(rows, torch.Tensor) and rows.dtype == torch.bool:
            return torch.where(self._along(rows, leaf), values, leaf)
        leaf[rows] = values
        return leaf

    def _along(self, flags: torch.Tensor, array: torch.Tensor) -> torch.Tensor:
        """Flags of the first axes of an array, with axes of length 1 for the others."""
        return flags.view(*flags.shape, *(1 for _ in array.shape[flags.ndim :]))
