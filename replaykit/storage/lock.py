"""The lock of a storage."""

import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:

    class _RLock:
        def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...
        def release(self) -> None: ...
        def __enter__(self) -> bool: ...
        def __exit__(self, *error: object) -> None: ...
        def _is_owned(self) -> bool: ...
        def _at_fork_reinit(self) -> None: ...

else:
    _RLock = type(threading.RLock())
_numbers = itertools.count()
_locks: "weakref.WeakValueDictionary[int, Lock]" = weakref.WeakValueDictionary()
"""All locks, in the order of their creation."""
_LONGEST_WAIT = 5.0
"""Maximum number of seconds that a fork waits for locks, since a thread may hold a lock for a long time."""


class Lock(_RLock):
    """A re-entrant lock. Every public method of a replay holds it while it runs.

    `sampling` is True while the lock's owner makes a batch: user functions called meanwhile must not write. `writers`
    has a weak reference to the writer of each lane that has one. `recorder` marks the newest recorder that `record`
    made. `after_fork` is called with the lock in a forked child. `refusal` is the reason why the storage can no longer
    be used; `sampling` is then also True. `number` counts locks as they are created. Several are taken in this order.

    A copied or unpickled lock is a new lock, without these values. A fork waits for the threads that hold locks. In the
    child, every buffer is therefore in a consistent state, and its lock is free.
    """

    sampling: bool
    writers: dict[int, Any]
    recorder: object = None
    after_fork: "Callable[[Lock], None] | None" = None
    refusal: str | None = None

    def __init__(self) -> None:
        super().__init__()
        self.sampling, self.writers = False, {}
        self.number: int = next(_numbers)
        _locks[self.number] = self

    @property
    def each(self) -> "list[Lock]":
        """The locks that this one consists of: itself."""
        return [self]

    @property
    def written(self) -> "Lock":
        """The lock of the storage that is written to: itself."""
        return self

    @property
    def is_held(self) -> bool:
        """Whether this thread holds the lock."""
        return bool(self._is_owned())

    def refuse_writing(self) -> None:
        """Raise RuntimeError if the thread that holds the lock is in the middle of a sample.

        An interrupt can leave `sampling` set. The lock is then held only once, and `sampling` is reset instead.
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
        """Release all locks: the other threads do not exist in the child."""
        self.held.clear()
        for lock in list(_locks.values()):
            lock._at_fork_reinit()
            lock.sampling = lock.refusal is not None
            if lock.after_fork is not None:
                lock.after_fork(lock)


_fork = _Fork()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_fork.before, after_in_parent=_fork.after_in_parent, after_in_child=_fork.after_in_child)
