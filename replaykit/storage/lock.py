"""The one lock of a storage."""

import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

_RLock: Any = type(threading.RLock())
_numbers = itertools.count()
_locks: "weakref.WeakValueDictionary[int, Lock]" = weakref.WeakValueDictionary()
"""All locks, in the order of their creation."""
_LONGEST_WAIT = 5.0
"""Seconds that a fork waits for locks. Afterwards it goes on, since a thread may hold one until something else ends."""


class Lock(_RLock):  # type: ignore[misc]
    """A re-entrant lock, which every public method of a replay holds while it runs.

    `sampling` is True while the thread that holds it makes a batch: functions of the user that run then must not write.
    `writers` has a weak reference to the writer of each lane that has one. `recorder` is a mark of the recorder that
    stores an environment's steps, the last that `record` made. `after_fork` is called in a forked child. A `refusal` is
    the reason for which nothing may be done any more; `sampling` is then True, too. A thread that takes several locks
    takes them in the order of their `number`, that of their creation, as a fork does.

    A copy or a pickle of a lock is a new lock without either. A fork waits for the threads that hold locks, so that a
    forked child has every buffer at one moment of it, and a free lock.
    """

    sampling: bool
    writers: dict[int, Any]
    recorder: object = None
    after_fork: Callable[[], None] | None = None
    refusal: str | None = None

    def __init__(self) -> None:
        super().__init__()
        self.sampling, self.writers = False, {}
        self.number = next(_numbers)
        _locks[self.number] = self

    @property
    def each(self) -> "list[Lock]":
        """The locks of storages that this one stands for: itself."""
        return [self]

    @property
    def written(self) -> "Lock":
        """The lock of the storage that is written to: this one."""
        return self

    @property
    def is_held(self) -> bool:
        """Whether this thread holds the lock."""
        return bool(self._is_owned())

    def refuse_writing(self) -> None:
        """Raise RuntimeError if the thread that holds the lock is in the middle of a sample.

        An interrupt can leave `sampling` set. Then the lock is held only once, and `sampling` is reset instead.
        """
        if self.refusal:
            raise RuntimeError(self.refusal)
        self.release()
        try:
            is_nested = self._is_owned()
        finally:
            self.acquire()
        if is_nested:
            raise RuntimeError(
                "a batch is being made, and a function that is called for it, such as reward_fn or a wrapper's method, "
                "tried to write to the buffer; write before or after sample()"
            )
        self.sampling = False

    def __reduce__(self) -> Any:
        return Lock, ()


class _Fork(threading.local):
    """The locks that a thread holds while it forks."""

    def __init__(self) -> None:
        self.held: list[Lock] = []

    def before(self) -> None:
        """Wait until no other thread is in the middle of a write."""
        deadline = time.monotonic() + _LONGEST_WAIT
        for lock in [reference() for reference in _locks.valuerefs()]:
            if lock is not None and lock.acquire(timeout=max(deadline - time.monotonic(), 0.0)):
                self.held.append(lock)

    def after_in_parent(self) -> None:
        while self.held:
            self.held.pop().release()

    def after_in_child(self) -> None:
        """Free all locks: the other threads do not exist in the child."""
        self.held.clear()
        for lock in list(_locks.values()):
            lock._at_fork_reinit()
            lock.sampling = lock.refusal is not None
            if lock.after_fork is not None:
                lock.after_fork()


_fork = _Fork()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_fork.before, after_in_parent=_fork.after_in_parent, after_in_child=_fork.after_in_child)
