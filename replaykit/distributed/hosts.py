"""The interface of an engine that runs shards. It calls their methods concurrently. Shards may be lost."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol


class Lost(NamedTuple):
    """Returned instead of an answer: the shard has died, or its machine cannot be reached."""

    reason: str


class Late(NamedTuple):
    """Returned instead of an answer: the shard has not answered yet."""

    reason: str


class Failed(NamedTuple):
    """Returned instead of an answer: the shard is alive, but the call raised an error there."""

    error: Exception


class Host(Protocol):
    """A handle of one shard. It is pickled together with the writer that uses it."""

    def send(self, method: str, *args: Any) -> Any:
        """Call a method of the shard without waiting; returns a reference to the answer. Calls arrive in order."""

    def result(self, pending: Any, wait: float | None) -> Any:
        """Return the answer, or `Lost` or `Failed`. After `wait` seconds, return `Late`; None waits forever."""


class Hosts(Protocol):
    """Handles of all shards, for the learner."""

    @property
    def count(self) -> int:
        """The number of shards."""

    def host(self, k: int) -> Host:
        """The handle of shard k."""

    def ask(self, method: str, calls: Mapping[int, tuple[Any, ...]], wait: float | None) -> dict[int, Any]:
        """Call a method of several shards concurrently. `calls` maps shards to arguments. See `Host.result`."""

    def close(self) -> None:
        """Shut down all shards."""
