"""`DeviceStorage`: the packed rows of a `LocalStorage`, in the memory of a torch device."""

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from replaykit.batch import Window
from replaykit.field import FieldNameError, Leaf
from replaykit.on_device.backend import TorchBackend
from replaykit.on_device.coerced import coerced
from replaykit.on_device.errors import LateErrors
from replaykit.on_device.frames import Frames
from replaykit.on_device.fused import fuse
from replaykit.on_device.graphs import Recorded
from replaykit.on_device.order import WritingOrder
from replaykit.on_device.rows import Rows, torch_dtype
from replaykit.on_device.saving import contents_on_device, restore_contents
from replaykit.on_device.tree import last_of
from replaykit.spec import Spec
from replaykit.storage.base import Flags, Floats, Indices, Open, Serve, Storage
from replaykit.storage.columns import Padding, Share, framed_pairs, refuse_replacing_frames
from replaykit.storage.contents import contents_of, fill
from replaykit.storage.local import LocalStorage
from replaykit.storage.memory_limit import refuse_more_than_memory
from replaykit.tensors import device_of
from replaykit.trees import Tree


class Pair(NamedTuple):
    """The values (entries, ...) of an observation and its next_obs."""

    obs: torch.Tensor
    next_obs: torch.Tensor


class DeviceStorage(Storage):
    """Stores transitions as packed rows in one tensor on a device. Its methods take and return tensors.

    The CPU knows the bounds of the lanes, because each call of `write` specifies the lanes that it writes. Everything
    that depends on stored values is on the device. Therefore neither writing nor sampling waits for the device. Errors
    that only the device can detect, such as an index that is not stored, are recorded on the device. `check`, `stats`
    and `save` raise them.

    Parameters
    ----------
    capacity, spec, num_envs
        As in `Storage <replaykit.storage.Storage>`.
    stack, padding, share
        As in `replaykit.ReplayBuffer`.
    device : torch.device or str
        Any torch device that supports float64.

    Attributes
    ----------
    graphs : Recorded
        The graphs that read from this storage.
    """

    saved_kind: str | None = "LocalStorage"

    def __init__(
        self, capacity: int, spec: Spec, num_envs: int = 1, *, stack: int = 1, padding: Padding = "reset",
        share: Share = "large", device: Any = "cuda",
    ) -> None:  # fmt: skip
        super().__init__(capacity, spec, num_envs)
        self.stack: int = int(stack)
        self.frame_options: dict[str, Any] = {"stack": stack, "padding": padding, "share": share}
        self.device: torch.device = torch.empty(0, device=device_of(device)).device  # "cuda" becomes "cuda:0"
        if self.device.type == "mps":
            raise ValueError("device is 'mps', which has no float64 for exact sums; expected a CUDA device or 'cpu'")
        self.backend: TorchBackend = TorchBackend(self.device)
        self.rows: Rows
        self.frames: list[Frames] = []
        self.apart: dict[int, Any] = {}
        self.bounds: Indices
        self.data: torch.Tensor
        self.tables: torch.Tensor
        self.row_slots: int = self.capacity
        self.place_rows(framed_pairs(spec, stack, padding, share))
        make, lanes = self.make, self.num_envs
        self.device_bounds: torch.Tensor = make("bounds", (2, lanes), torch.int64)
        self.is_over: torch.Tensor = make("is_over", (lanes,), torch.bool)
        self.numbers: torch.Tensor = make("numbers", (lanes,), torch.int64)
        self._last: torch.Tensor | None = None
        self._stamp: torch.Tensor = make("stamp", (), torch.int64)
        self.is_over.fill_(True)
        self.numbers.copy_(torch.arange(-lanes, 0))
        self.late: LateErrors = LateErrors(self.make("errors", (len(LateErrors.TEXTS),), torch.int64))
        self.backend.late = self.late
        self._stale: torch.Tensor = self.make("stale_updates", (), torch.int64)
        self._followers: list[weakref.WeakMethod[Callable[[], None]]] = []
        self.graphs: Recorded = Recorded()
        self.order: WritingOrder = WritingOrder(self.capacity)
        self._powers: tuple[Floats, torch.Tensor] | None = None
        self._reward_shape: tuple[int, ...] = spec["reward"].shape
        for frames in self.frames:
            frames.allocate()

    def place_rows(self, pairs: dict[tuple[int, int], int]) -> None:
        """Allocate the bounds, the rows and the table of episodes. The additional last row takes writes to ignore.

        `pairs` are the observations to store as frames.
        """
        self.rows = Rows(self.spec, [leaf for pair in pairs for leaf in pair])
        options = self.frame_options["padding"], self.frame_options["share"]
        self.frames = [Frames(self, pair, count, *options) for pair, count in pairs.items()]
        self.apart = {leaf: frames for frames in self.frames for leaf in frames.leaves}
        needed = (self.rows.nbytes + 24) * (self.capacity + 1) + sum(frames.nbytes for frames in self.frames)
        self.refuse_size(needed, f"capacity {self.capacity} at {needed // self.capacity} bytes each")
        self.bounds = np.zeros((2, self.num_envs), np.int64)
        self.data = self.make("rows", (self.capacity + 1, self.rows.nbytes // 8), torch.int64)
        self.tables = self.make("tables", (3, self.capacity + 1), torch.int64)

    def allocate(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Any:
        return self.make(name, shape, torch_dtype(np.dtype(dtype), name))

    def make(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A tensor of zeros on the device."""
        tensor = torch.zeros(shape, dtype=dtype, device=self.device)
        self.arrays[name] = tensor  # type: ignore[assignment]
        return tensor

    def refuse_size(self, needed: int, purpose: str) -> None:
        """Raise MemoryError if the device has less free memory than this."""
        if self.device.type == "cuda":
            free, _total = torch.cuda.mem_get_info(self.device)
            refuse_more_than_memory(needed, purpose, where=str(self.device), available=free)
        else:
            super().refuse_size(needed, purpose)

    # Writing

    def coerce(self, leaf: Leaf, value: Any, lead: tuple[int, ...], mask: Flags | None = None) -> Any:
        return coerced(self.backend, self.late, leaf, value, lead, mask)

    def check_rewards(self, rewards: Any) -> None:
        """Record rewards that are not finite."""
        if isinstance(rewards, torch.Tensor) and rewards.device == self.device:
            self.late.note("reward", ~torch.isfinite(rewards))
        else:
            super().check_rewards(np.asarray(rewards))

    def encode(
        self, values: tuple[Tree, ...], extras: Mapping[str, Tree], lead: tuple[int, ...], mask: Flags | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, list[Pair]]:
        """The packed rows (entries, words) of steps, whether each ends its episode, and the values of the frames.

        All results are on the device. Tensors on the device stay there. Other values are checked and packed on the CPU.
        One copy sends the packed rows to the device, and one more copy sends each observation stored as frames.
        """
        leaves = super().encode(values, extras, lead, mask)
        devices = {leaf.device for leaf in leaves}
        if len(devices) > 1:
            leaves = [self.backend.send(leaf) for leaf in leaves]
        packed = self.backend.send(self.rows.pack(leaves))
        pairs = [Pair(*(self.backend.send(leaves[i]) for i in frames.leaves)) for frames in self.frames]
        return packed, self.rows.ended(packed), pairs

    def encode_step(self, *values: Any) -> Any:
        return self.encode(values[:-1], values[-1], self.lanes)

    def write(self, block: Any, steps: int, mask: Flags | None = None) -> Any:
        indices = self._write(block, steps, mask)
        self.call_followers()
        return indices

    def follow_writes(self, method: Callable[[], None]) -> None:
        """Call a method after each write. It keeps tensors up to date, so that a graph never reads the CPU's bounds."""
        self._followers.append(weakref.WeakMethod(method))

    def call_followers(self) -> None:
        """Call the methods whose objects still exist."""
        for follower in self._followers:
            method = follower()
            if method is not None:
                method()

    def _write(self, block: Any, steps: int, mask: Flags | None) -> torch.Tensor:
        rows, ended, pairs = block
        lanes, is_in_step = self.num_envs, bool((self.bounds[1] == self.bounds[1, 0]).all())
        if mask is not None and not (lanes == 1 and is_in_step):
            return self._write_some(rows, ended, pairs, steps, mask)
        if mask is not None:  # there is only one lane
            indices = torch.full((steps,), -1, dtype=torch.int64, device=self.device)
            indices[self.backend.array(np.flatnonzero(mask))] = self._write(block, int(mask.sum()), None)
            return indices
        if not is_in_step:
            return self._write_some(rows, ended, pairs, steps, np.ones(steps * lanes, np.bool_))
        begin = int(self.bounds[1, 0]) * lanes
        indices, moved = torch.arange(begin, begin + steps * lanes, device=self.device), list[torch.Tensor]()
        for frames, pair in zip(self.frames, pairs, strict=True):
            moved.append(frames.moved(indices.view(steps, lanes), *pair))
            frames.reserve(steps * lanes, moved[-1])
        for start in range(0, steps, self.length):  # at most one lane length at a time
            part = slice(start * lanes, min(start + self.length, steps) * lanes)
            values = [(*(value[part] for value in pair), flags[part]) for pair, flags in zip(pairs, moved, strict=True)]
            self._write_lockstep(rows[part], ended[part], values, indices[part])
        return indices

    def _write_lockstep(self, rows: torch.Tensor, ended: torch.Tensor, values: Any, indices: torch.Tensor) -> None:
        """Store some steps of all lanes. All lanes must have the same number of steps."""
        lanes, count = self.num_envs, len(rows)
        steps, begin = count // lanes, int(self.bounds[1, 0]) * lanes
        self._retire(np.arange(lanes), steps)
        slot = begin % self.capacity
        head = min(count, self.capacity - slot)
        self.data[slot : slot + head] = rows[:head]
        self.data[: count - head] = rows[head:]
        grid = indices.view(steps, lanes)
        for frames, parts in zip(self.frames, values, strict=True):
            frames.write(grid, slice(None), *parts)
        self._number(grid, ended.view(steps, lanes), slice(None))
        self.order.note(np.arange(begin, begin + count), self.bounds)
        self._publish(np.arange(lanes), steps)

    def _write_some(
        self, rows: torch.Tensor, ended: torch.Tensor, pairs: list[Pair], steps: int, mask: Flags
    ) -> torch.Tensor:
        """Store the selected entries of some steps, one step after the other."""
        for frames in self.frames:
            frames.reserve(len(rows))
        self.order.keep(self.bounds)
        indices, done = np.full((steps, self.num_envs), -1), 0
        for step, chosen in enumerate(mask.reshape(steps, self.num_envs)):
            lanes = np.flatnonzero(chosen)
            indices[step, lanes] = entries = self.bounds[1, lanes] * self.num_envs + lanes
            self._retire(lanes, 1)
            where, of_lanes = self.backend.array(entries)[None], self.backend.array(lanes)
            part = slice(done, done + len(lanes))
            self.data[where[0] % self.capacity] = rows[part]
            for frames, pair in zip(self.frames, pairs, strict=True):
                obs, next_obs = (value[part] for value in pair)
                frames.write(where, of_lanes, obs, next_obs, frames.moved(where, obs, next_obs))
            self._number(where, ended[part][None], of_lanes)
            self.order.note(entries, self.bounds)
            self._publish(lanes, 1)
            done += len(lanes)
        return self.backend.array(indices.reshape(-1))

    def _retire(self, lanes: Indices, steps: int) -> None:
        """Retire the steps of these lanes that `steps` new steps will overwrite."""
        first = np.maximum(self.bounds[0, lanes], self.bounds[1, lanes] + steps - self.length)
        self._set_bounds(0, lanes, first)

    def _publish(self, lanes: Indices, steps: int) -> None:
        self._set_bounds(1, lanes, self.bounds[1, lanes] + steps)

    def _set_bounds(self, which: int, lanes: Indices, values: Indices) -> None:
        """Change the bounds of some lanes, on the CPU and on the device."""
        if (self.bounds[which, lanes] == values).all():
            return
        self.bounds[which, lanes] = values
        if len(lanes) == self.num_envs and (values == values[0]).all():
            self.device_bounds[which].fill_(int(values[0]))
        else:
            self.device_bounds[which] = self.backend.array(self.bounds[which].copy())

    def _number(self, indices: torch.Tensor, ended: torch.Tensor, lanes: Any) -> None:
        """Add T new steps of K lanes to the table of episodes. `indices` and `ended` have shape (T, K)."""
        is_first = torch.cat((self.is_over[None, lanes], ended[:-1]))
        numbers = self.numbers[lanes] + self.num_envs * is_first.cumsum(0)
        places, (of_slots, starts, stops) = numbers % self.capacity, self.tables
        of_slots[indices % self.capacity] = numbers
        starts[torch.where(is_first, places, self.capacity)] = indices  # the last place takes the other steps
        stops.scatter_reduce_(0, places.view(-1), indices.view(-1), "amax")
        self.numbers[lanes] = numbers[-1]
        self.is_over[lanes] = ended[-1]

    def end_episode(self, lanes: Indices) -> None:
        if not len(lanes):
            return
        self.is_over[self.backend.array(lanes)] = True
        filled = lanes[self.bounds[1, lanes] > self.bounds[0, lanes]]
        newest = ((self.bounds[1, filled] - 1) * self.num_envs + filled) % self.capacity
        self.rows.bytes_of(self.data)[self.backend.array(newest), self.rows.end] = 1

    def clear(self) -> None:
        self._set_bounds(0, np.arange(self.num_envs), self.bounds[1].copy())
        self.is_over.fill_(True)
        for frames in self.frames:
            frames.clear()

    def refuse_replacing(self, values: Mapping[str, Any]) -> None:
        super().refuse_replacing(values)
        for name in values:
            if self.rows.positions[name] in self.apart:
                refuse_replacing_frames(name)

    def overwrite(self, entries: Any, values: Mapping[str, Any]) -> Any:
        """Overwrite these leaves of the transitions that are still stored. Returns their number as a tensor."""
        step, lanes = entries // self.num_envs, entries % self.num_envs
        first, cursor = self.device_bounds[:, lanes]
        self.late.note("never returned", (entries < -1) | (step >= cursor))
        is_stored = (entries >= 0) & (step >= first) & (step < cursor)
        slots = torch.where(is_stored, entries % self.row_slots, self.row_slots)
        if self._last is None:
            self._last = self.make("last", (self.row_slots + 1,), torch.int64)
        newest = last_of(slots, self._last, self._stamp)
        for name, value in values.items():
            self.column(self.rows.positions[name])[slots] = self.backend.send(value)[newest]
        for former in self.moments.values():
            former.overwrite_all()
        return is_stored.sum()

    def column(self, position: int) -> torch.Tensor:
        """The values of a leaf in all rows, as a writable view."""
        return self.rows.column(self.data, position)

    # Reading

    def window(self, indices: Any, n: int) -> Window:
        self._note_not_stored(indices.reshape(-1))
        return self.window_at(indices, n)

    def window_at(self, indices: Any, n: int) -> Window:
        """`window` for indices that were just drawn."""
        flat, lanes = indices.reshape(-1), self.num_envs
        block = self.data[flat % self.row_slots]
        left = self.device_bounds[1, flat % lanes] - flat // lanes  # number of steps up to the newest
        steps = torch.arange(n, device=self.device)
        at = torch.where(steps < left[:, None], flat[:, None] + steps * lanes, flat[:, None]) % self.row_slots
        ended = self.rows.end_flags(self.data)[at] if n > 1 else self.rows.end_flags(block)[:, None]
        runs = ((ended.cumsum(1) - ended.long()) == 0) & (steps < left[:, None])
        column = self.rows.column
        rewards = column(self.data, self.rows.reward)[at] if n > 1 else column(block, self.rows.reward)[:, None]
        rewards = rewards.to(torch.float64)
        length = runs.sum(1)
        runs = runs.view(*runs.shape, *(1 for _ in self._reward_shape))
        reward = torch.where(runs, rewards, 0.0)
        last = block if n == 1 else self.data[(flat + (length - 1) * lanes) % self.row_slots]
        terminated, truncated = (self.rows.column(last, flag).clone() for flag in self.rows.flags)
        shape = tuple(indices.shape)
        return Window(flat, shape, lanes, reward, length, terminated, truncated, block)  # type: ignore[arg-type]

    def _note_not_stored(self, indices: torch.Tensor, mask: torch.Tensor | None = None) -> None:
        """Record an error for each index that is not stored, only where the mask is True if there is one."""
        step, (first, cursor) = indices // self.num_envs, self.device_bounds[:, indices % self.num_envs]
        wrong = (indices < 0) | (step < first) | (step >= cursor)
        self.late.note("not stored", wrong if mask is None else wrong & mask)

    def slots(self, indices: Any) -> Any:
        self._note_not_stored(indices)
        return indices % self.capacity

    def select(self, indices: Any, values: Any, name: str, largest: float, eps: float) -> tuple[Any, Any]:
        """The slots and priorities of all indices. Ignored entries get slot C. Invalid entries are recorded."""
        step, (first, cursor) = indices // self.num_envs, self.device_bounds[:, indices % self.num_envs]
        is_wrong, is_unknown = ~(values.abs() <= largest), (indices < -1) | (step >= cursor)
        is_stale = ~is_unknown & (step < first) & (indices != -1)
        self.late.note("td_errors", is_wrong & (indices != -1))
        self.late.note("never returned", is_unknown)
        is_kept = ~(is_wrong | is_unknown | is_stale) & (indices != -1)
        if name == "priorities":
            self.late.note("negative", (values < 0.0) & (indices != -1))
            is_kept &= values >= 0.0
        self._stale += is_stale.sum()
        added = 0.0 if name == "priorities" else eps
        slots = torch.where(is_kept, indices % self.capacity, self.capacity)
        return slots, torch.where(is_kept, values.abs() + added, 0.0)

    @property
    def stale_updates(self) -> int:  # type: ignore[override]
        """The number of updates of transitions that had been overwritten. Waits for the device."""
        return int(self._stale)

    def reduce(self, window: Window, powers: Floats) -> dict[str, Any]:
        reward: Any = window.reward
        length: Any = window.length
        weights, total = self._on_device(powers), reward[:, 0]
        for k in range(1, reward.shape[1]):
            is_within = (length > k).view(-1, *(1 for _ in self._reward_shape))
            total = torch.where(is_within, total + weights[k] * reward[:, k], total)
        dtype = torch_dtype(self.spec["reward"].dtype, "reward")
        discount = torch.where(window.terminated, 0.0, weights[length]).to(dtype)  # type: ignore[call-overload]
        first: Any = window.indices
        last, rows = first, window.opened
        if reward.shape[1] > 1:
            last = first + (length - 1) * self.num_envs
            rows = self.data[last % self.row_slots]
        leaves = self.rows.leaves(window.opened, rows)
        if self.apart:
            self.graphs.look(self.device)
        for position, source in self.apart.items():
            leaves[position] = source.read(position, last if self.spec.leaves[position].is_of_last else first)
        for position, value in zip(
            (self.rows.reward, *self.rows.flags), (total.to(dtype), window.terminated, window.truncated), strict=True
        ):
            leaves[position] = value
        for names, chosen, values in window.rewrites:
            for name in names:
                position = self.rows.positions[name]
                leaves[position] = self.backend.rewritten(leaves[position], chosen, values)
        return self.rows.name_transitions(*leaves, discount, length) | window.added

    def _on_device(self, powers: Floats) -> torch.Tensor:
        """The powers of gamma on the device. A buffer always passes the same array."""
        if self._powers is None or self._powers[0] is not powers:
            self._powers = powers, self.backend.array(powers)
        return self._powers[1]

    def read(self, indices: Any, name: str) -> Any:
        position = self.rows.positions.get(name)
        if position is None:
            raise FieldNameError(f"unknown field {name!r}; expected one of {', '.join(self.rows.positions)}")
        is_padding = indices == -1
        self._note_not_stored(indices, ~is_padding)
        if position in self.apart:
            values = self.apart[position].read(position, indices)
        else:
            values = self.column(position)[indices % self.row_slots]
        return torch.where(is_padding.view(-1, *(1 for _ in values.shape[1:])), torch.zeros_like(values), values)

    def episode(self, indices: Any) -> tuple[Any, Any, Any]:
        is_padding = indices == -1
        self._note_not_stored(indices, ~is_padding)
        numbers, starts, stops = self.tables[:3]
        number = numbers[indices % self.row_slots]
        found = (number, starts[number % self.row_slots], stops[number % self.row_slots])
        return tuple(torch.where(is_padding, -1, each) for each in found)  # type: ignore[return-value]

    def latest(self, count: int) -> Any:
        count, size = min(count, self.capacity), len(self)
        if self.order.stamps is None:
            stop = int(self.bounds[1, 0]) * self.num_envs
            return torch.arange(stop - min(count, size), stop, device=self.device)
        return self.backend.array(self.order.latest(count, self.bounds))

    def nth_stored(self, uniforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The ``floor(u N)``-th stored index for each u in [0, 1), counted lane by lane, and N."""
        return self.backend.nth_stored(uniforms, self.device_bounds)

    def indices_of(self, slots: torch.Tensor) -> torch.Tensor:
        """The index stored in each filled slot."""
        lanes, row = slots % self.num_envs, slots // self.num_envs
        cursor = self.device_bounds[1, lanes]
        step = cursor - cursor % self.length + row
        return torch.where(step < cursor, step, step - self.length) * self.num_envs + lanes

    def starts_of(self, indices: torch.Tensor) -> torch.Tensor:
        """The index of the first step of each stored index's episode. That step may have been overwritten."""
        numbers, starts = self.tables[:2]
        found: torch.Tensor = starts[numbers[indices % self.row_slots] % self.row_slots]
        return found

    def refresh(self) -> None:
        """Update the tensors that a graph reads. In this class they are always up to date."""

    def raise_late(self) -> None:
        """Raise the recorded errors. Waits for the device."""
        self.late.raise_first()

    def size_on_device(self) -> torch.Tensor:
        """The number of stored transitions, N, as a tensor without axes."""
        return (self.device_bounds[1] - self.device_bounds[0]).sum()

    def fuse(self, distribution: Any, powers: Floats, rng: Any) -> tuple[Serve, Open] | None:
        return fuse(self, distribution, powers, rng)

    # Saving, through a storage on the CPU

    def on_host(self) -> LocalStorage:
        """A copy of the contents in a `LocalStorage`. Raises the recorded errors. Waits for the device."""
        self.raise_late()
        host = LocalStorage(self.capacity, self.spec, self.num_envs, **self.frame_options)
        fill(host, contents_on_device(self))
        return host

    def state(self) -> dict[str, Any]:
        return self.on_host().state()

    def complete_state(self, state: dict[str, Any]) -> None:
        state.pop("running")  # the state comes from a copy, in which nothing is retired meanwhile

    def check_state(self, state: dict[str, Any]) -> None:
        LocalStorage(self.num_envs, self.spec, self.num_envs, **self.frame_options).check_state(state)

    def restore(self, state: dict[str, Any]) -> None:
        host = LocalStorage(self.capacity, self.spec, self.num_envs, **self.frame_options)
        host.restore(state)
        self.restored = host.restored
        restore_contents(self, contents_of(host))

    def restart(self) -> None:
        newest = self.bounds.max()
        lanes = np.full(self.num_envs, newest)
        self.set_lanes(np.stack((lanes, lanes)), np.ones(self.num_envs, np.bool_), self.numbers.cpu().numpy())
        self.order.forget()
        for frames in self.frames:
            frames.clear()

    def set_lanes(self, bounds: Indices, is_over: npt.NDArray[Any], numbers: Indices) -> None:
        """Replace the bounds and the running episodes of all lanes."""
        put = self.backend.array
        self.bounds[:] = bounds
        self.device_bounds.copy_(put(bounds))
        self.is_over.copy_(put(is_over.astype(np.bool_)))
        self.numbers.copy_(put(numbers))

    def not_finite_observations(self) -> Iterator[str]:
        return self.on_host().not_finite_observations()

    def check(self) -> None:
        self.raise_late()
        super().check()
        assert np.array_equal(self.device_bounds.cpu().numpy(), self.bounds), "the device has other bounds than the CPU"
        for frames in self.frames:
            frames.check()
        self.on_host().check()
