"""LocalStorage: packed rows in arrays of this process."""

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from replaykit._kernels import lazy
from replaykit.batch import Ahead, Look, Rewrite, Window
from replaykit.field import FieldNameError
from replaykit.spec import Spec
from replaykit.storage.base import Indices, Open, Serve, Storage, stored_in
from replaykit.storage.columns import Columns, Padding, Share, columns_for
from replaykit.storage.fused import SCOPES, LookingAhead, fuse, looking_ahead
from replaykit.storage.memory_limit import refuse_more_than_memory
from replaykit.storage.row import LAYOUTS_KEPT, Layout, Row
from replaykit.trees import Tree

kernels, windows, goals = lazy("store"), lazy("windows"), lazy("goals")

_LARGEST_BLOCK = 1 << 18
"""Bytes that are encoded at a time. Larger memory is returned to the system each time, and costs page faults."""
_UINT8, _INT64 = np.dtype(np.uint8), np.dtype(np.int64)


class LocalStorage(Storage):
    """Transitions in packed rows, large observations in columns. Override `allocate` to place the arrays elsewhere.

    The small fields of a transition lie side by side in one row, so reading a transition is one cache miss. Fields
    above 1 KB are in columns of their own, and large observations are kept once each.

    A write retires the oldest rows (advances ``bounds[0]``), writes, and publishes the new rows (advances
    ``bounds[1]``). If it is interrupted, no row that counts as stored is half written.

    Parameters
    ----------
    capacity, spec, num_envs
        As those of `Storage`.
    stack, padding, share
        As those of `replaykit.ReplayBuffer`.
    """

    def __init__(
        self,
        capacity: int,
        spec: Spec,
        num_envs: int = 1,
        *,
        stack: int = 1,
        padding: Padding = "reset",
        share: Share = "large",
    ) -> None:
        super().__init__(capacity, spec, num_envs)
        self.columns: list[Columns] = columns_for(self, stack, padding, share)
        self.stack = int(stack)
        self._column_of = {leaf: columns for columns in self.columns for leaf in columns.leaves}
        self.row = row = Row(spec, list(self._column_of), self._encode_any)
        self.positions = {leaf.name: i for i, leaf in enumerate(spec.leaves)}
        self._looking: dict[tuple[str, int, int, int], LookingAhead] = {}
        self._columns_named: dict[tuple[str, ...], Indices] = {}
        self._flags = self.positions["terminated"], self.positions["truncated"]
        self._length = len(spec.leaves) + 1  # the place of the length among the fields of a batch
        self._of_window = *self._flags, self._length
        each = row.nbytes + 8 * kernels.STAMPS
        needed = each * self.capacity + sum(columns.nbytes for columns in self.columns)
        refuse_more_than_memory(needed, f"capacity {self.capacity} at {needed // self.capacity} bytes each")
        size = kernels.LANES + kernels.LANE_ROWS * self.num_envs
        self.header = self.allocate("header", (size + row.leaf_places.size,), np.int64)
        self.rows = self.allocate("rows", (self.capacity, row.nbytes), np.uint8)
        tables = self.allocate("tables", (kernels.STAMPS, self.capacity), np.int64)
        for columns in self.columns:
            columns.allocate()
        self.header[[kernels.NUM_ENVS, kernels.ROW_BYTES, kernels.END]] = self.num_envs, row.nbytes, row.end
        self.header[size:] = row.leaf_places
        self._lanes = self.header[kernels.LANES : size].reshape(kernels.LANE_ROWS, self.num_envs)
        self._lanes[kernels.OVER] = 1
        self._lanes[kernels.EPISODE] = np.arange(self.num_envs) - self.num_envs
        self._lanes[kernels.PLACE] = self._lanes[kernels.EPISODE] % self.capacity
        self.bounds = self._lanes[:2]
        self.bytes = self.rows.reshape(-1)
        self._written = self.header, self.bytes, tables
        self._columns_of_row = self.rows.view(row.record).reshape(-1)
        self._most_entries = 0 if self.columns else min(self.capacity, max(_LARGEST_BLOCK // row.nbytes, 1))
        if not self.columns and self.num_envs == 1:
            self.encode_step = row.encode_row  # type: ignore[method-assign]

    @property
    def tables(self) -> Indices:
        """The tables of episodes, and of the time of writing once lanes are out of step."""
        return self._written[2]

    # -- Writing ---------------------------------------------------------------------------------------------

    def encode(
        self,
        values: tuple[Tree, ...],
        extras: Mapping[str, Tree],
        lead: tuple[int, ...],
        mask: npt.NDArray[np.bool_] | None = None,
    ) -> Any:
        if mask is None and lead and 0 < math.prod(lead) <= self._most_entries:
            return self.row.encode_steps(lead, *values, extras)
        return super().encode(values, extras, lead, mask)

    def _encode_any(self, values: tuple[Tree, ...], extras: Mapping[str, Tree], lead: tuple[int, ...]) -> bytes:
        """The bytes of values that need more than the usual checks."""
        return self.row.join(super().encode(values, extras, lead))

    def encode_step(self, *values: Any) -> Any:
        if self.columns:
            return super().encode(values[:-1], values[-1], self.lanes)
        return self.row.encode_steps(self.lanes, *values)

    def write(self, block: Any, steps: int, mask: npt.NDArray[np.bool_] | None = None) -> Indices:
        if type(block) is bytes and mask is None:
            indices = np.empty(steps * self.num_envs, _INT64)
            kernels.store(block, steps, 0, *self._written, indices)
            return indices
        if mask is not None and self.num_envs == 1:  # the only lane is always in step with itself
            indices = np.full(steps, -1, np.int64)
            indices[mask] = self.write(block, int(mask.sum()))
            return indices
        for columns in self.columns:
            columns.reserve(len(block[0]))
        indices = np.empty(steps * self.num_envs, np.int64)
        done = 0
        for part in self._parts(steps):
            chosen = None if mask is None else mask[part]
            count = part.stop - part.start if chosen is None else int(chosen.sum())
            leaves = [leaf[done : done + count] for leaf in block]
            done += count
            if chosen is None:
                self._write_part(leaves, count // self.num_envs, indices[part])
            else:
                self._keep_stamps()
                entries = np.empty(count, np.int64)
                kernels.number_entries(chosen, self.bounds, indices[part], entries)
                self._write_part(leaves, 0, entries)
        return indices

    def _parts(self, steps: int) -> Iterator[slice]:
        """The entries of `steps` steps, in parts that no lane is too short for and that are not too large to encode."""
        most = max(1, min(self.length, _LARGEST_BLOCK // (self.row.nbytes * self.num_envs)))
        for begin in range(0, steps, most):
            yield slice(begin * self.num_envs, min(begin + most, steps) * self.num_envs)

    def _write_part(self, leaves: list[npt.NDArray[Any]], steps: int, indices: Indices) -> None:
        """Write steps of every lane, whose indices are found, or, if `steps` is 0, the entries of these indices."""
        data = self.row.join(leaves)
        if not self.columns:
            kernels.store(data, steps, kernels.BOTH, *self._written, indices)
            return
        kernels.store(data, steps, kernels.RETIRE, *self._written, indices)
        terminated, truncated = (leaves[flag] for flag in self._flags)
        begins = np.empty(len(indices), np.bool_)
        kernels.begins_of(terminated | truncated, self.header, indices, begins)
        for columns in self.columns:
            columns.write([leaves[leaf] for leaf in columns.leaves], indices, begins)
        kernels.store(data, steps, kernels.PUBLISH, *self._written, indices)

    def _keep_stamps(self) -> None:
        """From now on note when each slot is written, since lanes get out of step."""
        if len(self.tables) == kernels.STAMPS:
            self.arrays["tables"] = self.tables  # whatever an interrupt has left
            self.header[kernels.SPLIT] = self.bounds[1].sum()
            self._written = self.header, self.bytes, self.allocate("tables", (4, self.capacity), np.int64)

    def end_episode(self, lanes: Indices) -> None:
        kernels.end_episodes(lanes, self.header, self.bytes)

    def clear(self) -> None:
        kernels.clear(self.header)

    # -- Reading ---------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return int(self.header.item(kernels.STORED))

    def window(self, indices: Indices, n: int) -> Window:
        flat = indices.reshape(-1)
        layout, block = self._transitions_at(flat, _any_powers(n), windows.OPEN)
        opened = layout, block, np.ndarray((), layout.windows, block).item()
        return self.window_in(flat, indices.shape, opened)

    def fetch(self, indices: Indices, powers: npt.NDArray[np.float64]) -> dict[str, Any]:
        layout, block = self._transitions_at(indices.reshape(-1), powers, windows.BOTH)
        leaves = np.ndarray((), layout.batch, block).item()[:-3]
        if self.columns:
            leaves = self.with_columns(leaves, indices.reshape(-1), leaves[-1])
        return self.row.name_transitions(*leaves)

    def _transitions_at(self, indices: Indices, powers: npt.NDArray[np.float64], stage: int) -> tuple[Layout, Any]:
        """A block with what the kernel makes of these indices."""
        layout = self.row.layout(indices.size, len(powers) - 1)
        block = np.empty(layout.nbytes, np.uint8)
        if windows.transitions_at(indices, self.bounds, self.bytes, layout.plan, powers, block, stage) >= 0:
            self.refuse(indices)
        return layout, block

    def window_in(
        self, indices: Indices, shape: tuple[int, ...], opened: tuple[Layout, Any, Any], ahead: Ahead | None = None
    ) -> Window:
        """The windows that are open in a block: its layout, the block, and views of its fields."""
        i, j, k = self._of_window
        _, _, views = opened
        return Window(
            indices, shape, self.num_envs, views[-1], views[k], views[i], views[j], opened, [], {}, ahead
        )  # fmt: skip

    def reduce(self, window: Window, powers: npt.NDArray[np.float64]) -> dict[str, Any]:
        layout, block, views = window.opened
        self._take_back(window, views)
        arguments = self.bounds, self.bytes, layout.plan, powers, block, windows.REDUCE
        rewrites = window.rewrites
        if self.columns:
            rewrites = [Rewrite((name,), *rewrite[1:]) for rewrite in rewrites for name in rewrite.fields]
            apart = [rewrite for rewrite in rewrites if self.is_in_columns(rewrite.fields[0])]
            rewrites = [rewrite for rewrite in rewrites if not self.is_in_columns(rewrite.fields[0])]
        if rewrites:
            wrong = windows.reduce_rewritten(*arguments, *self._in_block(rewrites[0]))
            for rewrite in rewrites[1:]:
                wrong = max(wrong, windows.rewrite(layout.plan, block, *self._in_block(rewrite)), key=abs)
            if wrong != -1:
                raise IndexError(f"rewrites has the row {wrong}; expected rows in [0, {len(window.indices)})")
        else:
            windows.transitions(*arguments)
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
        """Copy to the block what a wrapper has replaced rather than changed in place."""
        terminated, truncated, length = self._of_window
        if window.reward is not views[-1]:
            views[-1][...] = window.reward
        if window.length is not views[length]:
            views[length][...] = window.length
        if window.terminated is not views[terminated]:
            views[terminated][...] = window.terminated
        if window.truncated is not views[truncated]:
            views[truncated][...] = window.truncated

    def _in_block(self, rewrite: Rewrite) -> tuple[Indices, Indices, npt.NDArray[np.uint8]]:
        """The columns of the plan, the rows and the bytes of a rewrite."""
        names, rows, values = rewrite
        columns = self._columns_named.get(names)
        if columns is None:
            columns = self._columns_named[names] = np.array([self.positions[name] for name in names])
        leaf, shape = self.spec.leaves[columns[0]], (len(rows), *self.spec.leaves[columns[0]].shape)
        if type(values) is not np.ndarray or values.dtype is not leaf.dtype or values.shape != shape:
            values = np.broadcast_to(values, shape).astype(leaf.dtype)
        elif not values.flags.carray:
            values = values.copy()
        return columns, rows, np.ndarray(values.nbytes, _UINT8, values)

    def with_columns(self, views: Any, indices: Indices, length: Indices) -> list[Any]:
        """The fields of a batch, with the leaves that are in columns."""
        fields = list(views)
        for columns in self.columns:
            for position, values in zip(columns.leaves, columns.gather(indices, length), strict=True):
                fields[position] = values
        return fields

    def fuse(
        self, distribution: Any, powers: npt.NDArray[np.float64], rng: np.random.Generator
    ) -> tuple[Serve, Open] | None:
        return None if distribution.kernels is None else fuse(self, distribution, powers, rng)

    def look_ahead(self, window: Window, look: Look, uniforms: npt.NDArray[np.float64]) -> Ahead:
        if self.is_in_columns(look.leaf) or not window.indices.size:
            return super().look_ahead(window, look, uniforms)
        layout, block, views = window.opened
        self._take_back(window, views)
        n = window.reward.shape[1]
        column, nbytes, read = self.looking(look.leaf, window.indices.size, window.shape[0], n)
        out, asked = np.empty(nbytes, _UINT8), (uniforms, look.ratio, SCOPES[look.strategy])
        state = self.bounds, self.bytes, self.tables
        return read(out, goals.look_ahead(*state, layout.plan, block, n, *asked, column, out))

    def looking(self, leaf: str, count: int, groups: int, n: int) -> LookingAhead:
        """`looking_ahead`, kept for the sizes that are in use."""
        key = leaf, count, groups, n
        looking = self._looking.get(key)
        if looking is None:
            if len(self._looking) >= LAYOUTS_KEPT:
                self._looking.clear()
            looking = self._looking[key] = looking_ahead(self, *key)
        return looking

    def is_in_columns(self, leaf: str) -> bool:
        """Whether a leaf is kept apart from the rows."""
        return self.positions[leaf] in self._column_of

    def read(self, indices: Indices, name: str) -> npt.NDArray[Any]:
        position = self.positions.get(name)
        if position is None:
            raise FieldNameError(f"unknown field {name!r}; expected one of {', '.join(self.positions)}")
        columns = self._column_of.get(position)

        def values(stored: Indices) -> npt.NDArray[Any]:
            slots = self.slots(stored)
            if columns is not None:
                return columns.read(slots, position)
            column: npt.NDArray[Any] = self._columns_of_row[str(position)]
            return column[slots]

        if not (indices == -1).any():
            return values(indices)
        stored = indices != -1
        found = values(indices[stored])
        padded = np.zeros((len(indices), *found.shape[1:]), found.dtype)
        padded[stored] = found
        return padded

    def episode(self, indices: Indices) -> tuple[Indices, Indices, Indices]:
        found = np.full((3, len(indices)), -1, np.int64)
        stored = indices != -1
        numbers = self.tables[kernels.NUMBER, self.slots(indices[stored])]
        places = numbers % self.capacity
        found[:, stored] = numbers, self.tables[kernels.STARTS, places], self.tables[kernels.STOPS, places]
        number, first, last = found
        return number, first, last

    def latest(self, count: int) -> Indices:
        if len(self.tables) == kernels.STAMPS:
            stop = self.bounds.item(1, 0) * self.num_envs
            return np.arange(stop - min(count, len(self)), stop)
        first, cursor = self.bounds
        tails = stored_in(np.stack((np.maximum(first, cursor - count), cursor)), self.num_envs)
        stamps = self.tables[kernels.STAMPS, tails % self.capacity]
        stamps = np.where(tails < self.header[kernels.SPLIT], tails, stamps)
        return tails[np.argsort(stamps)[-count:]]

    # -- State -----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        slots = self._stored_slots()
        has_stamps = len(self.tables) > kernels.STAMPS
        oldest = self.bounds[0] * self.num_envs + np.arange(self.num_envs)
        places = self.tables[kernels.NUMBER, oldest % self.capacity] % self.capacity
        state: dict[str, Any] = {
            "lanes": self._lanes[: kernels.PLACE],
            "starts": np.where(self.bounds[1] > self.bounds[0], self.tables[kernels.STARTS, places], 0),
            "split": int(self.header[kernels.SPLIT]) if has_stamps else -1,
            "rows": self.rows[slots],
            "stamps": self.tables[kernels.STAMPS, slots] if has_stamps else np.zeros(0, np.int64),
        }
        for columns in self.columns:
            state |= {f"{columns.name}.{name}": value for name, value in columns.state(slots).items()}
        return state

    def load(self, state: dict[str, Any]) -> None:
        self._lanes[: kernels.PLACE] = state["lanes"]
        self._lanes[kernels.PLACE] = self._lanes[kernels.EPISODE] % self.capacity
        self.header[kernels.STORED] = (self.bounds[1] - self.bounds[0]).sum()
        slots = self._stored_slots()
        self.rows[slots] = state["rows"]
        if state["split"] >= 0:
            self._keep_stamps()
            self.header[kernels.SPLIT] = state["split"]
            self.tables[kernels.STAMPS, slots] = state["stamps"]
        kernels.rebuild_tables(self.header, self.bytes, self.tables, np.asarray(state["starts"], np.int64))
        for columns in self.columns:
            prefix = f"{columns.name}."
            columns.load({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}, slots)

    def _stored_slots(self) -> Any:
        """What selects the slots of the stored transitions, in the order of slots: a slice where it can be one."""
        stop = self.bounds[1, 0] * self.num_envs
        in_step = (self.bounds == self.bounds[:, :1]).all()
        if in_step and len(self) == min(stop, self.capacity):
            return slice(0, len(self))
        return np.sort(self.stored() % self.capacity)

    def check(self) -> None:
        super().check()
        assert len(self) == (self.bounds[1] - self.bounds[0]).sum(), "the number of stored transitions is wrong"
        slots = self.stored() % self.capacity
        terminated, truncated = (self._columns_of_row[str(flag)][slots] for flag in self._flags)
        ended = self.rows[slots, self.row.end]
        assert (ended >= (terminated | truncated)).all(), "an episode goes on after a terminated or truncated step"
        for columns in self.columns:
            columns.check()
        for lane in range(self.num_envs):
            self._check_episodes(np.arange(*self.bounds[:, lane]) * self.num_envs + lane)

    def _check_episodes(self, indices: Indices) -> None:
        """Verify the tables for all stored indices of a lane."""
        if not indices.size:
            return
        number, first, last = self.episode(indices)
        begins = np.r_[True, self.rows[indices % self.capacity, self.row.end][:-1] != 0]
        run = np.cumsum(begins) - 1
        stops = np.r_[np.flatnonzero(begins)[1:] - 1, indices.size - 1][run]
        assert (last == indices[stops]).all(), "an episode's end is wrong"
        assert (np.diff(number) == self.num_envs * begins[1:]).all(), "episode numbers are not consecutive"
        assert ((number - indices) % self.num_envs == 0).all(), "an episode of another lane"
        assert number[-1] == self._lanes[kernels.EPISODE, indices[0] % self.num_envs], "the newest episode is wrong"
        starts = indices[np.flatnonzero(begins)][run]
        assert (first[run > 0] == starts[run > 0]).all(), "an episode's start is wrong"
        assert (first[run == 0] <= indices[0]).all(), "an episode starts after its steps"


@functools.cache
def _any_powers(n: int) -> npt.NDArray[np.float64]:
    """An array of n + 1 numbers. To open windows, only how many they are matters."""
    return np.ones(n + 1)
