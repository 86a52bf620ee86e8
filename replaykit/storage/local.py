"""`LocalStorage`: packed rows in the memory of this process."""

import math
import weakref
from collections.abc import Callable, Mapping
from functools import cache, lru_cache, partial
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from replaykit._kernels import lazy
from replaykit.batch import Ahead, Look, Rewrite, Window
from replaykit.chunks import LiveChunks, Slots, pieces
from replaykit.field import FieldNameError
from replaykit.spec import Spec
from replaykit.storage.base import Flags, Floats, Indices, Open, Serve, Storage, stored_in
from replaykit.storage.columns import Columns, Padding, Share, columns_for
from replaykit.storage.fused import SCOPES, LookingAhead, fuse, looking_ahead
from replaykit.storage.row import LAYOUTS_KEPT, Layout, Row
from replaykit.storage.saved_state import LARGEST_STEP, check_episodes, check_lanes_and_rows, starts_of
from replaykit.trees import Tree

kernels: Any = lazy("store")
windows: Any = lazy("windows")
goals: Any = lazy("goals")

_LARGEST_BLOCK = 1 << 18
"""Number of bytes encoded at a time. Larger blocks are returned to the system when freed, which costs page faults."""
_UINT8, _INT64 = np.dtype(np.uint8), np.dtype(np.int64)


class LocalStorage(Storage):
    """Stores transitions in packed rows, and large observations in columns. Override `allocate` to place the arrays.

    The small fields of a transition are adjacent in one row, so reading a transition costs one cache miss. Fields above
    1 KB are in separate columns, and each large observation is stored once. Interrupted writes leave stored rows whole.

    Parameters
    ----------
    capacity, spec, num_envs
        As in `Storage`.
    stack, padding, share
        As in `replaykit.ReplayBuffer`.
    """

    def __init__(
        self, capacity: int, spec: Spec, num_envs: int = 1, *, stack: int = 1, padding: Padding = "reset",
        share: Share = "large",
    ) -> None:  # fmt: skip
        super().__init__(capacity, spec, num_envs)
        self.columns: list[Columns] = columns_for(self, stack, padding, share)
        self.stack: int = int(stack)
        self._column_of = {leaf: columns for columns in self.columns for leaf in columns.leaves}
        encode_any = partial(LocalStorage._encode_any, weakref.proxy(self))  # a cycle would keep a deleted storage
        row = Row(spec, [columns.leaves for columns in self.columns], encode_any, self.lanes or (1,))
        self.row: Row = row
        positions = {leaf.name: i for i, leaf in enumerate(spec.leaves)}
        self.positions: dict[str, int] = positions
        self._flags = positions["terminated"], positions["truncated"]
        self._length = len(positions) + 1  # the position of the length among the fields of a batch
        self._of_window = itemgetter(-1, self._length, *self._flags)
        self.looking: Callable[..., LookingAhead] = lru_cache(LAYOUTS_KEPT)(partial(looking_ahead, spec))
        self._columns_named = cache(lambda names: np.array([positions[name] for name in names]))
        needed = (row.nbytes + 8 * kernels.STAMPS) * self.capacity + sum(columns.nbytes for columns in self.columns)
        self.refuse_size(needed, f"capacity {self.capacity} at {needed // self.capacity} bytes each")
        size = kernels.LANES + kernels.LANE_ROWS * self.num_envs
        self.header: npt.NDArray[Any] = self.allocate("header", (size + row.leaf_places.size,), np.int64)
        self.rows: npt.NDArray[Any] = self.allocate("rows", (self.capacity, row.nbytes), np.uint8)
        self.bytes: npt.NDArray[Any] = self.rows.reshape(-1)
        self._written = self.header, self.bytes, self.allocate("tables", (kernels.STAMPS, self.capacity), np.int64)
        for columns in self.columns:
            columns.allocate()
        self.header[[kernels.NUM_ENVS, kernels.LENGTH]] = self.num_envs, self.length
        self.header[[kernels.ROW_BYTES, kernels.END]] = row.nbytes, row.end
        reward = row.place[self._reward], spec["reward"].dtype.itemsize, math.prod(spec["reward"].shape)
        self.header[[kernels.REWARD, kernels.REWARD_BYTES, kernels.REWARD_NUMBERS]] = reward
        self.header[size:] = row.leaf_places
        self._lanes = self.header[kernels.LANES : size].reshape(kernels.LANE_ROWS, self.num_envs)
        self._lanes[kernels.OVER] = 1
        self._lanes[kernels.EPISODE] = np.arange(self.num_envs) - self.num_envs
        self._lanes[kernels.PLACE] = self._lanes[kernels.EPISODE] % self.capacity
        self.bounds: Indices = self._lanes[:2]
        self._columns_of_row = self.rows.view(row.record).reshape(-1)
        self._most_entries = 0 if self.columns else min(self.capacity, max(_LARGEST_BLOCK // row.nbytes, 1))
        self.encode_step = row.encode_lanes if self.lanes else row.encode_row  # type: ignore[method-assign]

    @property
    def tables(self) -> Indices:
        """The table of episodes. Once lanes hold different steps, it also records when each slot was written."""
        return self._written[2]

    def encode(
        self, values: tuple[Tree, ...], extras: Mapping[str, Tree], lead: tuple[int, ...], mask: Flags | None = None
    ) -> Any:
        if mask is None and self._most_entries:
            if not lead:
                return self.row.encode_row(*values, extras)
            fits = lead == self.lanes or lead[0] <= self.length  # else a lane is too short for one write
            if fits and 0 < math.prod(lead) <= self._most_entries:
                return self.row.encode_steps(lead, *values, extras)
        return super().encode(values, extras, lead, mask)

    def _encode_any(self, values: tuple[Tree, ...], extras: Mapping[str, Tree], lead: tuple[int, ...]) -> Any:
        """The block of values that need additional checks."""
        return self.row.join(Storage.encode(self, values, extras, lead))

    def write(self, block: Any, steps: int, mask: Flags | None = None) -> Indices:
        indices, (header, rows, tables) = np.empty(steps * self.num_envs, _INT64), self._written
        if mask is None and type(block) is bytes:
            if kernels.store(block, steps, kernels.BOTH, header, rows, tables, indices) >= 0:
                self.refuse_block(block, len(indices))
            return indices
        if type(block) is bytes and mask is not None and self.num_envs > 1:
            entries = np.empty(int(mask.sum()), _INT64)
            self.refuse_block(block, len(entries))
            self._keep_stamps()
            kernels.number_entries(mask, self.bounds, indices, entries)
            kernels.store(block, 0, kernels.BOTH, *self._written, entries)
            return indices
        if mask is not None and self.num_envs == 1:  # with one lane, no other lane can hold different steps
            indices[:] = -1
            indices[mask] = self.write(block, int(mask.sum()))
            return indices
        for columns in self.columns:
            columns.reserve(len(indices) if type(block) is tuple else len(block[0]))
        if type(block) is tuple:
            self._write_block(block, steps, indices)
            return indices
        done, most = 0, max(1, min(self.length, _LARGEST_BLOCK // (self.row.nbytes * self.num_envs))) * self.num_envs
        for begin in range(0, len(indices), most):  # parts that fit in a lane and are not too large to encode
            entries = part = indices[begin : begin + most]
            if mask is not None:
                chosen = mask[begin : begin + most]
                entries = np.empty(int(chosen.sum()), np.int64)
                self._keep_stamps()
                kernels.number_entries(chosen, self.bounds, part, entries)
            leaves = [leaf[done : done + len(entries)] for leaf in block]
            self._write_block(self.row.join(leaves), len(part) // self.num_envs if mask is None else 0, entries)
            done += len(entries)
        return indices

    def refuse_block(self, block: Any, entries: int) -> None:
        """Raise ValueError for the first reward of encoded entries that is not finite."""
        data = block[0] if type(block) is tuple else block
        if type(data) is bytes:
            place, field = self.row.place[self._reward] * entries, self.spec["reward"]
            self.refuse_rewards(np.frombuffer(data, field.dtype, entries * math.prod(field.shape), place))

    def _write_block(self, block: Any, steps: int, indices: Indices) -> None:
        """Write `steps` steps of every lane and compute their indices. If `steps` is 0, write at the given indices."""
        if type(block) is bytes:
            kernels.store(block, steps, kernels.BOTH, *self._written, indices)
            return
        data, *groups = block
        if len(groups) == 1 and self.columns[0].store(groups[0], data, steps, self._written, indices):
            return
        if kernels.store(data, steps, kernels.RETIRE, *self._written, indices) >= 0:
            self.refuse_block(data, len(indices))
        begins = np.empty(len(indices), np.bool_)
        kernels.begins_of(data, self.header, indices, begins)
        for columns, values in zip(self.columns, groups, strict=True):
            columns.write(values, indices, begins)
        kernels.store(data, steps, kernels.PUBLISH, *self._written, indices)

    def _keep_stamps(self) -> None:
        """From now on, record when each slot is written, since lanes are about to hold different steps."""
        if len(self.tables) == kernels.STAMPS:
            self.arrays["tables"] = self.tables  # an interrupt may have left a different one
            self.header[kernels.SPLIT] = self.bounds[1].sum()
            self._written = self.header, self.bytes, self.allocate("tables", (4, self.capacity), np.int64)

    def forget_stamps(self) -> None:
        """Stop recording: all lanes hold the same steps again, so the order of indices is that of writing."""
        self.header[kernels.SPLIT] = LARGEST_STEP
        self._written = self.header, self.bytes, self.tables[: kernels.STAMPS]

    def end_episode(self, lanes: Indices) -> None:
        kernels.end_episodes(lanes, self.header, self.bytes)

    def clear(self) -> None:
        kernels.clear(self.header)

    def __len__(self) -> int:
        return int(self.header.item(kernels.STORED))

    def refuse_replacing(self, values: Mapping[str, npt.NDArray[Any]]) -> None:
        super().refuse_replacing(values)
        for name in filter(self.is_in_columns, values):
            self._column_of[self.positions[name]].refuse_replacing(name)

    def replace(self, indices: Indices, values: Mapping[str, npt.NDArray[Any]]) -> None:
        slots = indices % self.capacity
        for name, value in values.items():
            columns = self._column_of.get(self.positions[name])
            if columns:
                columns.replace(slots, self.positions[name], value)
            else:
                self._columns_of_row[str(self.positions[name])][slots] = value

    def window(self, indices: Indices, n: int) -> Window:
        flat = indices.reshape(-1)
        layout, block = self._transitions_at(flat, np.empty(n + 1), windows.OPEN)  # only the number of powers matters
        return self.window_in(flat, indices.shape, (layout, block, np.ndarray((), layout.windows, block).item()))

    def fetch(self, indices: Indices, powers: Floats) -> dict[str, Any]:
        layout, block = self._transitions_at(indices.reshape(-1), powers, windows.BOTH)
        leaves = np.ndarray((), layout.batch, block).item()[:-3]
        if self.columns:
            leaves = self.with_columns(leaves, indices.reshape(-1), leaves[-1])
        return self.row.name_transitions(*leaves)

    def _transitions_at(self, indices: Indices, powers: Floats, stage: int) -> tuple[Layout, Any]:
        """The block that the kernel `transitions_at` makes for these indices, and its layout."""
        layout = self.row.layout(indices.size, len(powers) - 1)
        block = np.empty(layout.nbytes, np.uint8)
        if windows.transitions_at(indices, self.bounds, self.bytes, layout.plan, powers, block, stage) >= 0:
            self.refuse(indices)
        return layout, block

    def window_in(self, indices: Indices, shape: tuple[int, ...], opened: Any, ahead: Ahead | None = None) -> Window:
        """The windows in a block. `opened` is its layout, the block, and views of its fields."""
        reward, length, terminated, truncated = self._of_window(opened[2])
        return Window(indices, shape, self.num_envs, reward, length, terminated, truncated, opened, [], {}, ahead)

    def reduce(self, window: Window, powers: Floats) -> dict[str, Any]:
        layout, block, views = window.opened
        self._take_back(window, views)
        arguments = self.bounds, self.bytes, layout.plan, powers, block, windows.REDUCE
        rewrites = window.rewrites
        if self.columns:
            rewrites = [Rewrite((name,), *rewrite[1:]) for rewrite in rewrites for name in rewrite.fields]
            apart = [rewrite for rewrite in rewrites if self.is_in_columns(rewrite.fields[0])]
            rewrites = [rewrite for rewrite in rewrites if not self.is_in_columns(rewrite.fields[0])]
        if not rewrites:
            windows.transitions(*arguments)
        for k, rewrite in enumerate(rewrites):
            given = self._in_block(rewrite)
            wrong = windows.rewrite(layout.plan, block, *given) if k else windows.reduce_rewritten(*arguments, *given)
            if wrong >= 0:
                row, count = rewrite.rows[wrong], len(window.indices)
                raise IndexError(f"rewrites has the row {row}; expected rows in [0, {count})")
        leaves = views[: self._length + 1]
        if self.columns:
            leaves = self.with_columns(leaves, window.indices, leaves[-1])
            for (name,), rows, values in apart:
                position = self.positions[name]
                leaves[position] = leaves[position].copy()  # stacks of obs and next_obs may overlap
                leaves[position][rows] = values
        fields = self.row.name_transitions(*leaves)
        fields.update(window.added)
        return fields

    def _take_back(self, window: Window, views: Any) -> None:
        """If a wrapper has replaced arrays instead of changing them in place, copy them to the block."""
        reward, length, terminated, truncated = self._of_window(views)
        if window.reward is not reward:
            _replace("reward", reward, window.reward)
        if window.length is not length:
            _replace("length", length, window.length)
        if window.terminated is not terminated:
            _replace("terminated", terminated, window.terminated)
        if window.truncated is not truncated:
            _replace("truncated", truncated, window.truncated)
        wrong = windows.first_outside(length, 1, reward.shape[1])
        if wrong >= 0:
            raise ValueError(f"window.length contains {length[wrong]}; expected lengths from 1 to {reward.shape[1]}")

    def _in_block(self, rewrite: Rewrite) -> tuple[Indices, Indices, npt.NDArray[np.uint8]]:
        """The columns of the plan, the rows and the bytes of a rewrite."""
        names, rows, values = rewrite
        columns = self._columns_named(names)
        leaf, shape = self.spec.leaves[columns[0]], (len(rows), *self.spec.leaves[columns[0]].shape)
        if type(values) is not np.ndarray or values.dtype is not leaf.dtype or values.shape != shape:
            values = np.broadcast_to(values, shape).astype(leaf.dtype)
        elif not values.flags.carray:
            values = values.copy()
        return columns, rows, np.ndarray(values.nbytes, _UINT8, values)

    def with_columns(self, views: Any, indices: Indices, length: Indices) -> list[Any]:
        """The fields of a batch, including the leaves in columns."""
        fields = list(views)
        for columns in self.columns:
            for position, values in zip(columns.leaves, columns.gather(indices, length), strict=True):
                fields[position] = values
        return fields

    def fuse(self, distribution: Any, powers: Floats, rng: np.random.Generator) -> tuple[Serve, Open] | None:
        return None if distribution.kernels is None else fuse(self, distribution, powers, rng)

    def look_ahead(self, window: Window, look: Look, uniforms: Floats) -> Ahead:
        if any(map(self.is_in_columns, look.leaves)) or not window.indices.size:
            return super().look_ahead(window, look, uniforms)
        layout, block, views = window.opened
        self._take_back(window, views)
        n = window.reward.shape[1]
        asked_of, nbytes, read = self.looking(look.leaves, window.indices.size, window.shape[0], n)
        out, state = np.empty(nbytes, _UINT8), (self.bounds, self.bytes, self.tables, layout.plan, block)
        return read(out, goals.look_ahead(*state, n, uniforms, look.ratio, SCOPES[look.strategy], asked_of, out))

    def is_in_columns(self, leaf: str) -> bool:
        """Whether a leaf is stored in columns."""
        return self.positions[leaf] in self._column_of

    def read(self, indices: Indices, name: str) -> npt.NDArray[Any]:
        position = self.positions.get(name)
        if position is None:
            raise FieldNameError(f"unknown field {name!r}; expected one of {', '.join(self.positions)}")
        columns, stored = self._column_of.get(position), indices != -1
        is_whole = stored.all()
        slots = self.slots(indices if is_whole else indices[stored])
        values = columns.read(slots, position) if columns else self._columns_of_row[str(position)][slots]
        if is_whole:
            return values
        padded = np.zeros((len(indices), *values.shape[1:]), values.dtype)
        padded[stored] = values
        return padded

    def episode(self, indices: Indices) -> tuple[Indices, Indices, Indices]:
        found = np.empty((3, len(indices)), _INT64)
        if kernels.episodes_at(indices, self.bounds, self.tables, self.capacity, found) >= 0:
            self.refuse(indices[indices != -1])
        return found[0], found[1], found[2]

    def latest(self, count: int) -> Indices:
        count = min(count, self.capacity)
        if len(self.tables) == kernels.STAMPS:
            stop = self.bounds.item(1, 0) * self.num_envs
            return np.arange(stop - min(count, len(self)), stop)
        first, cursor = self.bounds
        tails = stored_in(np.stack((np.maximum(first, cursor - count), cursor)), self.num_envs)
        noted = self.tables[kernels.STAMPS, tails % self.capacity]
        stamps = np.where(tails < self.header[kernels.SPLIT], tails, noted)
        return tails[np.argsort(stamps)[-count:]]

    def state(self) -> dict[str, Any]:
        has_stamps, slots = len(self.tables) > kernels.STAMPS, Slots(self.bounds, self.capacity)
        lanes, running = self._lanes[: kernels.PLACE], self.tables[kernels.STARTS, self._lanes[kernels.PLACE]]
        running[lanes[kernels.OVER] != 0] = 0
        state: dict[str, Any] = {
            "capacity": self.capacity,
            "lanes": lanes,
            "oldest": self.bounds[0],
            "starts": starts_of(self, self.bounds, running),
            "running": running,
            "split": int(self.header[kernels.SPLIT]) if has_stamps else -1,
            "rows": LiveChunks.of_array(self.rows, slots),
        }
        if has_stamps:
            state["stamps"] = LiveChunks.of_array(self.tables[kernels.STAMPS], slots)
        for columns in self.columns:
            state |= {f"{columns.name}.{name}": value for name, value in columns.state(slots).items()}
        return state

    def complete_state(self, state: dict[str, Any]) -> None:
        cursor = state["lanes"][kernels.CURSOR]
        state["oldest"] = oldest = np.minimum(self.bounds[0], cursor)
        state["starts"] = starts_of(self, np.stack((oldest, cursor)), state.pop("running"))

    def check_state(self, state: dict[str, Any]) -> None:
        check_lanes_and_rows(self, state)
        for columns in self.columns:
            columns.check_state(columns.part_of(state))

    def restore(self, state: dict[str, Any]) -> None:
        lanes, starts, slots = np.array(state["lanes"]), np.array(state["starts"]), state["rows"].slots
        oldest = np.maximum(state["oldest"], lanes[kernels.CURSOR] - self.length)
        self._lanes[: kernels.PLACE] = lanes
        self._lanes[kernels.PLACE] = self._lanes[kernels.EPISODE] % self.capacity
        kernels.clear(self.header)
        for indices, rows in pieces(state["rows"]):
            step, lane = np.divmod(indices, self.num_envs)
            is_kept, was_there = step >= oldest[lane], step >= state["oldest"][lane]
            self.rows[indices[is_kept] % self.capacity] = rows[is_kept]
            over = indices[was_there & ~is_kept & (rows[:, self.row.end] != 0)]
            np.maximum.at(starts, over % self.num_envs, over + self.num_envs)
        for columns in self.columns:
            columns.restore(columns.part_of(state), oldest)
        if state["split"] < 0:
            self.forget_stamps()
        else:
            self._keep_stamps()
            self.header[kernels.SPLIT] = state["split"]
            for indices, stamps in pieces(state["stamps"]):
                is_kept = indices // self.num_envs >= oldest[indices % self.num_envs]
                self.tables[kernels.STAMPS, indices[is_kept] % self.capacity] = stamps[is_kept]
        filled = np.flatnonzero(oldest < lanes[kernels.CURSOR])
        newest = (lanes[kernels.CURSOR, filled] - 1) * self.num_envs + filled
        self.rows[newest % self.capacity, self.row.end] = lanes[kernels.OVER, filled]
        self.tables[kernels.STARTS, self._lanes[kernels.PLACE]] = starts
        self._lanes[[kernels.FIRST, kernels.OVER]] = oldest, lanes[kernels.OVER]
        kernels.rebuild_tables(self.header, self.bytes, self.tables, starts)
        self.header[kernels.STORED] = (self.bounds[1] - self.bounds[0]).sum()
        self.restored = slots

    def restart(self) -> None:
        self.bounds[:] = self.bounds.max()  # all lanes in step
        kernels.clear(self.header)
        self._lanes[kernels.PLACE] = self._lanes[kernels.EPISODE] % self.capacity
        self.header[kernels.SPLIT] = self.bounds[1].sum()
        for columns in self.columns:
            columns.restart()

    def check(self) -> None:
        super().check()
        assert len(self) == (self.bounds[1] - self.bounds[0]).sum(), "the number of stored transitions is wrong"
        slots = self.stored() % self.capacity
        terminated, truncated = (self._columns_of_row[str(flag)][slots] for flag in self._flags)
        ended = self.rows[slots, self.row.end]
        assert (ended >= (terminated | truncated)).all(), "an episode goes on after a terminated or truncated step"
        for columns in self.columns:
            columns.check()
        for lane in np.flatnonzero(self.bounds[1] > self.bounds[0]):
            indices = np.arange(*self.bounds[:, lane]) * self.num_envs + lane
            check_episodes(self, indices, self._lanes[kernels.EPISODE, lane])


def _replace(name: str, array: npt.NDArray[Any], value: Any) -> None:
    """Copy `value` to the array `name` of a window."""
    if np.shape(value) != array.shape:
        raise ValueError(f"window.{name} has shape {np.shape(value)}; expected {array.shape}")
    array[...] = value
