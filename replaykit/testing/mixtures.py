"""Mixtures: the model of a `MixedReplay`, and the state machine that tests both."""

import copy
import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import initialize

from replaykit.combined import CombinedReplay
from replaykit.hindsight import HindsightReplay
from replaykit.mixed import MixedReplay
from replaykit.replay import Replay
from replaykit.testing.machine import ReplayMachine, stack_of
from replaykit.testing.model import NaiveHindsight, NaiveReplay, NaiveStep, assert_same
from replaykit.testing.strategies import Configuration, Relabelling, build, configurations, values_of


@dataclass(frozen=True)
class Mixture:
    """Configurations of sources, named "a", "b" and so on, their shares in tenths, and the mixture's wrappers."""

    sources: tuple[Configuration, ...]
    tenths: tuple[int, ...]
    filled: tuple[int, ...]
    add_to: int
    combined: tuple[int, ...]
    hindsight: Relabelling | None
    seed: int


class NaiveMixture(NaiveReplay):
    """Several models as one. Each contributes its share of a batch. The lanes of all sources form one ring."""

    def __init__(
        self,
        sources: list[NaiveReplay],
        shares: list[Fraction],
        add_to: int,
        combined: list[int] | None = None,
        hindsight: NaiveHindsight | None = None,
    ) -> None:
        self.sources: list[NaiveReplay] = sources
        self.given: list[Fraction] = shares
        self.add_to: int = add_to
        self.num_envs: int = sum(source.num_envs for source in sources)
        self.combined: list[int] = combined or []
        self.hindsight: NaiveHindsight | None = hindsight
        target = sources[add_to]
        self.n_step: int = target.n_step
        self.gamma: float = target.gamma
        self.alpha: float = target.alpha
        self.eps: float = target.eps
        self.kind = "prioritized" if any(source.kind == "prioritized" for source in sources) else "uniform"

    def lanes_before(self, k: int) -> int:
        """The number of lanes of the sources before source k."""
        return sum(source.num_envs for source in self.sources[:k])

    def index(self, k: int, own: int) -> int:
        """The index in the mixture of an index of source k."""
        step, lane = divmod(own, self.sources[k].num_envs)
        return step * self.num_envs + self.lanes_before(k) + lane

    def origin(self, index: int) -> tuple[int, int]:
        """The source of an index of the mixture, and the index in that source."""
        step, lane = divmod(index, self.num_envs)
        (k,) = (k for k, s in enumerate(self.sources) if 0 <= lane - self.lanes_before(k) < s.num_envs)
        return k, step * self.sources[k].num_envs + lane - self.lanes_before(k)

    @property
    def steps(self) -> list[NaiveStep]:  # type: ignore[override]
        """The stored steps of all sources, with the mixture's indices."""
        return [
            dataclasses.replace(
                step, lane=step.lane + self.lanes_before(k), index=self.index(k, step.index),
                start=self.index(k, step.start),
            )
            for k, source in enumerate(self.sources)
            for step in source.steps
        ]  # fmt: skip

    # -- Writing ---------------------------------------------------------------------------------------------

    def add(self, lane: int, fields: dict[str, Any], scaled: float) -> int:
        """Store a step in the source that the mixture adds to."""
        return self.index(self.add_to, self.sources[self.add_to].add(lane, fields, scaled))

    def initial(self) -> float:
        """The initial priority in the source that the mixture adds to."""
        return self.sources[self.add_to].initial()

    def update(self, indices: list[int], scaled: list[float]) -> int:
        """Set scaled priorities. Returns how many belong to stored transitions of prioritized sources."""
        applied = 0
        for index, value in zip(indices, scaled, strict=True):
            k, own = self.origin(index)
            if self.sources[k].kind == "prioritized":
                applied += self.sources[k].update([own], [value])
        return applied

    def end_episode(self, lanes: list[int]) -> None:
        """End episodes in the source that the mixture adds to."""
        self.sources[self.add_to].end_episode(lanes)

    def clear(self) -> None:
        """Remove everything."""
        for source in self.sources:
            source.clear()

    # -- Reading ---------------------------------------------------------------------------------------------

    def newest(self, count: int) -> list[int]:
        """The newest indices of the source that the mixture adds to."""
        return [self.index(self.add_to, own) for own in self.sources[self.add_to].newest(count)]

    def counted(self) -> list[NaiveStep]:
        """The stored steps in the order in which uniform draws from a ring count them."""
        by_lane = [self.lane(lane) for lane in range(self.num_envs)]
        steps = [[step.index // self.num_envs for step in lane] for lane in by_lane]
        if any(lane != steps[0] for lane in steps) or not steps[0]:
            return [step for lane in by_lane for step in lane]
        capacity = sum(source.length * source.num_envs for source in self.sources)
        is_full = len(self.steps) == capacity
        return sorted(self.steps, key=lambda step: step.index % capacity if is_full else step.index)

    # -- Shares ----------------------------------------------------------------------------------------------

    def may_give(self, k: int, batch_size: int) -> dict[int, Fraction]:
        """The possible numbers of rows of source k, with their probabilities."""
        exact = self.given[k] * batch_size
        below = exact.numerator // exact.denominator
        up = exact - below
        return {below: 1 - up} | ({below + 1: up} if up else {})

    def counts(self, batch_size: int, rng: np.random.Generator) -> list[int]:
        """The number of rows of each source, rounded with the generator's next number if necessary."""
        uniform = 0.0
        if any(len(self.may_give(k, batch_size)) > 1 for k in range(len(self.sources))):
            uniform = rng.random()
        edges, total = [0], Fraction(0)
        for share in self.given:
            total += share * batch_size
            edges.append(int(float(total) + uniform))
        return [end - begin for begin, end in itertools.pairwise(edges)]

    def shares(self, batch_size: int, wrappers: int | None = None) -> dict[int, float]:
        """The expected fraction of a batch that each stored index gets."""
        wrappers = len(self.combined) if wrappers is None else wrappers
        if wrappers:
            return super().shares(batch_size, wrappers)
        shares: dict[int, float] = {}
        for k, source in enumerate(self.sources):
            expected = {step.index: 0.0 for step in source.steps}
            for count, chance in self.may_give(k, batch_size).items():
                if count:
                    for own, share in source.shares(count).items():
                        expected[own] += float(chance) * count * share / batch_size
            shares |= {self.index(k, own): share for own, share in expected.items()}
        return shares

    def refusal(self, batch_size: int) -> str | None:
        """The text that the error must contain if a batch cannot be drawn."""
        for k, source in enumerate(self.sources):
            most = max(self.may_give(k, self.drawn(batch_size))) if self.drawn(batch_size) else 0
            if most and not source.steps:
                return "is empty"
        for k, source in enumerate(self.sources):
            most = max(self.may_give(k, self.drawn(batch_size))) if self.drawn(batch_size) else 0
            if most and (refusal := source.refusal(most)):
                return refusal
        return None

    def is_certain(self, batch_size: int) -> bool:
        """Whether an error is certain: every source that may raise an error contributes at least one row."""
        drawn = self.drawn(batch_size)
        refusing = [k for k, s in enumerate(self.sources) if drawn and s.steps and s.refusal(1) and self.given[k]]
        return all(min(self.may_give(k, drawn)) > 0 for k in refusing)

    # -- Comparing -------------------------------------------------------------------------------------------

    def assert_drawn(self, indices: Any, batch_size: int, rng: Any) -> None:
        """Compare indices with the draws of each source. `rng` are the generators of the mixture and the sources."""
        own_rng, rngs = rng
        drawn, found = self.drawn(batch_size), [int(index) for index in indices]
        assert found[drawn:] == [index for k in self.combined for index in self.newest(k)], "not the newest"
        if not drawn:
            return
        begin = 0
        for k, count in enumerate(self.counts(drawn, own_rng)):
            origins = [self.origin(index) for index in found[begin : begin + count]]
            assert all(source == k for source, _ in origins), "a source did not contribute its share"
            if count:
                self.sources[k].assert_drawn([own for _, own in origins], count, rngs[k])
            begin += count

    def uniforms(self, rng: Any, rows: list[int], batch_size: int) -> Any:
        """The numbers (2, R) with which a ``HindsightReplay`` inside a source chooses goals for its R rows."""
        return rng.random((2, len(rows)))

    def assert_batch(self, batch: Any, batch_size: int, rng: Any) -> None:
        """Compare a batch field by field. `rng` are the generators of mixture and sources after the draw."""
        own_rng, rngs = rng
        indices = [int(index) for index in batch.indices]
        origins = [self.origin(index) for index in indices]
        np.testing.assert_array_equal(batch.source, [k for k, _ in origins], strict=True)
        windows = [self.sources[k].window(own) for k, own in origins]
        goals: list[Any] = [None] * batch_size
        for k, source in enumerate(self.sources):
            rows = [row for row, (of, _) in enumerate(origins) if of == k]
            if source.hindsight is not None and source.hindsight.ratio:
                uniforms = self.uniforms(rngs[k], rows, batch_size)
                for row, uniform in zip(rows, uniforms.T, strict=True):
                    if uniform[0] < source.hindsight.ratio:
                        goals[row] = source.goal(origins[row][1], uniform[1])
                        windows[row] = source.relabelled(origins[row][1], goals[row])
        if self.hindsight is not None and self.hindsight.ratio:
            uniforms = own_rng.random((2, batch_size))
            for row in range(batch_size):
                if uniforms[0, row] < self.hindsight.ratio:
                    goals[row] = self.goal(indices[row], uniforms[1, row])
                    windows[row] = self.relabelled(indices[row], goals[row])
        if self.hindsight is not None or any(source.hindsight is not None for source in self.sources):
            np.testing.assert_array_equal(batch.relabelled, [goal is not None for goal in goals], strict=True)
        for row, window in enumerate(windows):
            for name, expected in self.reduced(window).items():
                assert_same(expected, batch[name], row, name)
        shares = self.shares(batch_size)
        np.testing.assert_allclose(batch.probabilities, [shares[index] for index in indices], rtol=1e-9)
        for k, source in enumerate(self.sources):
            rows = [row for row, (of, _) in enumerate(origins) if of == k]
            if rows:
                share = float(self.given[k]) or 1.0
                alone = {own: shares[self.index(k, own)] / share for own in (step.index for step in source.steps)}
                expected = source.weigh([alone[origins[row][1]] for row in rows], alone)
                np.testing.assert_allclose(batch.weights[rows], expected, rtol=2e-6)


def mixtures(
    specs: tuple[str, ...] = ("flat", "nested", "goal", "objectives", "goals", "stacked"),
) -> st.SearchStrategy[Mixture]:
    """Mixtures of up to three small buffers with equal specs, with wrappers around the mixture and around each."""
    return st.sampled_from(specs).flatmap(
        lambda spec: st.builds(
            _mixture,
            sources=st.lists(configurations(kinds=("uniform", "prioritized"), specs=(spec,)), min_size=1, max_size=3),
            cuts=st.lists(st.integers(0, 10), min_size=2, max_size=2),
            filled=st.lists(st.sampled_from([0, 1, 5, 5, 12]), min_size=3, max_size=3),
            add_to=st.integers(0, 2),
            is_around=st.booleans(),
        )
    )


def _mixture(sources: list[Configuration], cuts: list[int], filled: list[int], add_to: int, is_around: bool) -> Mixture:
    """A mixture whose first source defines the common settings. A source's wrappers may be around the whole mixture."""
    count, first = len(sources), sources[0]
    edges = [0, *sorted(cuts)[: count - 1], 10]
    alike = {
        name: getattr(first, name) for name in ("n_step", "gamma", "stack", "padding", "alpha", "eps")
    }  # the model has at most one of each
    hindsight = [None if is_around else source.hindsight for source in sources]
    return Mixture(
        tuple(
            dataclasses.replace(source, combined=(), hindsight=hindsight[k], seed=source.seed + k, **alike)
            for k, source in enumerate(sources)
        ),
        tuple(end - begin for begin, end in itertools.pairwise(edges)),
        tuple(filled[:count]),
        add_to % count,
        first.combined,
        first.hindsight if is_around else None,
        first.seed,
    )


def build_mixture(
    mixture: Mixture,
    build: Callable[[Configuration], tuple[Replay, NaiveReplay]] = build,
    model: type[NaiveMixture] = NaiveMixture,
) -> tuple[Replay, NaiveMixture]:
    """The mixture and its `model`, after some steps were added to each source. `build` builds each source."""
    sources, models = dict[str, Replay](), list[NaiveReplay]()
    for k, (configuration, count) in enumerate(zip(mixture.sources, mixture.filled, strict=True)):
        source, naive = build(configuration)
        for number in range(count):
            _add(source, naive, 1000 * k + 13 * number, number % 4 == 3)
        sources["abc"[k]] = source
        models.append(naive)
    tenths = [Fraction(each, 10) for each in mixture.tenths]
    shares = {name: float(share) for name, share in zip(sources, tenths, strict=True)}
    replay: Replay = MixedReplay(sources, shares=shares, add_to="abc"[mixture.add_to], seed=mixture.seed)
    for latest in mixture.combined:
        replay = CombinedReplay(replay, latest)
    around = mixture.hindsight.options(mixture.sources[0].spec) if mixture.hindsight is not None else None
    if around is not None:
        replay = HindsightReplay(replay, **around)
    hindsight = None if around is None else NaiveHindsight(**around)
    return replay, model(models, tenths, mixture.add_to, list(mixture.combined), hindsight)


def _add(source: Replay, model: NaiveReplay, number: int, is_end: bool) -> None:
    """Add one step of each lane to a source and its model."""
    lanes, initial = source.num_envs, model.initial()
    steps = [{name: values_of(source.spec[name], number + 5 * e) for name in source.spec} for e in range(lanes)]
    for lane, step in enumerate(steps):
        step |= {"terminated": np.bool_(is_end), "truncated": np.bool_(False)}
        model.add(lane, step, initial)
    lead = (lanes,) if lanes > 1 else ()
    source.add(**{name: stack_of([[step[name] for step in steps]], source.spec[name], lead) for name in source.spec})


class MixedMachine(ReplayMachine):
    """Tests mixtures with every operation against the model. See `replaykit.testing.ReplayMachine`."""

    @initialize(configuration=mixtures())
    def start(self, configuration: Any) -> None:
        """Build the mixture and the model."""
        super().start(configuration)
        self.issued: list[int] = [step.index for step in self.model.steps]

    def make(self, configuration: Any) -> tuple[Any, Any]:
        """The mixture and its model."""
        return build_mixture(configuration)

    def is_comparable(self, batch_size: int) -> bool:
        """Whether the model knows if a batch of this size can be drawn."""
        return bool(self.model.is_certain(batch_size))

    def numbers_of(self, replay: Any) -> Any:
        """Copies of the generator of the mixture, and of those of the sources."""
        while not isinstance(replay, MixedReplay):
            replay = replay.inner
        return copy.deepcopy((replay.rng, [source.rng for source in replay.sources.values()]))
