"""Sequences: rows of consecutive transitions of one episode, for recurrent agents and world models."""

from typing import Any, final

import numpy as np
import numpy.typing as npt

from replaykit.batch import Draw, Window
from replaykit.checks import check_count, check_unit
from replaykit.declared import read_only
from replaykit.replay import Replay
from replaykit.storage.base import Flags, Floats, Indices
from replaykit.trees import map_tree
from replaykit.updates import one_of, refuse_other_shape
from replaykit.wrapper import ReplayWrapper


@final
class SequenceReplay(ReplayWrapper):
    """Rows of T consecutive transitions of one episode, for recurrent agents and world models.

    Each episode is divided into spans of `stride` steps, counted from its first step. A row begins at the first stored
    step of a span. It ends after T steps, or earlier at the episode's end or at the newest step. The rest of the row is
    padding: zeros in every field, and -1 in `step_indices`. To draw a row, a transition is drawn from the wrapped
    replay, and its span determines the row. The probability of a row is therefore the sum of the probabilities of the
    transitions in its span.

    Each transition of a row is that of the wrapped replay, with its `n_step` and stacks. All fields of a batch have the
    shape (B, T, ...), except `indices`, `weights` and `probabilities` (B,). Four fields of shape (B, T) are added:

    - ``mask``, bool: True for a transition, False for padding;
    - ``loss_mask``, bool: True for a transition after the burn-in. A row at the start of its episode has no burn-in,
      since the recurrent state is known there;
    - ``is_first``, bool: whether the transition begins its episode;
    - ``step_indices``, int64: the index of the transition, or -1 for padding.

    Parameters
    ----------
    inner : Replay
        A buffer or another wrapper. With a `HindsightReplay`, inside or outside, all transitions of a row get the same
        goal. If reaching it ends the episode, the row ends there.
    length : int
        Number of transitions in each row, T.
    burn_in : int
        Number of leading transitions that only warm up the recurrent state, less than T.
    stride : int
        Number of steps between the starts of successive rows, at most T. With 1, every transition starts a row. With
        more than ``length - burn_in``, some steps are only ever part of a burn-in.
    eta : float
        The weight of the largest absolute TD error of a row in its priority. The mean has the weight ``1 - eta``.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range, T is larger than a lane, `inner` already returns sequences, or its transitions
        have no probabilities.

    References
    ----------
    Kapturowski et al. (2019), Recurrent Experience Replay in Distributed Reinforcement Learning, section 2.3.

    Examples
    --------
    An episode of five steps, and two steps of the next:

    >>> from replaykit import Field, ReplayBuffer, SequenceReplay, Spec
    >>> buffer = ReplayBuffer(1000, Spec(obs=Field(()), action=Field(())), seed=2)
    >>> replay = SequenceReplay(buffer, length=4, burn_in=1, stride=2)
    >>> for step in range(7):
    ...     index = replay.add(step, 0, 1.0, step + 1, step == 4, False)
    >>> batch = replay.sample(2)
    >>> batch.obs
    array([[0., 1., 2., 3.],
           [2., 3., 4., 0.]], dtype=float32)
    >>> batch.loss_mask
    array([[ True,  True,  True,  True],
           [False,  True,  True, False]])
    >>> batch.probabilities  # two of seven transitions are in either span
    array([0.28571429, 0.28571429])
    """

    has_sequences = True
    length: int = read_only("_length", "The number of transitions in each row, T.")
    burn_in: int = read_only("_burn_in", "The number of leading transitions that only warm up the recurrent state.")
    stride: int = read_only("_stride", "The number of steps between the starts of successive rows.")
    eta: float = read_only("_eta", "The weight of the largest absolute TD error of a row in its priority.")

    def __init__(self, inner: Replay, length: int, *, burn_in: int = 0, stride: int = 1, eta: float = 0.9) -> None:
        length, stride = check_count("length", length), check_count("stride", stride)
        super().__init__(inner, transitions_each=length)
        burn_in = check_count("burn_in", burn_in, least=0)
        if burn_in >= length:
            raise ValueError(
                f"burn_in is {burn_in}; expected less than length={length}, so that some steps are learned"
            )
        if stride > length:
            raise ValueError(f"stride is {stride}; expected at most length={length}, so that every step is in a row")
        lanes = inner.bounds.shape[1]
        if length > inner.capacity // lanes:
            held = f"the {inner.capacity // lanes} steps that each of {lanes} lanes holds"
            raise ValueError(f"length is {length}; expected at most {held}; build a buffer with a larger capacity")
        if inner.has_sequences:
            raise ValueError("inner already returns sequences; expected a replay of single transitions")
        if inner.is_conditional:
            reason = "which a SequenceReplay must sum; put the LargeBatchReplay around the SequenceReplay"
            raise ValueError(f"inner is a {type(inner).__name__}, whose transitions have no probabilities, {reason}")
        self._length, self._burn_in, self._stride, self._eta = length, burn_in, stride, check_unit("eta", eta)
        self._places = self.backend.array(np.arange(length))
        self._offsets = self._places * self.successor

    # Drawing rows

    def draw(self, batch_size: int) -> Draw:
        """The starts of the spans of the drawn transitions, with the total probability of each span."""
        with self.lock:
            draw = self.inner.draw(batch_size)
            starts, stops = self._spans_of(draw.indices)
            shares, least = self._shares(starts, stops, batch_size), None
            if draw.least is not None:
                least = self.least_probability(batch_size, self.backend.array(np.zeros(0, np.int64)))
            return Draw(starts, shares, least)

    def probability(self, indices: npt.ArrayLike, batch_size: int = 1) -> Floats:
        """The expected fraction of a batch of the row that begins at each stored index; 0 if none does. O(B stride)."""
        entries = self.backend.indices("indices", indices)
        with self.lock:
            self.inner.read(entries, "terminated")  # raises for an index that is not stored
            starts, stops = self._spans_of(entries)
            shares: Floats = (starts == entries) * self._shares(starts, stops, batch_size)
            return shares

    def latest(self, count: int) -> Indices:
        """The starts of the `count` newest spans, oldest first; of all spans if there are fewer."""
        count = check_count("count", count)
        with self.lock:
            starts = self.backend.host("starts", self._spans_of(self.inner.latest(count * self._stride))[0])
        newest_first = starts[::-1]
        places = np.unique(newest_first, return_index=True)[1]
        newest: Indices = self.backend.array(np.ascontiguousarray(newest_first[np.sort(places)[:count]][::-1]))
        return newest

    def _spans_of(self, indices: Indices) -> tuple[Indices, Indices]:
        """For the span of each index: the index of its first stored step, and the index that follows its last step."""
        _, first, last = self.inner.episode(indices)
        spans: tuple[Indices, Indices] = self.backend.spans_of(indices, first, last, self.bounds, self._stride)
        return spans

    def _shares(self, starts: Indices, stops: Indices, batch_size: int) -> Floats:
        """The total probability of the transitions in each span."""
        spans, inner = (starts, stops, self.successor, self._stride), self.inner
        shares: Floats = self.backend.sum_over_spans(*spans, lambda steps: inner.probability(steps, batch_size))
        return shares

    # Making rows

    def begins_row(self, indices: Indices) -> Flags:
        """Whether each stored index is the first stored index of its span."""
        with self.lock:
            entries = self.backend.indices("indices", indices)
            return self.backend.host("rows", self._spans_of(entries)[0] == entries)

    def window(self, indices: Indices) -> Window:
        """Windows (B, T) of the rows that begin at each index. Padding repeats the window of the last transition.

        Indices of shape (B, T) are the transitions themselves.
        """
        if np.ndim(indices) == 2:
            return self.inner.window(indices)
        entries = self.backend.indices("indices", indices)
        with self.lock:
            _, first, last = self.inner.episode(entries)
            rows = self.backend.open_rows(entries, first, last, self._length, self.successor)
            steps, served, mask, is_first = rows
            window = self.inner.window(served)
        window.added |= {"mask": mask, "loss_mask": mask, "is_first": is_first, "step_indices": steps}
        return window

    def reduce(self, window: Window) -> dict[str, Any]:
        """The transitions of the rows, each field of shape (B, T, ...), with zeros for padding."""
        added = window.added
        if "step_indices" not in added:
            return self.inner.reduce(window)
        opened, is_first, steps = added["mask"], added["is_first"], added["step_indices"]
        backend, closed = self.backend, self.backend.close_rows(opened, is_first, steps, window, self._burn_in)
        mask, loss_mask, indices, padding = closed

        def in_rows(array: npt.NDArray[Any], _path: str) -> npt.NDArray[Any]:
            if padding is not None:
                backend.clear(array, padding)
            return array.reshape(*mask.shape, *array.shape[1:])

        fields = self.inner.reduce(window)
        fields = {name: value if name in added else map_tree(in_rows, value) for name, value in fields.items()}
        return fields | {"mask": mask, "loss_mask": loss_mask, "is_first": is_first, "step_indices": indices}

    # Priorities of rows

    def update_priorities(  # type: ignore[override]
        self, indices: npt.ArrayLike, td_errors: npt.ArrayLike | None = None, *,
        priorities: npt.ArrayLike | None = None, mask: npt.ArrayLike | None = None,
    ) -> int:  # fmt: skip
        """Set the priorities of the rows' spans from the TD errors of their transitions.

        The TD error of a row is ``eta * max(abs(td_errors)) + (1 - eta) * mean(abs(td_errors))`` over its mask, or 0 if
        the mask is empty. It applies to the transitions of the row's span up to the last one in the mask, or to all of
        them if the mask is empty. Later steps of a running episode keep their priorities. Returns the number of updated
        rows. A row counts if one of these transitions is still stored. Without priorities the result is 0.

        Parameters
        ----------
        indices : array-like of shape (B,), int
            From ``batch.indices``. If two rows have the same start, the values of the last one count.
        td_errors : array-like of shape (B, T), float
            TD errors with either sign. Entries outside the mask are ignored.
        priorities : array-like of shape (B,), float
            A priority for each row, instead of `td_errors`.
        mask : array-like of shape (B, T), bool
            The TD errors to use: ``batch.loss_mask``. By default, the `loss_mask` is computed from the current buffer,
            and rows whose start is no longer stored are ignored.

        Raises
        ------
        IndexError, TypeError, ValueError
            As in :meth:`Replay.update_priorities`, and for a wrong shape of the mask or TD errors. Nothing changes.
        """
        backend, (name, given) = self.backend, one_of(td_errors, priorities)
        entries = backend.indices("indices", indices, True)
        shape = (len(entries), self._length)
        chosen = None if mask is None else backend.values("mask", mask)
        if chosen is not None and (chosen.shape != shape or str(chosen.dtype) not in ("bool", "torch.bool")):
            raise ValueError(f"mask has shape {chosen.shape} and dtype {chosen.dtype}; expected {shape} and bool")
        values, wanted = backend.float64(name, given, True), shape if priorities is None else shape[:1]
        refuse_other_shape(name, values, wanted, "one row for each of indices")
        with self.lock:
            if chosen is None:
                chosen = self._learned_now(entries)
            if priorities is None:
                values = self._mixed(values, chosen)
            starts, stops = self._shown(entries, chosen)
            is_stored = starts < stops  # the wrapped replay checks the other indices: stale, or never returned
            stops = backend.xp.where(is_stored, stops, entries + self.successor)
            steps, values = backend.spread(starts, stops, values, self.successor, self._stride)
            applied = self.inner.update_priorities(steps, **{name: values})
            return 0 if type(applied) is int and not applied else backend.count(is_stored)

    def _learned_now(self, indices: Indices) -> Flags:
        """The current `loss_mask` of the rows at these indices; all False where the index is not stored."""
        xp, bounds, step, lanes = self.backend.xp, *self._places_of(indices)
        is_stored = (step >= bounds[0, lanes]) & (step < bounds[1, lanes])
        _, first, last = self.inner.episode(xp.where(is_stored, indices, -1))
        is_learned = (self._places >= self._burn_in) | (indices == first)[:, None]
        mask: Flags = is_stored[:, None] & (indices[:, None] + self._offsets <= last[:, None]) & is_learned
        return mask

    def _places_of(self, indices: Indices) -> tuple[Indices, Indices, Indices]:
        """The bounds of the lanes, and the step and the lane of each index."""
        return self.backend.array(self.bounds), indices // self.successor, indices % self.successor

    def _mixed(self, td_errors: Floats, mask: Flags) -> Floats:
        """The weighted sum of the largest and the mean absolute TD error of each row."""
        xp = self.backend.xp
        errors = xp.where(mask, xp.abs(td_errors), 0.0)
        self.backend.refuse_not_finite("td_errors", errors, td_errors)
        means = errors.sum(axis=1) / mask.sum(axis=1).clip(1)
        mixed: Floats = self._eta * xp.amax(errors, 1) + (1.0 - self._eta) * means
        return mixed

    def _shown(self, indices: Indices, mask: Flags) -> tuple[Indices, Indices]:
        """For the span of each row: its first stored index in the row, and the index after its last one in the mask."""
        xp, successor, bounds, _, lanes = self.backend.xp, self.successor, *self._places_of(indices)
        is_empty = ~mask.any(axis=1)
        count = xp.where(is_empty, self._length, xp.amax(mask * (self._places + 1), 1))
        oldest, cursor = bounds[:, lanes] * successor + lanes
        starts, limits = xp.maximum(indices, oldest), indices + count * successor
        is_in_row = (starts < xp.minimum(limits, cursor)) & ~(is_empty & (starts > indices))
        _, first, last = self.inner.episode(xp.where(is_in_row, starts, -1))
        spans = indices + (self._stride - (indices - first) // successor % self._stride) * successor
        stops = xp.minimum(xp.minimum(spans, limits), last + successor)
        is_shown = is_in_row & (starts < stops)
        return xp.where(is_shown, starts, indices), xp.where(is_shown, stops, indices)
