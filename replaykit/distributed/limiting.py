"""A `RateLimit` whose counts are kept in a shard, where all writers and the learner ask."""

import time
from typing import Any

from replaykit.distributed.hosts import Host
from replaykit.distributed.shards import Shards
from replaykit.rate_limit import RateLimit
from replaykit.storage.lock import Lock

_PAUSE = 2e-3
"""Seconds between two questions."""


class RemoteLimit:
    """What the learner knows of a limit. Shard 0 keeps the counts; while it is away, nothing is limited.

    Parameters
    ----------
    limit : RateLimit
    shards : Shards
    block : int
        Steps that a writer inserts at once.
    capacity : int
        Of the whole replay.

    Attributes
    ----------
    counts : tuple of int
        Transitions inserted and sampled, as last known.
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
        """Raise ValueError if blocks and batches could wait for each other for ever."""
        if not self._limit.is_closed and not self._limit.corridor.fits(self._rows, size):
            limit = f"{self._limit!r} with up to {self._rows} transitions in a block"
            raise ValueError(f"{what}, too large for {limit}; lower it, or raise tolerance")

    @property
    def for_writers(self) -> tuple[Host, float | None]:
        """Where a writer asks, and how long it waits."""
        return self._shards.hosts.host(0), self._limit.timeout

    def await_sample(self, size: int, lock: Lock) -> None:
        """Wait until a batch is allowed. The lock, which is held, is free meanwhile, so that other threads go on."""
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
        """Ask shard 0. If it was started again, it gets the counts last known."""
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
        """Tell shard 0 before anybody inserts."""
        self._is_permitted(0)
