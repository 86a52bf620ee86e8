"""The one lock of a storage."""

import os
import threading
import weakref
from typing import Any

_locks: "weakref.WeakSet[Any]" = weakref.WeakSet()
_RLock: Any = type(threading.RLock())


class Lock(_RLock):  # type: ignore[misc]
    """A re-entrant lock, which every public method of a replay holds while it runs.

    `sampling` is True while the thread that holds it makes a batch: functions of the user that run then must not write.
    `recorder` is a mark of the recorder that stores an environment's steps, the last that `record` made. A copy or a
    pickle of a lock is a new lock without one, and a forked child has a free one.
    """

    sampling: bool
    recorder: object = None

    def __init__(self) -> None:
        super().__init__()
        self.sampling = False
        _locks.add(self)

    def refuse_writing(self) -> None:
        """Raise RuntimeError if the thread that holds the lock is in the middle of a sample.

        An interrupt can leave `sampling` set. Then the lock is held only once, and `sampling` is reset instead.
        """
        self.release()
        try:
            is_nested = self._is_owned()
        finally:
            self.acquire()
        if not is_nested:
            self.sampling = False
            return
        raise RuntimeError(
            "a batch is being made, and a function that is called for it, such as reward_fn or a wrapper's method, "
            "tried to write to the buffer; write before or after sample()"
        )

    def __reduce__(self) -> Any:
        return Lock, ()

    def __reduce_ex__(self, _protocol: Any) -> Any:
        return self.__reduce__()


def _release_in_child() -> None:
    """Free all locks in a forked child: the threads that held them do not exist there."""
    for lock in list(_locks):
        lock._at_fork_reinit()
        lock.sampling = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_child)
