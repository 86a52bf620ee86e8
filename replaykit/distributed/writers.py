"""A writer for a process that steps environments. It collects steps and sends them to a shard in blocks."""

import time
import uuid
import warnings
from collections import deque
from typing import Any, final

import numpy as np
import numpy.typing as npt

from replaykit.checks import check_count
from replaykit.distributed.hosts import Failed, Host, Late, Lost
from replaykit.distributed.shard import Piece
from replaykit.distributed.steps import axes_of_step, axes_of_steps, checked_mask, checked_steps
from replaykit.field import Array
from replaykit.spec import CORE, REQUIRED, Spec
from replaykit.storage.base import Storage
from replaykit.storage.lock import Lock
from replaykit.trees import Tree
from replaykit.writer import Writing

_PLAIN: dict[Any, tuple[tuple[type, ...], float]] = {
    np.dtype(np.bool_): ((bool, np.bool_), 1),
    np.dtype(np.int64): ((int, np.int64), 2**63 - 1),
    np.dtype(np.float32): ((float, np.float32, np.float64), 3.4e38),
    np.dtype(np.float64): ((float, np.float64), np.finfo(np.float64).max),
}
"""For each dtype, the scalar types and the largest magnitude that NumPy converts in the same way as `Leaf.coerce`."""
_NOTHING: tuple[tuple[type, ...], float] = (), 0
_SHORTEST_PAUSE, _LONGEST_PAUSE = 1e-3, 5e-2
"""Shortest and longest time between two requests to the rate limit, in seconds."""
_IN_FLIGHT = 4
"""Maximum number of blocks that are sent but not yet stored."""
_REWARD = CORE.index("reward")


@final
class ShardWriter(Writing):
    """Adds to some lanes of a shard from one process. ``replay.writer()`` creates it; send it to a worker.

    Use it like a buffer with `num_envs` lanes. ``record(env, writer)`` stores all steps of an environment. Values are
    checked immediately, as in a buffer. Steps are collected and sent in blocks. The writer only waits for the shard if
    the shard is several blocks behind. `flush` sends the remaining steps and waits until all are stored.

    Each worker works on a pickled copy of a writer. A copy takes over the lanes when it first sends steps: the running
    episodes end, and the previous copy raises RuntimeError. If a worker dies, you can therefore send its writer to
    another worker. Steps that the previous copy had collected but not sent are lost, at most one block.

    If the replay has a `rate_limit`, each block waits until the limit allows it.

    If the shard dies, steps that were sent but not yet stored are lost. `lost` is their number. The writer warns once
    and continues, because Ray restarts the shard.

    Methods for writing: `add`, `extend`, `end_episode`, `flush`. To release the lanes: `close`.

    Attributes
    ----------
    shard : int
        The number of the shard.
    lanes : tuple of int
        The lanes of the shard to which the writer adds.
    num_envs : int
        Number of lanes, k.
    lost : int
        Number of steps that were lost because the shard died before it stored them.
    """

    def __init__(
        self, host: Host, spec: Spec, shard: int, lanes: tuple[int, ...], block: int, largest_priority: float,
        ledger: Host | None = None, timeout: float | None = None,
    ) -> None:  # fmt: skip
        self._made_of = host, spec, shard, lanes, block, largest_priority, ledger, timeout
        self._ledger, self._timeout = ledger, timeout
        self._host, self._spec, self._largest_priority = host, spec, largest_priority
        self.shard: int = shard
        self.lanes: tuple[int, ...] = lanes
        self.num_envs: int = len(lanes)
        self._block = check_count("block", block)
        self._lock, self._session, self._is_closed = Lock(), uuid.uuid4().hex, False
        self._sent: deque[tuple[Any, int]] = deque()
        self.lost: int = 0
        lead = self._block, self.num_envs
        self._leaves: list[Array] = [np.zeros((*lead, *leaf.shape), leaf.dtype) for leaf in spec.leaves]
        self._reward = [leaf.name for leaf in spec.leaves].index("reward")
        self._of_one_lane = [array[:, 0] for array in self._leaves]
        self._masks, self._errors = np.ones(lead, np.bool_), np.zeros(lead)
        self._forget()

    def _forget(self) -> None:
        self._count, self._is_masked, self._has_errors = 0, False, False
        self._cuts: list[tuple[int, npt.NDArray[np.bool_]]] = []

    # -- Writing ---------------------------------------------------------------------------------------------

    def add(
        self, obs: Tree, action: Tree, reward: Any, next_obs: Tree, terminated: Any = REQUIRED,
        truncated: Any = REQUIRED, *, mask: npt.ArrayLike | None = None, td_error: Any = None, **extras: Tree,
    ) -> None:  # fmt: skip
        """Add one step of every lane of the writer, or of the lanes in `mask`; see :meth:`replaykit.Replay.add`.

        The values have a leading axis k, which can be left out with one lane. Returns None, because the index of the
        step is not known yet.

        Raises
        ------
        FieldNameError, ValueError, TypeError, OverflowError
            If a value does not fit. Nothing is added.
        RuntimeError
            If the writer is closed, or another copy of it has taken over its lanes.
        """
        values = obs, action, reward, next_obs, terminated, truncated
        lead = axes_of_step(reward, self._spec.leaves[self._reward], self.num_envs)
        if mask is not None or td_error is not None or self._has_errors:
            self._gather(1, lead, values, extras, mask, td_error)
            return
        with self._lock:
            self._refuse_closed()
            self._send_if_full()
            count = self._count
            arrays = self._leaves if lead else self._of_one_lane
            for leaf, array, value in zip(self._spec.leaves, arrays, self._spec.flatten(values, extras), strict=True):
                types, most = _PLAIN.get(leaf.dtype, _NOTHING)
                is_plain = type(value) in types and not lead and not leaf.shape and -most <= value <= most
                array[count] = value if is_plain else leaf.coerce(value, lead)
            Storage.refuse_rewards(self._leaves[self._reward][count])
            self._masks[count], self._count = True, count + 1
            self._send_if_full()

    def extend(
        self, obs: Tree, action: Tree, reward: Any, next_obs: Tree, terminated: Any = REQUIRED,
        truncated: Any = REQUIRED, *, mask: npt.ArrayLike | None = None, td_error: Any = None, **extras: Tree,
    ) -> None:  # fmt: skip
        """Add T steps. The values have the leading axes (T, k), or (T,) with one lane. Otherwise like `add`."""
        values = obs, action, reward, next_obs, terminated, truncated
        lead = axes_of_steps(reward, self._spec.leaves[self._reward], self.num_envs)
        self._gather(lead[0], lead, values, extras, mask, td_error)

    def _gather(
        self, steps: int, lead: tuple[int, ...], values: tuple[Tree, ...], extras: Any, mask: Any, td_error: Any
    ) -> None:
        """Check the values of steps, and copy them to the block."""
        with self._lock:
            self._refuse_closed()
            self._send_if_full()
            options = mask, td_error, self._largest_priority
            self._note(steps, *checked_steps(self._spec, values, extras, lead, self.num_envs, *options))

    def _note(self, steps: int, leaves: list[Array], mask: Any, errors: Any) -> None:
        """Copy checked steps to the block. The block is sent each time it is full."""
        shape = steps, self.num_envs
        leaves = [leaf.reshape(*shape, *own.shape[2:]) for leaf, own in zip(leaves, self._leaves, strict=True)]
        mask, errors = (None if part is None else part.reshape(shape) for part in (mask, errors))
        done = 0
        while done < steps:
            if (errors is None) == self._has_errors:
                self._send()  # in a block, either all steps have TD errors or none has
            begin, count = self._count, min(steps - done, self._block - self._count)
            part, place = slice(done, done + count), slice(begin, begin + count)
            for own, leaf in zip(self._leaves, leaves, strict=True):
                own[place] = leaf[part]
            self._masks[place] = True if mask is None else mask[part]
            self._is_masked |= mask is not None
            if errors is not None:
                self._errors[place], self._has_errors = errors[part], True
            self._count, done = begin + count, done + count
            self._send_if_full()

    def end_episode(self, mask: npt.ArrayLike | None = None) -> None:
        """End the running episodes of all lanes of the writer, or of the lanes in `mask`, of shape (k,)."""
        lanes = (self.num_envs,)
        with self._lock:
            self._refuse_closed()
            ends = np.ones(lanes, np.bool_) if mask is None else np.array(checked_mask(mask, lanes, self.num_envs))
            self._cuts.append((self._count, ends))

    # -- Sending ---------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Send all collected steps, and wait until they are stored."""
        with self._lock:
            self._send()
            while self._sent:
                self._take(None)

    def _send_if_full(self) -> None:
        """Send the block if it is full. If the rate limit times out, the block stays full and is sent later."""
        if self._count == self._block:
            self._send()

    def _await_permission(self, rows: int) -> None:
        """Wait until the rate limit allows the block. Without a ledger, there is no limit."""
        begin, pause = time.monotonic(), _SHORTEST_PAUSE
        while self._ledger is not None and rows:
            if self._ledger.result(self._ledger.send("permit_insert", rows), None) is not False:
                return
            if self._timeout is not None and time.monotonic() > begin + self._timeout:
                waited = f"waited {self._timeout:g} seconds for samples"
                raise TimeoutError(f"{rows} transitions cannot be inserted; {waited}; the next add sends them")
            time.sleep(pause)
            pause = min(2.0 * pause, _LONGEST_PAUSE)

    def _send(self) -> None:
        """Send the block. Then wait while too many blocks are not stored yet."""
        if not self._count and not self._cuts:
            return
        self._await_permission(int(self._masks[: self._count].sum()))
        pieces, count = self._pieces(), self._count
        self._forget()
        self._sent.append((self._host.send("add", self._session, self.lanes, pieces), count))
        while len(self._sent) > _IN_FLIGHT:
            self._take(None)
        while self._sent and self._take(0.0):
            pass

    def _pieces(self) -> list[Piece]:
        """The steps of the block, split where `end_episode` was called."""
        pieces, begin, ends = list[Piece](), 0, None
        for place, mask in [*self._cuts, (self._count, None)]:
            if place > begin or mask is None:
                pieces.append(Piece(ends, self._steps(begin, place) if place > begin else None))
                begin, ends = place, None
            if mask is not None:
                ends = mask if ends is None else ends | mask
        return pieces

    def _steps(self, begin: int, end: int) -> dict[str, Any]:
        names = tuple(self._spec)
        steps: dict[str, Any] = self._spec.unflatten([leaf[begin:end] for leaf in self._leaves], names)
        if self._is_masked:
            steps["mask"] = self._masks[begin:end]
        if self._has_errors:
            steps["td_error"] = self._errors[begin:end]
        return steps

    def _take(self, wait: float | None) -> bool:
        """Process the answer to the oldest block that was sent. Returns False if there is no answer yet."""
        pending, count = self._sent[0]
        answer = self._host.result(pending, wait)
        if isinstance(answer, Late):
            return False
        self._sent.popleft()
        if isinstance(answer, Failed):
            raise answer.error
        if isinstance(answer, Lost):
            if not self.lost:
                message = f"shard {self.shard} died, with steps that this writer had sent: {answer.reason}"
                warnings.warn(message, RuntimeWarning, stacklevel=5)
            self.lost += count
        return True

    def close(self) -> None:
        """Send the remaining steps, end the running episodes, and release the lanes. Closing again does nothing."""
        with self._lock:
            if not self._is_closed:
                self.flush()
                self._host.result(self._host.send("release", self._session, self.lanes), None)
                self._is_closed = True

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _refuse_closed(self) -> None:
        if self._is_closed:
            raise RuntimeError("the writer is closed; create another one with replay.writer()")

    # -- Looking ---------------------------------------------------------------------------------------------

    @property
    def spec(self) -> Spec:
        """The fields of a transition."""
        return self._spec

    @property
    def lock(self) -> Lock:
        """Held while steps are added and sent."""
        return self._lock

    def __reduce__(self) -> Any:
        self.flush()  # a copy would send the same steps again
        return ShardWriter, self._made_of

    def __repr__(self) -> str:
        return f"ShardWriter(lanes {list(self.lanes)} of shard {self.shard}{', closed' * self._is_closed})"
