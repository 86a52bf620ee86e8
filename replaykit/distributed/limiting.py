"""A `RateLimit` whose counts are kept in one shard. All writers and the learner ask this shard for permission."""

import time
from typing import Any

from replaykit.distributed.hosts import Host
from replaykit.distributed.shards import Shards
from replaykit.rate_limit import RateLimit
from replaykit.storage.lock import Lock

_PAUSE = 2e-3
"""Seconds between two requests for permission."""


class RemoteLimit:
    """The learner's side of a limit. Shard 0 keeps the counts. While it does not answer, there is no limit.

    Parameters
    ----------
    limit : RateLimit
    shards : Shards
    block : int
        Number of steps that a writer inserts at once.
    capacity : int
        The capacity of the whole replay.

    Attributes
    ----------
    counts : tuple of int
        The last known numbers of inserted and sampled transitions.
    """

    def __init__(self, limit: Any, shards: Shards, block: int, capacity: int) -> None:
        if not isinstance(limit, RateLimit):
            raise TypeError(f"rate_limit is a {type(limit).__name__}; expected a RateLimit, or None")
        if limit.min_size > capacity:
            raise ValueError(f"rate_limit has min_size={limit.min_size}; expected at most {capacity}, the capacity")
        self._limit, self._shards, self.counts = limit, shards, (0, 0)
        self._rows = block * shards.about.settings.num_envs
        self._known: int | None = None
        self._refuse_too_large(1, f"block is {block}")

    def _refuse_too_large(self, size: int, what: str) -> None:
        """Raise ValueError if inserts and samples could wait for each other forever."""
        if not self._limit.is_closed and not self._limit.corridor.fits(self._rows, size):
            limit = f"{self._limit!r} with up to {self._rows} transitions in a block"
            raise ValueError(f"{what}, which is too large for {limit}; choose a smaller size, or a larger tolerance")

    @property
    def for_writers(self) -> tuple[Host, float | None]:
        """The shard that a writer asks for permission, and its maximum wait in seconds."""
        return self._shards.hosts.host(0), self._limit.timeout

    def await_sample(self, size: int, lock: Lock) -> None:
        """Wait until a batch is allowed. The lock is released while waiting, so that other threads can continue."""
        self._refuse_too_large(size, f"batch_size is {size}")
        begin, limit = time.monotonic(), self._limit
        while not self._is_permitted(size):
            if limit.timeout is not None and time.monotonic() > begin + limit.timeout:
                inserted, sampled = self.counts
                done = f"after {inserted} inserted and {sampled} sampled"
                waited = f"waited {limit.timeout:g} seconds for inserts"
                raise TimeoutError(f"{size} transitions cannot be sampled {done}; {waited}")
            lock.sampling = False
            lock.release()
            try:
                time.sleep(_PAUSE)
            finally:
                lock.acquire()
                lock.sampling = True

    def _is_permitted(self, size: int) -> bool:
        """Ask shard 0 for permission. If it was restarted, first send it the last known counts."""
        limit, shards = self._limit, self._shards
        shards.look_for_others()
        if 0 not in shards.present:
            return True
        known = -1 if limit.is_closed else shards.generations.each[0]
        if self._known != known:
            terms = None if limit.is_closed else (limit.samples_per_insert, limit.min_size, limit.tolerance)
            shards.ask("limit", {0: (terms, *self.counts)})
            self._known = known
        if limit.is_closed:
            return True
        is_allowed, *counts = shards.ask("permit_sample", {0: (size,)}).get(0, (True, *self.counts))
        self.counts = counts[0], counts[1]
        return bool(is_allowed)

    def begin(self) -> None:
        """Send the limit to shard 0. Call this before the first insert."""
        self._is_permitted(0)
