"""Flow control: how many samples are drawn for each transition that is added."""

import contextlib
import math
import os
import threading
import time
import weakref
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, final

import numpy as np
import numpy.typing as npt

from replaykit.batch import Batch
from replaykit.checks import check_count, check_finite, prefixed
from replaykit.declared import Declared, read_only
from replaykit.replay import Replay
from replaykit.spec import REQUIRED
from replaykit.storage.base import Indices
from replaykit.trees import Tree
from replaykit.wrapper import ReplayWrapper
from replaykit.writer import Selection

_SLICE = 0.5
"""Seconds after which a waiting thread checks again whether it may go on, or must stop waiting."""
_ALONE = 300.0
"""Seconds that a thread waits at most if it has no timeout and is the only one that has used the limit."""
_LEAST_TOLERANCE = 1024.0
_limits: "weakref.WeakSet[RateLimit]" = weakref.WeakSet()
_WHILE_LOCKED = (
    "this thread holds the buffer's lock, so no other thread can add or sample while it waits; release the lock first"
)
_ALONE_TEXT = "no other thread has used the limit"


class Corridor:
    """The rule of a `RateLimit`, for counts that are stored elsewhere.

    Let ``d = inserted * samples_per_insert - sampled`` and ``center = min_size * samples_per_insert``. An insert may
    raise d to at most ``center + tolerance``. A sample may lower it to at least ``center - tolerance``. Numbers are
    compared without rounding.
    """

    def __init__(self, samples_per_insert: float, min_size: int, tolerance: float) -> None:
        ratio = _fraction(samples_per_insert)
        self._up, self._down = ratio.numerator, ratio.denominator
        self._half = math.floor(_fraction(tolerance) * self._down)
        self._center, self._min_size = min_size * self._up, min_size

    def allows_insert(self, rows: int, inserted: int, sampled: int) -> bool:
        """Whether `rows` more may be inserted. Always true before `min_size` are inserted."""
        if inserted < self._min_size or not rows:
            return True
        return (inserted + rows) * self._up - sampled * self._down <= self._center + self._half

    def allows_sample(self, rows: int, inserted: int, sampled: int) -> bool:
        """Whether `rows` more may be sampled."""
        if inserted < self._min_size:
            return False
        return inserted * self._up - (sampled + rows) * self._down >= self._center - self._half

    def fits(self, block: int, batch: int) -> bool:
        """Whether blocks and batches of these sizes never wait for each other.

        Both would wait if ``d + block > center + half`` and ``d - batch < center - half``. All numbers are integers.
        """
        return block * self._up + batch * self._down <= 2 * self._half + 1

    def largest_block(self) -> int:
        """The largest block that fits in half of the corridor."""
        return self._half // self._up

    def balanced(self, inserted: int) -> int:
        """The number of samples for which the difference is `center`."""
        return max(inserted * self._up - self._center, 0) // self._down


def _fraction(number: float) -> Fraction:
    """The simplest fraction with this value: 1 / 10 for 0.1."""
    found = Fraction(number).limit_denominator(1_000_000)
    return found if float(found) == number else Fraction(number)


@final
class RateLimit(Declared):
    """Keeps the number of samples per inserted transition near a target, by making the faster side wait.

    Actors insert and learners sample. With the difference ``d = inserted * samples_per_insert - sampled``::

                   min_size * samples_per_insert
        -----[================|================]-----> d
              samples wait              inserts wait
              before d is        before d is larger
              smaller            than the right end
             |-- tolerance --||-- tolerance --|

    The first `min_size` transitions are inserted without waiting, and nothing is sampled before that. Afterwards, an
    insert that would leave the corridor waits for samples, and a sample waits for inserts. `RateLimitedReplay` applies
    a limit to a buffer that threads share. The replays of ``replaykit.distributed`` also accept a limit.

    A wait ends with a TimeoutError after `timeout` seconds, or at once if `timeout` is 0. The buffer's lock is not held
    during a wait, and Ctrl-C interrupts it. Call `close` when one side has ended: all waiting threads continue, and
    nothing is limited after that. If the waiting thread is the only one of the process, a RuntimeError is raised at
    once. If no other thread has used the limit, and there is no `timeout`, it is raised after five minutes.

    To limit your own code, use `await_insert` and `await_sample`, which wait and count, or the context managers
    `inserting` and `sampling`, which count only if no error is raised. Inside one of them, another of the same kind in
    the same thread has no effect.

    Parameters
    ----------
    samples_per_insert : float
        Transitions sampled per inserted transition. One batch of 256 for every 4 steps of an environment gives 64.
    min_size : int
        Transitions to insert before the first sample.
    tolerance : float, optional
        Half the width of the corridor, in sampled transitions, at least 1 and at least `samples_per_insert`. By default
        the largest of 1,024, ``16 * samples_per_insert`` and ``0.1 * min_size * samples_per_insert``. The largest batch
        plus `samples_per_insert` times the largest block inserted at once must be at most twice the tolerance.
        Otherwise both sides could wait forever, so a ValueError is raised.
    timeout : float, optional
        Maximum number of seconds to wait.

    Attributes
    ----------
    corridor : Corridor
        The rule for given counts.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of its range.

    References
    ----------
    Cassirer et al. (2021), Reverb: A Framework for Experience Replay, section 3.4: SampleToInsertRatio.

    Examples
    --------
    >>> from replaykit import RateLimit
    >>> limit = RateLimit(samples_per_insert=2, min_size=10, tolerance=4, timeout=0)
    >>> limit.await_insert(12)  # 10 are free; the other 2 raise d by 2 * 2 = 4, the tolerance
    >>> limit.await_insert(1)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    TimeoutError: 1 transition cannot be inserted after 12 inserted and 0 sampled; ...
    >>> limit.await_sample(2)
    >>> limit.await_insert(1)
    """

    samples_per_insert: float = read_only("_samples_per_insert", "Transitions sampled for each that is inserted.")
    min_size: int = read_only("_min_size", "Transitions to insert before the first sample.")
    tolerance: float = read_only("_tolerance", "Half the width of the corridor, in transitions sampled.")
    timeout: float | None = read_only("_timeout", "Seconds to wait at most, or None.")

    def __init__(
        self, samples_per_insert: float, min_size: int = 1, tolerance: float | None = None, *,
        timeout: float | None = None,
    ) -> None:  # fmt: skip
        ratio = check_finite("samples_per_insert", samples_per_insert)
        if ratio <= 0.0:
            raise ValueError(f"samples_per_insert is {samples_per_insert!r}; expected a number above 0")
        min_size = check_count("min_size", min_size)
        if tolerance is None:
            tolerance = max(_LEAST_TOLERANCE, 16 * ratio, 0.1 * min_size * ratio)
        least = max(1.0, ratio)
        if check_finite("tolerance", tolerance) < least:
            reason = "since with less, inserts and samples would wait for each other"
            raise ValueError(f"tolerance is {tolerance!r}; expected at least {least:g}, {reason}")
        if timeout is not None and check_finite("timeout", timeout) < 0.0:
            raise ValueError(f"timeout is {timeout!r}; expected seconds of at least 0, or None to wait without end")
        self._samples_per_insert, self._min_size = float(ratio), min_size
        self._tolerance, self._timeout = float(tolerance), timeout
        self.corridor: Corridor = Corridor(self._samples_per_insert, min_size, self._tolerance)
        self._condition, self._threads = threading.Condition(), weakref.WeakSet[threading.Thread]()
        self._stopped = weakref.WeakSet[threading.Thread]()
        self._local, self._is_closed = threading.local(), False
        self._sides = {"insert": _Side(), "sample": _Side()}
        _limits.add(self)

    # -- Waiting ---------------------------------------------------------------------------------------------

    def await_insert(self, rows: int = 1) -> None:
        """Wait until `rows` transitions may be inserted, and count them.

        Raises
        ------
        TimeoutError
            After `timeout` seconds.
        RuntimeError
            If no other thread can end the wait.
        ValueError
            If `rows` is too large for the tolerance.
        """
        with self.inserting(rows):
            pass

    def await_sample(self, rows: int) -> None:
        """Wait until `rows` transitions may be sampled, and count them. Errors are those of `await_insert`."""
        with self.sampling(rows):
            pass

    def inserting(self, rows: int, *, may_wait: bool = True) -> "contextlib.AbstractContextManager[None]":
        """A context manager: wait until `rows` may be inserted, and count them if the block raises no error.

        If `may_wait` is False, RuntimeError is raised instead of waiting. Other errors are those of `await_insert`.
        """
        return self._counted("insert", rows, may_wait)

    def sampling(self, rows: int, *, may_wait: bool = True) -> "contextlib.AbstractContextManager[None]":
        """A context manager: wait until `rows` may be sampled, and count them if the block raises no error.

        If `may_wait` is False, RuntimeError is raised instead of waiting. Other errors are those of `await_insert`.
        """
        return self._counted("sample", rows, may_wait)

    @contextlib.contextmanager
    def _counted(self, name: str, rows: int, may_wait: bool) -> Iterator[None]:
        if getattr(self._local, name, False):
            yield
            return
        rows, side, done = check_count("rows", rows, 0), self._sides[name], 0
        with self._condition:
            self._wait(name, rows, may_wait)
            side.begun += rows
        setattr(self._local, name, True)
        try:
            yield
            done = rows
        finally:
            setattr(self._local, name, False)
            with self._condition:
                side.begun -= rows - done
                side.done += done
                self._condition.notify_all()

    def _wait(self, name: str, rows: int, may_wait: bool) -> None:
        """Wait until a side may go on. The condition is held."""
        self._threads.add(threading.current_thread())
        self._refuse_too_many(name, rows)
        if self._is_allowed(name, rows):
            return
        if not may_wait:
            raise RuntimeError(f"{self._blocked(name, rows)}; {_WHILE_LOCKED}")
        if getattr(self._local, "is_impatient", False):
            raise TimeoutError(self._blocked(name, rows))
        begin, patience, side = time.monotonic(), self._timeout, self._sides[name]
        side.waits += 1
        try:
            while not self._is_allowed(name, rows):
                left = math.inf if patience is None else patience - (time.monotonic() - begin)
                if left <= 0.0:
                    waited = f"waited {patience:g} seconds for {_other(name)}s"
                    raise TimeoutError(f"{self._blocked(name, rows)}; {waited}")
                self._refuse_waiting_alone(name, rows, begin)
                self._condition.wait(min(left, _SLICE))
        finally:
            side.seconds += time.monotonic() - begin

    def _is_allowed(self, name: str, rows: int) -> bool:
        """Whether a side may go on. Counts all that has begun on its own side, but only what is done on the other."""
        inserts, samples = self._sides["insert"], self._sides["sample"]
        if self._is_closed:
            return True
        if name == "insert":
            return self.corridor.allows_insert(rows, inserts.begun, samples.done)
        return self.corridor.allows_sample(rows, inserts.done, samples.begun)

    def _refuse_too_many(self, name: str, rows: int) -> None:
        """Raise ValueError if the largest block and the largest batch do not fit into the corridor together."""
        side, other = self._sides[name], self._sides[_other(name)]
        if self._is_closed or (name == "insert" and side.begun < self._min_size):
            return
        sizes = (rows, other.largest) if name == "insert" else (other.largest, rows)
        if not self.corridor.fits(*sizes):
            needed = (sizes[0] * self._samples_per_insert + sizes[1]) / 2
            raise ValueError(
                f"{rows} transitions are too many to {name} at once: with blocks of {sizes[0]} and batches of "
                f"{sizes[1]}, both sides could wait forever; {name} fewer at a time, or raise tolerance to at least "
                f"{needed:g} (it is {self._tolerance:g})"
            )
        side.largest = max(side.largest, rows)

    def _refuse_waiting_alone(self, name: str, rows: int, begin: float) -> None:
        """Raise RuntimeError if this thread was stopped, or if no other thread can end its wait."""
        thread = threading.current_thread()
        if thread in self._stopped:
            raise RuntimeError("the iterator of batches was closed while it waited")
        is_only_one, is_only_user = threading.active_count() == 1, len(self._threads) == 1
        has_waited = self._timeout is None and time.monotonic() - begin > _ALONE
        if is_only_one or (is_only_user and has_waited):
            alone = "this is the only thread" if is_only_one else _ALONE_TEXT
            remedy = f"{_other(name)} in another thread first, raise tolerance, or close() the limit"
            raise RuntimeError(f"{self._blocked(name, rows)}, and would wait without end, since {alone}; {remedy}")

    def _blocked(self, name: str, rows: int) -> str:
        inserted, sampled = self._sides["insert"].begun, self._sides["sample"].begun
        plural, done = "" if rows == 1 else "s", {"insert": "inserted", "sample": "sampled"}[name]
        return f"{rows} transition{plural} cannot be {done} after {inserted} inserted and {sampled} sampled"

    # -- One side ends ---------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop limiting. All waiting threads continue, and no thread waits after that."""
        with self._condition:
            self._is_closed = True
            self._condition.notify_all()

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called. Nothing is limited after that."""
        return self._is_closed

    def stop(self, thread: threading.Thread) -> None:
        """Make a thread raise RuntimeError if it is waiting now, or waits later."""
        with self._condition:
            self._stopped.add(thread)
            self._condition.notify_all()

    @contextlib.contextmanager
    def without_waiting(self) -> Iterator[None]:
        """A context manager in which this thread raises TimeoutError instead of waiting."""
        self._local.is_impatient = True
        try:
            yield
        finally:
            self._local.is_impatient = False

    @property
    def is_sampling(self) -> bool:
        """Whether this thread is in a block of `sampling`."""
        return getattr(self._local, "sample", False)

    # -- Counts ----------------------------------------------------------------------------------------------

    def sample(self, replay: Replay, batch_size: int) -> Batch:
        """A batch of a replay with this limit. Raises RuntimeError if it must wait with the replay's lock held."""
        with self.sampling(batch_size, may_wait=not replay.lock.is_held):
            return replay.sample(batch_size)

    @property
    def largest_block(self) -> int:
        """The largest block of rows that fits, if batches use at most the other half of the corridor."""
        return self.corridor.largest_block()

    @property
    def inserted(self) -> int:
        """The number of transitions inserted so far."""
        return self._sides["insert"].done

    @property
    def sampled(self) -> int:
        """The number of transitions sampled so far."""
        return self._sides["sample"].done

    def begin(self, inserted: int) -> None:
        """Set the counts: this number of inserted transitions, and sampled ones for the middle of the corridor."""
        self.restore({"inserted": inserted, "sampled": self.corridor.balanced(inserted)})

    def stats(self, prefix: str = "") -> dict[str, float]:
        """Metrics for a logger, by name.

        - `inserted`, `sampled`: transitions counted so far
        - `insert_waits`, `sample_waits`: how often an insert or a sample waited
        - `insert_wait_seconds`, `sample_wait_seconds`: the total time of these waits, summed over threads

        Parameters
        ----------
        prefix : str
            A prefix for each name, such as ``"replay/"``.
        """
        with self._condition:
            inserts, samples = self._sides["insert"], self._sides["sample"]
            found = {"inserted": inserts.done, "sampled": samples.done}
            found |= {"insert_waits": inserts.waits, "sample_waits": samples.waits}
            seconds = {"insert_wait_seconds": inserts.seconds, "sample_wait_seconds": samples.seconds}
            return prefixed(found | seconds, prefix)

    def state(self) -> dict[str, Any]:
        """The two counts. A copy with this state is not closed, and no thread waits for it."""
        return {"inserted": self.inserted, "sampled": self.sampled}

    def check_state(self, state: dict[str, Any]) -> None:
        """Raise ValueError for counts that are not ints of at least 0."""
        for name in ("inserted", "sampled"):
            if type(state[name]) is not int or not 0 <= state[name] < 1 << 63:
                raise ValueError(f"{name} is {state[name]!r:.30}; expected an int of at least 0")

    def restore(self, state: dict[str, Any]) -> None:
        """Continue with these counts."""
        with self._condition:
            for name, side in zip(("inserted", "sampled"), self._sides.values(), strict=True):
                side.begun += state[name] - side.done
                side.done = state[name]
            self._condition.notify_all()

    def after_fork(self) -> None:
        """Reset in a forked child, where other threads do not exist."""
        self._condition, self._local = threading.Condition(), threading.local()
        self._threads.clear()
        for side in self._sides.values():
            side.begun = side.done

    def __repr__(self) -> str:
        settings = f"{self._samples_per_insert:g}, min_size={self._min_size}, tolerance={self._tolerance:g}"
        return f"RateLimit({settings}; {self.inserted} inserted, {self.sampled} sampled{', closed' * self._is_closed})"


class _Side:
    """The numbers for inserts or samples: rows begun, rows done, most rows at once, waits, and seconds waited."""

    def __init__(self) -> None:
        self.begun, self.done, self.largest, self.waits, self.seconds = 0, 0, 1, 0, 0.0


def _other(name: str) -> str:
    return "sample" if name == "insert" else "insert"


def _after_fork() -> None:
    for limit in list(_limits):
        limit.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@final
class RateLimitedReplay(ReplayWrapper):
    """A wrapper whose `add`, `extend` and `sample` wait for a `RateLimit`.

    Use it if actors and learners run in separate threads. The number of samples per transition then stays at your
    target: the faster side waits for the slower one. Writers, `record` and `batches` also wait, and so do wrappers
    around this one. A batch of B rows counts as B, even if the rows are sequences. `epoch` and `episodes` do not count.

    Transitions that are already stored count as inserted, and the counts start in the middle of the corridor. `clear`
    resets the counts. Checkpoints contain them, and `stats` shows them; see `RateLimit.stats`.

    A thread that holds the buffer's lock must not wait, since it would block all others. A RuntimeError is raised
    instead. A limit around a mixture applies to the whole mixture. The sources of a mixture cannot have one.

    Parameters
    ----------
    inner : Replay
        A buffer, a wrapper, or a mixture, without a limit.
    limit : RateLimit
        A limit that no other replay uses.

    Raises
    ------
    TypeError, ValueError
        If `limit` is not a RateLimit or has a `min_size` above the capacity, or if `inner` already has a limit.
    TimeoutError, RuntimeError, ValueError
        From `add`, `extend` and `sample`; see `RateLimit.await_insert`. The buffer is then unchanged.

    Examples
    --------
    An actor and a learner in separate threads. The learner gets a batch of 8 for every 4 steps:

    >>> from concurrent.futures import ThreadPoolExecutor
    >>> from replaykit import Field, RateLimit, RateLimitedReplay, ReplayBuffer, Spec
    >>> buffer = ReplayBuffer(1000, Spec(obs=Field(()), action=Field(())))
    >>> replay = RateLimitedReplay(buffer, RateLimit(2, min_size=10, tolerance=16))
    >>> def act():
    ...     for step in range(100):
    ...         replay.add(step, 0, 1.0, step + 1, False, False)
    >>> def learn():
    ...     for _ in range(22):
    ...         replay.sample(8)
    >>> with ThreadPoolExecutor() as threads:
    ...     done = [threads.submit(act), threads.submit(learn)]
    >>> replay.limit.inserted, replay.limit.sampled
    (100, 176)
    """

    limit: RateLimit = read_only("rate_limit", "The limit.")

    def __init__(self, inner: Replay, limit: RateLimit) -> None:
        super().__init__(inner)
        if not isinstance(limit, RateLimit):
            raise TypeError(f"limit is a {type(limit).__name__}; expected a RateLimit")
        if inner.rate_limit is not None:
            raise ValueError("inner has a RateLimit already; expected a replay without one")
        if limit.min_size > inner.capacity:
            wanted = f"expected at most the capacity, {inner.capacity}"
            raise ValueError(f"limit has min_size {limit.min_size}; {wanted}, since no more are ever stored")
        self.rate_limit = limit
        if not limit.inserted:
            limit.begin(len(inner))

    def add(
        self, obs: Tree, action: Tree, reward: Any, next_obs: Tree, terminated: Any = REQUIRED,
        truncated: Any = REQUIRED, *, mask: npt.ArrayLike | None = None, td_error: Any = None, **extras: Tree,
    ) -> Indices:  # fmt: skip
        values = obs, action, reward, next_obs, terminated, truncated
        with self._inserting(1, mask):
            return self.inner.add(*values, mask=mask, td_error=td_error, **extras)

    def extend(
        self, obs: Tree, action: Tree, reward: Any, next_obs: Tree, terminated: Any = REQUIRED,
        truncated: Any = REQUIRED, *, mask: npt.ArrayLike | None = None, td_error: Any = None, **extras: Tree,
    ) -> Indices:  # fmt: skip
        values, shape = (obs, action, reward, next_obs, terminated, truncated), np.shape(reward)
        with self._inserting(shape[0] if shape else 0, mask):
            return self.inner.extend(*values, mask=mask, td_error=td_error, **extras)

    def _inserting(self, steps: int, mask: Any) -> "contextlib.AbstractContextManager[None]":
        """The context manager in which to add `steps` steps of all lanes, or of those in a mask."""
        width = self.num_envs
        if type(mask) is Selection:
            width, mask = mask.writer.num_envs, mask.mask
        rows = int(steps * width)
        if mask is not None:
            array = np.asarray(mask)
            rows = int(np.count_nonzero(array)) * (steps if array.shape == (width,) else 1)
        return self.limit.inserting(rows, may_wait=not self.lock.is_held)

    def clear(self) -> None:
        with self.lock:
            self.inner.clear()
            self.limit.begin(0)

    def stats(self, prefix: str = "") -> dict[str, float]:
        return self.inner.stats(prefix) | self.limit.stats(prefix)

    def state(self) -> dict[str, Any]:
        return self.limit.state()

    def check_state(self, state: dict[str, Any]) -> None:
        self.limit.check_state(state)

    def restore(self, state: dict[str, Any]) -> None:
        self.limit.restore(state)

    def restart(self) -> None:
        """Count the stored transitions as inserted."""
        self.limit.begin(len(self.inner))
