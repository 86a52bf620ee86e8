"""Rate limits: which side waits, for how long, and how a wait ends."""

import contextlib
import copy
import multiprocessing
import pickle
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import gymnasium
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replaykit import (
    CombinedReplay,
    Field,
    HindsightReplay,
    LargeBatchReplay,
    MixedReplay,
    PrioritizedBuffer,
    RateLimit,
    RateLimitedReplay,
    RecentReplay,
    ReplayBuffer,
    SequenceReplay,
    Spec,
    record,
)
from replaykit.testing import assert_lawful, bits_of
from tests.helpers import FLAT, filled, step, stretch, unchanged

WIDE = Spec(obs=Field((40, 50)), action=Field((), np.int64))


def limited(samples_per_insert=2.0, min_size=10, tolerance=32.0, inner=None, **options):
    options = {"timeout": 0.0} | options
    inner = ReplayBuffer(100, FLAT, seed=0) if inner is None else inner
    return RateLimitedReplay(inner, RateLimit(samples_per_insert, min_size, tolerance, **options))


def has_waiter(limit):
    """Wait until a thread waits for the limit."""
    deadline = time.monotonic() + 20.0
    while not sum(limit.stats()[f"{side}_waits"] for side in ("insert", "sample")):
        assert time.monotonic() < deadline
        time.sleep(0.001)


# -- Allowed calls -------------------------------------------------------------------------------------------------


@given(
    ratio=st.sampled_from([0.1, 0.3, 1.0, 2.5, 7.0]),
    min_size=st.integers(1, 20),
    width=st.sampled_from([1.0, 1.7, 4.0]),
    moves=st.lists(st.tuples(st.sampled_from(["insert", "sample"]), st.integers(0, 6)), max_size=60),
)
def test_the_difference_stays_in_the_corridor(ratio, min_size, width, moves):
    """An insert or a sample passes exactly if it ends in the corridor. Before `min_size`, all inserts pass."""
    tolerance = width * max(1.0, ratio)
    limit = RateLimit(ratio, min_size, tolerance, timeout=0)
    exact, center, inserted, sampled = Fraction(str(ratio)), Fraction(str(ratio)) * min_size, 0, 0
    for side, rows in moves:
        if side == "insert":
            fits = (
                (inserted + rows) * exact - sampled <= center + Fraction(str(tolerance))
                or inserted < min_size
                or not rows
            )
        else:
            fits = inserted >= min_size and inserted * exact - sampled - rows >= center - Fraction(str(tolerance))
        try:
            (limit.await_insert if side == "insert" else limit.await_sample)(rows)
        except ValueError:
            assert rows * (exact if side == "insert" else 1) > tolerance
            continue
        except TimeoutError:
            assert not fits
            continue
        assert fits
        inserted, sampled = inserted + rows * (side == "insert"), sampled + rows * (side == "sample")
        assert (limit.inserted, limit.sampled) == (inserted, sampled)


@given(
    ratio=st.sampled_from([0.1, 1.0, 3.0]), block=st.integers(1, 9), batch=st.integers(1, 9), seed=st.integers(0, 99)
)
def test_never_do_both_sides_wait(ratio, block, batch, seed):
    """For accepted sizes, one side can always continue."""
    limit = RateLimit(ratio, 3, max(1.0, ratio, (block * ratio + batch) / 2), timeout=0)
    rng = np.random.default_rng(seed)
    for _ in range(100):
        waiting = 0
        for wait, rows in rng.permutation([(0, block), (1, batch)]).tolist():
            waiting += 1
            with contextlib.suppress(TimeoutError):
                (limit.await_sample if wait else limit.await_insert)(rows)
                waiting -= 1
        assert waiting < 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples_per_insert": 0.0}, "samples_per_insert is 0.0; expected a number above 0"),
        ({"samples_per_insert": np.inf}, "samples_per_insert is inf"),
        ({"samples_per_insert": "2"}, "samples_per_insert is '2'"),
        ({"samples_per_insert": 8, "min_size": 0}, "min_size is 0"),
        ({"samples_per_insert": 8, "tolerance": 7.9}, "tolerance is 7.9; expected at least 8, since with less"),
        ({"samples_per_insert": 0.5, "tolerance": 0.5}, "tolerance is 0.5; expected at least 1"),
        ({"samples_per_insert": 8, "timeout": -1}, "timeout is -1; expected seconds"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        RateLimit(**arguments)


def test_the_default_tolerance_grows_with_the_other_numbers():
    assert RateLimit(1).tolerance == 1024
    assert RateLimit(256).tolerance == 4096
    assert RateLimit(256, 10_000).tolerance == 256_000


def test_a_block_or_batch_beyond_the_corridor_is_refused():
    """A block or batch that is too large raises an error, alone or with the largest of the other side."""
    replay = limited(tolerance=8.0)
    replay.extend(**stretch(50))  # before min_size any number
    with unchanged(replay, ValueError, "17 transitions are too many to sample at once.*fewer at a time.*at least 9.5"):
        replay.sample(17)
    replay.sample(10)
    with unchanged(
        replay, ValueError, "4 transitions are too many to insert at once: with blocks of 4 and batches of 10"
    ):
        replay.extend(**stretch(4))
    for _ in range(7):
        replay.sample(10)
    replay.extend(**stretch(3))


# -- Around a replay -----------------------------------------------------------------------------------------------


def test_adds_and_samples_wait_and_the_replay_is_unchanged():
    """With timeout 0, adds and samples raise an error instead of waiting, and change nothing."""
    replay = limited(tolerance=8.0)
    with unchanged(replay, TimeoutError, "4 transitions cannot be sampled after 0 inserted"):
        replay.sample(4)
    for number in range(14):
        replay.add(**step(number))
    with unchanged(replay, TimeoutError, "1 transition cannot be inserted after 14 inserted and 0 sampled; waited 0"):
        replay.add(**step(14))
    for _ in range(4):
        replay.sample(4)
    with pytest.raises(TimeoutError, match="4 transitions cannot be sampled after 14 inserted and 16 sampled"):
        replay.sample(4)
    stats = replay.stats("r/")
    assert (stats["r/inserted"], stats["r/sampled"], stats["r/size"]) == (14, 16, 14)
    assert (stats["r/insert_waits"], stats["r/sample_waits"]) == (1, 2)


def test_what_raises_does_not_count():
    """Adds of invalid values and batches that cannot be made are not counted."""
    replay = limited(inner=HindsightReplay(ReplayBuffer(9, GOAL, seed=0), fails), min_size=1)
    replay.add(GOAL_OBS, 0, 0.0, GOAL_OBS, False, False)
    for call in (lambda: replay.add(1, 0, 0.0, 1, False, False), lambda: replay.sample(2)):
        with pytest.raises((TypeError, ValueError, RuntimeError)):
            call()
    assert (replay.limit.inserted, replay.limit.sampled) == (1, 0)
    with pytest.raises(TimeoutError, match="after 1 inserted and 0 sampled"):
        replay.limit.await_sample(34)


GOAL = Spec(obs={"achieved_goal": Field((1,)), "desired_goal": Field((1,))}, action=Field(()))
GOAL_OBS = {"achieved_goal": [0.0], "desired_goal": [1.0]}


def fails(achieved, desired, info):
    raise RuntimeError("the reward failed")


def test_rows_of_masks_and_writers_are_counted():
    replay = limited(inner=ReplayBuffer(300, FLAT, num_envs=3), min_size=300)
    inserted = [0]

    def count(rows):
        assert replay.limit.inserted == inserted[0] + rows
        inserted[0] += rows

    replay.add(**{key: value[0] for key, value in stretch(1, 3).items()})
    count(3)
    replay.add(**{key: value[0] for key, value in stretch(1, 3).items()}, mask=[True, False, False])
    count(1)
    replay.extend(**stretch(5, 3))
    count(15)
    replay.extend(**stretch(5, 3), mask=[True, True, False])
    count(10)
    replay.extend(**stretch(5, 3), mask=np.arange(15).reshape(5, 3) < 4)
    count(4)
    with replay.writer([0, 2]) as writer, replay.writer(1) as one:
        writer.extend(**stretch(2, 2), mask=[True, False])
        count(2)
        writer.extend(**stretch(2, 2))
        count(4)
        one.add(**step(0))
        count(1)
        one.extend(**stretch(3), mask=[True, False, True])
        count(2)
    replay.extend(**stretch(0, 3))
    count(0)
    assert replay.stats()["added"] == inserted[0]


@pytest.mark.parametrize(
    "wrap",
    [
        CombinedReplay,
        lambda inner: RecentReplay(inner, 20),
        lambda inner: SequenceReplay(inner, 4),
        lambda inner: LargeBatchReplay(inner, 2, priority_fn=lambda batch: np.ones(len(batch.reward))),
    ],
    ids=["combined", "recent", "sequences", "large"],
)
def test_inside_and_outside_of_wrappers_it_is_the_same(wrap):
    """A limit works at every level of a stack, and batches are those without a limit, bit for bit."""
    plain = wrap(filled(ReplayBuffer(50, FLAT, seed=1), 40))
    for make in (lambda b: limited(inner=wrap(b)), lambda b: wrap(limited(inner=b))):
        replay = make(filled(ReplayBuffer(50, FLAT, seed=1), 40))
        twin, before = copy.deepcopy(plain), replay.rate_limit.sampled
        for _ in range(4):
            assert bits_of(replay.sample(8)) == bits_of(twin.sample(8))
        assert replay.rate_limit.sampled == before + 32
        with pytest.raises(TimeoutError):
            replay.sample(8)
        replay.rate_limit.close()
        assert_lawful(replay, 8)


def test_a_mixture_is_limited_as_a_whole():
    first, second = (filled(ReplayBuffer(50, FLAT, seed=seed), 20) for seed in (1, 2))
    shares = {"first": 0.5, "second": 0.5}
    with pytest.raises(ValueError, match="source 'first' has a RateLimit; .* put the RateLimitedReplay around"):
        MixedReplay({"first": limited(inner=first), "second": second}, shares=shares, add_to="first")
    mixture = MixedReplay({"first": first, "second": second}, shares=shares, add_to="first")
    replay = limited(inner=mixture)
    assert_lawful(replay, 8)
    with replay.lock:
        replay.sample(8)
    with pytest.raises(TimeoutError):
        replay.sample(32)
    replay.add(**step(0))
    assert replay.limit.inserted == 41


def test_only_one_limit_fits_in_a_stack():
    with pytest.raises(TypeError, match="limit is a float; expected a RateLimit"):
        RateLimitedReplay(ReplayBuffer(9, FLAT), 0.5)
    with pytest.raises(ValueError, match="inner has a RateLimit already"):
        limited(inner=CombinedReplay(limited()))
    with pytest.raises(ValueError, match="limit has min_size 10; expected at most the capacity, 9"):
        limited(inner=ReplayBuffer(9, FLAT))
    with pytest.raises(AttributeError):
        limited().rate_limit = None


def test_recorded_steps_wait_without_the_lock():
    """While a recorder waits, another thread can sample. The step is then stored."""
    env = gymnasium.make("CartPole-v1")
    replay = limited(1.0, 1, 8.0, ReplayBuffer.from_env(env, 100, seed=0), timeout=None)
    env = record(env, replay)
    env.reset(seed=0)

    def act():
        for number in range(20):
            if env.step(number % 2)[2]:
                env.reset()

    with ThreadPoolExecutor() as threads:
        acting = threads.submit(act)
        has_waiter(replay.limit)
        assert len(replay) == 9
        for _ in range(11):
            replay.sample(1)
        acting.result(20)
    assert len(replay) == 20


def test_batches_in_a_thread_end_while_they_wait():
    """Closing the iterator wakes its thread."""
    replay = limited(1.0, 1, 64.0, ReplayBuffer(100, WIDE, seed=0), timeout=None)
    for number in range(10):
        replay.add(np.full((40, 50), number), 0, 0.0, np.full((40, 50), number), False, False)
    before = threading.active_count()
    batches = replay.batches(64)
    assert len(next(batches).reward) == 64
    has_waiter(replay.limit)
    batches.close()
    assert threading.active_count() == before
    assert replay.limit.sampled == 64


# -- The end of a wait ---------------------------------------------------------------------------------------------


def test_two_threads_keep_the_ratio():
    """An actor and a learner at full speed keep the ratio. The one that ends closes the limit."""
    replay, differences = limited(4.0, 10, 64.0, timeout=60), []

    def act():
        for number in range(500):
            replay.add(**step(number))
        replay.limit.close()

    def learn():
        while not replay.limit.is_closed:
            replay.sample(32)
            differences.append(4 * replay.limit.inserted - replay.limit.sampled)

    with ThreadPoolExecutor() as threads:
        for done in [threads.submit(act), threads.submit(learn)]:
            done.result(60)
    assert all(-24 - 32 <= difference <= 104 + 32 for difference in differences[:-1])
    assert len(differences) > 40


def test_close_wakes_everybody_and_nothing_waits_any_more():
    replay = limited(timeout=None)
    with ThreadPoolExecutor() as threads:
        sampling = threads.submit(replay.sample, 8)
        has_waiter(replay.limit)
        replay.inner.extend(**stretch(5))
        replay.limit.close()
        assert len(sampling.result(20).reward) == 8
    assert replay.limit.is_closed
    for number in range(100):
        replay.add(**step(number))
    replay.sample(1000)
    assert "closed" in repr(replay.limit)
    assert not copy.deepcopy(replay).limit.is_closed


def test_the_only_thread_does_not_wait(monkeypatch):
    """It gets an error that names the remedy, even without a timeout."""
    replay = limited(timeout=None)
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    with unchanged(
        replay, RuntimeError, "would wait without end, since this is the only thread; insert in another thread"
    ):
        replay.sample(4)
    monkeypatch.setattr(threading, "active_count", lambda: 2)
    monkeypatch.setattr("replaykit.rate_limit._ALONE", -1.0)
    with pytest.raises(RuntimeError, match="since no other thread has used the limit; insert in another thread first"):
        replay.sample(4)


def test_a_thread_that_holds_the_lock_does_not_wait():
    replay = limited(timeout=None)
    with replay.lock, pytest.raises(RuntimeError, match="holds the buffer's lock.*release the lock first"):
        replay.sample(4)


def test_a_timeout_is_waited_for():
    replay = limited(timeout=0.05)
    begin = time.monotonic()
    with ThreadPoolExecutor() as threads, pytest.raises(TimeoutError, match="waited 0.05 seconds for inserts"):
        threads.submit(replay.sample, 4).result(20)
    assert time.monotonic() - begin >= 0.05
    assert replay.stats()["sample_wait_seconds"] >= 0.05


def test_ctrl_c_ends_a_wait():
    replay, is_over = limited(timeout=30), threading.Event()

    def interrupt():
        while not replay.limit.stats()["sample_waits"]:
            time.sleep(0.01)
        signal.raise_signal(signal.SIGINT)
        is_over.wait(30)  # else the waiting thread might be the only one

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            replay.sample(4)
    finally:
        signal.signal(signal.SIGINT, before)
        is_over.set()
        thread.join()
    replay.extend(**stretch(12))
    replay.sample(4)
    assert replay.limit.sampled == 4


def test_a_function_of_the_user_may_sample_inside_of_a_sample():
    """A user's function can sample while a batch is made. Its samples neither wait nor count."""
    inside = limited(inner=filled_with_goals(), min_size=1)

    def reward_fn(achieved, desired, info):
        inside.sample(50)
        return np.zeros(len(achieved))

    before = inside.limit.sampled
    HindsightReplay(inside, reward_fn).sample(4)
    assert inside.limit.sampled == before + 4


GOAL_STRETCH = {
    "obs": {"achieved_goal": np.zeros((30, 1)), "desired_goal": np.ones((30, 1))},
    "action": np.zeros(30),
    "reward": np.zeros(30),
    "next_obs": {"achieved_goal": np.zeros((30, 1)), "desired_goal": np.ones((30, 1))},
    "terminated": np.zeros(30, bool),
    "truncated": np.zeros(30, bool),
}


def filled_with_goals():
    buffer = ReplayBuffer(50, GOAL, seed=0)
    buffer.extend(**GOAL_STRETCH)
    return buffer


# -- Copies, checkpoints, processes --------------------------------------------------------------------------------


def test_counts_are_copied_and_saved(tmp_path):
    """Counts are copied, saved and loaded. Without counts, they begin in the middle of the corridor."""
    replay = limited(inner=PrioritizedBuffer(100, FLAT, seed=0))
    replay.extend(**stretch(20))
    replay.sample(8)
    replay.save(tmp_path / "a")
    twin = limited(inner=PrioritizedBuffer(100, FLAT))
    twin.load(tmp_path / "a")
    for other in (copy.deepcopy(replay), pickle.loads(pickle.dumps(replay)), twin):
        assert (other.limit.inserted, other.limit.sampled) == (20, 8)
        assert other.rate_limit is other.limit is not replay.limit
        assert bits_of(other.sample(8)) == bits_of(copy.deepcopy(replay).sample(8))
    with pytest.raises(ValueError, match="samples_per_insert was 2.0, but is 3.0"):
        limited(3.0, inner=PrioritizedBuffer(100, FLAT)).load(tmp_path / "a")
    replay.inner.save(tmp_path / "b")
    other = limited(inner=PrioritizedBuffer(100, FLAT))
    other.load(tmp_path / "b", exact=False)
    assert (other.limit.inserted, other.limit.sampled) == (20, 20)
    wrapped = limited(inner=replay.inner)
    assert (wrapped.limit.inserted, wrapped.limit.sampled) == (20, 20)
    replay.clear()
    assert (replay.limit.inserted, replay.limit.sampled) == (0, 0)


def in_child(replay, result):
    replay.limit.close()
    result.put(len(replay.sample(8).reward))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="the system has no fork")
def test_a_forked_child_has_a_free_limit():
    """A forked child has a free limit, although a thread of the parent waits for it."""
    replay = limited(timeout=30)
    replay.extend(**stretch(10))
    replay.limit.begin(0)
    context = multiprocessing.get_context("fork")
    result = context.SimpleQueue()
    with ThreadPoolExecutor() as threads:
        threads.submit(replay.sample, 8)
        has_waiter(replay.limit)
        child = context.Process(target=in_child, args=(replay, result))
        child.start()
        assert result.get() == 8
        child.join()
        replay.limit.close()
