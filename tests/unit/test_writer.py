"""A writer adds to its own lanes of a buffer, like a buffer of these lanes. Nothing else can add to them."""

import copy
import gc
import pickle

import numpy as np
import pytest

from replaykit import (
    Buffer,
    CombinedReplay,
    Field,
    HindsightReplay,
    PrioritizedBuffer,
    ReplayBuffer,
    ReplayWrapper,
    Spec,
    record,
)
from replaykit.distributions import Proportional
from replaykit.testing import bits_of
from tests.helpers import FLAT, GOAL_SPEC, sparse, step, stored_indices, stretch, unchanged
from tests.laws.third_party import ListStorage

SPECS = {
    "rows": (FLAT, {}),
    "columns": (Spec(obs=Field((400,)), action=Field((), np.int64)), {"share": "none"}),
    "frames": (Spec(obs=Field((20, 20), np.uint8), action=Field((), np.int64)), {"share": "all", "stack": 2}),
    "nested": (Spec(obs={"x": Field((2,)), "y": (Field(), Field((3,)))}, action=Field((), np.int64)), {}),
    "extras": (Spec(obs=Field((3,)), action=Field((), np.int64), note=Field((2,), np.int16)), {}),
}
every_spec = pytest.mark.parametrize(("spec", "options"), SPECS.values(), ids=SPECS)


def values_of(spec, numbers, ends=False):
    """One transition for each of `numbers`, stacked in the shape of `numbers`."""
    numbers = np.asarray(numbers)

    def leaf(tree):
        if isinstance(tree, dict):
            return {key: leaf(entry) for key, entry in tree.items()}
        if isinstance(tree, tuple):
            return tuple(leaf(entry) for entry in tree)
        wide = numbers.reshape(numbers.shape + (1,) * len(tree.shape)) % 100
        return np.broadcast_to(wide, numbers.shape + tree.shape).astype(tree.dtype)

    return {name: leaf(spec[name]) for name in spec} | {
        "terminated": np.broadcast_to(ends, numbers.shape) & True,
        "truncated": np.zeros(numbers.shape, np.bool_),
    }


def buffers(spec, options, make=PrioritizedBuffer):
    """Two equal buffers of four lanes."""
    return [make(24, spec, num_envs=4, n_step=3, seed=0, **options) for _ in range(2)]


@every_spec
@pytest.mark.parametrize("lanes", [1, [1], [0, 2], slice(1, 4), range(4), np.array([0, 3])])
def test_an_add_of_a_writer_is_an_add_with_a_mask(spec, options, lanes):
    """An add of a writer equals an add with a mask bit for bit, with any values, masks and TD errors."""
    one, other = buffers(spec, options)
    writer = one.writer(lanes)
    own, lead = list(writer.lanes), () if isinstance(lanes, int) else (writer.num_envs,)
    rng = np.random.default_rng(1)
    for number in range(30):
        numbers = 10 * number + np.arange(4)
        mask = rng.random(writer.num_envs) < 0.7 if number % 3 == 1 else None
        errors = rng.normal(size=writer.num_envs) if number % 4 == 1 else None
        whole = np.zeros(4, np.bool_)
        whole[own] = True if mask is None else mask
        wide = np.zeros(4)
        wide[own] = 0.0 if errors is None else errors
        expected = other.add(
            **values_of(spec, numbers, number % 7 == 6), mask=whole, td_error=None if errors is None else wide
        )
        given = numbers[own].reshape(lead)
        found = writer.add(
            **values_of(spec, given, number % 7 == 6),
            mask=mask,
            td_error=None if errors is None else errors.reshape(lead),
        )
        assert found.dtype == np.int64
        assert found.tolist() == expected[own].tolist()
        if number % 11 == 10:
            writer.end_episode(mask)
            other.end_episode(whole)
    one.check()
    assert pickle.dumps(one) == pickle.dumps(other)
    assert bits_of(one.sample(9)) == bits_of(other.sample(9))
    assert set(stored_indices(one) % 4) == set(own)


@every_spec
@pytest.mark.parametrize("lanes", [1, [1], [0, 2], range(4)])
@pytest.mark.parametrize("steps", [1, 4, 6, 7, 20])
def test_a_stretch_of_a_writer_is_as_many_adds(spec, options, lanes, steps):
    """An extend of a writer equals as many adds, with any length, masks and TD errors."""
    one, other = buffers(spec, options)
    writer, single = one.writer(lanes), other.writer(lanes)
    k = writer.num_envs
    lead = (steps,) if isinstance(lanes, int) else (steps, k)
    rng = np.random.default_rng(1)
    for which in range(4):
        numbers = (100 * which + np.arange(steps * k)).reshape(lead)
        ends = rng.random(lead) < 0.2
        mask = {1: rng.random(lead) < 0.6, 2: np.arange(k) % 2 == 0}.get(which)
        errors = rng.normal(size=lead) if which == 3 else None
        found = writer.extend(**values_of(spec, numbers, ends), mask=mask, td_error=errors)
        assert found.shape == lead
        wide = None if mask is None else np.broadcast_to(mask, lead).reshape(steps, k)
        for t in range(steps):
            expected = single.add(
                **values_of(spec, numbers.reshape(steps, k)[t], ends.reshape(steps, k)[t]),
                mask=None if wide is None else wide[t],
                td_error=None if errors is None else errors.reshape(steps, k)[t],
            )
            assert found.reshape(steps, k)[t].tolist() == expected.tolist()
    one.check()
    assert bits_of(one.sample(9)) == bits_of(other.sample(9))
    assert one.stored().tolist() == other.stored().tolist()
    assert one.latest(9).tolist() == other.latest(9).tolist()


def test_wrappers_have_writers_and_see_their_adds():
    """A wrapper's writer passes its steps through the wrapper."""

    class Doubling(ReplayWrapper):
        """A wrapper that doubles rewards when they are added."""

        def add(self, obs, action, reward, *values, **options):
            return self.inner.add(obs, action, 2.0 * np.asarray(reward), *values, **options)

    storage = ListStorage(12, FLAT, 3)
    replay = CombinedReplay(Doubling(Buffer(storage, Proportional(storage), seed=0)))
    index = replay.writer([0, 2]).add(**{name: value[0] for name, value in stretch(1, 2).items()})
    assert index.tolist() == [0, 2]
    assert replay.read(index, "reward").tolist() == [0.0, 2.0]
    goals = HindsightReplay(PrioritizedBuffer(12, GOAL_SPEC, num_envs=2), sparse)
    assert goals.writer(1).spec is GOAL_SPEC


def test_a_writer_of_a_buffer_with_one_lane_adds_as_the_buffer():
    """With one lane, the leading axis is optional."""
    one, other = ReplayBuffer(9, FLAT, seed=0), ReplayBuffer(9, FLAT, seed=0)
    writer = one.writer(0)
    for number in range(12):
        assert writer.add(**step(number)).tolist() == other.add(**step(number)).tolist() == [number]
    assert writer.extend(**stretch(4)).tolist() == other.extend(**stretch(4)).tolist()
    assert pickle.dumps(one) == pickle.dumps(other)


WRONG = {
    "out of range": (4, ValueError, r"lanes contains 4; expected an int in \[0, 4\), .*num_envs=4"),
    "negative": ([0, -1], ValueError, "lanes contains -1; expected"),
    "twice": ([1, 1], ValueError, r"lanes is \[1, 1\]; expected .* ascending order: \[1\]"),
    "descending": ([2, 0], ValueError, r"lanes is \[2, 0\]; expected .* ascending order: \[0, 2\]"),
    "none": ([], ValueError, r"lanes is \[\], which is empty"),
    "an empty slice": (slice(4, 9), ValueError, "which is empty"),
    "a float": (1.0, TypeError, "lanes is 1.0; expected"),
    "floats": ([1.0], TypeError, "lanes contains 1.0; expected"),
    "a mask": (np.array([True, False]), TypeError, "lanes contains .*True.*; expected"),
    "a bool": (True, TypeError, "lanes contains True"),
    "a string": ("ab", TypeError, "lanes contains 'a'"),
    "nothing": (None, TypeError, "lanes is None"),
}


@pytest.mark.parametrize(("lanes", "error", "match"), WRONG.values(), ids=WRONG)
def test_wrong_lanes_are_refused(lanes, error, match):
    """Invalid lanes raise an error with the expected ones, and the buffer is unchanged."""
    buffer = ReplayBuffer(12, FLAT, num_envs=4)
    buffer.extend(**stretch(2, 4))
    with unchanged(buffer, error, match):
        buffer.writer(lanes)
    buffer.writer(range(4))


def test_a_lane_has_one_writer_at_a_time():
    """A writer keeps its lane until it is closed, its block ends, or it is no longer referenced."""
    inner = ReplayBuffer(12, FLAT, num_envs=4)
    buffer = CombinedReplay(inner)
    writer = buffer.writer([0, 1])
    for replay in (inner, buffer):
        with unchanged(inner, ValueError, "lanes contains 1, which already has a writer; .*close"):
            replay.writer(slice(1, 3))
    others = inner.writer([2, 3])
    writer.close()
    writer.close()
    with buffer.writer([0]) as again:
        assert repr(again).startswith("Writer(lanes [0] of CombinedReplay(")
    with pytest.raises(ValueError, match="lanes contains 2"):
        buffer.writer(range(4))
    del others
    gc.collect()
    buffer.writer(range(4))


def test_a_closed_writer_writes_nothing():
    """A closed writer raises an error, also after another writer has taken the lane."""
    buffer = ReplayBuffer(12, FLAT, num_envs=4)
    with buffer.writer(2) as writer:
        writer.add(**step(0))
    kept = buffer.writer(2)
    for call in (
        lambda: writer.add(**step(1)),
        lambda: writer.extend(**stretch(3)),
        lambda: writer.extend(**stretch(3), td_error=np.ones(3)),
        writer.end_episode,
    ):
        with unchanged(buffer, RuntimeError, r"the writer is closed; make another one with writer\(\[2\]\)"):
            call()
    assert kept.add(**step(1)).tolist() == [6]


def test_nothing_else_is_added_to_a_lane_with_a_writer():
    """The whole buffer cannot add to it. Other lanes can be used, and all lanes after the writer is closed."""
    buffer = PrioritizedBuffer(12, FLAT, num_envs=3)
    values, many = {name: value[0] for name, value in stretch(1, 3).items()}, stretch(2, 3)
    writer = buffer.writer(1)
    for call in (
        lambda: buffer.add(**values),
        lambda: buffer.add(**values, td_error=np.ones(3)),
        lambda: buffer.add(**values, mask=[False, True, True]),
        lambda: buffer.extend(**many),
        lambda: buffer.extend(**many, mask=[[True, False, True], [False, True, False]]),
    ):
        with unchanged(buffer, RuntimeError, "lane 1 has a writer, .*leave its lanes out with mask="):
            call()
    assert buffer.add(**values, mask=[True, False, True]).tolist() == [0, -1, 2]
    assert writer.add(**step(1)).tolist() == [1]
    buffer.end_episode()
    buffer.clear()
    assert writer.add(**step(1)).tolist() == [4]
    del writer
    gc.collect()
    buffer.add(**values)
    buffer.check()


@pytest.mark.parametrize("end", ["close", "forget"])
def test_episodes_do_not_run_on_from_one_writer_to_the_next(end):
    """A new writer begins a new episode, and so does an add of the whole buffer."""
    buffer = ReplayBuffer(24, FLAT, num_envs=2, n_step=3)
    for _ in range(2):
        writer = buffer.writer(0)
        for number in range(3):
            writer.add(**step(number))
        if end == "close":
            writer.close()
        del writer
        gc.collect()
    stored = stored_indices(buffer)
    assert buffer.episode(stored)[2].tolist() == [4, 4, 4, 10, 10, 10]
    assert buffer.fetch(stored)["length"].tolist() == [3, 2, 1, 3, 2, 1]
    buffer.writer(0)
    buffer.extend(**stretch(1, 2))
    assert buffer.episode([10])[2].tolist() == [10]


def test_wrong_values_of_a_writer_are_refused_in_its_terms():
    """The error shows the shapes that are expected for the writer's lanes."""
    buffer = PrioritizedBuffer(24, FLAT, num_envs=4)
    writer, single = buffer.writer([0, 1]), buffer.writer(3)
    two, one = {n: v[0] for n, v in stretch(1, 2).items()}, step(1)
    four = {n: v[0] for n, v in stretch(1, 4).items()}
    cases = [
        (lambda: writer.add(**four), r"obs has shape \(4, 3\); expected \(2, 3\)"),
        (lambda: writer.add(**one), r"obs has shape \(3,\); expected \(2, 3\)"),
        (lambda: single.add(**two), r"obs has shape \(2, 3\); expected \(3,\)"),
        (lambda: writer.add(**two, mask=[True] * 4), r"mask has shape \(4,\) .*expected \(2,\) and bool"),
        (lambda: writer.add(**two, td_error=np.ones(4)), r"td_error has shape \(4,\); expected \(2,\)"),
        (lambda: writer.add(**(two | {"reward": [0.0, np.nan]}), td_error=[1.0, np.nan]), "td_error contains nan"),
        (lambda: writer.extend(**stretch(3, 4)), r"obs has shape \(3, 4, 3\); expected \(3, 2, 3\)"),
        (lambda: single.extend(**stretch(3, 2)), r"obs has shape \(3, 2, 3\); expected \(3, 3\)"),
        (lambda: writer.extend(**one), r"reward has shape \(\); expected \('T', 2\); use add"),
        (lambda: single.extend(**one), r"reward has shape \(\); expected \('T',\); use add"),
        (lambda: writer.end_episode([True]), r"mask has shape \(1,\) and dtype bool; expected \(2,\) and bool"),
        (lambda: writer.end_episode([1, 0]), r"mask has shape \(2,\) and dtype int64; expected \(2,\) and bool"),
    ]
    for call, match in cases:
        with unchanged(buffer, ValueError, match):
            call()
    with unchanged(buffer, KeyError, "unknown field"):
        writer.add(**two, rewards=1)


def test_a_writer_stays_with_its_buffer():
    """A writer cannot be copied or pickled. A copy of the buffer has free lanes."""
    buffer = ReplayBuffer(12, FLAT, num_envs=2)
    writer = buffer.writer([0, 1])
    for call in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=r"a Writer cannot be copied or pickled, .*call writer\(\) of the copy"):
            call(writer)
    assert copy.deepcopy(buffer).writer([0, 1]).num_envs == writer.num_envs == 2


def test_a_writer_is_not_made_or_closed_in_the_middle_of_a_sample():
    """A writer cannot be created or closed while a batch is made, because both end episodes."""

    class Meddling(ReplayWrapper):
        """A wrapper that calls a function when a batch is reduced."""

        def __init__(self, inner, call):
            super().__init__(inner)
            self.call = call

        def reduce(self, window):
            self.call()
            return self.inner.reduce(window)

    buffer = ReplayBuffer(12, FLAT, num_envs=2, seed=0)
    writer = buffer.writer(0)
    writer.extend(**stretch(3))
    for call in (lambda: buffer.writer(1), writer.close, lambda: writer.add(**step(0)), writer.end_episode):
        with unchanged(buffer, RuntimeError, "a batch is being made"):
            Meddling(buffer, call).sample(2)
    writer.add(**step(0))
    buffer.writer(1)


# -- Recording ---------------------------------------------------------------------------------------------------


def cart_poles(lanes):
    """CartPole, once or as a vector environment, and a buffer with four lanes."""
    gymnasium = pytest.importorskip("gymnasium")
    env = gymnasium.make("CartPole-v1") if lanes is None else gymnasium.make_vec("CartPole-v1", num_envs=lanes)
    return env, ReplayBuffer(400, Spec.from_env(env), num_envs=4, seed=0)


def assert_joined(buffer, lane):
    """In a lane, each step begins where the previous one ended, unless an episode ended there."""
    stored = buffer.stored()
    own = stored[stored % 4 == lane]
    obs, next_obs = buffer.read(own, "obs"), buffer.read(own, "next_obs")
    ends = buffer.read(own, "terminated") | buffer.read(own, "truncated")
    joined = (obs[1:] == next_obs[:-1]).all(axis=1)
    assert (joined | ends[:-1]).all()
    assert (np.diff(buffer.episode(own)[0]) > 0).tolist() == ends[:-1].tolist()
    return len(own)


@pytest.mark.parametrize("wrapped", [False, True])
def test_each_writer_has_a_recorder_of_its_own(wrapped):
    """Each writer can have a recorder. Environments are stepped at different speeds, and each fills its lane."""
    env, buffer = cart_poles(None)
    replay = CombinedReplay(buffer) if wrapped else buffer
    first, second = record(env, replay.writer(1)), record(cart_poles(None)[0], replay.writer([3]))
    for recorder in (first, second):
        recorder.reset(seed=3)
    for number in range(60):
        for recorder in (first, second)[: 1 + (number % 3 == 0)]:
            *_, terminated, truncated, _ = recorder.step(number % 2)
            if terminated or truncated:
                recorder.reset()
    assert [assert_joined(buffer, lane) for lane in (1, 3)] == [60, 20]
    assert len(buffer) == 80
    buffer.check()


@pytest.mark.parametrize("lanes", [[0, 2], [1], [0, 1, 2, 3]])
def test_a_vector_environment_is_recorded_into_the_lanes_of_a_writer(lanes):
    """A vector of one environment also works. The dummy steps of its resets are not stored."""
    env, buffer = cart_poles(len(lanes))
    recorder = record(env, buffer.writer(lanes))
    recorder.reset(seed=1)
    dummies = 0
    for number in range(70):
        _, reward, *_ = recorder.step(np.full(len(lanes), number % 2))
        dummies += int((reward == 0.0).sum())
    assert sum(assert_joined(buffer, lane) for lane in lanes) == 70 * len(lanes) - dummies == len(buffer)
    assert dummies
    buffer.check()


def test_a_new_recorder_takes_over_its_writer_alone():
    """The previous recorder of the writer raises an error. The recorder of another writer continues."""
    env, buffer = cart_poles(None)
    writer = buffer.writer(0)
    former, other = record(env, writer), record(cart_poles(None)[0], buffer.writer(1))
    for recorder in (former, other):
        recorder.reset(seed=0)
        recorder.step(0)
    newer = record(cart_poles(None)[0], writer)
    newer.reset(seed=0)
    newer.step(0)
    other.step(0)
    with pytest.raises(RuntimeError, match="taken over"):
        former.step(0)
    writer.close()
    with pytest.raises(RuntimeError, match="closed"):
        newer.step(0)


def test_a_writer_may_extend_by_nothing():
    """A writer can extend by zero steps, as a buffer can."""
    buffer = ReplayBuffer(40, FLAT, num_envs=4)
    with buffer.writer([0, 2]) as several, buffer.writer(1) as one:
        assert several.extend(**{name: value[:0] for name, value in stretch(1, 2).items()}).shape == (0, 2)
        assert one.extend(**stretch(0)).shape == (0,)
    assert not len(buffer)
