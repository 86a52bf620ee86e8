"""Ctrl-C at any bytecode: no row is torn, no overwritten index is drawn, and every invariant holds."""

import copy
import functools
import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import settings

from replaykit import Field
from replaykit.testing import SPECS, Configuration, Relabelling, build, values_of
from tests.helpers import interrupted_at, leaves_of, map_leaves

STRIDE = max(1, 2900 // settings().max_examples)
"""One bytecode in so many is interrupted; every one in the profile `deep`."""

UNIFORM = Configuration(
    kind="uniform", spec="flat", capacity=7, num_envs=1, n_step=3, gamma=0.9, stack=1, padding="reset", share="large",
    alpha=0.6, beta=0.4, eps=1e-2, draws="stratified", weights="buffer", combined=(), hindsight=None, seed=0,
)  # fmt: skip
PRIORITIZED = replace(UNIFORM, kind="prioritized")
INSIDE = Relabelling("future", 0.5, terminates=True, is_outermost=False)
OUTSIDE = Relabelling("episode", 0.5, terminates=False, is_outermost=True)
STACKS = {
    "uniform": UNIFORM,
    "without replacement": replace(UNIFORM, replace=False, n_step=1),
    "prioritized": PRIORITIZED,
    "rank": replace(UNIFORM, kind="rank", capacity=40),
    "rank of lanes": replace(UNIFORM, kind="rank", num_envs=3, capacity=9),
    "latest": replace(UNIFORM, kind="latest", num_envs=2, capacity=8),
    "lanes": replace(PRIORITIZED, num_envs=3, capacity=9),
    "lanes in step": replace(PRIORITIZED, num_envs=2, capacity=8),
    "shared frames": replace(PRIORITIZED, spec="frames", share="all", stack=3, padding="zero"),
    "frames of lanes": replace(UNIFORM, spec="frames", share="none", stack=2, num_envs=2, capacity=8, n_step=1),
    "stacked frames": replace(UNIFORM, spec="stacked"),
    "nested": replace(UNIFORM, spec="nested", num_envs=2, capacity=8),
    "large": replace(PRIORITIZED, spec="large"),
    "combined": replace(PRIORITIZED, combined=(1,)),
    "hindsight": replace(UNIFORM, spec="goal", hindsight=INSIDE),
    "combined hindsight": replace(PRIORITIZED, spec="goal", num_envs=2, capacity=8, combined=(2,), hindsight=INSIDE),
    "hindsight of combined": replace(PRIORITIZED, spec="goal", combined=(1,), hindsight=OUTSIDE),
}
CALLS = {
    "add": {"count": 1, "is_single": True},
    "add with a mask": {"count": 1, "is_single": True, "is_masked": True},
    "add with a TD error": {"count": 1, "is_single": True, "error": 9.0},
    "extend": {"count": 3},
    "extend past the ring": {"count": 10, "error": 9.0},
    "extend with a mask": {"count": 4, "is_masked": True},
    "sample": None,
    "update": None,
    "end_episode": None,
    "clear": None,
}


# -- A stream of steps in which every value shows the index --------------------------------------------------------


@functools.cache
def fields_of(spec, num_envs, index):
    """The step with this index. Episodes have five steps. Each step begins at the previous observation."""
    lane, step = index % num_envs, index // num_envs
    episode, place = divmod(step + lane, 5)
    moment = 100 * lane + step + episode  # of the observation: an episode has one more of these than steps
    fields = {name: values_of(SPECS[spec][name], 3 * index + 1) for name in SPECS[spec]}
    fields["obs"], fields["next_obs"] = (
        map_leaves(lambda field, at=at: observation(field, at), SPECS[spec]["obs"]) for at in (moment, moment + 1)
    )
    fields["terminated"], fields["truncated"] = np.bool_(place == 4 and step % 2), np.bool_(place == 4 and not step % 2)
    return fields


def observation(field, moment):
    """An observation. A stack overlaps with that of the next step."""
    if len(field.shape) < 3:
        return values_of(field, 3 * moment)
    return np.stack([values_of(Field(field.shape[1:], field.dtype), 3 * (moment + k)) for k in range(field.shape[0])])


@functools.cache
def arguments(spec, num_envs, indices, lead):
    """The arguments of a call that stores these steps."""
    steps = [fields_of(spec, num_envs, index) for index in indices]
    return {
        name: map_leaves(lambda *leaves: np.array(leaves).reshape(lead + leaves[0].shape), *[s[name] for s in steps])
        for name in steps[0]
    }


class Stream:
    """A replay and its model, which get the same steps. Lanes have different lengths unless they are `in_step`."""

    def __init__(self, configuration, in_step=False):
        self.spec, self.in_step = configuration.spec, in_step
        self.replay, self.model = build(configuration)
        self.lanes, self.length = self.model.num_envs, self.model.length
        self.batch_size = 3 + sum(configuration.combined)
        self.fresh: list[int] = []  # steps that were stored since priorities were set

    def refill(self):
        """Fill the ring more than once, change priorities, sample, end an episode, and leave some work postponed."""
        self.write(self.length + 2)
        if self.lanes > 1 and not self.in_step:
            self.write(1, is_masked=True)
        self.prioritize()
        self.sample()
        self.replay.end_episode()
        self.model.end_episode(list(range(self.lanes)))
        self.write(2)

    def write(self, *options, **more):
        """Store steps in the replay and in the model."""
        call, written, scaled = self.writing(*options, **more)
        call()
        self.note(written, scaled)

    def writing(self, count, mask=None, error=None, is_single=False, is_masked=False):
        """A function that stores `count` steps of each lane or of those in a mask, their indices and priorities."""
        lead = (() if is_single else (count,)) + ((self.lanes,) if self.lanes > 1 else ())
        if is_masked:
            mask = (np.arange(count * self.lanes) % 3 != 1).reshape(count, self.lanes)
        chosen = np.ones((count, self.lanes), np.bool_) if mask is None else mask
        before = np.cumsum(chosen, axis=0) - chosen
        indices = (np.array(self.model.added) + before) * self.lanes + np.arange(self.lanes)
        values = arguments(self.spec, self.lanes, tuple(indices.reshape(-1).tolist()), lead)
        options = {} if mask is None else {"mask": mask.reshape(lead or (1,))}
        if error is not None:
            options["td_error"] = np.full(lead, error)
        function = self.replay.add if is_single else self.replay.extend
        scaled = None if error is None else self.model.scaled(error)
        return lambda: function(**values, **options), indices[chosen].tolist(), scaled

    def note(self, written, scaled=None):
        """Store these steps in the model."""
        for index in written:
            initial = self.model.initial() if scaled is None else scaled
            assert self.model.add(index % self.lanes, fields_of(self.spec, self.lanes, index), initial) == index
            self.fresh.append(index)

    def prioritize(self):
        """Give all stored steps new priorities, including a 0."""
        indices = [step.index for step in self.model.steps]
        priorities = (np.arange(len(indices)) * 3 + 1) % 7 * 1.0
        self.replay.update_priorities(indices, priorities=priorities)
        self.model.update(indices, [float(value**self.model.alpha) for value in priorities])
        self.fresh.clear()

    def sample(self):
        """Sample a batch, and compare it with the model's batch from the same random numbers."""
        numbers = copy.deepcopy(self.replay.rng)
        batch = self.replay.sample(self.batch_size)
        self.model.assert_drawn(batch.indices, self.batch_size, numbers)
        self.model.assert_batch(batch, self.batch_size, numbers)


# -- Interrupts ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def elsewhere():
    """Run a call in another thread."""
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("stack", STACKS)
def test_an_interrupt_anywhere_leaves_a_whole_buffer(stack, name, elsewhere):
    """After an interrupt, steps are stored completely or not at all, and the buffer still works."""
    in_step = stack == "lanes in step"
    renewed, start = 1 if in_step else 50, 1 + sum(map(ord, stack + name)) % STRIDE
    stream, places = Stream(STACKS[stack], in_step), []
    stream.refill()
    prepare(stream, name)[0]()  # kernels compile
    for turn in itertools.count():
        if turn % renewed == 0:
            stream = Stream(STACKS[stack], in_step)
        try:
            stream.refill()
            interrupt(stream, name, start + turn * STRIDE, elsewhere, places)
            if turn % renewed == renewed - 1:
                assert_holds(stream.replay, stream.model)
                stream.refill()
                assert_holds(stream.replay, stream.model)
        except Exception as error:
            raise AssertionError(f"after interrupts at {places[-2:]}") from error
        if places[-1] is None:
            break


def interrupt(stream, name, at, elsewhere, places):
    """Interrupt a call, compare the result with the model, and finish the call."""
    replay = stream.replay
    numbers, bounds, batches = copy.deepcopy(replay.rng), replay.bounds.copy(), replay.stats()["batches"]
    call, written, models = prepare(stream, name)
    places.append(interrupted_at(call, at))
    assert elsewhere.submit(is_free, replay.lock).result(), "the lock is held"
    assert not replay.lock.sampling or places[-1].line == "lock.sampling = outer", "a batch counts as being made"
    done = assert_bounds(stream, bounds, written)
    stream.model = assert_holds_one_of(replay, models(done))
    if name == "sample" and replay.may_raise and replay.stats()["batches"] == batches:
        assert replay.rng.bit_generator.state == numbers.bit_generator.state, "random numbers are lost"
    finish(stream, name, written[done:])


def prepare(stream, name):
    """The call, the indices that it stores, and the models of the possible results."""
    replay, before = stream.replay, stream.model
    if CALLS[name] is not None:
        call, written, scaled = stream.writing(**CALLS[name])
        return call, written, lambda done: models_of_writing(stream, written[:done], scaled)
    if name == "sample":
        return lambda: replay.sample(stream.batch_size), [], lambda _: [before]
    after = copied(before)
    if name == "update":
        indices = [*(step.index for step in reversed(before.steps)), 0, before.steps[0].index]
        priorities = np.arange(len(indices)) % 4 * 1.0
        after.update(indices, [float(value**before.alpha) for value in priorities])
        return lambda: replay.update_priorities(indices, priorities=priorities), [], lambda _: [before, after]
    if name == "clear":
        after.clear()
        return replay.clear, [], lambda _: [before, after]
    after.end_episode(list(range(stream.lanes)))
    return replay.end_episode, [], lambda _: [before, after]


def models_of_writing(stream, written, scaled):
    """The models after these steps were stored, for each priority that they may have.

    Steps whose priority has never been set have the largest, which may be gone early, as the oldest steps may.
    """
    stream.note(written)
    model, stored = stream.model, set(stream.replay.stored().tolist())
    model.steps = [step for step in model.steps if step.index in stored]
    largest = max((step.scaled for step in model.steps if step.index not in stream.fresh), default=0.0) or 1.0
    models = [model]
    for value, indices in ((scaled, written), (largest, stream.fresh)):
        if value is not None:
            models.append(copy.copy(model))
            models[-1].steps = [replace(s, scaled=value) if s.index in indices else s for s in model.steps]
    return models


def assert_bounds(stream, before, written):
    """Check that the first written steps are stored, and that no other step is missing. Returns their number."""
    bounds, counts = stream.replay.bounds, np.bincount(np.array(written, int) % stream.lanes, minlength=stream.lanes)
    is_stored = [index // stream.lanes < bounds[1, index % stream.lanes] for index in written]
    done = sum(is_stored)
    assert is_stored == [True] * done + [False] * (len(written) - done), "steps are stored in another order"
    assert bounds[1].sum() == before[1].sum() + done, "other steps are stored"
    assert (bounds[0] >= before[0]).all(), "steps have come back"
    if written:
        assert (bounds[0] <= np.maximum(before[0], before[1] + counts - stream.length)).all(), "too many are gone"
    return done


def assert_holds_one_of(replay, models):
    """Check that the replay equals one of the models. Returns that model."""
    first, *others = models
    try:
        assert_holds(replay, first)
    except AssertionError:
        if not others:
            raise
        return assert_holds_one_of(replay, others)
    return first


def assert_holds(replay, model):
    """Check that stored steps, windows, episodes and probabilities are those of the model."""
    replay.check()
    steps = sorted(model.steps, key=lambda step: (step.lane, step.index))
    indices = np.array([step.index for step in steps], np.int64)
    assert replay.stored().tolist() == indices.tolist()
    if not steps:
        return
    assert replay.latest(3).tolist() == model.newest(3)
    stored = {leaf.name: replay.read(indices, leaf.name) for leaf in replay.spec.leaves}
    assert_equal(stored, [step.fields for step in steps])
    buffer = replay
    while hasattr(buffer, "inner"):
        buffer = buffer.inner
    windows = [model.reduced(model.window(step.index)) for step in steps]
    assert_equal(dict(leaves_of(buffer.fetch(indices))), windows)
    assert replay.episode(indices)[1].tolist() == [step.start for step in steps]
    batch_size = 1 + sum(model.combined)
    shares, got = model.shares(batch_size), replay.probability(indices, batch_size)
    expected = np.array([shares[step.index] for step in steps])
    assert np.allclose(got, expected, rtol=1e-9, atol=0.0), f"probabilities are {got}; expected {expected}"
    assert abs(got.sum() - 1.0) < 1e-9 or not any(step.scaled for step in steps)


def assert_equal(values, expected):
    """Compare the leaves of several steps bit for bit."""
    leaves = [dict(leaves_of(fields)) for fields in expected]
    for name, array in values.items():
        wanted = np.array([fields[name] for fields in leaves], array.dtype)
        assert array.tobytes() == wanted.tobytes(), f"{name} is {array}; expected {wanted}"


def copied(model):
    """An independent copy of a model."""
    model = copy.copy(model)
    model.steps, model.begins = [copy.copy(step) for step in model.steps], list(model.begins)
    return model


def is_free(lock):
    """Whether this thread can acquire the lock."""
    taken = lock.acquire(blocking=False)
    if taken:
        lock.release()
    return taken


def finish(stream, name, missing):
    """Finish an interrupted call after another step, or repeat it."""
    if missing:
        stream.write(1)
        counts = np.bincount(np.array(missing) % stream.lanes, minlength=stream.lanes)
        stream.write(int(counts.max()), mask=np.arange(counts.max())[:, None] < counts)
    elif CALLS[name] is None:
        call, _, models = prepare(stream, name)
        call()
        stream.model = models(0)[-1]
