"""RayReplay on Ray, on this machine: the parts that `test_sharded` does not test, because they need an engine.

Ray takes seconds to start, so all tests share one. They run apart with ``-m ray``, and without them ``-m "not ray"``.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest

from replaykit import PrioritizedBuffer, RateLimit
from replaykit.distributed import RayReplay, ShardWriter
from replaykit.distributed.generations import STEPS
from tests.helpers import FLAT, arrays_of, step, stretch

ray = pytest.importorskip("ray")
pytestmark = [
    pytest.mark.ray,
    pytest.mark.xdist_group("ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # files of Ray's own processes
]
_PATIENCE = 60.0
"""Seconds to wait for another process; far more than it takes."""


@pytest.fixture(scope="module")
def cluster():
    """The address of a Ray cluster on this machine, for this module, with a free port."""
    options = {"num_cpus": 2, "include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        context = ray.init(address="local", object_store_memory=100_000_000, **options)
        yield context.address_info["address"]
        ray.shutdown()


def make_buffer():
    """The buffer of a shard."""
    return PrioritizedBuffer(300, FLAT, num_envs=3, alpha=1.0)


@pytest.fixture(scope="module")
def shared(cluster):
    """Three shards for several tests, because each shard takes seconds to start."""
    with RayReplay(make_buffer, 3, seed=0, block=8) as replay:
        yield replay


@pytest.fixture
def replay(shared):
    """The three shards, with 10, 20 and 30 transitions."""
    shared.clear()
    writers = [shared.writer() for _ in range(3)]
    for k, writer in enumerate(writers):
        writer.extend(**stretch(10 * k + 10))
    for writer in writers:
        writer.close()
    return shared


class Actor:
    """A worker that adds steps to a writer."""

    def __init__(self, writer):
        self.writer = writer

    def act(self, steps):
        for number in range(steps):
            self.writer.add(**step(number))

    def flush(self):
        self.writer.flush()

    def pid(self):
        return os.getpid()


def worker(writer):
    """A Ray actor with a copy of the writer."""
    return ray.remote(num_cpus=0)(Actor).remote(writer)


def pid_of(handle):
    """The process id of a shard."""
    return ray.get(handle.__ray_call__.remote(lambda _shard: os.getpid()))


def until(condition):
    """Wait for an event in another process."""
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited for too long"
        time.sleep(0.05)


def test_a_replay_in_actors_learns_like_a_buffer(replay, tmp_path):
    """Batches, updates, frequencies, prefetching and stats work, and a loaded checkpoint continues bit for bit."""
    indices = replay.stored()
    assert len(replay) == len(indices) == 60 and len(replay.shards) == 3
    assert replay.update_priorities(indices, priorities=np.arange(1.0, 61.0)) == 60
    expected = np.arange(1.0, 61.0) / np.arange(1.0, 61.0).sum()
    np.testing.assert_allclose(replay.probability(indices), expected)
    order = np.argsort(indices)

    def place(batch):
        return order[np.searchsorted(indices, batch.indices, sorter=order)]

    counts = np.zeros(60)
    with replay.batches(50) as batches:
        for _, batch in zip(range(40), batches, strict=False):
            counts += np.bincount(place(batch), minlength=60)
            np.testing.assert_allclose(batch.probabilities, expected[place(batch)])
    assert all(array.flags.writeable for array in arrays_of(batch).values())
    assert ((counts - 2000 * expected) ** 2 / (2000 * expected)).sum() < 110  # chi-square of 59 at 1e-4
    replay.save(tmp_path / "replay")
    before = replay.sample(20)
    replay.update_priorities(before.indices, np.ones(20))
    replay.load(tmp_path / "replay")
    np.testing.assert_array_equal(replay.sample(20).indices, before.indices)
    assert replay.stats()["shards_present"] == 3.0
    replay.check()


def test_a_shard_that_is_killed_costs_its_rows_and_nothing_else(replay, tmp_path):
    """If a shard is killed, learner and writers continue, and it returns from its checkpoint with new indices."""
    replay.save(tmp_path / "replay")
    writers = [replay.writer() for _ in range(3)]
    former, pid = replay.stored(), pid_of(replay.shards[1])
    os.kill(pid, signal.SIGKILL)
    found = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")

        def is_back():
            batch = replay.sample(12)
            found.append(set(batch.indices % 9 // 3))
            replay.update_priorities(batch.indices, np.ones(12))
            return any("shard 1 is back, with 20" in message for message in replay.warnings())

        until(is_back)
    messages = [str(each.message) for each in caught]
    assert sum("shard 1 is lost, with 20 transitions" in message for message in messages) == 1
    assert {0, 2} in found
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for writer in writers:
            writer.extend(**stretch(16))
            writer.close()
    now = replay.stored()
    of_one = now[now % 9 // 3 == 1]
    assert len(now) == 60 + 3 * 16 and of_one.min() >= STEPS * 9 and not set(of_one) & set(former)
    assert replay.update_priorities(former, np.ones(60)) == 40
    assert pid_of(replay.shards[1]) != pid


def test_a_writer_that_is_killed_loses_at_most_its_block(replay):
    """If a worker is killed while it acts, another worker takes over its writer."""
    writer = replay.writer()
    first, size = worker(writer), len(replay)
    ray.get(first.act.remote(21))  # two blocks of 8, and 5 steps that were not sent
    until(lambda: len(replay) == size + 16)
    os.kill(ray.get(first.pid.remote()), signal.SIGKILL)
    second = worker(writer)
    ray.get(second.act.remote(10))
    ray.get(second.flush.remote())
    assert len(replay) == size + 26
    writer.close()
    replay.check()


_LEARNER = """
import os, signal, sys
import ray
from replaykit.distributed import RayReplay
from tests.distributed.test_ray import make_buffer, stretch
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="error")
replay = RayReplay(make_buffer, 1, seed=0, name="survivor")
for k in range(2):
    writer = replay.writer()
    writer.extend(**stretch(10))
    writer.flush()
for _ in range(3):
    replay.sample(4)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_learner_that_is_killed_leaves_the_data(cluster):
    """If the learner is killed, another one connects to the shards by their name, and continues the batch count."""
    ended = subprocess.run([sys.executable, "-c", _LEARNER, cluster], capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    with RayReplay.connect("survivor") as replay:
        assert len(replay) == 20 and replay.stats()["batches"] >= 2.0
        batch = replay.sample(8)
        assert replay.update_priorities(batch.indices, np.ones(8)) == 8
        with pytest.raises(ValueError, match=r"name is 'survivor'.*connect"):
            RayReplay(make_buffer, 1, name="survivor")
        assert isinstance(replay.writer(), ShardWriter)
    with pytest.raises(ValueError, match="no replay named 'nobody'"):
        RayReplay.connect("nobody")


def broken():
    """A `make_buffer` that raises an error."""
    raise ZeroDivisionError("no memory")


def test_a_factory_that_raises_is_named_and_no_actor_is_left(cluster):
    """An error in `make_buffer` is raised by the constructor, no actor is left, and the name is free again."""
    with pytest.raises(RuntimeError, match="make_buffer raised an error in shard 0: ZeroDivisionError: no memory"):
        RayReplay(broken, 2, name="broken")

    def is_gone():
        try:
            ray.get_actor("broken-0", namespace="replaykit")
        except ValueError:
            return True
        return False

    until(is_gone)


@ray.remote(num_cpus=0)
def add_until_full(writer, steps):
    """Add steps in another process until the limit makes it wait for samples. Returns the number of added steps."""
    number = 0
    with contextlib.suppress(TimeoutError):
        while number < steps:
            writer.add(**step(number))
            writer.flush()
            number += 1
    return number


def test_a_limit_holds_across_processes(cluster):
    """A writer in another process waits for the learner's samples, and the learner waits for its steps."""
    limit = RateLimit(2.0, min_size=8, tolerance=16.0, timeout=0.2)
    with RayReplay(make_buffer, 2, seed=0, block=1, rate_limit=limit) as replay:
        with pytest.raises(TimeoutError, match="4 transitions cannot be sampled after 0 inserted"):
            replay.sample(4)
        added = ray.get(add_until_full.remote(replay.writer(), 100))
        assert added == 16  # 2 * 16 is 2 * 8 + 16
        sampled = sum(len(replay.sample(4)) for _ in range(8))
        assert sampled == 32  # 2 * 16 - 32 is 2 * 8 - 16
        with pytest.raises(TimeoutError, match="cannot be sampled after 16 inserted"):
            replay.sample(4)
        stats = replay.stats()
        assert (stats["inserted"], stats["sampled"]) == (16.0, 32.0)


@pytest.mark.parametrize(
    ("args", "options", "error", "match"),
    [
        ((make_buffer, 0), {}, ValueError, "shards is 0"),
        ((3,), {}, TypeError, "make_buffer is a int"),
        ((make_buffer,), {"block": 0}, ValueError, "block is 0"),
        ((make_buffer,), {"patience": -1}, ValueError, "patience is -1"),
        ((make_buffer,), {"seed": "a"}, TypeError, "seed is 'a'"),
        ((make_buffer,), {"shard": 3}, TypeError, "did you mean 'shards'"),
    ],
)
def test_wrong_arguments_are_refused_before_an_actor_starts(monkeypatch, args, options, error, match):
    """An invalid argument raises an error that names it and what was expected."""
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "remote", None)
    with pytest.raises(error, match=match):
        RayReplay(*args, **options)


def test_without_ray_the_error_says_what_to_do(monkeypatch):
    """If Ray is not installed or not started, the error says what to do."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(RuntimeError, match=r"Ray is not started; call ray.init\(\)"):
        RayReplay(make_buffer)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r'RayReplay needs Ray: pip install "replaykit-rl\[ray\]"'):
        RayReplay(make_buffer)
