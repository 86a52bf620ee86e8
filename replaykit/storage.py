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
from replaykit.field import Field, FieldNameError
from replaykit.frames import Padding
from replaykit.ring import Layout, Ring, Share
from replaykit.spec import Spec
from replaykit.trees import Tree

kernels = lazy("lanes")
ndarray = np.ndarray

Seed: TypeAlias = int | np.random.SeedSequence | np.random.Generator | None


class BatchLayout(Layout):
    """All fields of a transition, and with them some of those that only a batch has."""

    def __init__(self, ring: Ring, spec: Spec, derived: Mapping[str, Field]) -> None:
        super().__init__(ring, range(len(spec.leaves)), derived)
        self.keys = (*spec, *derived) if spec.is_flat else tuple(derived)
        self.flag = next(i for i, leaf in enumerate(spec.leaves) if leaf.name == "terminated")


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
        self.ring = Ring(
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
        leaves = list(enumerate(spec.leaves))
        self._arrays = [(i, leaf.dtype, leaf.shape) for i, leaf in leaves if leaf.shape]
        self._scalars = [
            (i, leaf.exact_types, leaf.ranged_types, leaf.low, leaf.high) for i, leaf in leaves if not leaf.shape
        ]
        # In a window of one step all fields are of one row; else next_obs is of the last, and the others of the first
        of_window = (self._reward, self._terminated, self._truncated)
        of_last = [i for i, name in enumerate(names) if name == "next_obs" or name.startswith("next_obs.")]
        of_first = [i for i in range(len(names)) if i not in of_last and i not in of_window]
        self._all = Layout(self.ring, range(len(names)))
        self._first = Layout(self.ring, of_first)
        self._last = Layout(self.ring, of_last)
        self._flags = Layout(self.ring, (self._terminated, self._truncated))
        self._last_and_flags = Layout(self.ring, (*of_last, self._terminated, self._truncated))
        # Where a window is one step of packed fields, a batch is made at once
        self.is_single = self._window == 1 and self._all.is_packed
        of_step = {"discount": Field((), spec.leaves[self._reward].dtype), "length": Field((), np.int64)}
        of_draw = {"weights": Field((), np.float32), "probabilities": Field((), np.float64)}
        of_all = {"indices": Field((), np.int64)}
        self._uniform_layout = BatchLayout(self.ring, spec, of_step | of_draw | of_all)
        self._slots_layout = BatchLayout(self.ring, spec, of_step | of_all)
        # Where to find each leaf in the fields of first, those of last, and reward and the flags
        order = [*of_first, *of_last, *of_window]
        self._reward_place = len(of_first) + len(of_last)
        self._places = [order.index(i) for i in range(len(names))]
        self._is_flat, self._names = spec.is_flat, tuple(spec)
        self._is_plain = spec.is_flat and not spec.extra
        self.reward_dtype = spec.leaves[self._reward].dtype
        self._gamma_or_0 = np.array([self.gamma, 0.0], self.reward_dtype)

    # -- Writing ---------------------------------------------------------------------------------------------

    def add_one(self, values: tuple[Tree, ...], extras: Mapping[str, Tree]) -> npt.NDArray[np.int64]:
        """Store one step of the only lane, as `coerce` and `write` would, but fast; its index, of shape (1,)."""
        flat: Sequence[Any] = values if self._is_plain and not extras else self.spec.flatten(values, extras)
        if not self._fits(flat):
            flat = [leaf.coerce(value, ()) for leaf, value in zip(self.spec.leaves, flat, strict=True)]
        ring = self.ring
        if ring.clock >= self.episodes.due:
            self.episodes.sync()
        return ring.append_one(flat, flat[self._terminated] or flat[self._truncated])

    def _fits(self, flat: Sequence[Any]) -> bool:
        """Whether every value of a step can be stored as it is: the usual case, told quickly."""
        for i, dtype, shape in self._arrays:
            value = flat[i]
            if type(value) is not ndarray or value.dtype is not dtype or value.shape != shape:
                return False
        for i, exact, ranged, low, high in self._scalars:
            value = flat[i]
            kind = type(value)
            if kind not in exact and not (kind in ranged and low <= value <= high):
                return False
        return True

    def add_block(
        self, values: tuple[Tree, ...], extras: Mapping[str, Tree], lead: tuple[int, ...]
    ) -> npt.NDArray[np.int64] | None:
        """Store steps of all lanes, as `coerce` and `write` would, but fast; their indices.

        None if that takes more: if a value is no array that can be stored as it is, or the steps do not lie side by
        side in the ring. Then nothing has been stored.
        """
        flat: Sequence[Any] = values if self._is_plain and not extras else self.spec.flatten(values, extras)
        for value, leaf in zip(flat, self.spec.leaves):  # noqa: B905
            if type(value) is not ndarray or value.dtype is not leaf.dtype or value.shape != lead + leaf.shape:
                return None
        ring = self.ring
        steps = lead[0] if len(lead) > len(self.lanes) else 1
        if not ring.is_contiguous(steps):
            return None
        if ring.clock + steps > self.episodes.due:
            self.episodes.sync()
        return ring.append_block(flat, flat[self._terminated] | flat[self._truncated], steps)

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
            if self.ring.clock + min(length, steps - step) > self.episodes.due:
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
        ring.refuse(indices, kernels.window(indices, ring.first, ring.cursor, rewards, ring.ended, reward, length))
        terminated, truncated = ring.gather(indices + (length - 1) * self.num_envs, self._flags)
        return Window(indices, ring.gather(indices, self._first), length, reward, terminated, truncated)

    def transitions(self, indices: npt.NDArray[np.int64]) -> dict[str, Any]:
        """``reduce(window(indices))``, with fewer steps on the way: for when nobody changes the windows. O(B n).

        Raises
        ------
        IndexError
            If an index is stale or was never given out.
        """
        ring = self.ring
        if self._window == 1:
            flat = ring.gather(indices, self._all)
            length = constant(indices.shape[0], 1, np.int64)
            discount = self._gamma_or_0.take(flat[self._terminated])
        else:
            flat, discount, length = self._n_step_transitions(indices)
        fields = dict(zip(self._names, flat)) if self._is_flat else self.spec.unflatten(flat, self._names)  # noqa: B905
        fields["discount"] = discount
        fields["length"] = length
        return fields

    def uniform_batch(self, uniforms: npt.NDArray[np.float64]) -> dict[str, Any]:
        """All fields of a batch of single steps, the one for each number in [0, 1) that `Ring.uniform` gives. O(B)."""
        ring, layout = self.ring, self._uniform_layout
        block, record = layout.block(uniforms.shape[0])
        kernels.uniform_batch(
            uniforms, ring.first, ring.cursor, ring._bytes, ring._row_bytes,
            layout.sources, layout.sizes, layout.flag, self.gamma, block,
        )  # fmt: skip
        return self._named(np.ndarray((), record, block).item(), layout.keys)

    def batch_of_slots(self, slots: npt.NDArray[np.integer[Any]]) -> dict[str, Any]:
        """The fields of a batch of the single steps in `slots`, which are filled; without those of the draw. O(B)."""
        ring, layout = self.ring, self._slots_layout
        block, record = layout.block(slots.shape[0])
        kernels.batch_of_slots(
            slots, ring.cursor, ring._bytes, ring._row_bytes,
            layout.sources, layout.sizes, layout.flag, self.gamma, block,
        )  # fmt: skip
        return self._named(np.ndarray((), record, block).item(), layout.keys)

    def _named(self, arrays: tuple[npt.NDArray[Any], ...], keys: tuple[str, ...]) -> dict[str, Any]:
        """Fields by name: the keys are of all, or where the spec is nested of what follows its leaves."""
        if self._is_flat:
            return dict(zip(keys, arrays))  # noqa: B905
        count = len(self.spec.leaves)
        fields = self.spec.unflatten(arrays[:count], self._names)
        fields.update(zip(keys, arrays[count:]))  # noqa: B905
        return fields

    def _n_step_transitions(self, indices: npt.NDArray[np.int64]) -> tuple[list[Any], npt.NDArray[Any], Any]:
        """Leaves, discounts and lengths of windows of several steps."""
        ring = self.ring
        count = indices.shape[0]
        reward, discount = np.empty(count, self.reward_dtype), np.empty(count, self.reward_dtype)
        length, last = np.empty(count, np.int64), np.empty(count, np.int64)
        columns = ring.columns
        ring.refuse(indices, kernels.n_step(
            indices, ring.first, ring.cursor, columns[self._reward], columns[self._terminated], ring.ended,
            self._powers, reward, discount, length, last,
        ))  # fmt: skip
        found = ring.gather(indices, self._first)
        found += ring.gather(last, self._last_and_flags)
        found.insert(self._reward_place, reward)
        return [found[place] for place in self._places], discount, length

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
