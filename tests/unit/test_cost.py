"""The cost of a call apart from its data, counted instead of timed: Python calls and retained memory."""

import gc
import os
import pickle
import sys
import tracemalloc

import numpy as np
import pytest

from replaykit import Field, PrioritizedBuffer, ReplayBuffer, Spec

SPEC = Spec(obs=Field((4,)), action=Field((), np.int64))
OBS = np.ones(4, np.float32)
LANES = (np.ones((8, 4), np.float32), np.ones(8, np.int64), np.ones(8, np.float32), np.ones((8, 4), np.float32))
NONE = np.zeros(8, np.bool_)

pytestmark = pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="kernels are Python calls then")


def filled(make, **options):
    """A buffer of a thousand transitions, with every kernel compiled."""
    buffer = make(1024, SPEC, seed=0, **options)
    for _ in range(1024 // buffer.num_envs):
        if buffer.num_envs > 1:
            buffer.add(*LANES, NONE, NONE)
        else:
            buffer.add(OBS, 1, 1.0, OBS, False, False)
    batch = buffer.sample(32)
    buffer.update_priorities(batch.indices, np.ones(32))
    return buffer


def calls_of(function):
    """The number of functions that are called, of Python and of C, after everything has been compiled."""
    function()
    count = -2  # the function itself, and the end of counting

    def watch(_frame, event, _argument):
        nonlocal count
        count += event in ("call", "c_call")

    gc.disable()  # others' callbacks would count
    sys.setprofile(watch)
    try:
        function()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


CASES = {
    "add to a uniform buffer": (ReplayBuffer, {}, lambda b: b.add(OBS, 1, 1.0, OBS, False, False), 10),
    "add to a prioritized buffer": (PrioritizedBuffer, {}, lambda b: b.add(OBS, 1, 1.0, OBS, False, False), 10),
    "add of lanes": (ReplayBuffer, {"num_envs": 8}, lambda b: b.add(*LANES, NONE, NONE), 18),
    "uniform sample": (ReplayBuffer, {}, lambda b: b.sample(32), 16),
    "uniform sample of three steps": (ReplayBuffer, {"n_step": 3}, lambda b: b.sample(32), 32),
    "prioritized sample": (PrioritizedBuffer, {}, lambda b: b.sample(32), 22),
    "update": (PrioritizedBuffer, {}, lambda b: b.update_priorities(np.arange(32), NONE.repeat(4) * 1.0), 16),
}


@pytest.mark.parametrize("name", CASES)
def test_no_more_calls_than(name):
    """A batch of 32 makes a limited number of calls, because they take most of its time."""
    make, options, call, most = CASES[name]
    buffer = filled(make, **options)
    if np.__version__.startswith("1."):
        most *= 2  # there, NumPy is more in Python itself
    assert calls_of(lambda: call(buffer)) <= most


@pytest.mark.parametrize(("shape", "options"), [((84, 84), {"stack": 4}), ((4, 84, 84), {}), ((30, 30, 3), {})])
def test_an_add_of_frames_makes_few_calls(shape, options):
    """An add of frames makes as few calls as an add of a small row. One of them is the kernel."""
    spec = Spec(obs={"image": Field(shape, np.uint8), "speed": Field((3,))}, action=Field((), np.int64))
    buffer = ReplayBuffer(64, spec, **options)
    obs = {"image": np.ones(shape, np.uint8), "speed": np.ones(3, np.float32)}
    most = 23 if not np.__version__.startswith("1.") else 46
    assert calls_of(lambda: buffer.add(obs, 1, 1.0, obs, False, False)) <= most


def test_an_add_to_an_unpickled_buffer_makes_no_more_calls():
    """Unpickling makes new dtype objects. An add still compares dtypes as fast."""
    buffers = filled(ReplayBuffer), pickle.loads(pickle.dumps(filled(ReplayBuffer)))
    calls = [calls_of(lambda buffer=buffer: buffer.add(OBS, 1, 1.0, OBS, False, False)) for buffer in buffers]
    assert calls[0] == calls[1]


@pytest.mark.parametrize("make", [ReplayBuffer, PrioritizedBuffer])
def test_batches_leave_nothing_behind(make):
    """A thousand batches leave no memory behind."""
    buffer = filled(make)
    for _ in range(20):
        buffer.sample(32)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(1000):
        batch = buffer.sample(32)
        buffer.update_priorities(batch.indices, batch.reward)
    del batch
    gc.collect()
    assert tracemalloc.get_traced_memory()[0] - before < 10_000
    tracemalloc.stop()
