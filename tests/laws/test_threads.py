"""Threads that add, sample, update, read and copy: no torn row, no lost priority, no error, no deadlock."""

import copy
import os
import pickle
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from numba import config

from replaykit import (
    Buffer,
    CombinedReplay,
    HindsightReplay,
    PrioritizedBuffer,
    ReplayBuffer,
)
from replaykit.distributions import Proportional
from replaykit.storage import LocalStorage
from tests.helpers import FLAT, GOAL_SPEC, filled, goal_episodes, run_in_child, sparse, step
from tests.laws.streams import GAMMA, Stream, run_together

every_interval = pytest.mark.parametrize("interval", [1e-6, 1e-4])


class Priorities:
    """Priorities that one thread sets and remembers, of the indices whose step is this one modulo `threads`."""

    def __init__(self, replay, which=0, threads=1):
        self.replay, self.which, self.threads, self.last = replay, which, threads, {}

    def update(self, indices):
        """Give this thread's indices new priorities."""
        own = np.unique(indices[indices // self.replay.num_envs % self.threads == self.which])
        values = 1.0 + (own * 13 + len(self.last)) % 50
        applied = self.replay.update_priorities(own, priorities=values)
        assert 0 <= applied <= own.size
        self.last.update(zip(own.tolist(), values.tolist(), strict=True))

    def assert_kept(self):
        """Check that every index that is not stale has the last priority that was set."""
        stored = self.replay.stored()
        known = np.array([index for index in stored.tolist() if index in self.last], np.int64)
        assert known.size, "nothing that was updated is left"
        stats = self.replay.stats()
        total = stats["scaled_priority_mean"] * stats["size"]
        found = self.replay.probability(known) * total
        np.testing.assert_allclose(found, [self.last[index] for index in known.tolist()], rtol=1e-9)


def adder(replay, stream):
    """A function that adds the next step of every lane."""
    lanes = np.arange(stream.lanes)

    def add(number):
        values = stream.row(number) if stream.lanes == 1 else stream.rows(number * stream.lanes + lanes)
        indices = replay.add(**values)
        assert (indices == number * stream.lanes + lanes).all()

    return add


def sampler(replay, stream, *, batch_size=16, n=1, update=None):
    """A function that samples, checks every row, and updates the drawn transitions."""

    def sample(_number):
        batch = replay.sample(batch_size)
        stream.assert_whole(batch, n)
        if update is not None:
            update(batch.indices)

    return sample


# -- Threads on one buffer -----------------------------------------------------------------------------------------


@every_interval
@pytest.mark.parametrize("capacity", [1, 16, 1000])
def test_one_adds_and_one_samples(capacity, interval):
    """One thread adds and one samples uniformly, from a ring that wraps often and from one that fills."""
    stream = Stream()
    buffer = ReplayBuffer(capacity, stream.spec, gamma=GAMMA, seed=0)
    add = adder(buffer, stream)
    add(0)
    run_together(lambda number: add(number + 1), sampler(buffer, stream), interval=interval)
    buffer.check()


@every_interval
def test_no_priority_is_lost(interval):
    """Two learners sample and update their own indices while an actor adds. No priority is lost."""
    stream = Stream()
    buffer = PrioritizedBuffer(40, stream.spec, gamma=GAMMA, alpha=1.0, eps=0.0, seed=0)
    add = adder(buffer, stream)
    add(0)
    priorities = [Priorities(buffer, which, threads=2) for which in range(2)]
    learners = [sampler(buffer, stream, update=learner.update) for learner in priorities]
    run_together(lambda number: add(number + 1), *learners, interval=interval)
    for learner in priorities:
        learner.update(buffer.stored())  # the last that they know may be overwritten
        add(buffer.newest[0] + 1)
        learner.assert_kept()
    buffer.check()


@every_interval
@pytest.mark.parametrize(
    ("shape", "dtype", "options"),
    [
        ((600,), np.float32, {"share": "none"}),
        ((600,), np.float32, {"share": "all"}),
        ((36, 36), np.uint8, {"stack": 3}),
        ((4, 20, 20), np.uint8, {"share": "all"}),
    ],
    ids=["columns", "vectors kept once", "stacks made", "stacks given"],
)
def test_large_observations_are_whole(shape, dtype, options, interval):
    """Large observations are never torn, in columns and in frames that are shared and reused."""
    stream = Stream(1, shape, dtype)
    buffer = PrioritizedBuffer(24, stream.spec, gamma=GAMMA, seed=0, **options)
    add = adder(buffer, stream)
    add(0)
    learn = sampler(buffer, stream, update=lambda indices: buffer.update_priorities(indices, np.ones(indices.size)))
    run_together(lambda number: add(number + 1), learn, interval=interval, seconds=0.2)
    buffer.check()


@every_interval
def test_windows_goals_and_the_newest_are_of_one_moment(interval):
    """With three steps, hindsight and combined replay, goals are achieved later in the same episode."""
    buffer = PrioritizedBuffer(60, GOAL_SPEC, n_step=3, gamma=GAMMA, seed=0)
    replay = CombinedReplay(HindsightReplay(buffer, sparse, ratio=0.5), latest=2)

    def goal(moment):
        return {"achieved_goal": np.array([moment // 9, moment], np.float64), "desired_goal": np.full(2, -1.0)}

    def add(number):
        replay.add(goal(number), number, -1.0, goal(number + 1), False, number % 9 == 8)

    def learn(_number):
        batch = replay.sample(12)
        first, length = batch.indices, batch.length
        assert (batch.action == first).all()
        assert (batch.obs["achieved_goal"][:, 1] == first).all()
        assert (batch.next_obs["achieved_goal"][:, 1] == first + length).all()
        assert (first % 9 + length <= 9).all(), "a window crosses an episode's end"
        assert (batch.truncated == ((first + length) % 9 == 0)).all()
        assert (np.diff(batch.indices[-2:]) == 1).all(), "the newest are not of one moment"
        wanted, other = batch.obs["desired_goal"][:, 1], batch.relabelled
        assert (wanted[~other] == -1.0).all()
        assert (wanted > first)[other].all() and ((wanted - 1) // 9 == first // 9)[other].all()
        reached = (wanted[:, None] == first[:, None] + 1 + np.arange(3)) & (np.arange(3) < length[:, None])
        steps = np.arange(3) < length[:, None]
        np.testing.assert_allclose(batch.reward, ((reached - 1.0) * steps * GAMMA ** np.arange(3)).sum(axis=1), 1e-6)
        replay.update_priorities(batch.indices, batch.reward)

    for number in range(3):
        add(number)
    run_together(lambda number: add(number + 3), learn, learn, interval=interval)
    replay.check()


@every_interval
@pytest.mark.parametrize("make", [ReplayBuffer, PrioritizedBuffer])
def test_each_actor_writes_to_its_own_lanes(make, interval):
    """Writers add to their own lanes at different speeds, while two learners sample."""
    stream = Stream(4)
    buffer = make(80, stream.spec, num_envs=4, n_step=3, gamma=GAMMA, seed=0)

    def writing(lanes):
        writer = buffer.writer(lanes)

        def add(number):
            numbers = number * 4 + np.asarray(lanes)
            assert (writer.add(**stream.rows(numbers)) == numbers).all()

        return add

    def stretching(lane):
        writer = buffer.writer(lane)

        def extend(number):
            numbers = np.arange(5 * number, 5 * number + 5) * 4 + lane
            assert (writer.extend(**stream.rows(numbers)) == numbers).all()
            time.sleep(0.0002)

        return extend

    first, second, third = writing([0, 2]), writing([1]), stretching(3)
    first(0)
    learn = sampler(buffer, stream, n=3, update=lambda indices: buffer.update_priorities(indices, np.ones(16)))
    run_together(lambda number: first(number + 1), second, third, learn, learn, interval=interval)
    buffer.check()
    assert (buffer.newest % 4 == np.arange(4)).all()


def joined(capacity, spec, **options):
    """A buffer built from a storage and a distribution."""
    storage = LocalStorage(capacity, spec)
    return Buffer(storage, Proportional(storage), **options)


@every_interval
@pytest.mark.parametrize("make", [PrioritizedBuffer, joined, lambda *a, **o: CombinedReplay(joined(*a, **o))])
def test_looking_and_copying_see_one_moment(make, interval):
    """Counters, the newest, episodes and copies show one moment while other threads add."""
    stream = Stream()
    buffer = make(50, stream.spec, gamma=GAMMA, seed=0)
    buffer.extend(**stream.rows(np.arange(60)))
    added = 60

    def extend(number):
        nonlocal added
        buffer.extend(**stream.rows(np.arange(added, added + 1 + number % 70)))
        added += 1 + number % 70
        buffer.update_priorities(buffer.latest(3), np.arange(3.0) + number % 5)

    def look(_number):
        stats = buffer.stats()
        assert stats["size"] == len(buffer) == 50.0
        before = stats["added"]
        with buffer.lock:
            newest = buffer.latest(5)
            assert newest[-1] == buffer.newest[0] == buffer.stats()["added"] - 1 >= before - 1
            assert (buffer.read(newest, "action") == newest).all()
            _, first, last = buffer.episode(newest)
            assert (first <= newest).all() and (newest <= last).all()
            assert buffer.probability(buffer.stored()).sum() == pytest.approx(1.0)
        buffer.check()

    def take_along(number):
        twin = copy.deepcopy(buffer) if number % 2 else pickle.loads(pickle.dumps(buffer))
        twin.check()
        assert twin.stored().tolist() == list(range(int(twin.stats()["added"]) - 50, int(twin.stats()["added"])))
        stream.assert_whole(twin.sample(30))

    run_together(extend, look, take_along, sampler(buffer, stream), interval=interval)
    buffer.check()


@every_interval
def test_clearing_and_ending_episodes(interval):
    """While another thread clears and ends episodes, a sampler finds no torn row and no window across an end."""
    stream = Stream()
    buffer = PrioritizedBuffer(30, stream.spec, n_step=3, gamma=GAMMA, seed=0)
    add = adder(buffer, stream)
    cuts = []

    def act(number):
        if number % 40 == 39:
            buffer.clear()
        if number % 5 == 4:
            cuts.append(number)
            buffer.end_episode()
        add(number)

    def learn(_number):
        try:
            batch = buffer.sample(16)
        except ValueError as error:
            if "the buffer is empty" not in str(error):
                raise
            return
        stream.assert_whole(batch, n=3)
        for begin, length in zip(batch.indices.tolist(), batch.length.tolist(), strict=True):
            assert not any(number % 5 == 4 for number in range(begin + 1, begin + length)), "a window crosses a cut"
        buffer.update_priorities(batch.indices, np.ones(16))

    run_together(act, learn, learn, interval=interval)
    buffer.check()
    assert cuts


@every_interval
@pytest.mark.parametrize("replace", [True, False])
def test_lanes_out_of_step(replace, interval):
    """Two threads add with masks to different lanes, one of them with TD errors."""
    stream = Stream(3)
    buffer = CombinedReplay(ReplayBuffer(60, stream.spec, num_envs=3, n_step=3, gamma=GAMMA, replace=replace, seed=0))

    def adding(*lanes):
        steps = dict.fromkeys(lanes, 0)

        def add(number):
            chosen = np.zeros(3, np.bool_)
            chosen[[lane for lane in lanes if number % (lane + 1) == 0]] = True
            numbers = np.array([steps.get(lane, 0) * 3 + lane for lane in range(3)])
            indices = buffer.add(**stream.rows(numbers), mask=chosen, td_error=numbers * 1.0 if number % 3 else None)
            assert (indices == np.where(chosen, numbers, -1)).all()
            for lane in np.flatnonzero(chosen).tolist():
                steps[lane] += 1

        return add

    first, second = adding(0, 2), adding(1)
    for number in range(60):
        first(number)
        second(number)
    run_together(
        lambda number: first(number + 60),
        lambda number: second(number + 60),
        sampler(buffer, stream, n=3),
        interval=interval,
    )
    buffer.check()


# -- Deadlocks -----------------------------------------------------------------------------------------------------


def sampling_goals(reward_fn, seed=0):
    """A full replay with goals, with this reward function."""
    replay = HindsightReplay(ReplayBuffer(30, GOAL_SPEC, seed=seed), reward_fn, ratio=1.0)
    goal_episodes(replay, [7, 7])
    return replay


def test_a_thread_that_a_reward_function_starts_waits_for_the_batch():
    """A thread that a reward function starts waits for the batch, so the function must not wait for it."""
    started, batches = [], []

    def reward_fn(achieved_goal, desired_goal, info):
        if not started:
            started.append(threading.Thread(target=lambda: batches.append(replay.sample(3)), daemon=True))
            started[0].start()
            started[0].join(0.05)
            assert started[0].is_alive() and not batches
        return sparse(achieved_goal, desired_goal, info)

    replay = sampling_goals(reward_fn)
    assert len(replay.sample(4)) == 4
    started[0].join(30)
    assert not started[0].is_alive()
    assert len(batches[0]) == 3


def test_a_thread_with_another_buffer_does_not_wait():
    """A reward function may wait for a thread that uses another buffer."""

    def reward_fn(achieved_goal, desired_goal, info):
        thread = threading.Thread(target=lambda: other.add(**step(0)), daemon=True)
        thread.start()
        thread.join(30)
        assert not thread.is_alive()
        return sparse(achieved_goal, desired_goal, info)

    other = ReplayBuffer(9, FLAT)
    assert len(sampling_goals(reward_fn).sample(4)) == 4
    assert len(other) == 1


@every_interval
def test_two_buffers_are_sampled_crosswise(interval):
    """Threads alternate between two buffers, while the reward function of one samples the other."""
    plain = filled(PrioritizedBuffer(9, FLAT, seed=0), 12)

    def reward_fn(achieved_goal, desired_goal, info):
        plain.sample(2)
        return sparse(achieved_goal, desired_goal, info)

    goals = sampling_goals(reward_fn)

    def there(_number):
        goals.sample(4)
        plain.add(**step(1))

    def back(_number):
        plain.update_priorities(plain.sample(4).indices, np.ones(4))
        goals.end_episode()

    run_together(there, back, there, back, interval=interval)
    goals.check()
    plain.check()


# -- Processes -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
@pytest.mark.parametrize("is_wide", [False, True], ids=["rows", "frames"])
def test_a_forked_child_has_a_whole_buffer(is_wide):
    """A forked child has an intact buffer, even if a thread of the parent is writing. Both continue."""
    stream = Stream(1, (20, 20), np.uint8) if is_wide else Stream()
    size = 40 if config.DISABLE_JIT else 600
    buffer = PrioritizedBuffer(size, stream.spec, gamma=GAMMA, share="all", seed=0)
    stretches = [stream.rows(np.arange(begin, begin + size)) for begin in range(0, 4 * size, size)]
    for rows in stretches:
        buffer.extend(**rows)
    over = threading.Event()

    def write():
        while not over.is_set():
            for rows in stretches:
                buffer.extend(**rows)
            buffer.update_priorities(buffer.latest(size), np.arange(float(size)))

    def child():
        buffer.check()
        assert (buffer.read(buffer.latest(size), "action") % size == np.arange(size)).all()
        buffer.extend(**stretches[0])
        buffer.update_priorities(buffer.sample(32).indices, np.ones(32))
        buffer.check()

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    try:
        for _ in range(12):
            run_in_child(child)
    finally:
        over.set()
        writer.join(60)
    buffer.check()


SPAWN = """
import multiprocessing
import numpy as np
from replaykit import Field, PrioritizedBuffer, Spec

def draw(buffer, seed, results):
    buffer.reseed(seed)
    results.put((seed.spawn_key[0], buffer.sample(20).indices.tolist()))

if __name__ == "__main__":
    context = multiprocessing.get_context(METHOD)
    buffer = PrioritizedBuffer(50, Spec(obs=Field(()), action=Field(())), seed=0)
    no = np.zeros(60, bool)
    buffer.extend(np.arange(60), np.zeros(60), np.zeros(60), np.arange(60), no, no)
    results = context.Queue()
    seeds = np.random.SeedSequence(7).spawn(2)
    processes = [context.Process(target=draw, args=(buffer, seed, results)) for seed in seeds]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    buffer.reseed(seeds[0])
    assert found[0] == buffer.sample(20).indices.tolist() != found[1], found
    print("ok")
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_draw_from_copies_with_seeds_of_their_own(method, tmp_path):
    """A process gets a copy of a buffer, whether it is forked or spawned."""
    if method == "fork" and not hasattr(os, "fork"):
        pytest.skip("processes are not forked here")
    script = tmp_path / "processes.py"
    script.write_text(SPAWN.replace("METHOD", repr(method)))
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, timeout=120)
    assert result.stdout.strip() == "ok", result.stderr


FIRST_USE = """
import sys
import threading
import numpy as np
from replaykit import Field, PrioritizedBuffer, ReplayBuffer, Spec

sys.setswitchinterval(1e-6)
spec = Spec(obs=Field((2,)), action=Field(()))
makes = MAKES
shared = makes[-1](50, spec, num_envs=6, seed=0)
results, errors, ready = [], [], threading.Barrier(6)

def use(number):
    try:
        ready.wait()
        buffer = makes[number % len(makes)](50, spec, n_step=1 + number % 3, seed=0)
        writer = shared.writer(number)
        for step in range(8):
            values = np.ones(2, np.float32), 0.0, float(step), np.ones(2, np.float32), step == 5, False
            buffer.add(*values)
            writer.add(*values)
        for replay in (buffer, shared):
            batch = replay.sample(4)
            assert (batch.obs == 1.0).all()
            results.append(len(batch) + replay.update_priorities(batch.indices, batch.reward))
    except BaseException as error:
        errors.append(error)

threads = [threading.Thread(target=use, args=(number,)) for number in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(sorted(results), errors)
"""


@pytest.mark.skipif(config.DISABLE_JIT, reason="nothing is compiled")
@pytest.mark.parametrize("cache", ["cold", "warm"])
def test_the_first_use_may_be_in_six_threads_at_once(cache, tmp_path):
    """Six threads of a new process can import replaykit and compile or load kernels at the same time."""
    environment = dict(os.environ)
    if cache == "cold":  # of fewer kernels, since to compile them all takes long
        environment["REPLAYKIT_CACHE_DIR"] = str(tmp_path)
    program = FIRST_USE.replace("MAKES", "[ReplayBuffer]" if cache == "cold" else "[ReplayBuffer, PrioritizedBuffer]")
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    expected = [4] * 12 if cache == "cold" else [4] * 3 + [8] * 9
    assert result.stdout.strip() == f"{expected} []", result.stderr
