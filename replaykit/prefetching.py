"""An endless iterator of batches that are prepared in advance."""

import contextlib
import os
import queue
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from replaykit.batch import Batch
from replaykit.checks import check_count
from replaykit.tensors import device_of
from replaykit.trees import leaves_of

_LARGE_BATCH_BYTES = 1 << 19
"""Batches of at least this many bytes are made in a thread. For smaller ones, a thread costs as much as it saves."""


class Batches:
    """An endless iterator of batches, returned by the ``batches`` method of a replay.

    It is also a context manager. The iteration and its thread end with `close`, at the end of the ``with`` block, or
    when the last reference to the iterator is gone. If a batch cannot be made, ``next`` raises the error, and the next
    call tries again.
    """

    def __init__(self, make: Callable[[], Any], ahead: int, in_thread: bool, limit: Any = None) -> None:
        self._make, self._ahead, self._in_thread, self._limit = make, ahead, in_thread, limit
        self._made: deque[Any] = deque()
        self._producer: _Producer | None = None
        self._is_closed = False
        if "torch" in sys.modules:
            from torch.utils.data import IterableDataset

            IterableDataset.register(Batches)

    def __iter__(self) -> "Batches":
        data = sys.modules.get("torch.utils.data")
        if data is not None and data.get_worker_info() is not None:
            remedy = "use DataLoader(batches, batch_size=None, num_workers=0)"
            raise RuntimeError(f"a worker would draw from a copy of the buffer, to which nothing is added; {remedy}")
        return self

    def __next__(self) -> Batch:
        if self._is_closed:
            raise StopIteration
        if self._in_thread:
            return _ready(self._next_of_thread())
        if not self._made:
            self._made.append(self._make())
        patience = contextlib.nullcontext() if self._limit is None else self._limit.without_waiting()
        with contextlib.suppress(Exception), patience:  # an error is raised once the prefetched batches are used up
            while len(self._made) <= self._ahead:
                self._made.append(self._make())
        return _ready(self._made.popleft())

    def _next_of_thread(self) -> Any:
        if self._producer is None or self._producer.process != os.getpid():  # threads do not exist in a forked child
            self._producer = _Producer(self._make, self._ahead, self._limit)
            self._end = weakref.finalize(self, self._producer.end)
        found, error = self._producer.take()
        if error is not None:
            self._stop()
            raise error
        return found

    def _stop(self) -> None:
        if self._producer is not None:
            self._end()
            self._producer = None

    def close(self) -> None:
        """End the iteration and discard prefetched batches."""
        self._is_closed = True
        self._made.clear()
        self._stop()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError(
            "batches() cannot be copied to another process: nothing would be added to the copy; sample in this process"
        )


class _Producer:
    """A thread that makes up to `ahead` batches in advance."""

    def __init__(self, make: Callable[[], Any], ahead: int, limit: Any = None) -> None:
        self._limit = limit
        self._room, self._made = threading.Semaphore(ahead), queue.SimpleQueue[Any]()
        self._has_ended, self.process = threading.Event(), os.getpid()
        self._thread = threading.Thread(target=self._run, args=(make,), name="replaykit-batches", daemon=True)
        self._thread.start()

    def _run(self, make: Callable[[], Any]) -> None:
        while True:
            self._room.acquire()
            if self._has_ended.is_set():
                return
            try:
                self._made.put((make(), None))
            except BaseException as error:  # raised again where this batch is requested
                self._made.put((None, error))
                return

    def take(self) -> tuple[Any, BaseException | None]:
        """The next batch, or the error that it raised."""
        found: tuple[Any, BaseException | None] = self._made.get()
        self._room.release()
        return found

    def end(self) -> None:
        """End the thread and wait for it."""
        self._has_ended.set()
        self._room.release()
        if self._limit is not None:
            self._limit.stop(self._thread)
        if self.process == os.getpid() and threading.current_thread() is not self._thread:
            self._thread.join()


class _Copied:
    """A batch that is being copied to a CUDA device in a separate stream."""

    def __init__(self, batch: Batch, event: Any, device: Any) -> None:
        self._batch, self._event, self._device = batch, event, device

    def wait(self) -> Batch:
        """The batch. The current stream waits for the copy; this thread does not."""
        import torch

        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(self._event)
        for _, tensor in leaves_of(dict(self._batch.items())):
            tensor.record_stream(stream)
        return self._batch


def _ready(made: Any) -> Batch:
    return made.wait() if isinstance(made, _Copied) else made


class Batching:
    """The method `batches` of every replay."""

    bytes_each: int
    backend: Any
    is_remote = False
    """Whether batches are made in other processes. A thread then saves time for batches of any size."""
    checked_batch_size: Callable[[Any], int]
    sample: Callable[[int], Batch]
    rate_limit: Any = None
    """The `RateLimit` that adds and samples wait for: that of a `RateLimitedReplay` among the wrappers, or None."""

    def batches(
        self, batch_size: int, *, device: Any = None, prefetch: int = 2, dtype: Any = None, column: bool = False
    ) -> Batches:
        """An endless iterator of batches: ``for batch in buffer.batches(256, device="cuda")``.

        On a CUDA device up to `prefetch` batches are drawn and copied in advance, in a separate stream, so that the
        learner does not wait for copies. Batches of 512 KiB or more, and all batches of a `RayReplay
        <replaykit.distributed.RayReplay>`, are made in a separate thread, also on the CPU. Other CPU batches are made
        on request, since a thread would save nothing.

        A prefetched batch does not reflect the latest additions and priority updates. With ``prefetch=0``, batches are
        those of :meth:`sample`. With a thread, a run is not exactly reproducible. Checkpoints do not contain prefetched
        batches. If torch was imported before, the iterator is also a ``torch.utils.data.IterableDataset`` for a
        ``DataLoader`` with ``batch_size=None`` and ``num_workers=0``.

        Parameters
        ----------
        batch_size : int
            Number of transitions in each batch.
        device, dtype, column
            As in `Batch.to_torch`. If all are left out, batches contain NumPy arrays.
        prefetch : int
            Maximum number of batches made in advance; 0 for none.

        Returns
        -------
        Batches
            An iterator, which is also a context manager.

        Raises
        ------
        TypeError, ValueError, MemoryError
            If `batch_size` or `prefetch` is not an int in its range, or a batch does not fit in memory.
        ModuleNotFoundError, RuntimeError
            If `device`, `dtype` or `column` is given, and torch is not installed or cannot use the device.

        Examples
        --------
        >>> from itertools import islice
        >>> from replaykit import Field, ReplayBuffer, Spec
        >>> buffer = ReplayBuffer(10, Spec(obs=Field(()), action=Field(())), seed=0)
        >>> _ = buffer.extend([0, 1, 2], [0] * 3, [0] * 3, [1, 2, 3], [False] * 3, [False] * 3)
        >>> for batch in islice(buffer.batches(4), 2):
        ...     batch.obs
        array([1., 0., 0., 0.], dtype=float32)
        array([2., 2., 1., 2.], dtype=float32)
        """
        size = self.checked_batch_size(batch_size)
        ahead = 0 if type(prefetch) is int and prefetch == 0 else check_count("prefetch", prefetch)
        ahead = ahead if self.backend.is_numpy else 0  # a buffer on a device makes batches without waiting
        is_large = ahead > 0 and (self.is_remote or size * self.bytes_each >= _LARGE_BATCH_BYTES)
        if device is None and dtype is None and not column:
            return Batches(lambda: self.sample(size), ahead if is_large else 0, is_large, self.rate_limit)

        import torch

        target = device_of(device)

        def make() -> Batch:
            return self.sample(size).to_torch(target, dtype=dtype, column=column)

        if target.type != "cuda":
            return Batches(make, ahead if is_large else 0, is_large, self.rate_limit)
        stream: Any = torch.cuda.Stream(target)  # type: ignore[no-untyped-call]

        def make_beside() -> _Copied:
            with torch.cuda.stream(stream):
                return _Copied(make(), stream.record_event(), target)

        return Batches(make_beside if ahead else make, ahead, is_large, self.rate_limit)
