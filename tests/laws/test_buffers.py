"""Laws of every buffer: identities, copies, seeds, and fast paths that give the same bits as the verbs."""

import copy
import dataclasses
import pickle
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replaykit import Field, LatestBuffer, PrioritizedBuffer, Replay, ReplayBuffer, Spec
from replaykit.testing import bits_of, build, configurations, values_of
from tests.helpers import FLAT, StepByStep, arrays_of, every_buffer, filled, stacked_lanes, step, stretch


@given(
    steps=st.integers(1, 30),
    lanes=st.integers(1, 3),
    capacity=st.integers(1, 20),
    ends=st.lists(st.integers(0, 29), max_size=8),
)
@settings(max_examples=50)
def test_adds_one_by_one_equal_an_extend(steps, lanes, capacity, ends):
    """`extend` by T steps stores the same as T calls of `add`, and the next batches have the same bits."""
    made = []
    values = stretch(steps, lanes)
    for end in ends:
        values["terminated"][end % steps] = True
    for whole in (True, False):
        buffer = PrioritizedBuffer(capacity, FLAT, num_envs=lanes, n_step=3, seed=5)
        if whole:
            indices = buffer.extend(**values)
        else:
            indices = np.stack([buffer.add(**{name: value[t] for name, value in values.items()}) for t in range(steps)])
        made.append((indices.reshape(steps, lanes).tolist(), bits_of(buffer.sample(16))))
    assert made[0] == made[1]


def test_alpha_zero_is_uniform_replay_bit_for_bit():
    """With independent draws and alpha = 0, PER returns the same batches as a uniform buffer."""
    uniform = filled(ReplayBuffer(13, FLAT, n_step=2, seed=3), 29)
    per = filled(PrioritizedBuffer(13, FLAT, n_step=2, seed=3, alpha=0.0, draws="iid"), 29)
    per.update_priorities(np.arange(20, 29), np.linspace(0, 5, 9))
    for _ in range(20):
        assert bits_of(uniform.sample(32)) == bits_of(per.sample(32))


def test_one_step_windows_are_the_transitions_as_stored():
    """With n_step=1, a batch has the stored transitions, with a discount."""
    buffer = filled(ReplayBuffer(20, FLAT, seed=0), 20)
    longer = filled(ReplayBuffer(20, FLAT, n_step=2, seed=0), 20)
    batch, other = buffer.sample(50), longer.sample(50)
    np.testing.assert_array_equal(batch.reward, batch.indices)
    np.testing.assert_array_equal(batch.next_obs[:, 0], batch.indices + 0.5)
    np.testing.assert_array_equal(batch.obs, other.obs)


@pytest.mark.parametrize("make", [ReplayBuffer, PrioritizedBuffer, LatestBuffer])
def test_one_step_one_lane_and_one_frame_are_identities(make):
    """n_step=1, num_envs=1 and stack=1 change nothing. Gamma does not change the reward of one step."""
    spec = Spec(obs=Field((3, 5), np.uint8), action=Field(()))
    batches = []
    for options in ({}, {"n_step": 1, "num_envs": 1, "stack": 1, "padding": "zero"}, {"share": "all"}):
        buffer = make(9, spec, seed=1, **options)
        for i in range(20):
            buffer.add(np.full((3, 5), i), 0.0, float(i), np.full((3, 5), i + 1), i % 6 == 5, False)
        batches.append(bits_of(buffer.sample(7)))
    assert batches[0] == batches[1] == batches[2]


@every_buffer
def test_same_seed_same_bits_whatever_the_global_generators_do(make):
    """A buffer uses only its own generator, and does not change the global generators."""
    one, two = filled(make(9, FLAT, seed=4), 9), filled(make(9, FLAT, seed=4), 9)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    state = random.getstate(), pickle.dumps(np.random.get_state())  # noqa: NPY002
    first = [bits_of(one.sample(8)) for _ in range(5)]
    assert (random.getstate(), pickle.dumps(np.random.get_state())) == state  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    assert first == [bits_of(two.sample(8)) for _ in range(5)]


def test_spawned_seeds_differ():
    """Workers seeded from one SeedSequence draw different batches."""
    seeds = np.random.SeedSequence(0).spawn(2)
    one, two = (filled(ReplayBuffer(99, FLAT, seed=seed), 99).sample(20).indices.tolist() for seed in seeds)
    assert one != two


@every_buffer
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))], ids=["deepcopy", "pickle"])
def test_copies_go_on_alone_with_the_same_draws(make, copied):
    """A copy draws the same batches as the original would, and the two are independent."""
    buffer = filled(make(7, FLAT, n_step=2, seed=0), 5)
    buffer.sample(3)
    twin = copied(buffer)
    for number in range(5):
        assert buffer.add(**step(number)) == twin.add(**step(number))
        batch, other = buffer.sample(4), twin.sample(4)
        assert bits_of(batch) == bits_of(other)
        buffer.update_priorities(batch.indices, np.arange(4.0))
        twin.update_priorities(other.indices, np.arange(4.0))
    before = pickle.dumps(twin)
    filled(buffer, 20).sample(4)
    assert pickle.dumps(twin) == before
    twin.check()


@every_buffer
def test_batches_are_fresh(make):
    """Changing a batch affects neither the buffer nor another batch."""
    buffer = filled(make(6, FLAT, seed=0), 6)
    one = buffer.sample(5)
    two = buffer.sample(5)
    kept = bits_of(two)
    for array in arrays_of(one).values():
        array[...] = 0
    assert bits_of(two) == kept
    buffer.check()


@every_buffer
def test_every_buffer_speaks_the_same_language(make):
    """An agent's code is the same for every buffer."""
    buffer = filled(make(8, FLAT, seed=0), 8)
    assert isinstance(buffer, Replay)
    batch = buffer.sample(4)
    target = batch.reward + batch.discount * np.ones(4)
    assert isinstance(buffer.update_priorities(batch.indices, target), int)
    assert batch.weights.dtype == np.float32
    assert batch.weights.shape == batch.probabilities.shape == batch.indices.shape == batch.discount.shape == (4,)
    assert all(isinstance(value, float) for value in buffer.stats().values())
    assert "8 of 8" in repr(buffer)
    assert buffer.nbytes > 0
    assert (buffer.spec, buffer.capacity, buffer.num_envs, buffer.n_step, buffer.gamma) == (FLAT, 8, 1, 1, 0.99)


@given(configuration=configurations(), steps=st.integers(1, 40), masked=st.booleans(), batch_size=st.integers(1, 150))
def test_a_batch_made_at_once_is_the_one_made_step_by_step(configuration, steps, masked, batch_size):
    """The fast paths give the bits of the verbs, for every buffer, spec, n_step and number of lanes."""
    configuration = dataclasses.replace(configuration, combined=(), hindsight=None)
    (fast, _), (slow, _) = build(configuration), build(configuration)
    lanes = configuration.num_envs
    rng = np.random.default_rng(configuration.seed)
    for number in range(steps):
        values = {name: [values_of(fast.spec[name], number + e) for e in range(lanes)] for name in fast.spec}
        values["terminated"], values["truncated"] = rng.random((2, lanes)) < 0.2
        mask = rng.random(lanes) < 0.7 if masked else None
        stacked = {name: stacked_lanes(values[name], lanes) for name in values}
        for replay in (fast, slow):
            replay.add(**stacked, mask=mask)
    slow = StepByStep(slow)
    if len(fast):
        for _ in range(3):
            assert bits_of(fast.sample(batch_size)) == bits_of(slow.sample(batch_size))


@pytest.mark.filterwarnings("ignore:overflow")  # without compilation, NumPy says so
def test_a_return_beyond_float32_is_infinite_either_way():
    """It is infinite in the fast path and with the verbs."""
    for wrap in (lambda b: b, StepByStep):
        buffer = ReplayBuffer(9, FLAT, n_step=3, gamma=1.0, seed=0)
        for _ in range(5):
            buffer.add(**step(3e38))
        batch = wrap(buffer).sample(30)
        assert (np.isinf(batch.reward) == (batch.length > 1)).all()
