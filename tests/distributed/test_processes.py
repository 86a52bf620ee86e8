"""Process writers: several processes on one machine add the same steps as one process would, even if one dies."""

import contextlib
import glob
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replaykit import (
    CombinedReplay,
    Field,
    FieldNameError,
    LatestBuffer,
    PrioritizedBuffer,
    RateLimit,
    RateLimitedReplay,
    ReplayBuffer,
    Spec,
    record,
)
from replaykit.distributed import ProcessWriters
from replaykit.testing import SPECS, assert_lawful, bits_of, values_of
from replaykit.testing.machine import stack_of
from tests.distributed.acting import act, act_for_ever, step
from tests.helpers import FLAT, stretch

SPAWN = multiprocessing.get_context("spawn")
on_linux = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="memory without a name is Linux's")


def descriptors():
    return set(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else set()


def until(condition):
    deadline = time.monotonic() + 60.0
    while not condition():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.002)


# -- Stored values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("name", SPECS)
@settings(max_examples=settings().max_examples // 3)
@given(data=st.data())
def test_what_is_sent_is_what_add_and_extend_store(name, lanes, data):
    """Steps, masks, initial priorities, ended episodes and long blocks are stored bit for bit, as by a buffer."""
    spec = SPECS[name]
    direct, sent = (PrioritizedBuffer(20 * lanes, spec, num_envs=lanes, n_step=3, seed=0) for _ in range(2))
    number, lead = 0, (lanes,) if lanes > 1 else ()
    with ProcessWriters(sent, 1, room=4) as writers, direct.writer(slice(None) if lanes > 1 else 0) as one:
        for _ in range(data.draw(st.integers(1, 6))):
            kind = data.draw(st.sampled_from(["add", "extend", "end"]))
            mask = np.array(data.draw(st.lists(st.booleans(), min_size=lanes, max_size=lanes)))
            if kind == "end":
                writers[0].end_episode(mask)
                one.end_episode(mask)
                continue
            count = data.draw(st.integers(0, 9)) if kind == "extend" else 1
            grid = [[{} for _ in range(lanes)] for _ in range(count)]
            for t in range(count):
                for e in range(lanes):
                    number += 5
                    grid[t][e] = {field: values_of(spec[field], number) for field in spec}
                    ends = data.draw(st.sampled_from([0, 0, 0, 1, 2]))
                    grid[t][e] |= {"terminated": np.bool_(ends == 1), "truncated": np.bool_(ends == 2)}
            shape = (count, *lead) if kind == "extend" else lead
            values = {f: stack_of([[at[f] for at in row] for row in grid], spec[f], shape) for f in spec}
            options = {"mask": mask} if data.draw(st.booleans()) else {}
            if data.draw(st.booleans()):
                options["td_error"] = np.arange(np.prod(shape)).reshape(shape) * 0.3
            getattr(writers[0], kind)(**values, **options)
            getattr(one, kind)(**values, **options)
            writers.flush()
        assert writers.stats("w/")["w/sent"] == writers.stats("w/")["w/moved"]
    assert len(direct) == len(sent)
    if len(sent):
        for field in (leaf.name for leaf in spec.leaves):
            stored = direct.stored()
            assert direct.read(stored, field).tobytes() == sent.read(stored, field).tobytes(), field
        np.testing.assert_array_equal(direct.episode(direct.stored())[1:], sent.episode(sent.stored())[1:])
        assert bits_of(direct.sample(16)) == bits_of(assert_lawful(sent, 16))


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_processes_add_to_lanes_of_their_own(method):
    """Each process adds to its own lanes. All steps arrive, in order and in their episodes."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip("the system has no fork")
    lanes = 2 if method == "spawn" else 4
    context = multiprocessing.get_context(method)
    buffer = ReplayBuffer(1000 * lanes, FLAT, num_envs=lanes, n_step=2, seed=0)
    with ProcessWriters(buffer, lanes, room=16) as writers:
        processes = [context.Process(target=act, args=(writer, 200, 1000 * i)) for i, writer in enumerate(writers)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            assert process.exitcode == 0
    assert len(buffer) == 200 * lanes
    for lane in range(lanes):
        stored = buffer.stored()[buffer.stored() % lanes == lane]
        assert buffer.read(stored, "reward").tolist() == list(range(1000 * lane, 1000 * lane + 200))
        assert len(set(buffer.episode(stored)[0].tolist())) == 20
    assert_lawful(CombinedReplay(buffer), 32)


def test_record_writes_what_happens_to_the_segment():
    """`record` stores single and vector environments through a writer, as in a buffer of the same process."""
    for count in (1, 2):
        make = lambda n=count: gymnasium.make_vec("CartPole-v1", n) if n > 1 else gymnasium.make("CartPole-v1")  # noqa: E731
        env = make()
        direct, sent = (ReplayBuffer.from_env(env, 400, seed=0) for _ in range(2))
        with ProcessWriters(sent, 1) as writers:
            for target in (direct, writers[0]):
                env = record(make(), target)
                env.reset(seed=0)
                for number in range(60):
                    action = np.full(count, number % 2) if count > 1 else number % 2
                    *_, terminated, truncated, _ = env.step(action)
                    if count == 1 and (terminated or truncated):
                        env.reset()
        assert bits_of(direct.sample(50)) == bits_of(sent.sample(50))


# -- Processes that die --------------------------------------------------------------------------------------------


def test_a_writer_that_is_killed_loses_at_most_a_step():
    """If a writer is killed, others continue, its steps are kept, and a new process can use it for a new episode."""
    buffer = ReplayBuffer(100_000, FLAT, num_envs=2, seed=0)
    with ProcessWriters(buffer, 2, room=8) as writers:
        process = SPAWN.Process(target=act_for_ever, args=(writers[0],))
        process.start()
        until(lambda: buffer.newest[0] > 200)
        with pytest.raises(
            RuntimeError, match="writer 0 is already in use, in this process or another; pass a different"
        ):
            writers[0].add(**step(0))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        writers.flush()
        count = len(buffer)
        act(writers[1], 50)
        act(pickle.loads(pickle.dumps(writers[0])), 10)
    assert len(buffer) == count + 60
    stored = buffer.stored()[buffer.stored() % 2 == 0]
    assert buffer.read(stored, "reward").tolist() == [*range(count), *range(10)]
    assert buffer.episode(stored[-10:])[1].tolist() == [2 * count] * 10
    buffer.check()


def test_a_step_that_was_not_published_is_not_there(monkeypatch):
    """If a writer dies before it publishes a step, the step does not exist, and the next step overwrites it."""
    buffer, calls = ReplayBuffer(100, FLAT, seed=0), []

    def order(segment):
        calls.append(segment)
        if len(calls) % 2 == 0:  # the first call is that for room
            raise KeyboardInterrupt

    for add in (lambda w: w.add(**step(9)), lambda w: w.extend(**stretch(3))):
        with ProcessWriters(buffer, 1, room=4) as writers:
            writers[0].add(**step(0))
            writers[0].add(**step(1))
            writers.flush()
            writers._has_ended.set()
            writers._thread.join()  # so that nothing is moved meanwhile
            calls.clear()
            with monkeypatch.context() as patched:
                patched.setattr("replaykit.distributed.segment.Segment._order", order)
                with pytest.raises(KeyboardInterrupt):
                    add(writers[0])
            assert not writers._move()
            writers._has_ended.clear()
            writers[0].add(**step(2))
        assert buffer.read(buffer.stored(), "reward")[-3:].tolist() == [0, 1, 2]


LEARNER = """
import multiprocessing, os, signal, sys, time
import numpy as np
from replaykit import Field, ReplayBuffer, Spec
from replaykit.distributed import ProcessWriters
from tests.distributed.acting import report_end

FLAT = Spec(obs=Field((3,)), action=Field((), np.int64))

if __name__ == "__main__":
    writers = ProcessWriters(ReplayBuffer(10_000, FLAT), 1, room=8)
    context = multiprocessing.get_context("spawn")
    for writer in writers:
        context.Process(target=report_end, args=(writer, sys.argv[1]), daemon=True).start()
    while writers.replay.newest.min() < 100:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@on_linux
def test_when_the_learner_is_killed_writers_stop_and_nothing_is_left(tmp_path):
    """If the learner is killed, writers raise an error that says so, and no shared memory or file is left."""
    script = tmp_path / "learner.py"
    script.write_text(textwrap.dedent(LEARNER))
    results, scratch = tmp_path / "results", tmp_path / "scratch"
    results.mkdir()
    scratch.mkdir()
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    ran = subprocess.run(
        [sys.executable, str(script), str(results)],
        env=os.environ | {"PYTHONPATH": path, "TMPDIR": str(scratch)},
        timeout=120,
        capture_output=True,
        check=False,
    )
    assert ran.returncode == -signal.SIGKILL, ran.stderr.decode()
    until((results / "0").exists)
    assert "the learner's process has ended" in (results / "0").read_text()
    assert not glob.glob("/dev/shm/*replaykit*")
    assert not [name for name in os.listdir(scratch) if "replaykit" in name]


def test_memory_and_descriptors_are_given_back():
    """Memory and file descriptors are released by `close`, and when writers are garbage-collected."""
    before = descriptors()
    with ProcessWriters(ReplayBuffer(100, FLAT), 1) as writers:
        act(writers[0], 5)
    del writers
    assert descriptors() <= before


def test_without_anonymous_memory_a_temporary_file_is_used(monkeypatch, tmp_path):
    """Without anonymous memory, a segment is a temporary file, which is deleted at the end."""
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    buffer = ReplayBuffer(100, FLAT)
    with ProcessWriters(buffer, 1, room=4) as writers:
        assert len(os.listdir(tmp_path)) == 1
        act(writers[0], 20)
    assert len(buffer) == 20
    assert not os.listdir(tmp_path)


# -- Waiting -------------------------------------------------------------------------------------------------------


def test_a_full_segment_waits_for_the_learner():
    """`add` waits `timeout` seconds for room. Sent steps are stored, and `end_episode` and `flush` still work."""
    buffer = ReplayBuffer(100, FLAT)
    with ProcessWriters(buffer, 1, room=4, timeout=0.05) as writers:
        with buffer.lock, ThreadPoolExecutor() as threads:  # so that nothing is moved
            with pytest.raises(TimeoutError, match="6 of 10 steps found no room within 0.05 seconds") as raised:
                threads.submit(writers[0].extend, **stretch(10)).result()
            assert raised.value.sent == 4
        writers[0].flush()
        assert len(buffer) == 4
        assert writers.stats()["writer_wait_seconds"] >= 0.05


def test_a_limit_of_the_replay_holds_for_processes():
    """With a rate limit, writers wait for room, and continue when the learner samples or the limit is closed."""
    limit = RateLimit(1.0, 10, 16.0)
    replay = RateLimitedReplay(PrioritizedBuffer(1000, FLAT, num_envs=2, seed=0), limit)
    with ProcessWriters(replay, 2, room=4) as writers, ThreadPoolExecutor() as threads:
        acting = [threads.submit(act, writer, 100) for writer in writers]
        until(lambda: limit.inserted > 20 and writers.stats()["sent"] == limit.inserted + 8)
        held = limit.inserted
        assert held <= 26
        for _ in range(8):
            replay.sample(8)
        until(lambda: limit.inserted > held + 40)
        assert limit.inserted - limit.sampled <= 10 + 16
        limit.close()
        for each in acting:
            each.result(60)
    assert len(replay) == 200


def test_after_close_writers_raise():
    """After `close`, writers raise an error, even one that is waiting. The lanes are free again."""
    buffer = ReplayBuffer(100, FLAT)
    writers = ProcessWriters(buffer, 1, room=4)
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(act, writers[0], 10_000_000)
        until(lambda: len(buffer) == 100)
        writers.close()
        with pytest.raises(RuntimeError, match="the learner has closed its process writers"):
            waiting.result(60)
    writers.close()
    buffer.add(**step(0))
    assert "closed" in repr(writers)
    with pytest.raises(RuntimeError, match="writer 0 is closed; pass another copy"):
        writers[0].add(**step(0))


# -- Invalid arguments ---------------------------------------------------------------------------------------------


def test_wrong_arguments_are_refused():
    buffer = ReplayBuffer(100, FLAT, num_envs=4)
    with pytest.raises(TypeError, match="replay is a int; expected a buffer"):
        ProcessWriters(3, 1)
    with pytest.raises(ValueError, match="count is 3; expected a divisor of num_envs=4"):
        ProcessWriters(buffer, 3)
    with pytest.raises(ValueError, match="room is 0"):
        ProcessWriters(buffer, 2, room=0)
    with pytest.raises(ValueError, match="timeout is -1"):
        ProcessWriters(buffer, 2, timeout=-1)
    with pytest.raises(MemoryError, match=r"room 100000000000 for 4 writers needs .* GiB; .*; lower the room"):
        ProcessWriters(buffer, 4, room=100_000_000_000)
    with buffer.writer(2), pytest.raises(ValueError, match="lanes contains 2, which already has a writer"):
        ProcessWriters(buffer, 4)
    limited = RateLimitedReplay(buffer, RateLimit(8.0, tolerance=16.0))
    with pytest.raises(ValueError, match="each step adds 4 transitions, which is more than the limit allows"):
        ProcessWriters(limited, 1)
    with ProcessWriters(buffer, 4) as writers:
        with pytest.raises(TypeError, match="cannot be copied or pickled; pass a single writer"):
            pickle.dumps(writers)
        with pytest.raises(RuntimeError, match="lane 0 has a writer"):
            buffer.add(**{key: value[0] for key, value in stretch(1, 4).items()})
    assert buffer.add(**{key: value[0] for key, value in stretch(1, 4).items()}).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"reward": float("nan")}, ValueError, "reward contains nan; expected finite float32 numbers; look for"),
        ({"obs": np.zeros(4)}, ValueError, r"obs has shape \(4,\); expected \(3,\)"),
        ({"speed": 1.0}, FieldNameError, "unknown field 'speed'"),
        ({"action": 0.5}, TypeError, "action has dtype float64"),
        ({"mask": [1]}, ValueError, "mask has shape"),
        ({"td_error": np.inf}, ValueError, "td_error"),
        ({"td_error": [1.0, 2.0]}, ValueError, r"td_error has shape \(2,\)"),
    ],
)
def test_wrong_values_are_refused_where_they_are_added(changes, error, message):
    """An invalid value raises the error of a buffer in the writing process, and nothing is sent."""
    buffer = PrioritizedBuffer(100, FLAT)
    with ProcessWriters(buffer, 1) as writers:
        for _ in range(2):  # the first step of an episode goes another way than the others
            with pytest.raises(error, match=message):
                writers[0].add(**step(0, **changes))
            writers[0].add(**step(1))
        with pytest.raises(ValueError, match=r"reward has shape \(\); expected \('T', 1\)"):
            writers[0].extend(**step(0))
    assert len(buffer) == 2


def test_an_error_of_the_replay_is_raised_in_the_learner(monkeypatch):
    """An error while steps are moved is raised by the learner's next call, and writers raise an error too."""
    buffer = ReplayBuffer(100, FLAT)
    writers = ProcessWriters(buffer, 1)
    with buffer.lock:
        act(writers[0], 1)
        writers._own[0].close()
    until(lambda: writers._error)
    for call in (writers.stats, writers.flush, writers.close):
        with pytest.raises(RuntimeError, match="steps of other processes could not be added: the writer is closed"):
            call()
    writers.close()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="the system has no fork")
def test_a_forked_child_leaves_the_writers_of_its_parent_alone():
    """A forked child cannot use its parent's writers, and the parent continues to use them."""
    buffer = ReplayBuffer(100, FLAT)
    context = multiprocessing.get_context("fork")
    with ProcessWriters(buffer, 1) as writers:
        writers[0].add(**step(0))
        result = context.SimpleQueue()
        process = context.Process(target=use_in_child, args=(writers, result))
        process.start()
        errors = result.get()
        process.join()
        assert "forked process cannot use its parent's writer" in errors[0]
        assert "forked process cannot use its parent's ProcessWriters" in errors[1]
        writers[0].add(**step(1))
    assert len(buffer) == 2


def use_in_child(writers, result):
    errors = []
    for call in (lambda: writers[0].add(**step(5)), writers.flush, writers.close):
        with contextlib.suppress(RuntimeError):
            try:
                call()
            except RuntimeError as error:
                errors.append(str(error))
                raise
    result.put(errors)


def test_no_thread_is_left():
    before = threading.active_count()
    with ProcessWriters(LatestBuffer(10, Spec(obs=Field(()), action=Field(()))), 1):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
