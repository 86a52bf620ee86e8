"""Rows and lanes: where a transition lives, and how it is written and gathered."""

import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from replaykit._kernels import lazy
from replaykit.field import Field, Leaf
from replaykit.frames import Frames, FramesPlan, Padding
from replaykit.memory import refuse_more_than_memory

kernels = lazy("lanes")

Share: TypeAlias = Literal["large", "all", "none"]

NO_ROW = -1
"""Stands for the place in a row of a field that is in none, as the kernels have it."""
_BOUND = frozenset((
    "columns", "first", "cursor", "bytes", "row_bytes", "is_packed", "_first_of_lane", "_cursor_of_lane",
    "_ended_of_slot", "_memory", "order", "_plan", "_flags", "_terminated_at", "_truncated_at",
))  # fmt: skip
"""What a copy or a pickle does not keep, since it is made of the rest."""
_INT64, _UINT8 = np.dtype(np.int64), np.dtype(np.uint8)
LARGE_FIELD_BYTES = 1024
"""Fields above this size are not part of the packed row."""


class Ring:
    """E lanes of L slots in one set of arrays.

    A transition's index is ``step * num_envs + lane``, with the number of its step in its lane. So all that is
    asked of an index is arithmetic: its lane is ``index % num_envs``, its successor in the lane
    ``index + num_envs`` and its slot ``index % capacity``. Lane e holds its steps in ``[first[e], cursor[e])``, at
    most the last L; `first` and `cursor` are the rows of `bounds`.

    The small fields of a transition lie side by side in one packed row, so that reading a transition is one
    cache miss. Large observations are kept once, in `frames`; each other large field has an array of its own. `columns`
    are views of the rows and of these arrays, by the position of the leaf.

    `clock` counts the steps ever appended, and nothing may be appended that takes it past `due` before the episodes
    have been looked at. `stamps`, once lanes are out of step, tells at which a slot was written.

    `gaps` tells that slots may hold rows that were retired and not replaced, after a reset or an interrupted append,
    and `leaks` that these may still hold frames.

    An append *retires* the oldest rows (advances `first`), writes, and *publishes* the new (advances
    `cursor`): whatever interrupts it, no row that counts as stored is half written.

    Parameters
    ----------
    length : int
        Slots of each lane, L.
    num_envs : int
        Lanes, E.
    leaves : sequence of Leaf
        The fields of a transition.
    stack : int
        Observations in each that is read, k.
    padding : {"reset", "zero"}
        What fills up a stack at an episode's start.
    share : {"large", "all", "none"}
        Which observations are kept once.
    other_bytes : int
        What a slot costs outside of the ring; more memory than the machine has is refused before it is taken.
    """

    def __init__(
        self,
        length: int,
        num_envs: int,
        leaves: Sequence[Leaf],
        *,
        stack: int = 1,
        padding: Padding = "reset",
        share: Share = "large",
        other_bytes: int = 0,
    ) -> None:
        self.length = length
        self.num_envs = num_envs
        self.capacity = length * num_envs
        self.leaves = tuple(leaves)
        names = [leaf.name for leaf in leaves]
        self.frames = {
            (i, names.index(f"next_{leaf.name}")): Frames(
                self.capacity, num_envs, leaf, stack if _is_stacked(leaf, stack) else 1, padding, share != "none"
            )
            for i, leaf in enumerate(leaves)
            if leaf.name.partition(".")[0] == "obs" and (_is_stacked(leaf, stack) or _is_shared(leaf, share))
        }
        self.framed = {i for pair in self.frames for i in pair}
        others = [i for i in range(len(leaves)) if i not in self.framed]
        small = [i for i in others if leaves[i].field.nbytes <= LARGE_FIELD_BYTES]
        large = [i for i in others if leaves[i].field.nbytes > LARGE_FIELD_BYTES]
        row = _packed([leaves[i] for i in small], [str(i) for i in small])
        each = row.itemsize + sum(leaves[i].field.nbytes for i in large) + other_bytes
        needed = each * self.capacity + sum(frames.nbytes for frames in self.frames.values())
        refuse_more_than_memory(needed, f"capacity {self.capacity} at {needed // self.capacity} bytes each")
        self.rows = np.zeros(self.capacity, row)
        self.large = {i: np.zeros((self.capacity, *leaves[i].shape), leaves[i].dtype) for i in large}
        for frames in self.frames.values():
            frames.allocate()
        self.ended = np.zeros(self.capacity, np.bool_)
        self.bounds = np.zeros((2, num_envs), np.int64)
        self.stamps: npt.NDArray[np.int64] | None = None
        self.clock = 0
        self.due = length
        self.gaps = False
        self.leaks = False
        self._bind()

    def _bind(self) -> None:
        """Make the views, which copies and pickles do not keep."""
        self.columns: dict[int, npt.NDArray[Any]] = {
            i: self.large[i] if i in self.large else self.rows[str(i)]
            for i in range(len(self.leaves))
            if i not in self.framed
        }
        self.first, self.cursor = self.bounds
        self.bytes = self.rows.view(np.uint8)
        self.row_bytes = self.rows.itemsize
        self.is_packed = not self.large and not self.frames
        self._first_of_lane = memoryview(self.first)  # type: ignore[arg-type]
        self._cursor_of_lane = memoryview(self.cursor)  # type: ignore[arg-type]
        self._ended_of_slot = memoryview(self.ended)  # type: ignore[arg-type]
        self._memory = memoryview(self.bytes)  # type: ignore[arg-type]
        if self.is_packed:
            places = [self.rows.dtype.fields[str(i)][1] for i in range(len(self.leaves))]
            order = self.order = sorted(range(len(places)), key=lambda i: places[i])  # fields of whole words first
            self._plan = np.array([(places[i], self.leaves[i].field.nbytes) for i in order]).T.copy()
            names = [self.leaves[i].name for i in order]
            self._flags = np.array([names.index("terminated"), names.index("truncated")])
            self._terminated_at, self._truncated_at = (places[order[i]] for i in self._flags)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _BOUND}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._bind()

    def __len__(self) -> int:
        if self.num_envs == 1:
            return self._cursor_of_lane[0] - self._first_of_lane[0]
        return int((self.cursor - self.first).sum())

    @property
    def nbytes(self) -> int:
        """Bytes of all rows, whether filled or not."""
        large = sum(array.nbytes for array in self.large.values()) + sum(f.nbytes for f in self.frames.values())
        return self.rows.nbytes + self.ended.nbytes + large

    def arrays(self) -> Iterator[npt.NDArray[Any]]:
        """All that transitions are stored in."""
        yield self.rows
        yield from self.large.values()
        for frames in self.frames.values():
            yield from frames.arrays

    # -- Writing ---------------------------------------------------------------------------------------------

    def append_row(self, row: bytes) -> npt.NDArray[np.int64]:
        """Store one step of the only lane, all of it in its row; its index, of shape (1,)."""
        index = self.cursor.copy()
        step, capacity = self._cursor_of_lane[0], self.capacity
        slot = step % capacity
        place = slot * self.row_bytes
        gaps, self.gaps = self.gaps, True
        self.clock += 1
        if step - self._first_of_lane[0] >= capacity:
            self._first_of_lane[0] = step - capacity + 1
        self._memory[place : place + len(row)] = row
        self._ended_of_slot[slot] = row[self._terminated_at] or row[self._truncated_at]
        self._cursor_of_lane[0] = step + 1
        self.gaps = gaps
        return index

    def append_one(self, values: Sequence[Any], ended: bool) -> npt.NDArray[np.int64]:
        """Store one step of the only lane, field by field; its index, of shape (1,)."""
        if self.frames:
            stretch = [np.asarray(value)[None, None] for value in values]
            return self.append(stretch, np.array([[ended]], np.bool_), None).reshape(-1)
        index = self.cursor.copy()
        step = self._cursor_of_lane[0]
        slot = step % self.capacity
        gaps, self.gaps = self.gaps, True
        self.clock += 1
        if step - self._first_of_lane[0] >= self.capacity:
            self._first_of_lane[0] = step - self.capacity + 1
        for i, column in self.columns.items():
            column[slot] = values[i]
        self.ended[slot] = ended
        self._cursor_of_lane[0] = step + 1
        self.gaps = gaps
        return index

    def append_block(self, data: bytes, steps: int) -> npt.NDArray[np.int64]:
        """Store 0 < T <= L steps of all lanes, in step and all in their rows; their indices, (T E,)."""
        indices = np.empty(steps * self.num_envs, _INT64)
        gaps, self.gaps = self.gaps, True
        self.clock += steps
        kernels.store(
            data, steps, self.bounds, self.bytes, self.row_bytes, self.ended, self._plan, self._flags, indices
        )
        self.gaps = gaps
        return indices

    def append(
        self,
        values: Sequence[npt.NDArray[Any]],
        ended: npt.NDArray[np.bool_],
        mask: npt.NDArray[np.bool_] | None,
    ) -> npt.NDArray[np.int64]:
        """Store T <= L steps of the lanes; their indices (T, E), -1 where the mask is False.

        Without a mask `ended` is (T, E) and values are (T, E, ...); with one they hold the selected entries only,
        in one row.
        """
        length = self.length
        if mask is None and self.stamps is None:
            steps = ended.shape[0]
            begin = self._cursor_of_lane[0] * self.num_envs
            indices = np.arange(begin, begin + ended.size, dtype=np.int64).reshape(ended.shape)
            added: Any = steps
            head = begin % self.capacity
            places: Any = (
                slice(head, head + ended.size)
                if head + ended.size <= self.capacity
                else indices.reshape(-1) % self.capacity
            )
            values = [value.reshape(ended.size, *value.shape[2:]) for value in values]
            ended = ended.reshape(-1)
            written = indices.reshape(-1)
        else:
            if mask is None:
                mask = np.ones(ended.shape, np.bool_)
                values = [value[mask] for value in values]
                ended = ended[mask]
            if self.stamps is None:
                self._start_stamps()
            assert self.stamps is not None
            steps = mask.shape[0]
            counts = mask.cumsum(axis=0)
            added = counts[-1]
            indices = np.where(mask, (self.cursor + counts - 1) * self.num_envs + np.arange(self.num_envs), -1)
            written = indices[mask]
            places = written % self.capacity
        plans = self._plan_frames(written, values, ended) if self.frames else ()
        gaps, self.gaps = self.gaps, True
        self.leaks = bool(plans)
        self.clock += steps
        np.maximum(self.first, self.cursor + added - length, out=self.first)
        for i, column in self.columns.items():
            column[places] = values[i]
        for frames, plan in plans:
            frames.write(plan)
        self.ended[places] = ended
        if self.stamps is not None:
            self.stamps[places] = (
                (self.clock - steps + np.arange(steps)).repeat(self.num_envs).reshape(-1, self.num_envs)[mask]
            )
        self.cursor += added
        self.gaps = gaps
        self.leaks = False
        return indices

    def _plan_frames(
        self, indices: npt.NDArray[np.int64], values: Sequence[npt.NDArray[Any]], ended: npt.NDArray[np.bool_]
    ) -> list[tuple[Frames, FramesPlan]]:
        """What is to be done with the frames of new steps; raises MemoryError before anything is changed."""
        if self.leaks:
            living = self.living() % self.capacity
            for frames in self.frames.values():
                frames.release(living)
            self.leaks = False
        return [
            (frames, frames.plan(indices, values[obs], values[next_obs], ended, self.first, self.cursor, self.ended))
            for (obs, next_obs), frames in self.frames.items()
        ]

    def _start_stamps(self) -> None:
        """From the first partial mask on, remember for each slot when it was written: lanes are out of step."""
        stamps = np.zeros(self.capacity, np.int64)
        alive = self.living()
        stamps[alive % self.capacity] = alive // self.num_envs - self.cursor[0] + self.clock
        self.stamps = stamps

    def clear(self) -> None:
        """Retire every row. Indices go on: none is given out twice."""
        self.gaps = self.leaks = True
        self.clock += 1
        self.first[:] = self.cursor

    # -- Reading ---------------------------------------------------------------------------------------------

    def living(self) -> npt.NDArray[np.int64]:
        """Every stored index, lane after lane, oldest first. O(N)."""
        return self.span(self.first)

    def span(self, start: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The indices of each lane's steps from `start`, of shape (E,), to its newest, lane after lane."""
        counts = self.cursor - start
        lanes = np.repeat(np.arange(self.num_envs), counts)
        steps = np.arange(lanes.size) - np.repeat(np.cumsum(counts) - self.cursor, counts)
        indices: npt.NDArray[np.int64] = steps * self.num_envs + lanes
        return indices

    def newest(self, count: int) -> npt.NDArray[np.int64]:
        """The indices of the `count` transitions added last (all, if fewer are stored), oldest first.

        Of those added together, the higher lane counts as newer.
        """
        if self.stamps is None:
            stop = self._cursor_of_lane[0] * self.num_envs
            return np.arange(stop - min(count, len(self)), stop, dtype=np.int64)
        tails = self.span(np.maximum(self.first, self.cursor - count))
        order = np.lexsort((tails % self.num_envs, self.stamps[tails % self.capacity]))
        return tails[order[-count:]]

    def uniform(self, uniforms: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """A stored index for each number in [0, 1), all equally likely. O(B); O(B E) once lanes are out of step."""
        indices = np.empty(uniforms.shape[0], np.int64)
        kernels.uniform(uniforms, self.bounds, self.bytes, self.row_bytes, indices)
        return indices

    def indices_of(self, slots: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
        """The index stored in each of `slots`, of which every one is filled. O(B)."""
        indices = np.empty(slots.shape[0], np.int64)
        kernels.indices_of(slots, self.bounds, self.capacity, indices)
        return indices

    def slots(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The slots of `indices`; raises IndexError as :meth:`refuse` does."""
        slots = np.empty(indices.shape[0], np.int64)
        self.refuse(indices, kernels.slots_of(indices, self.bounds, self.capacity, slots))
        return slots

    def refuse(self, indices: npt.NDArray[np.int64], wrong: int) -> None:
        """Raise if a kernel found an index that is not stored, at position `wrong`.

        Raises
        ------
        IndexError
            Naming the index, and whether it is stale or was never given out.
        """
        if wrong >= 0:
            raise IndexError(self.why_not_stored(int(indices[wrong])))

    def why_not_stored(self, index: int) -> str:
        """The words of the error for an index that is not stored."""
        lane, step = index % self.num_envs, index // self.num_envs
        if index < 0 or step >= self.cursor[lane]:
            last = int(self.cursor[lane] - 1) * self.num_envs + lane
            newest = f"the newest of lane {lane} is {last}" if self.cursor[lane] else f"lane {lane} is empty"
            return f"indices contains {index}, which was never given out; {newest}; pass indices from add or sample"
        oldest = int(self.first[lane]) * self.num_envs + lane
        return f"indices contains {index}, which is stale; the oldest stored of lane {lane} is {oldest}"

    def gather(self, indices: npt.NDArray[np.int64], layout: "Layout") -> list[npt.NDArray[Any]]:
        """Fresh arrays of the layout's fields of stored transitions, each of shape (B, ...).

        Raises
        ------
        IndexError
            If an index is stale or was never given out.
        """
        count = indices.shape[0]
        if layout.single is None:
            block, record = layout.block(count)
        else:
            block = np.empty((count * layout.single.nbytes + 7) // 8 * 8, np.uint8)
        wrong = kernels.gather(self.bytes, self.row_bytes, indices, self.bounds, layout.plan, block)
        if wrong >= 0:
            self.refuse(indices, wrong)
        if layout.single is not None:
            return [np.ndarray((count, *layout.single.shape), layout.single.dtype, block)]
        arrays: list[npt.NDArray[Any]] = list(np.ndarray((), record, block).item())  # views of the block
        if layout.is_packed:
            return arrays
        slots = indices % self.capacity
        # One piece of memory for all large fields: a C library gives several back to the system when they are freed,
        # and then every page of the next batch is a page fault
        memory, start = np.empty(count * layout.large_bytes, _UINT8), 0
        for position, leaf in layout.large:
            array = self.large[leaf]
            out = np.ndarray((count, *array.shape[1:]), array.dtype, memory, start)
            start += out.nbytes
            arrays[position] = np.take(array, slots, axis=0, out=out, mode="clip")
        for frames, obs, next_obs in layout.frames:
            found = frames.gather(slots, obs is not None, next_obs is not None)
            for place, part in zip((obs, next_obs), found, strict=True):
                if place is not None and part is not None:
                    arrays[place] = part
        return arrays


class Layout:
    """Some of the fields of a transition, and where the ring has them: what :meth:`Ring.gather` copies.

    Parameters
    ----------
    ring : Ring
    leaves : sequence of int
        Positions of the fields among the ring's leaves.
    derived : mapping of str to Field
        Fields that follow these, and are not stored.
    """

    def __init__(self, ring: Ring, leaves: Sequence[int], derived: Mapping[str, Field] = MappingProxyType({})) -> None:
        self.names = [*(str(i) for i in leaves), *derived]
        large = [(position, i) for position, i in enumerate(leaves) if i in ring.large]
        self.large = sorted(large, key=lambda entry: -ring.leaves[entry[1]].dtype.itemsize)  # so that all are aligned
        self.large_bytes = sum(ring.leaves[i].field.nbytes for _, i in large)
        place = {i: position for position, i in enumerate(leaves) if i in ring.framed}
        self.frames = [
            (frames, place.get(obs), place.get(next_obs))
            for (obs, next_obs), frames in ring.frames.items()
            if obs in place or next_obs in place
        ]
        offsets = ring.rows.dtype.fields or {}
        fields = [*(ring.leaves[i].field for i in leaves), *derived.values()]
        places = {name: offset for name, (_, offset, *_) in offsets.items()} | dict.fromkeys(derived, NO_ROW)
        packed = [name in places for name in self.names]
        self.plan = np.array([
            [places[name] for name in self.names if name in places],
            [field.nbytes for field, small in zip(fields, packed, strict=True) if small],
        ], np.int64)  # fmt: skip
        self._fields = list(zip(fields, packed, strict=True))
        self.is_packed = all(packed)
        self.single = fields[0] if packed == [True] else None
        self.records: dict[int, np.dtype[Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"records": {}}

    def block(self, count: int) -> tuple[npt.NDArray[np.uint8], np.dtype[Any]]:
        """Memory for the fields of `count` transitions, and what is where in it."""
        record = self.records.get(count) or self.record(count)
        return np.empty(record.itemsize, _UINT8), record

    def record(self, count: int) -> np.dtype[Any]:
        """The fields of `count` transitions as a record of arrays, each from a multiple of 64 bytes on.

        Kept in `records` for the batch sizes that are in use, since making it takes longer than a gather. A large
        field has no bytes in it.
        """
        if len(self.records) >= 16:
            self.records.clear()
        formats, offsets, start = [], [], 0
        for field, small in self._fields:
            formats.append((field.dtype, (count, *field.shape) if small else (0,)))
            offsets.append(start)
            start += (count * field.nbytes + 63) // 64 * 64 if small else 0
        record = np.dtype({"names": self.names, "formats": formats, "offsets": offsets, "itemsize": max(start, 8)})
        self.records[count] = record
        return record


def _is_stacked(leaf: Leaf, stack: int) -> bool:
    """Whether a field of obs is stacked: frames are, vectors and scalars are not."""
    return stack > 1 and len(leaf.shape) >= 2


def _is_shared(leaf: Leaf, share: Share) -> bool:
    """Whether a field of obs, when it is not stacked, is kept once."""
    return leaf.field.nbytes > {"large": LARGE_FIELD_BYTES, "all": 0, "none": math.inf}[share]


def _packed(leaves: Sequence[Leaf], names: Sequence[str]) -> np.dtype[Any]:
    """The dtype of a row that holds the leaves side by side, without holes and in whole words of 8 bytes.

    Leaves of whole 8-byte words come first, then those of whole 4-byte words, so that they can be moved as such.
    """
    order = sorted(
        range(len(leaves)),
        key=lambda i: min(leaves[i].field.nbytes & -leaves[i].field.nbytes or 8, 8),
        reverse=True,
    )
    sizes = [leaves[i].field.nbytes for i in order]
    offsets = [sum(sizes[:i]) for i in range(len(sizes))]
    return np.dtype({
        "names": [names[i] for i in order],
        "formats": [(leaves[i].dtype, leaves[i].shape) for i in order],
        "offsets": offsets,
        "itemsize": max(-(-sum(sizes) // 8) * 8, 8),
    })  # fmt: skip
