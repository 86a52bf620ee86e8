"""The facts: every transition stored, and the windows on them. What a buffer has and a wrapper shares."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from replaykit._kernels import lazy
from replaykit.batch import Window, constant
from replaykit.episodes import EPISODE_BYTES, Episodes
from replaykit.field import FieldNameError
from replaykit.frames import Padding
from replaykit.packed_batches import PackedBatches
from replaykit.packing import block_packer, row_packer
from replaykit.ring import Layout, Ring, Share
from replaykit.spec import Spec
from replaykit.trees import Tree

kernels = lazy("lanes")
_LARGEST_BLOCK = 1 << 18
"""Bytes; memory for more is given back to the system each time, and then every page of the next is a page fault."""

Seed: TypeAlias = int | np.random.SeedSequence | np.random.Generator | None


@dataclass(slots=True)
class Stretch:
    """T steps of the lanes, coerced and ready to be written: nothing about them can be refused any more.

    With a mask the arrays hold the selected entries only, in one row.
    """

    values: list[npt.NDArray[Any]]
    ended: npt.NDArray[np.bool_]
    mask: npt.NDArray[np.bool_] | None
    lead: tuple[int, ...]


class Storage:
    """Spec, ring and episodes of one buffer: coerces, writes, opens windows and reduces them.

    Parameters
    ----------
    capacity : int
        Transitions to hold; rounded up to a multiple of `num_envs`.
    spec : Spec
    num_envs : int
        Lanes, E.
    n_step : int
        Steps of a window, n.
    gamma : float
        Discount of a step.
    stack, padding, share
        As those of `ReplayBuffer`.
    seed : None, int, SeedSequence or Generator
        Of the generator from which all randomness of the buffer and its wrappers comes.
    other_bytes : int
        What a slot costs outside of the storage.
    """

    def __init__(
        self,
        capacity: int,
        spec: Spec,
        num_envs: int,
        n_step: int,
        gamma: float,
        stack: int,
        padding: Padding,
        share: Share,
        seed: Seed,
        other_bytes: int = 0,
    ) -> None:
        capacity = check_count("capacity", capacity)
        if not isinstance(spec, Spec):
            raise TypeError(f"spec is a {type(spec).__name__}; expected a Spec, such as Spec.from_env(env) gives")
        self.spec = spec
        self.num_envs = check_count("num_envs", num_envs)
        self.lanes = (self.num_envs,) if self.num_envs > 1 else ()
        self.n_step = check_count("n_step", n_step)
        self.gamma = check_unit("gamma", gamma)
        self.stack = check_count("stack", stack)
        check_choice("padding", padding, Padding)
        check_choice("share", share, Share)
        if self.stack > 1:
            _refuse_vectors(spec, self.stack)
        self.rng = np.random.default_rng(seed)
        self.batches = 0
        self.is_fallible = False  # whether a wrapper calls functions of the user's when sampling, which may raise
        ring = self.ring = Ring(
            -(-capacity // self.num_envs),
            self.num_envs,
            spec.leaves,
            stack=self.stack,
            padding=padding,
            share=share,
            other_bytes=EPISODE_BYTES + other_bytes,
        )
        self.episodes = Episodes(self.ring)
        self._window = min(self.n_step, self.ring.length)  # no window can be longer than a lane
        self._powers = np.array([self.gamma**k for k in range(self._window + 1)])
        names = [leaf.name for leaf in spec.leaves]
        self.positions = {name: i for i, name in enumerate(names)}
        self._read: dict[tuple[str, ...], Layout] = {}
        self._reward, self._terminated, self._truncated = (
            names.index(name) for name in ("reward", "terminated", "truncated")
        )
        # In a window of one step all fields are of one row; else next_obs is of the last, and the others of the first
        of_window = (self._reward, self._terminated, self._truncated)
        of_last = [i for i, name in enumerate(names) if name == "next_obs" or name.startswith("next_obs.")]
        of_first = [i for i in range(len(names)) if i not in of_last and i not in of_window]
        self._all = Layout(self.ring, range(len(names)))
        self._first = Layout(self.ring, of_first)
        self._last = Layout(self.ring, of_last)
        self._flags = Layout(self.ring, (self._terminated, self._truncated))
        last = [*of_last, self._terminated, self._truncated]
        self.packed = PackedBatches(ring, self.episodes, spec, last, self._powers) if ring.is_packed else None
        # Where to find each leaf in the fields of first, those of last, and reward and the flags
        order = [*of_first, *of_last, *of_window]
        self._places = [order.index(i) for i in range(len(names))]
        self._is_flat, self._names = spec.is_flat, tuple(spec)
        self.reward_dtype = spec.leaves[self._reward].dtype
        self._gamma_or_0 = np.array([self.gamma, 0.0], self.reward_dtype)
        self._bind()

    def _bind(self) -> None:
        """Make the functions that copies and pickles do not keep."""
        spec, ring = self.spec, self.ring
        self.pack_row = row_packer(spec, ring.rows.dtype)
        self.pack_block = block_packer(spec, ring.order) if ring.is_packed else None

    def __getstate__(self) -> dict[str, Any]:
        made = ("pack_row", "pack_block")
        return {name: value for name, value in self.__dict__.items() if name not in made}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._bind()

    # -- Writing ---------------------------------------------------------------------------------------------

    def add_one(self, values: tuple[Tree, ...], extras: Mapping[str, Tree]) -> npt.NDArray[np.int64]:
        """Store one step of the only lane, whatever it takes to make its values fit; its index, of shape (1,)."""
        ring, leaves = self.ring, self.spec.leaves
        flat: Sequence[Any] = self.spec.flatten(values, extras)
        if ring.is_packed:
            fields = [leaves[i].coerce(flat[i], ()).tobytes() for i in ring.order]  # which leave no holes
            row = b"".join(fields).ljust(ring.row_bytes, b"\0")
        else:
            flat = [v if leaf.fits(v) else leaf.coerce(v, ()) for leaf, v in zip(leaves, flat, strict=True)]
        if ring.clock >= ring.due:
            self.episodes.sync()
        if ring.is_packed:
            return ring.append_row(row)
        return ring.append_one(flat, flat[self._terminated] or flat[self._truncated])

    def add_block(
        self, values: tuple[Tree, ...], extras: Mapping[str, Tree], lead: tuple[int, ...]
    ) -> npt.NDArray[np.int64] | None:
        """Store steps of all lanes, as `coerce` and `write` would, but fast; their indices.

        None if that takes more: if a value is no array that is stored as it is or not in the row, if lanes are out of
        step, or if there are no steps, or so many that another copy of them would take longer. Then nothing has been
        stored.
        """
        ring = self.ring
        steps = lead[0] if len(lead) > len(self.lanes) else 1
        most = min(ring.length, _LARGEST_BLOCK // (ring.row_bytes * self.num_envs) or 1)
        if self.pack_block is None or ring.stamps is not None or not 0 < steps <= most:
            return None
        data = self.pack_block(lead, *values, extras)
        if data is None:
            return None
        if ring.clock + steps > ring.due:
            self.episodes.sync()
        indices = ring.append_block(data, steps)
        return indices if len(lead) == 1 else indices.reshape(lead)

    def coerce(
        self,
        values: tuple[Tree, ...],
        extras: Mapping[str, Tree],
        steps: int | None,
        mask: npt.NDArray[np.bool_] | None,
    ) -> Stretch:
        """The values of one step of every lane, or of `steps`, ready for :meth:`write`; `mask` is a checked one."""
        lead = self.lead(steps)
        flat = self.spec.flatten(values, extras)
        arrays = [leaf.coerce(value, lead, mask) for leaf, value in zip(self.spec.leaves, flat, strict=True)]
        ended = arrays[self._terminated] | arrays[self._truncated]
        if mask is None:
            full = (1 if steps is None else steps, self.num_envs)
            shapes = [full + leaf.shape for leaf in self.spec.leaves]
            arrays = [array.reshape(shape) for array, shape in zip(arrays, shapes, strict=True)]
            ended = ended.reshape(full)
        return Stretch(arrays, ended, mask, lead)

    def lead(self, steps: int | None) -> tuple[int, ...]:
        """The leading axes of values: (T, E), without T for one step and without E for one lane."""
        return self.lanes if steps is None else (steps, *self.lanes)

    def check_mask(self, mask: Any, steps: int | None) -> npt.NDArray[np.bool_] | None:
        """The mask in the shape of the leading axes, or None where it selects everything."""
        if mask is None:
            return None
        array = np.asarray(mask)
        lead = self.lead(steps)
        allowed = {lead, (self.num_envs,)}
        if array.dtype != np.bool_ or array.shape not in allowed:
            shapes = " or ".join(map(str, sorted(allowed)))
            raise ValueError(f"mask has shape {array.shape} and dtype {array.dtype}; expected {shapes} and bool")
        array = array.reshape(()) if lead == () else np.broadcast_to(array, lead)
        return None if array.all() else array

    def write(self, stretch: Stretch) -> npt.NDArray[np.int64]:
        """Store the steps; their indices, -1 where masked out: (E,) for one step, for a stretch the leading axes."""
        if stretch.mask is not None and self.num_envs == 1:
            chosen = np.atleast_1d(stretch.mask)
            count = int(chosen.sum())
            values = [value.reshape(count, 1, *value.shape[1:]) for value in stretch.values]
            indices = np.full(chosen.shape, -1, np.int64)
            indices[chosen] = self._write_chunks(values, stretch.ended.reshape(count, 1), None, count).reshape(-1)
            return indices
        mask = None if stretch.mask is None else stretch.mask.reshape(-1, self.num_envs)
        steps = stretch.ended.shape[0] if mask is None else mask.shape[0]
        return self._write_chunks(stretch.values, stretch.ended, mask, steps).reshape(stretch.lead or (1,))

    def _write_chunks(
        self,
        values: list[npt.NDArray[Any]],
        ended: npt.NDArray[np.bool_],
        mask: npt.NDArray[np.bool_] | None,
        steps: int,
    ) -> npt.NDArray[np.int64]:
        """Write at most L steps at a time, so that no slot is written twice at once."""
        length = self.ring.length
        if steps > length:  # a part of the steps must not be refused when others have been written
            for frames in self.ring.frames.values():
                frames.refuse_more_than_memory()
        indices = np.full((steps, self.num_envs), -1, np.int64)
        begin = 0
        for step in range(0, steps, length):
            part = None if mask is None else mask[step : step + length]
            chosen = slice(step, step + length) if part is None else slice(begin, begin + int(part.sum()))
            begin = chosen.stop
            if part is not None and chosen.start == chosen.stop:
                continue
            if self.ring.clock + min(length, steps - step) > self.ring.due:
                self.episodes.sync()
            indices[step : step + length] = self.ring.append([value[chosen] for value in values], ended[chosen], part)
        return indices

    def end_episode(self, mask: Any = None) -> None:
        """End the running episodes of all lanes, or of those in `mask`, after their newest step."""
        checked = self.check_mask(mask, None)
        self.episodes.end(np.ones(self.num_envs, np.bool_) if checked is None else np.atleast_1d(checked))

    def clear(self) -> None:
        """Retire every transition; the next step of each lane begins another episode."""
        self.episodes.sync()
        self.ring.clear()
        self.episodes.clear()

    # -- Reading ---------------------------------------------------------------------------------------------

    def window(self, indices: npt.NDArray[np.int64]) -> Window:
        """Up to `n_step` steps from each index on, within its episode and what is stored. O(B n).

        Raises
        ------
        IndexError
            If an index is stale or was never given out.
        """
        ring = self.ring
        count = indices.shape[0]
        if self._window == 1:
            fields = ring.gather(indices, self._all)
            reward = fields[self._reward][:, None]
            length = constant(count, 1, np.int64)
            return Window(indices, fields, length, reward, fields[self._terminated], fields[self._truncated])
        rewards = ring.columns[self._reward]
        reward = np.empty((count, self._window), rewards.dtype)
        length = np.empty(count, np.int64)
        ring.refuse(indices, kernels.window(indices, ring.bounds, rewards, ring.ended, reward, length))
        terminated, truncated = ring.gather(indices + (length - 1) * self.num_envs, self._flags)
        return Window(indices, ring.gather(indices, self._first), length, reward, terminated, truncated)

    def read(self, indices: npt.NDArray[np.int64], names: tuple[str, ...]) -> list[npt.NDArray[Any]]:
        """The fields of these names, leaves of the spec, as they are stored: fresh arrays (B, ...).

        Raises
        ------
        FieldNameError
            If the spec has no such leaf.
        IndexError
            If an index is stale or was never given out.
        """
        layout = self._read.get(names)
        if layout is None:
            for name in names:
                if name not in self.positions:
                    raise FieldNameError(f"unknown field {name!r}; expected one of {', '.join(self.positions)}")
            layout = self._read[names] = Layout(self.ring, [self.positions[name] for name in names])
        return self.ring.gather(indices, layout)

    def reduce(self, window: Window) -> dict[str, Any]:
        """One transition from each window: n-step return, discount, and the observation after the last step."""
        if self._window == 1:
            flat = window.fields
            reward = window.reward[:, 0]
            flat[self._reward], flat[self._terminated], flat[self._truncated] = (
                reward,
                window.terminated,
                window.truncated,
            )
            discount = self._gamma_or_0.take(window.terminated)
        else:
            total = np.empty(window.length.shape[0], np.float64)
            kernels.n_step_return(window.reward, window.length, self._powers, total)
            with np.errstate(over="ignore"):
                reward = total.astype(window.reward.dtype)
            last = self.ring.gather(window.indices + (window.length - 1) * self.num_envs, self._last)
            found = [*window.fields, *last, reward, window.terminated, window.truncated]
            flat = [found[place] for place in self._places]
            discount = np.where(window.terminated, 0.0, self._powers[window.length]).astype(reward.dtype)
        for rewrite in window.rewritten:
            leaf = self.positions[rewrite.field]
            if leaf in self.ring.framed:  # stacks of obs and next_obs may overlap
                flat[leaf] = flat[leaf].copy()
            flat[leaf][rewrite.rows] = rewrite.values
        fields = dict(zip(self._names, flat)) if self._is_flat else self.spec.unflatten(flat, self._names)  # noqa: B905
        fields["discount"] = discount
        fields["length"] = window.length
        fields.update(window.added)
        return fields

    @property
    def nbytes(self) -> int:
        """Bytes of the storage, whether filled or not."""
        return self.ring.nbytes + self.episodes.nbytes

    def check(self) -> None:
        """Verify the bounds of the lanes, and the episodes.

        Raises
        ------
        AssertionError
            Naming the broken invariant.
        """
        ring = self.ring
        assert (ring.first <= ring.cursor).all(), "a lane's oldest step is newer than its newest"
        assert (ring.cursor - ring.first <= ring.length).all(), "a lane holds more than capacity / num_envs transitions"
        alive = ring.living() % ring.capacity
        assert np.unique(alive).size == alive.size == len(ring), "two transitions share a slot"
        flags = ring.columns[self._terminated][alive] | ring.columns[self._truncated][alive]
        assert (ring.ended[alive] >= flags).all(), "an episode goes on after a terminated or truncated step"
        if not ring.leaks:
            for frames in ring.frames.values():
                frames.check(alive)
        self.episodes.check()


def _refuse_vectors(spec: Spec, stack: int) -> None:
    """Raise if no observation is a frame."""
    shapes = {leaf.name: leaf.shape for leaf in spec.leaves if leaf.name.partition(".")[0] == "obs"}
    if not any(len(shape) >= 2 for shape in shapes.values()):
        told = ", ".join(f"{name} has shape {shape}" for name, shape in shapes.items())
        raise ValueError(
            f"stack is {stack}, but {told}; expected frames, of two axes at least; stack vectors in the environment, "
            "with gymnasium.wrappers.FrameStackObservation"
        )


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Refuse a `value` that is not one of a Literal's."""
    if not isinstance(value, str) or value not in get_args(choices):
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, get_args(choices)))}")


def check_count(name: str, value: Any) -> int:
    """`value` as an int of at least 1."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} is {value!r}; expected an int of at least 1")
    if value < 1:
        raise ValueError(f"{name} is {value}; expected an int of at least 1")
    return int(value)


def check_unit(name: str, value: Any) -> float:
    """`value` as a float in [0, 1]."""
    return check_number(name, value, 1.0, "a number in [0, 1]")


def check_number(name: str, value: Any, highest: float, expected: str) -> float:
    """`value` as a float in [0, highest]."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is {value!r}; expected {expected}")
    if not 0.0 <= float(value) <= highest:
        raise ValueError(f"{name} is {value!r}; expected {expected}")
    return float(value)
