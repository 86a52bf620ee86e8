"""Mixtures obey the laws of every replay, in any wrapper and of any sources."""

import copy
import dataclasses
import itertools
import pickle
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replaykit import CombinedReplay, LatestBuffer, MixedReplay, PrioritizedBuffer, ReplayBuffer, ReplayWrapper
from replaykit.testing import assert_lawful, bits_of, configurations
from replaykit.testing.mixtures import MixedMachine
from tests.helpers import FLAT, filled, step, stretch
from tests.laws.streams import run_together
from tests.laws.test_joins import BASE, LAYERS, OVERRIDES, Combined, Hindsight, assert_joined
from tests.laws.test_joins import filled as filled_as
from tests.laws.third_party import Counting, ListStorage, Recency

TestMixed = MixedMachine.TestCase
TestMixed.settings = settings(max_examples=settings().max_examples // 2)  # each takes a second


def mixed(configurations, layers, tenths, add_to=0, masked=False, **parts):
    """A mixture of filled buffers, each in its own wrappers, with equal specs and settings."""
    first, sources = configurations[0], {}
    for k, (configuration, inside) in enumerate(zip(configurations, layers, strict=True)):
        alike = {"n_step": first.n_step, "gamma": first.gamma, "combined": (), "hindsight": None, "stack": 1}
        replay = filled_as(dataclasses.replace(configuration, **alike, seed=k), masked, **(parts if k == 0 else {}))
        for layer in inside:
            replay = layer(replay)
        sources["abc"[k]] = replay
    edges = [0, *sorted(tenths)[: len(sources) - 1], 10]
    shares = {name: (end - begin) / 10 for name, (begin, end) in zip(sources, itertools.pairwise(edges), strict=False)}
    return MixedReplay(sources, shares=shares, add_to="abc"[add_to % len(sources)], seed=9)


def assert_nothing_is_bypassed(replay, batch_size):
    """`assert_joined`, and a check that the overrides of the wrappers inside the mixture are called."""
    assert_joined(replay, batch_size)
    mixture = replay
    while isinstance(mixture, ReplayWrapper):
        mixture = mixture.inner
    batch = mixture.sample(batch_size)
    for k, source in enumerate(mixture.sources.values()):
        layer = source
        while isinstance(layer, ReplayWrapper):
            if isinstance(layer, Counting) and (batch.source == k).any():
                assert layer.calls >= OVERRIDES & set(vars(type(layer))), f"{type(layer).__name__} was bypassed"
            layer = layer.inner


@given(
    sources=st.lists(configurations(specs=("goal",)), min_size=1, max_size=3),
    inside=st.lists(st.lists(st.sampled_from(LAYERS), max_size=2), min_size=3, max_size=3),
    around=st.lists(st.sampled_from(LAYERS), max_size=2),
    tenths=st.lists(st.integers(0, 10), min_size=2, max_size=2),
    add_to=st.integers(0, 2),
    masked=st.booleans(),
    parts=st.sampled_from([{}, {}, {"storage": ListStorage}, {"distribution": Recency}]),
    batch_size=st.sampled_from([40, 50, 33]),
)
def test_a_batch_is_what_the_verbs_make_one_by_one(sources, inside, around, tenths, add_to, masked, parts, batch_size):
    """Batches of up to three wrapped sources, with up to two wrappers around them, have the bits of the verbs."""
    inside = [[layer for layer in layers if layer is not Hindsight or Hindsight not in around] for layers in inside]
    if any(layers.count(Hindsight) > 1 for layers in (*inside, around)):
        return
    replay = mixed(sources, inside[: len(sources)], tenths, add_to, masked, **parts)
    for layer in around:
        replay = layer(replay)
    try:
        replay.draw(batch_size)
    except ValueError as error:
        assert "at least latest=" in str(error)  # noqa: PT017
        return
    assert_nothing_is_bypassed(replay, batch_size)


@pytest.mark.parametrize("around", LAYERS)
def test_every_wrapper_is_joined_around_every_other_inside(around):
    """Wrappers are around the mixture and around its first or last source, with and without integer shares."""
    kinds = [dataclasses.replace(BASE, kind=kind, num_envs=e) for kind, e in (("uniform", 2), ("prioritized", 1))]
    for inner, place in itertools.product([None, *LAYERS], range(2)):
        if inner is around is Hindsight or (inner is None and place):
            continue
        layers = [[inner] if inner is not None and place == k else [] for k in range(2)]
        for batch_size in (20, 17):
            assert_nothing_is_bypassed(around(mixed(kinds, layers, [4])), batch_size)


@pytest.mark.parametrize("weights", ["batch", "buffer", "none"])
@pytest.mark.parametrize("batch_size", [20, 17])
def test_mixtures_are_lawful(weights, batch_size):
    """Mixtures obey every law that needs no model, also if draws of a source depend on the batch size."""
    kinds = [dataclasses.replace(BASE, kind=kind, weights=weights) for kind in ("prioritized", "latest", "prioritized")]
    for layers in ([[], [], []], [[Combined], [], [Hindsight]]):
        replay = mixed(kinds, layers, [3, 6], add_to=2)
        assert_lawful(replay, batch_size)
        assert_lawful(CombinedReplay(CombinedReplay(replay, 2)), batch_size)
        loaded = copy.deepcopy(replay)
        loaded.load_state_dict(replay.state_dict())
        assert bits_of(loaded.sample(batch_size)) == bits_of(replay.sample(batch_size))


def test_a_mixture_of_one_is_its_source():
    """A mixture of one source gives the batches of that source, with an additional field `source`."""
    for make in (ReplayBuffer, PrioritizedBuffer, LatestBuffer):
        alone = filled(make(9, FLAT, n_step=3, seed=2), 20)
        replay = MixedReplay({"all": copy.deepcopy(alone)}, shares={"all": 1.0}, add_to="all")
        for _ in range(3):
            batch, expected = bits_of(replay.sample(16)), bits_of(alone.sample(16))
            del batch["source"]
            assert batch == expected


def test_the_order_of_the_sources_changes_the_order_of_the_rows_only():
    """Each row is the same, apart from its index and the number of its source."""
    buffers = {"a": filled(ReplayBuffer(9, FLAT, seed=0), 9), "b": filled(PrioritizedBuffer(9, FLAT, seed=1), 9)}
    one = MixedReplay(buffers, shares={"a": 0.5, "b": 0.5}, add_to="a")
    two = MixedReplay(dict(reversed(copy.deepcopy(buffers).items())), shares={"a": 0.5, "b": 0.5}, add_to="a")
    batch, other = one.sample(10), two.sample(10)
    for name in set(batch.keys()) - {"indices", "source"}:
        np.testing.assert_array_equal(batch[name], np.roll(other[name], 5, axis=0))


# -- Threads -------------------------------------------------------------------------------------------------------


def online_and_demos():
    """Two buffers, of which the last one is added to, and their mixtures in both orders."""
    demos = filled(PrioritizedBuffer(30, FLAT, seed=0), 30)
    online = ReplayBuffer(40, FLAT, num_envs=2, seed=1)
    online.extend(**stretch(20, 2))
    shares = {"demos": 0.5, "online": 0.5}
    one = MixedReplay({"demos": demos, "online": online}, shares=shares, add_to="online", seed=2)
    two = MixedReplay({"online": online, "demos": demos}, shares=shares, add_to="online", seed=3)
    return demos, online, one, two


def test_mixtures_and_their_sources_can_be_used_in_threads_at_once():
    """Threads can use mixtures and sources without deadlocks, and every batch shows one moment."""
    demos, online, one, two = online_and_demos()
    lanes = {name: np.array([value] * 2) for name, value in step(1.0).items()}

    def sample(replay):
        def call(_number):
            batch = replay.sample(10)
            assert (batch.obs[:, 0] == batch.reward).all()
            replay.update_priorities(batch.indices, batch.reward)
            replay.probability(batch.indices[:1])  # may be stale by now

        def tolerant(number):
            try:
                call(number)
            except IndexError as error:
                assert "stale" in str(error)  # noqa: PT017

        return tolerant

    def use(_number):
        online.add(**lanes)
        online.sample(4)
        demos.update_priorities(demos.sample(4).indices, np.ones(4))

    def look(_number):
        pickle.loads(pickle.dumps(one)).check()
        two.stats()

    run_together(sample(one), sample(CombinedReplay(two)), use, look)


def test_a_copy_of_a_mixture_is_one_moment_of_all_sources():
    """In every copy, each source has sampled as many batches as the mixture."""
    _, _, one, _ = online_and_demos()
    end = threading.Event()

    def go_on():
        while not end.is_set():
            one.sample(4)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        for number in range(40):
            twin = copy.deepcopy(one) if number % 2 else pickle.loads(pickle.dumps(one))
            stats = twin.stats()
            assert stats["batches"] == stats["demos/batches"] == stats["online/batches"]
    finally:
        end.set()
        thread.join()
