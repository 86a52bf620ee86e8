"""Writers for several processes on one machine. They send steps to the learner's process through shared memory."""

import contextlib
import functools
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final, overload

import numpy as np
import numpy.typing as npt

from replaykit.checks import check_count, check_finite, prefixed
from replaykit.distributed.segment import Layout, Place, Segment, SegmentGoneError
from replaykit.distributed.steps import axes_of_step, axes_of_steps, checked_mask, checked_steps
from replaykit.field import Array
from replaykit.replay import Replay
from replaykit.spec import REQUIRED, Spec
from replaykit.storage.base import Storage
from replaykit.storage.lock import Lock
from replaykit.storage.memory_limit import refuse_more_than_memory
from replaykit.storage.row import encoder
from replaykit.trees import Tree
from replaykit.writer import Writing

_ROOM_BYTES, _MOST_ROOM, _LEAST_ROOM = 1 << 26, 4096, 16
_LARGEST_BLOCK = 1024
"""Maximum number of steps that the learner takes from a segment at once."""
_PAUSE = 1e-3
"""Seconds to wait before empty segments are checked again."""


@final
class ProcessWriters(Sequence["ProcessWriter"]):
    """Writers for other processes on this machine, which add to a replay. Each has its own lanes.

    The learner builds a replay with one lane for each environment, creates the writers, and passes one to each process.
    It then samples from the replay, updates priorities and saves it as usual. All buffers and wrappers are supported,
    with exact probabilities::

        process 0: writers[0].add(...) --> [ segment 0 ] --+
        process 1: writers[1].add(...) --> [ segment 1 ] --+--> thread --> replay
        process 2: writers[2].add(...) --> [ segment 2 ] --+

    A segment is a ring of steps in shared memory, with one writing and one reading process, and without locks. A thread
    of the learner's process moves the steps to the replay. With a :class:`~replaykit.RateLimitedReplay`, steps stay in
    the segments until the limit allows more inserts. A writer waits while its segment is full.

    If a process dies, even in the middle of a step, at most that step is lost, and no other process waits for it. All
    earlier steps reach the replay. A new process can then use the same writer. It begins a new episode. If the learner
    dies, writers raise an error when their segments are full. The shared memory is freed when all processes have ended,
    in any way.

    Until the writers are closed, nothing else can add to their lanes, and ``replay.load`` raises an error. Load a
    checkpoint before you create the writers.

    Parameters
    ----------
    replay : Replay
        A buffer, or a wrapper around one.
    count : int
        Number of writers. They share the lanes evenly, so `num_envs` must be a multiple of it.
    room : int, optional
        Number of steps in each segment. By default, as many as fit in 64 MiB, but at least 16 and at most 4,096.
    timeout : float, optional
        Seconds that a writer waits for room before it raises TimeoutError. By default it waits until the learner ends.

    Raises
    ------
    TypeError, ValueError, MemoryError
        If an argument is out of range, a lane already has a writer, or the segments do not fit in memory.

    Examples
    --------
    >>> import multiprocessing
    >>> from replaykit import Field, ReplayBuffer, Spec
    >>> from replaykit.distributed import ProcessWriters
    >>> def act(writer, steps):
    ...     with writer:
    ...         for step in range(steps):
    ...             writer.add(step, 0, 1.0, step + 1, step % 10 == 9, False)
    >>> spec = Spec(obs=Field(()), action=Field(()))
    >>> buffer = ReplayBuffer(1000, spec, num_envs=2, seed=0)
    >>> context = multiprocessing.get_context("fork")  # "spawn" must import act
    >>> with ProcessWriters(buffer, 2) as writers:
    ...     arguments = [(writer, 100) for writer in writers]
    ...     processes = [context.Process(target=act, args=args) for args in arguments]
    ...     for process in processes:
    ...         process.start()
    ...     for process in processes:
    ...         process.join()
    >>> len(buffer)
    200
    """

    def __init__(self, replay: Replay, count: int, *, room: int | None = None, timeout: float | None = None) -> None:
        if not isinstance(replay, Replay):
            raise TypeError(f"replay is a {type(replay).__name__}; expected a buffer, or a wrapper around one")
        count, lanes = check_count("count", count), replay.num_envs
        if lanes % count:
            raise ValueError(
                f"count is {count}; expected a divisor of num_envs={lanes}, so that lanes are shared evenly"
            )
        if timeout is not None and check_finite("timeout", timeout) < 0.0:
            raise ValueError(f"timeout is {timeout!r}; expected at least 0 seconds, or None to wait without limit")
        each = lanes // count
        self._layout = Layout.of(replay.spec, each)
        record = self._layout.record
        if room is None:
            room = min(max(_ROOM_BYTES // record.itemsize, _LEAST_ROOM), _MOST_ROOM)
        room = check_count("room", room)
        refuse_more_than_memory(count * room * record.itemsize, f"room {room} for {count} writers", "lower the room")
        self.replay: Replay = replay
        self._has_ended, self._moving = threading.Event(), threading.Lock()
        self._error: BaseException | None = None
        self._process, self._most = os.getpid(), _LARGEST_BLOCK
        if replay.rate_limit is not None:  # the limit would never allow a larger block
            self._most = min(replay.rate_limit.largest_block // each, _LARGEST_BLOCK)
            if not self._most:
                wrong = f"count is {count}, so each step adds {each} transitions, which is more than the limit allows"
                raise ValueError(f"{wrong}; raise the limit's tolerance, or raise count")
        self._lanes = contextlib.ExitStack()
        self._segments = [Segment.create(record, room) for _ in range(count)]
        groups = [i if each == 1 else range(i * each, (i + 1) * each) for i in range(count)]
        try:
            self._own = [self._lanes.enter_context(replay.writer(group)) for group in groups]
        except BaseException:
            self.close()
            raise
        settings = replay.spec, each, timeout, replay.largest_priority
        self._writers = [ProcessWriter(i, segment.place, *settings) for i, segment in enumerate(self._segments)]
        self._thread = threading.Thread(target=self._run, name="replaykit-process-writers", daemon=True)
        self._thread.start()

    # -- Moving steps ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._has_ended.is_set():
            try:
                moved = self._move()
            except BaseException as error:
                self._error = error
                for segment in self._segments:
                    segment.shut()
                return
            if not moved:
                self._has_ended.wait(_PAUSE)

    def _move(self) -> int:
        """Move as many steps from the segments to the replay as the limit allows. Returns the number of steps."""
        limit, moved = self.replay.rate_limit, 0
        with self._moving, contextlib.nullcontext() if limit is None else limit.without_waiting():
            for segment, writer in zip(self._segments, self._own, strict=True):
                with contextlib.suppress(TimeoutError):
                    for steps in _stretches(segment.waiting(self._most)):
                        self._store(writer, steps)
                        segment.take(len(steps))
                        moved += len(steps)
        return moved

    def _store(self, writer: Any, steps: Array) -> None:
        """Add steps to the replay. Only the first step can begin new episodes after `end_episode`."""
        has_axis, spec = writer.num_envs > 1, self.replay.spec
        leaves = [steps[str(i)] if has_axis else steps[str(i)][:, 0] for i in range(len(spec.leaves))]
        cut, mask = steps["cut"][0], steps["mask"]
        options: dict[str, Any] = {}
        if not mask.all():
            options["mask"] = mask if has_axis else mask[:, 0]
        if steps["has_error"][0]:
            options["td_error"] = steps["td_error"] if has_axis else steps["td_error"][:, 0]
        if cut.any():
            writer.end_episode(cut)
        writer.extend(**spec.unflatten(leaves, tuple(spec)), **options)

    def flush(self) -> None:
        """Wait until all steps added before this call are in the replay. With a rate limit, the wait can be long.

        Raises
        ------
        RuntimeError
            If the thread that moves steps has failed. The thread's error is the cause.
        """
        if self._process != os.getpid():
            raise RuntimeError(
                "a forked process cannot use its parent's ProcessWriters; build new ones for its own replay"
            )
        goals = [segment.counts[0] for segment in self._segments]
        while any(segment.counts[1] < goal for segment, goal in zip(self._segments, goals, strict=True)):
            self._raise_error()
            if not self._move():
                self._has_ended.wait(_PAUSE)
        self._raise_error()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise RuntimeError(f"steps of other processes could not be added: {self._error}") from self._error

    def close(self) -> None:
        """Move as many steps to the replay as the rate limit allows now, and release the lanes and the memory.

        Afterwards the writers raise RuntimeError. Closing again does nothing.
        """
        if self._has_ended.is_set() or self._process != os.getpid():
            return
        self._has_ended.set()
        for segment in self._segments:
            segment.shut()
        if hasattr(self, "_thread"):
            self._thread.join()
            while self._error is None and self._move():
                pass
        for segment in self._segments:
            segment.close()
        self._lanes.close()
        self._raise_error()

    def __enter__(self) -> "ProcessWriters":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    # -- Looking ---------------------------------------------------------------------------------------------

    @overload
    def __getitem__(self, index: int) -> "ProcessWriter": ...
    @overload
    def __getitem__(self, index: slice) -> "list[ProcessWriter]": ...
    def __getitem__(self, index: Any) -> Any:
        """Writer number `index`."""
        return self._writers[index]

    def __len__(self) -> int:
        return len(self._writers)

    def __iter__(self) -> "Iterator[ProcessWriter]":
        return iter(self._writers)

    def stats(self, prefix: str = "") -> dict[str, float]:
        """Numbers for a logger, by name.

        - `sent`: number of steps that the writers have added
        - `moved`: number of these steps that are in the replay
        - `writer_wait_seconds`: seconds that writers have waited for room in their segments, summed over the writers

        Parameters
        ----------
        prefix : str
            A prefix for each name, such as ``"replay/"``.
        """
        self._raise_error()
        sent, moved, waited = (sum(column) for column in zip(*(s.counts for s in self._segments), strict=True))
        return prefixed({"sent": sent, "moved": moved, "writer_wait_seconds": waited}, prefix)

    def __reduce__(self) -> Any:
        raise TypeError(
            "ProcessWriters cannot be copied or pickled; pass a single writer, such as writers[0], to each process"
        )

    def __repr__(self) -> str:
        return f"ProcessWriters({len(self._segments)} for {self.replay!r}{', closed' * self._has_ended.is_set()})"


def _stretches(steps: Array) -> Iterator[Array]:
    """The steps, split where `end_episode` was called, and between steps with and without a `td_error`."""
    if not len(steps):
        return
    breaks: Array = np.asarray(steps["cut"].any(axis=1))
    breaks[1:] |= steps["has_error"][1:] != steps["has_error"][:-1]
    begins = np.flatnonzero(breaks[1:]) + 1
    yield from np.split(steps, begins)


def _encode_any(
    spec: Spec, order: Sequence[int], values: tuple[Tree, ...], extras: Mapping[str, Tree], lead: tuple[int, ...]
) -> bytes:
    """The bytes of the leaves of a step, for values that the fast path does not accept."""
    given = zip(spec.leaves, spec.flatten(values, extras), strict=True)
    leaves = [leaf.coerce(value, lead) for leaf, value in given]
    return b"".join([leaves[i].tobytes() for i in order])


@final
class ProcessWriter(Writing):
    """Adds to some lanes of a replay from another process. `ProcessWriters` creates it; pickle it to that process.

    Use it like a buffer with `num_envs` lanes. ``record(env, writer)`` stores all steps of an environment. Values are
    checked in the writing process, with the same errors as in a buffer. When `add` returns, the step is in shared
    memory. The learner's process moves it to the replay soon after, even if the writing process has ended. `add`
    waits while the segment is full.

    Only one process at a time can use the writer. The writer belongs to the first process that adds a step, until that
    process calls `close` or ends.

    Methods for writing: `add`, `extend`, `end_episode`, `flush`. To release the writer: `close`.

    Attributes
    ----------
    number : int
        The number of this writer, counted from 0.
    num_envs : int
        Number of lanes, k.
    """

    def __init__(
        self, number: int, place: Place, spec: Spec, num_envs: int, timeout: float | None, largest_priority: float
    ) -> None:
        self._made_of = number, place, spec, num_envs, timeout, largest_priority
        self.number: int = number
        self.num_envs: int = num_envs
        self._place, self._spec = place, spec
        self._timeout, self._largest_priority = timeout, largest_priority
        self._lock, self._is_closed = Lock(), False
        self._segment: Segment | None = None
        self._names = [leaf.name for leaf in spec.leaves]
        self._cut, self._has_cut = np.ones(num_envs, np.bool_), True
        self._layout = Layout.of(spec, num_envs)
        order, lanes = self._layout.order, (num_envs,)
        encode_any = functools.partial(_encode_any, spec, order)
        several = encoder(spec, order, (), encode_any, lanes)
        self._encode = several if num_envs > 1 else encoder(spec, order, (), encode_any, lane=several)
        self._leaf_of_reward = spec.leaves[self._names.index("reward")]
        before = order[: order.index(self._names.index("reward"))]
        self._reward = spec["reward"].dtype, num_envs * sum(spec.leaves[i].field.nbytes for i in before)
        self._rewards = num_envs * spec["reward"].nbytes // spec["reward"].dtype.itemsize
        self._ends = b"\1" * num_envs + bytes(num_envs + 1)

    # -- Writing ---------------------------------------------------------------------------------------------

    def add(
        self, obs: Tree, action: Tree, reward: Any, next_obs: Tree, terminated: Any = REQUIRED,
        truncated: Any = REQUIRED, *, mask: npt.ArrayLike | None = None, td_error: Any = None, **extras: Tree,
    ) -> None:  # fmt: skip
        """Send one step of every lane of the writer, or of the lanes in `mask`; see :meth:`replaykit.Replay.add`.

        The values have a leading axis k, which can be left out with one lane. Returns None, because the index of the
        step is not known yet.

        Raises
        ------
        FieldNameError, ValueError, TypeError, OverflowError
            If a value does not fit. Nothing is sent.
        TimeoutError
            If there is no room after `timeout` seconds.
        RuntimeError
            If the writer or the learner's writers are closed, the learner has ended, or another process uses the
            writer.
        """
        values = obs, action, reward, next_obs, terminated, truncated
        if mask is not None or td_error is not None or self._has_cut:
            lead = axes_of_step(reward, self._leaf_of_reward, self.num_envs)
            self._send(1, lead, values, extras, mask, td_error)
            return
        data = self._encode(*values, extras)
        dtype, begin = self._reward
        Storage.refuse_rewards(np.frombuffer(data, dtype, self._rewards, begin))
        with self._lock:
            self._refuse_late(self._opened().write_one(data + self._ends, self._layout.begin, self._timeout), 1)

    def extend(
        self, obs: Tree, action: Tree, reward: Any, next_obs: Tree, terminated: Any = REQUIRED,
        truncated: Any = REQUIRED, *, mask: npt.ArrayLike | None = None, td_error: Any = None, **extras: Tree,
    ) -> None:  # fmt: skip
        """Send T steps. The values have the leading axes (T, k), or (T,) with one lane. Otherwise like `add`.

        If TimeoutError is raised, its attribute `sent` is the number of steps that were sent.
        """
        values = obs, action, reward, next_obs, terminated, truncated
        lead = axes_of_steps(reward, self._leaf_of_reward, self.num_envs)
        self._send(lead[0], lead, values, extras, mask, td_error)

    def _send(
        self, steps: int, lead: tuple[int, ...], values: tuple[Tree, ...], extras: Any, mask: Any, td_error: Any
    ) -> None:
        options = mask, td_error, self._largest_priority
        leaves, chosen, errors = checked_steps(self._spec, values, extras, lead, self.num_envs, *options)
        shape = steps, self.num_envs
        fields: dict[str, Any] = {
            str(i): leaf.reshape(shape + leaf.shape[len(lead) :]) for i, leaf in enumerate(leaves)
        }
        fields["mask"] = np.broadcast_to(True if chosen is None else chosen.reshape(shape), shape)
        fields["td_error"] = np.zeros(shape) if errors is None else errors.reshape(shape)
        fields["has_error"] = np.full(steps, errors is not None)
        with self._lock:
            segment = self._opened()
            fields["cut"] = cut = np.zeros(shape, np.bool_)
            cut[:1] = self._cut
            sent = segment.write(fields, steps, self._timeout)
            if sent:
                self._cut[:] = self._has_cut = False
        self._refuse_late(sent, steps)

    def _refuse_late(self, sent: int, steps: int) -> None:
        """Raise TimeoutError unless all steps were sent."""
        if sent < steps:
            error = TimeoutError(f"{steps - sent} of {steps} steps found no room within {self._timeout} seconds")
            error.sent = sent  # type: ignore[attr-defined]
            raise error

    def end_episode(self, mask: npt.ArrayLike | None = None) -> None:
        """End the running episodes of all lanes of the writer, or of the lanes in `mask`, of shape (k,)."""
        chosen = True if mask is None else checked_mask(mask, (self.num_envs,), self.num_envs)
        with self._lock:
            self._opened()
            self._cut |= chosen
            self._has_cut = bool(self._cut.any())

    def flush(self) -> None:
        """Wait until the learner's process has moved all sent steps to the replay."""
        with self._lock:
            self._opened().await_reader()

    def close(self) -> None:
        """Release the writer for another process. Sent steps are kept. Closing again does nothing."""
        with self._lock:
            self._is_closed = True
            if self._segment is not None:
                self._segment.close()

    def __enter__(self) -> "ProcessWriter":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _opened(self) -> Segment:
        """The open segment. The first call opens it for this process."""
        if self._is_closed:
            raise RuntimeError(f"writer {self.number} is closed; pass another copy of it from the learner's process")
        if self._segment is None:
            try:
                self._segment = Segment.open(self._layout.record, self._place)
            except BlockingIOError:
                remedy = "pass a different writer to each process"
                raise RuntimeError(
                    f"writer {self.number} is already in use, in this process or another; {remedy}"
                ) from None
        return self._segment

    # -- Looking ---------------------------------------------------------------------------------------------

    @property
    def spec(self) -> Spec:
        """The fields of a transition."""
        return self._spec

    @property
    def lock(self) -> Lock:
        """Held while steps are sent."""
        return self._lock

    def __reduce__(self) -> Any:
        return ProcessWriter, self._made_of

    def __repr__(self) -> str:
        return f"ProcessWriter({self.number}, num_envs={self.num_envs}{', closed' * self._is_closed})"


__all__ = ["ProcessWriter", "ProcessWriters", "SegmentGoneError"]
