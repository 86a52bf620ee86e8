"""The lock: threads see a buffer at one moment, forked children have a free lock, and sampling does not write."""

import copy
import os
import pickle
import sys
import threading
import time

import numpy as np
import pytest

from replaykit import (
    Buffer,
    CombinedReplay,
    Field,
    HindsightReplay,
    LatestBuffer,
    PrioritizedBuffer,
    ReplayBuffer,
    ReplayWrapper,
    Spec,
)
from replaykit.distributions import Proportional, Uniform
from replaykit.storage import LocalStorage
from replaykit.testing import bits_of
from tests.helpers import FLAT, GOAL_SPEC, filled, goal_episodes, reached, run_in_child, sparse, state, step, stretch
from tests.laws.third_party import ListStorage

# -- Writing in the middle of a sample -----------------------------------------------------------------------------

WRITES = {
    "add": lambda b: b.add(**step(0)),
    "add with a TD error": lambda b: b.add(**step(0), td_error=1.0),
    "extend": lambda b: b.extend(**stretch(2)),
    "clear": lambda b: b.clear(),
    "end_episode": lambda b: b.end_episode(),
    "update_priorities": lambda b: b.update_priorities([3], [1.0]),
}


class Meddling(ReplayWrapper):
    """A wrapper that calls a function of the replay in one of its verbs."""

    def __init__(self, inner, verb, call):
        super().__init__(inner)
        self.verb, self.call = verb, call

    def meddle(self, verb):
        if verb == self.verb:
            self.call(self)

    def draw(self, batch_size):
        self.meddle("draw")
        return self.inner.draw(batch_size)

    def probability(self, indices, batch_size=1):
        return self.inner.probability(indices, batch_size)

    def change(self, window):
        self.meddle("change")
        return window

    def reduce(self, window):
        self.meddle("reduce")
        return self.inner.reduce(window)

    def weigh(self, draw):
        self.meddle("weigh")
        return self.inner.weigh(draw)


def state_of(replay):
    """All stored data, the counters and the generator. Postponed priorities are settled, as sampling does."""
    replay.stats()
    return pickle.dumps([part.copied_state() for name, part in replay.parts().items() if "Meddling" not in name])


@pytest.mark.parametrize("verb", ["draw", "change", "reduce", "weigh"])
@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("make", [PrioritizedBuffer, ReplayBuffer, "lists"])
def test_a_wrapper_cannot_write_in_the_middle_of_a_sample(make, name, verb):
    """Writing during a sample raises an error. The buffer is unchanged, and the next batch is the same."""
    if make == "lists":
        storage = ListStorage(9, FLAT)
        buffer = Buffer(storage, Proportional(storage), seed=0)
    else:
        buffer = make(9, FLAT, seed=0)
    filled(buffer, 12)
    buffer.sample(2)
    expected = bits_of(pickle.loads(pickle.dumps(buffer)).sample(8))
    for replay in (Meddling(buffer, verb, WRITES[name]), CombinedReplay(Meddling(buffer, verb, WRITES[name]))):
        before = state_of(replay)
        with pytest.raises(RuntimeError, match=r"a batch is being made.*write before or after sample\(\)"):
            replay.sample(8)
        assert state_of(replay) == before
    assert bits_of(buffer.sample(8)) == expected
    WRITES[name](buffer)


@pytest.mark.parametrize("name", ["reward_fn", "terminated_fn"])
@pytest.mark.parametrize("call", ["add", "clear", "end_episode", "update_priorities"])
def test_a_function_of_goals_cannot_write_in_the_middle_of_a_sample(name, call):
    """The error names the function, and has the original error as its cause."""

    def meddle(function):
        def meddling(achieved_goal, desired_goal, info):
            writes = {
                "add": lambda: inner.add(goal(0), 0, 0.0, goal(1), False, False),
                "clear": inner.clear,
                "end_episode": inner.end_episode,
                "update_priorities": lambda: inner.update_priorities([3], [1.0]),
            }
            writes[call]()
            return function(achieved_goal, desired_goal, info)

        return meddling

    inner = PrioritizedBuffer(9, GOAL_SPEC, n_step=2, seed=0)
    goal_episodes(inner, [7])
    functions = {"reward_fn": sparse, "terminated_fn": reached}
    functions[name] = meddle(functions[name])
    replay = HindsightReplay(inner, **functions, ratio=1.0)
    before = state_of(replay)
    with pytest.raises(RuntimeError, match=f"{name} .*raised RuntimeError: a batch is being made") as raised:
        replay.sample(8)
    assert isinstance(raised.value.__cause__, RuntimeError)
    assert state_of(replay) == before
    inner.add(goal(0), 0, 0.0, goal(1), False, False)


def goal(moment):
    """An observation with goals."""
    return {"achieved_goal": state(0, moment), "desired_goal": state(0, 9)}


def test_sampling_and_looking_in_the_middle_of_a_sample_is_allowed():
    """A sample inside a sample is allowed. Writing is refused until the outer sample is done."""
    found = []

    def look(replay):
        buffer = replay.inner
        found.append((len(buffer), buffer.sample(3).indices.tolist(), buffer.stats()["size"], buffer.read([8], "obs")))
        with pytest.raises(RuntimeError, match="a batch is being made"):
            buffer.add(**step(0))

    buffer = filled(ReplayBuffer(9, FLAT, seed=0), 12)
    Meddling(buffer, "reduce", look).sample(4)
    assert found[0][0] == 9
    buffer.add(**step(0))


def test_another_buffer_may_be_written_in_the_middle_of_a_sample():
    """During a sample, another buffer can be written to, because it has another lock."""
    other = ReplayBuffer(9, FLAT, seed=0)
    Meddling(filled(ReplayBuffer(9, FLAT, seed=0), 12), "reduce", lambda _: other.add(**step(0))).sample(4)
    assert len(other) == 1


def test_what_fails_in_a_wrapper_leaves_the_generator_as_it_was():
    """If any verb of a stack raises an error, the generator is unchanged."""

    def fail(_):
        raise KeyError("mine")

    buffer = filled(PrioritizedBuffer(9, FLAT, seed=0), 12)
    expected = bits_of(CombinedReplay(pickle.loads(pickle.dumps(buffer))).sample(8))
    for verb in ("draw", "change", "reduce", "weigh"):
        with pytest.raises(KeyError, match="mine"):
            CombinedReplay(Meddling(buffer, verb, fail)).sample(8)
        assert buffer.stats()["batches"] == 0.0
    assert bits_of(CombinedReplay(buffer).sample(8)) == expected


# -- Threads -------------------------------------------------------------------------------------------------------

STACKED = Spec(obs=Field((4, 17, 17), np.uint8), action=Field((), np.int64))
LARGE = Spec(obs=Field((2000,), np.float32), action=Field((), np.int64))
LITTLE = Spec(obs=Field((3,), np.float32), action=Field((), np.int64))


def run_together(*functions):
    """Run functions in threads that switch often, until the first has ended. Raises the first error."""
    errors, done = [], threading.Event()

    def run(function):
        try:
            function(done)
        except BaseException as error:
            errors.append(error)
        finally:
            done.set()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=run, args=(function,)) for function in functions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), "a thread hangs"
    finally:
        sys.setswitchinterval(interval)
    if errors:
        raise errors[0]


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        (LITTLE, {}),
        (LARGE, {"share": "none"}),
        (LARGE, {"share": "all"}),
        (STACKED, {}),
        (Spec(obs=Field((40, 40), np.uint8), action=Field((), np.int64)), {"stack": 3}),
        (LITTLE, {"num_envs": 3}),
    ],
    ids=["rows", "columns", "frames", "stacks given", "stacks made", "lanes"],
)
@pytest.mark.parametrize("make", [ReplayBuffer, PrioritizedBuffer, LatestBuffer])
def test_no_row_is_torn_while_another_thread_writes(make, spec, options):
    """While threads add, sample, update and read in a small ring, every row belongs to one step."""
    buffer = CombinedReplay(make(24, spec, seed=0, **options))
    lanes, shape, dtype = buffer.num_envs, spec["obs"].shape, spec["obs"].dtype
    lead = (lanes,) if lanes > 1 else ()
    stop = time.monotonic() + 0.25

    def values(number):
        obs, other = (np.full(lead + shape, (number + d) % 251, dtype) for d in (0, 1))
        return obs, np.full(lead, number)[()], np.full(lead, number % 251.0)[()], other, *[np.zeros(lead, bool)[()]] * 2

    buffer.add(*values(0))

    def write(_done):
        number = 1
        while time.monotonic() < stop:
            if number % 50 == 0 and lanes == 1:
                steps = [values(number + i) for i in range(7)]
                buffer.extend(*(np.array([one[i] for one in steps]) for i in range(6)))
                number += 6
            elif number % 97 == 0 and lanes > 1:
                buffer.add(*values(number), mask=np.arange(lanes) < 2)
            else:
                buffer.add(*values(number))
            number += 1

    def learn(done):
        while not done.is_set():
            batch = buffer.sample(16)
            rows = batch.obs.reshape(16, -1) if "stack" not in options else batch.obs[:, -1].reshape(16, -1)
            expected = batch.action % 251
            assert (rows == expected[:, None]).all(), "a torn row"
            assert (batch.reward == expected).all()
            newest = batch.next_obs if "stack" not in options else batch.next_obs[:, -1]
            assert (newest.reshape(16, -1) == ((batch.action + 1) % 251)[:, None]).all(), "a torn row"
            buffer.update_priorities(batch.indices, batch.reward + 1.0)

    def look(done):
        while not done.is_set():
            stored = buffer.latest(5)
            buffer.update_priorities(stored, np.ones(stored.size))
            assert buffer.stats()["size"] <= buffer.capacity
            assert (buffer.oldest <= buffer.newest).all()

    run_together(write, learn, look)
    buffer.check()


def test_a_sample_waits_for_a_writer_that_holds_the_lock():
    """Every public method waits for the lock, except the joins."""
    calls = [
        lambda b: b.sample(2), lambda b: b.add(**step(0)), lambda b: b.add(**step(0), td_error=1.0),
        lambda b: b.extend(**stretch(2)), lambda b: b.clear(), lambda b: b.end_episode(),
        lambda b: b.update_priorities([1], [1.0]), lambda b: b.draw(2), lambda b: b.check(),
        lambda b: b.probability([3]), lambda b: b.window(np.array([3])), lambda b: b.read([3], "obs"),
        lambda b: b.episode([3]), lambda b: b.latest(1), lambda b: b.stats(), lambda b: b.stored(), lambda b: b.oldest,
        lambda b: b.newest, len, lambda b: b.writer(0), lambda b: b.reseed(1), pickle.dumps, copy.deepcopy,
        lambda b: setattr(b, "beta", 0.5), lambda b: b.least_probability(2, np.array([3])),
    ]  # fmt: skip
    for number, call in enumerate(calls):
        buffer = filled(PrioritizedBuffer(9, FLAT, seed=0), 5)
        thread = threading.Thread(target=call, args=(buffer,))
        with buffer.lock:
            thread.start()
            thread.join(0.02)
            assert thread.is_alive(), f"call {number} did not wait"
        thread.join(10)
        assert not thread.is_alive()


def test_hindsight_gets_another_ratio_between_batches():
    """The ratio cannot change during a batch, which reads it several times."""
    replay = HindsightReplay(ReplayBuffer(9, GOAL_SPEC, seed=0), sparse, ratio=0.5)
    thread = threading.Thread(target=setattr, args=(replay, "ratio", 1.0))
    with replay.lock:
        thread.start()
        thread.join(0.02)
        assert replay.ratio == 0.5
    thread.join(10)
    assert replay.ratio == 1.0


# -- Forks and pickles ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
@pytest.mark.parametrize("is_sampling", [False, True])
def test_a_forked_child_has_a_free_lock(is_sampling, monkeypatch):
    """A forked child has a free lock, even if another thread of the parent holds it."""
    monkeypatch.setattr("replaykit.storage.lock._LONGEST_WAIT", 0.1)
    buffer = filled(PrioritizedBuffer(9, FLAT, seed=0), 5)
    held, release = threading.Event(), threading.Event()

    def hold(_replay=None):
        held.set()
        release.wait(30)

    def hold_lock():
        with buffer.lock:
            hold()

    target = (lambda: Meddling(buffer, "reduce", hold).sample(2)) if is_sampling else hold_lock
    holder = threading.Thread(target=target)
    holder.start()
    held.wait(30)

    def use():
        buffer.add(**step(7))
        assert len(buffer.sample(4).indices) == 4
        assert buffer.update_priorities([1], [2.0]) == 1

    try:
        run_in_child(use)
    finally:
        release.set()
        holder.join()
    assert len(buffer) == 5


def test_a_lock_is_not_pickled():
    """A copy has a free lock, even if it is made during a sample or while the lock is held."""
    copies = []
    buffer = filled(ReplayBuffer(9, FLAT, seed=0), 9)
    Meddling(buffer, "reduce", lambda replay: copies.append(pickle.loads(pickle.dumps(replay.inner)))).sample(4)
    with buffer.lock:
        copies.append(pickle.loads(pickle.dumps(buffer)))
    for twin in copies:
        assert not twin.lock.sampling
        twin.add(**step(3))
        thread = threading.Thread(target=twin.sample, args=(3,))
        thread.start()
        thread.join(10)
        assert not thread.is_alive()


def test_wrappers_share_the_lock_of_their_storage():
    """All wrappers share the lock of their storage, so their order does not matter to threads."""
    storage = LocalStorage(9, FLAT)
    buffer = Buffer(storage, Uniform(storage))
    assert CombinedReplay(CombinedReplay(buffer)).lock is buffer.lock is storage.lock
