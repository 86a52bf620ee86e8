"""Sequences: the model of a `SequenceReplay`, and the state machine that tests both."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from replaykit.combined import CombinedReplay
from replaykit.replay import Replay
from replaykit.sequences import SequenceReplay
from replaykit.testing.machine import ReplayMachine
from replaykit.testing.model import _ROUNDING, NaiveReplay, NaiveStep, assert_same
from replaykit.testing.strategies import Configuration, build, configurations
from replaykit.trees import leaves_of


@dataclass(frozen=True)
class Sequences:
    """The configuration inside a ``SequenceReplay``, its arguments, and `latest` of a ``CombinedReplay`` around it."""

    inside: Configuration
    length: int
    burn_in: int
    stride: int
    eta: float
    combined: tuple[int, ...]


class NaiveSequences:
    """The model of a ``SequenceReplay``. Other attributes are those of `inner`."""

    def __init__(self, inner: NaiveReplay, arguments: Sequences) -> None:
        self.inner: NaiveReplay = inner
        self.rows: Sequences = arguments
        self.combined: list[int] = [*inner.combined, *arguments.combined]
        self.known: dict[int, NaiveStep] = {}  # every step that was ever added

    def __getattr__(self, name: str) -> Any:
        if name in ("inner", "__deepcopy__", "__setstate__"):
            raise AttributeError(name)
        return getattr(self.inner, name)

    def add(self, lane: int, fields: dict[str, Any], scaled: float) -> int:
        """Store one step of one lane. Returns its index."""
        index = self.inner.add(lane, fields, scaled)
        self.known[index] = next(step for step in self.inner.steps if step.index == index)
        return index

    def rest(self, index: int) -> list[int]:
        """The stored steps of an index's episode, from this index on."""
        step = self.known[index]
        return [s.index for s in self.inner.lane(step.lane) if s.episode == step.episode and s.index >= index]

    def number(self, index: int) -> tuple[int, int, int]:
        """The span of an index: its lane, its episode, and the number of the span in the episode."""
        step = self.known[index]
        return step.lane, step.episode, (index - step.start) // self.inner.num_envs // self.rows.stride

    def start(self, index: int) -> int:
        """The first stored index of the span of a stored index."""
        lane = self.inner.lane(self.known[index].lane)
        return min(step.index for step in lane if self.number(step.index) == self.number(index))

    def newest(self, count: int) -> list[int]:
        """The starts of the newest spans, oldest first."""
        starts = dict.fromkeys(self.start(step.index) for step in reversed(self.inner.steps))
        return list(starts)[:count][::-1]

    def shares(self, batch_size: int) -> dict[int, float]:
        """The expected share of each stored index in a batch. It is 0 unless a row begins at the index."""
        newest = [index for count in self.rows.combined for index in self.newest(count)]
        drawn = batch_size - len(newest)
        shares = dict.fromkeys((step.index for step in self.inner.steps), 0.0)
        for index, share in self.inner.shares(drawn).items():
            shares[self.start(index)] += share
        return {index: (drawn * share + (index in newest)) / batch_size for index, share in shares.items()}

    def refusal(self, batch_size: int) -> str | None:
        """The text that the error must contain if a batch cannot be drawn."""
        return self.inner.refusal(batch_size - sum(len(self.newest(count)) for count in self.rows.combined))

    def update_rows(self, indices: list[int], scaled: list[float], masks: Any) -> int:
        """Set the scaled priorities of the steps of each row's span. Returns the number of rows with stored steps."""
        applied, num_envs = 0, self.inner.num_envs
        stored = {step.index: step for step in self.inner.steps}
        for index, value, mask in zip(indices, scaled, masks, strict=True):
            if not mask.any() and index not in stored:
                continue
            count = int(np.flatnonzero(mask)[-1]) + 1 if mask.any() else self.rows.length
            shown = [i for i in range(index, index + count * num_envs, num_envs) if i in stored]
            shown = [i for i in shown if self.number(i) == self.number(index)]
            for i in shown:
                stored[i].scaled = value
            applied += bool(shown)
        return applied if self.inner.kind in ("prioritized", "rank") else 0

    def assert_drawn(self, indices: Any, batch_size: int, rng: np.random.Generator) -> None:
        """Compare the rows of a batch with the spans at the points of `inner`'s draw."""
        found = [int(index) for index in indices]
        tail = [index for count in self.rows.combined for index in self.newest(count)]
        drawn = batch_size - len(tail)
        assert found[drawn:] == tail, "the newest are not at the end of the batch"
        count = self.inner.drawn(drawn)
        newest = [self.start(index) for k in self.inner.combined for index in self.inner.newest(k)]
        assert found[count:drawn] == newest, "the newest of the inner wrappers are not after the drawn rows"
        points = self.inner.points(count, rng) if count and self.inner.kind != "latest" else None
        if points is None:
            return
        line = self.inner.line()
        stops = np.cumsum([length for _, length in line])
        for row, point in enumerate(points.tolist()):
            low, high = (point - _ROUNDING) * stops[-1], (point + _ROUNDING) * stops[-1]
            near = {
                self.start(index)
                for (index, length), stop in zip(line, stops, strict=True)
                if length > 0.0 and stop - length <= high and stop >= low
            }
            assert found[row] in near, f"a row begins at {found[row]}, but the point {point} is elsewhere"

    def assert_batch(self, batch: Any, batch_size: int, rng: np.random.Generator) -> None:
        """Compare a batch field by field. `rng` is the generator after the draw."""
        inner, length = self.inner, self.rows.length
        hindsight = inner.hindsight
        chances = rng.random((2, batch_size)) if hindsight is not None and hindsight.ratio else np.ones((2, batch_size))
        chosen = chances[0] < (0.0 if hindsight is None else hindsight.ratio)
        if hindsight is not None:
            np.testing.assert_array_equal(batch.relabelled, chosen, strict=True)
        for row, index in enumerate(batch.indices.tolist()):
            steps = self.rest(index)[:length]
            windows = [inner.window(step) for step in steps]
            if chosen[row]:
                goal = inner.goal(index, chances[1, row])
                windows = [inner.relabelled(step, goal) for step in steps]
            expected = [inner.reduced(window) for window in windows]
            ends = [t + fields["length"] for t, fields in enumerate(expected) if fields["terminated"]]
            expected = expected[: min(ends, default=length)]
            count, begins = len(expected), index == self.known[index].start
            places = np.arange(length)
            np.testing.assert_array_equal(batch.mask[row], places < count)
            learned = (places < count) & (begins | (places >= self.rows.burn_in))
            np.testing.assert_array_equal(batch.loss_mask[row], learned)
            np.testing.assert_array_equal(batch.is_first[row], (places == 0) & begins)
            np.testing.assert_array_equal(batch.step_indices[row], [*steps[:count], *[-1] * (length - count)])
            for t, fields in enumerate(expected):
                for name, value in fields.items():
                    assert_same(value, _row(batch[name], row), t, name)
            for name in expected[0]:
                for path, array in leaves_of(batch[name], name):
                    assert not array[row, count:].any(), f"{path} is not 0 in padding"
        shares = self.shares(batch_size)
        np.testing.assert_allclose(batch.probabilities, [shares[i] for i in batch.indices.tolist()], rtol=1e-9)
        weights = inner.weigh([float(q) for q in batch.probabilities], shares)
        np.testing.assert_allclose(batch.weights, weights, rtol=2e-6)


def _row(tree: Any, row: int) -> Any:
    """One row of each array of a tree."""
    if isinstance(tree, dict):
        return {key: _row(entry, row) for key, entry in tree.items()}
    return tuple(_row(entry, row) for entry in tree) if isinstance(tree, tuple) else tree[row]


def sequences(inside: st.SearchStrategy[Configuration] | None = None) -> st.SearchStrategy[Sequences]:
    """Sequences around every kind of buffer and wrapper, or around `inside`, with or without a ``CombinedReplay``."""
    return st.builds(
        _sequences,
        inside=configurations() if inside is None else inside,
        length=st.integers(1, 7),
        parts=st.tuples(st.integers(0, 6), st.integers(0, 6)),
        eta=st.sampled_from([0.0, 0.4, 0.9, 1.0]),
        combined=st.sampled_from([(), (), (1,), (2,)]),
    )


def _sequences(
    inside: Configuration, length: int, parts: tuple[int, int], eta: float, combined: tuple[int, ...]
) -> Sequences:
    """Rows that fit in a lane, with a burn-in and a stride that fit in a row."""
    length = min(length, -(-inside.capacity // inside.num_envs))
    burn_in, stride = parts[0] % length, 1 + parts[1] % length
    if combined:
        inside = dataclasses.replace(inside, combined=())
    return Sequences(inside, length, burn_in, stride, eta, combined)


def build_sequences(arguments: Sequences) -> tuple[Replay, NaiveSequences]:
    """The replay and its model."""
    replay, model = build(arguments.inside)
    options = {"burn_in": arguments.burn_in, "stride": arguments.stride, "eta": arguments.eta}
    replay = SequenceReplay(replay, arguments.length, **options)  # type: ignore[arg-type]
    for latest in arguments.combined:
        replay = CombinedReplay(replay, latest)
    return replay, NaiveSequences(model, arguments)


class SequenceMachine(ReplayMachine):
    """Tests sequences with every operation against the model. See `replaykit.testing.ReplayMachine`."""

    @initialize(configuration=sequences())
    def start(self, configuration: Any) -> None:
        """Build the replay and the model."""
        super().start(configuration)

    def make(self, configuration: Any) -> tuple[Any, Any]:
        """The replay and its model."""
        return build_sequences(configuration)

    @precondition(lambda self: self.issued)
    @rule(data=st.data(), direct=st.booleans())
    def update(self, data: st.DataObject, direct: bool) -> None:
        """Set TD errors of rows at any indices ever returned, with any masks."""
        model, rows = self.model, self.model.rows
        indices = data.draw(st.lists(st.sampled_from(self.issued[-30:]), max_size=8))
        bits = st.lists(st.booleans(), min_size=rows.length, max_size=rows.length)
        masks = np.array([data.draw(bits) for _ in indices], np.bool_).reshape(len(indices), rows.length)
        if direct:
            values = [data.draw(st.sampled_from([0.0, 0.5, 30.0])) for _ in indices]
            alpha = 1.0 if model.kind == "rank" else model.alpha
            scaled, given = [float(value**alpha) for value in values], {"priorities": np.array(values)}
        else:
            errors = (np.arange(masks.size).reshape(masks.shape) * 0.7) % 3 - 1.0
            scaled = []
            for row, mask in zip(np.abs(errors), masks, strict=True):
                mixed = rows.eta * row[mask].max() + (1 - rows.eta) * row[mask].mean() if mask.any() else 0.0
                scaled.append(model.scaled(mixed))
            given = {"td_errors": np.where(masks, errors, np.nan)}
        applied = self.replay.update_priorities(np.array(indices, np.int64), mask=masks, **given)
        assert int(applied) == model.update_rows(indices, scaled, masks)
