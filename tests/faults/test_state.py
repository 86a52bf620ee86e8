"""State and randomness: seeds, global generators, copies and forks."""

import copy
import os
import pickle
import random

import numpy as np
import pytest

from replaykit.testing import bits_of
from tests.faults.stacks import STACKS, every_stack, full
from tests.helpers import arrays_of

every_copy = pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r))], ids=["deepcopy", "pickle"]
)


def train(replay, stack, steps=5):
    """The batches of some steps of a training loop, in bits."""
    batches = []
    for number in range(steps):
        replay.add(**stack.steps(reward=np.float32(number)))
        batch = replay.sample(7)
        replay.update_priorities(batch.indices, np.arange(7.0) - 3.0)
        batches.append(bits_of(batch))
    return batches


def disturb_global_generators(seed):
    """Seed the global generators of Python, NumPy and torch, and draw from them."""
    random.seed(seed)
    random.random()
    np.random.seed(seed)  # noqa: NPY002
    np.random.rand(3)  # noqa: NPY002


def global_generators():
    return random.getstate(), pickle.dumps(np.random.get_state())  # noqa: NPY002


@every_stack
def test_the_same_seed_gives_the_same_batches_whatever_the_global_generators_do(stack):
    """A buffer uses only its own random generator."""
    disturb_global_generators(0)
    one = train(full(stack), stack)
    disturb_global_generators(1)
    assert train(full(stack), stack) == one


@every_stack
def test_sampling_leaves_the_global_generators_alone(stack):
    """A buffer neither draws from the global generators of Python and NumPy nor seeds them."""
    disturb_global_generators(0)
    before = global_generators()
    train(full(stack), stack)
    assert global_generators() == before


def test_sampling_leaves_the_generator_of_torch_alone():
    """`sample` and `to_torch` do not draw from the generator of torch."""
    torch = pytest.importorskip("torch")
    before = torch.get_rng_state()
    full(STACKS["prioritized"]).sample(5).to_torch()
    assert torch.equal(torch.get_rng_state(), before)


@every_stack
@every_copy
def test_a_copy_continues_with_the_same_draws(stack, copied):
    """A deepcopy and a pickle include the state of the generator, the priorities and the counters."""
    replay = full(stack)
    train(replay, stack)
    twin = copied(replay)
    assert train(replay, stack) == train(twin, stack)
    assert replay.stats() == twin.stats()


@every_stack
@every_copy
def test_a_copy_is_independent(stack, copied):
    """Changes of the original do not affect a copy. They share neither data nor random numbers."""
    replay = full(stack)
    twin, other = copied(replay), copied(replay)
    train(replay, stack, steps=20)
    replay.clear()
    assert train(twin, stack) == train(other, stack)
    for one, two in zip(arrays_of(twin.sample(3)).values(), arrays_of(other.sample(3)).values(), strict=True):
        assert not np.shares_memory(one, two)


@every_stack
def test_workers_seeded_by_spawn_differ(stack):
    """Buffers seeded from one SeedSequence draw different batches, which are the same in every run."""
    draws = []
    for _ in range(2):
        for seed in np.random.SeedSequence(0).spawn(3):
            replay = stack.make(50, stack.spec, seed=seed)
            replay.extend(**stack.steps((50,)))
            draws.append(replay.draw(30).indices.tolist())
    assert draws[:3] == draws[3:]
    if stack is not STACKS["latest"]:  # which draws nothing at random
        assert len({tuple(draw) for draw in draws}) == 3


def test_an_unseeded_buffer_differs_every_time():
    """Two buffers without a seed draw different batches."""
    stack = STACKS["uniform"]
    draws = []
    for _ in range(2):
        replay = stack.make(50, stack.spec)
        replay.extend(**stack.steps((50,)))
        draws.append(replay.draw(30).indices.tolist())
    assert draws[0] != draws[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_copy_is_a_copy_with_the_same_draws():
    """A forked process has a copy of the buffer that draws the same batches. The parent's buffer does not change."""
    stack = STACKS["prioritized"]
    replay = full(stack)
    before = pickle.dumps(replay)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writing, pickle.dumps(train(replay, stack)))
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        theirs = pickle.loads(pipe.read())
    os.waitpid(child, 0)
    assert pickle.dumps(replay) == before
    assert train(replay, stack) == theirs


def test_forked_copies_are_documented():
    """The guide to threads and processes describes what a fork copies."""
    guide = os.path.join(os.path.dirname(__file__), "..", "..", "docs", "how-to", "threads-and-processes.rst")
    with open(guide, encoding="utf-8") as file:
        assert "fork" in file.read()
