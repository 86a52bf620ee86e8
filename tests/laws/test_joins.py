"""Joins give the same bits as the verbs, with any wrappers around a buffer."""

import copy
import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replaykit import (
    Batch,
    CombinedReplay,
    HindsightReplay,
    LargeBatchReplay,
    RecentReplay,
    Replay,
    ReplayWrapper,
)
from replaykit.testing import Configuration, assert_lawful, bits_of, build, by_verbs, configurations, values_of
from replaykit.testing.strategies import SPECS, Relabelling, reward_of_goal, size_of_reward
from tests.helpers import stacked_lanes
from tests.laws.third_party import (
    WRAPPERS,
    Counting,
    FromTheStart,
    ListStorage,
    Negated,
    OldestToo,
    Recency,
    Replaced,
    Scaled,
    Shorter,
    Squared,
)

STRATEGIES = ("future", "final", "episode", "random")


class Combined:
    """A CombinedReplay with the two newest transitions."""

    def __new__(cls, inner):
        return CombinedReplay(inner, latest=2)


class Hindsight:
    """A HindsightReplay with each strategy in turn, with and without `terminated_fn`."""

    number = itertools.count()

    def __new__(cls, inner):
        number = next(cls.number)
        (spec,) = (name for name in ("goal", "goals", "objectives") if SPECS[name] == inner.spec)
        relabelling = Relabelling(STRATEGIES[number // 2 % 4], 0.6, terminates=number % 2 == 1, is_outermost=False)
        return HindsightReplay(inner, **relabelling.options(spec))


BASE = Configuration(
    kind="uniform", spec="goal", capacity=15, num_envs=1, n_step=3, gamma=0.9, stack=1, padding="reset", share="large",
    alpha=0.6, beta=0.4, eps=1e-2, draws="stratified", weights="buffer", combined=(), hindsight=None, seed=0,
)  # fmt: skip
LAYERS = [*WRAPPERS, Combined, Hindsight]
OVERRIDES = {"change", "window", "reduce", "weigh", "draw"}


def filled(configuration, masked, **parts):
    """A buffer of the configuration, after some steps with ends of episodes, and new priorities."""
    replay, _ = build(configuration, **parts)
    lanes, rng = replay.num_envs, np.random.default_rng(configuration.seed)
    for number in range(2 * configuration.capacity // lanes + 3):
        values = {name: [values_of(replay.spec[name], number + 5 * e) for e in range(lanes)] for name in replay.spec}
        values["terminated"], values["truncated"] = rng.random((2, lanes)) < 0.15
        mask = rng.random(lanes) < 0.7 if masked and number else None
        replay.add(**{name: stacked_lanes(value, lanes) for name, value in values.items()}, mask=mask)
    stored = replay.stored()
    replay.update_priorities(stored, rng.normal(size=stored.size))
    return replay


def layers_of(replay):
    """The wrappers of a stack, outermost first."""
    while isinstance(replay, ReplayWrapper):
        yield replay
        replay = replay.inner


def assert_joined(replay, batch_size):
    """Check that three batches equal those of a copy that calls the verbs, and that every override was called."""
    twin = copy.deepcopy(replay)
    for _ in range(3):
        for layer in layers_of(replay):
            getattr(layer, "calls", set()).clear()
        batch = replay.sample(batch_size)
        assert bits_of(by_verbs(twin, batch_size)) == bits_of(batch)
        for layer in layers_of(replay):
            if isinstance(layer, Counting):
                expected = OVERRIDES & set(vars(type(layer)))
                assert layer.calls >= expected, f"{type(layer).__name__} was bypassed"


@given(
    configuration=configurations(specs=("goal", "goals", "objectives")),
    layers=st.lists(st.sampled_from(LAYERS), max_size=3).filter(lambda layers: layers.count(Hindsight) <= 1),
    masked=st.booleans(),
    parts=st.sampled_from([{}, {}, {"storage": ListStorage}, {"distribution": Recency}]),
    batch_size=st.integers(8, 40),
)
def test_a_batch_is_what_the_verbs_make_one_by_one(configuration, layers, masked, parts, batch_size):
    """Batches of up to three wrappers around any buffer have the bits of the verbs. No override is bypassed."""
    replay = filled(dataclasses.replace(configuration, combined=(), hindsight=None), masked, **parts)
    for layer in layers:
        replay = layer(replay)
    assert_joined(replay, batch_size)


@pytest.mark.parametrize("kind", ["uniform", "prioritized", "rank"])
def test_every_pair_of_wrappers_is_joined_as_its_verbs(kind):
    """Each wrapper inside each gives the bits of the verbs, with three steps and one, in one lane and three."""
    bases = []
    for n_step, num_envs in ((1, 1), (3, 1), (3, 3)):
        configuration = dataclasses.replace(BASE, kind=kind, n_step=n_step, num_envs=num_envs)
        bases.append(filled(configuration, masked=False))
    for inner, outer in itertools.product(LAYERS, LAYERS):
        if inner is outer is Hindsight:
            continue
        for base in bases:
            assert_joined(outer(inner(copy.deepcopy(base))), 9)


@pytest.mark.parametrize("around", [None, *WRAPPERS, Hindsight])
@pytest.mark.parametrize("kind", ["uniform", "prioritized", "rank"])
def test_recent_and_large_batches_are_joined_as_their_verbs(kind, around):
    """Recent and large batches have the bits of the verbs, with each buffer and each suitable wrapper."""
    replay = filled(dataclasses.replace(BASE, kind=kind), masked=False)
    if kind == "uniform":
        replay = RecentReplay(replay, newest=7)
    for inner in (replay, LargeBatchReplay(copy.deepcopy(replay), 3, priority_fn=size_of_reward)):
        if around in (OldestToo,) and inner.is_conditional:
            continue
        assert_joined(inner if around is None else around(inner), 9)


def test_a_large_batch_is_of_what_its_wrappers_make():
    """The priority function gets the rewards that wrappers have changed."""
    seen = []

    def priority_fn(batch):
        seen.append(bits_of(batch))
        return size_of_reward(batch)

    inner = Negated(Scaled(filled(BASE, masked=False)))
    expected = copy.deepcopy(inner).sample(12)
    LargeBatchReplay(inner, 3, priority_fn=priority_fn).sample(4)
    assert seen == [bits_of(expected)]


@pytest.mark.parametrize("wrapper", [Scaled, Shorter, OldestToo, Negated, Squared])
def test_wrappers_that_keep_the_promises_are_lawful(wrapper):
    """Wrappers that keep the promises of the interface obey every law that needs no model."""
    replay = wrapper(filled(BASE, masked=False))
    if wrapper is Negated:
        replay = CombinedReplay(replay)
    assert_lawful(replay, 12)


def test_a_change_is_made_before_goals_are_replaced_around_it_and_after_inside():
    """The order of two wrappers that change windows therefore matters."""
    plain = filled(BASE, masked=False)
    one, two = (order(copy.deepcopy(plain)) for order in (
        lambda b: HindsightReplay(Scaled(b), reward_of_goal, ratio=1.0),
        lambda b: Scaled(HindsightReplay(b, reward_of_goal, ratio=1.0)),
    ))  # fmt: skip
    batch, other = one.sample(20), two.sample(20)
    assert bits_of(batch)["obs.desired_goal"] == bits_of(other)["obs.desired_goal"]
    lost = sum(0.75 * 0.9**k for k in range(3))
    full = batch.length == 3
    assert full.any()
    np.testing.assert_allclose(batch.reward[full] - other.reward[full], lost, rtol=1e-3)


# -- Errors when a class is defined --------------------------------------------------------------------------------


@pytest.mark.parametrize("join", ["serve", "open", "fetch", "look_ahead"])
def test_a_wrapper_cannot_override_several_verbs_at_once(join):
    """Outer wrappers would bypass such a method, so the error names the verbs to override."""
    with pytest.raises(TypeError, match=f"Mine overrides {join}, which wrappers around it would bypass; override"):
        type("Mine", (ReplayWrapper,), {join: lambda self, *arguments: None})
    with pytest.raises(TypeError, match=f"Below overrides {join}"):
        type("Below", (Scaled,), {join: lambda self, *arguments: None})


def test_sample_is_final():
    """`sample` cannot be overridden, in a wrapper or in any other replay."""
    for base in (Replay, ReplayWrapper, Scaled):
        with pytest.raises(TypeError, match="Mine overrides sample, which wrappers around it would bypass"):
            type("Mine", (base,), {"sample": lambda self, batch_size: None})


@pytest.mark.parametrize("verb", ["draw", "probability"])
def test_a_draw_and_its_probabilities_are_overridden_together(verb):
    """`draw` and `probability` must be overridden together. Otherwise weights would not match the draws."""
    missing = "probability" if verb == "draw" else "draw"
    with pytest.raises(TypeError, match=f"Mine overrides only one of draw and probability; override {missing}, too"):
        type("Mine", (ReplayWrapper,), {verb: lambda self, *arguments: None})


def test_a_subclass_of_a_wrapper_adds_its_own_verbs():
    """The overrides of the base class still count."""

    class NegatedToo(Scaled):
        def reduce(self, window):
            self.calls.add("reduce")
            fields = self.inner.reduce(window)
            return fields | {"reward": -fields["reward"]}

    replay, expected = NegatedToo(filled(BASE, False)), Negated(Scaled(filled(BASE, False)))
    assert bits_of(replay.sample(9)) == bits_of(expected.sample(9))
    assert replay.calls == {"change", "reduce"}


def test_windows_of_two_axes_pass_through_every_change():
    """Rows of T windows are changed like T rows of one window."""
    for layer in (Counting, Scaled, Replaced, Shorter, FromTheStart):
        replay = layer(filled(BASE, masked=False))
        indices = replay.stored()[:6]
        flat, grid = replay.window(indices), replay.window(indices.reshape(3, 2))
        assert (flat.shape, grid.shape) == ((6,), (3, 2))
        one, two = replay.reduce(flat), replay.reduce(grid)
        for fields in (one, two):
            fields.pop("is_even", None)
        assert bits_of(Batch.of(one)) == bits_of(Batch.of(two))
