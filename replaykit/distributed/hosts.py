"""What a sharded replay and its writers need of an engine: calls that go out together, and shards that can be lost."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol


class Lost(NamedTuple):
    """In place of an answer: the shard has died, or its machine cannot be reached."""

    reason: str


class Late(NamedTuple):
    """In place of an answer: there is none yet."""

    reason: str


class Failed(NamedTuple):
    """In place of an answer: the shard lives, and the call raised an error there."""

    error: Exception


class Host(Protocol):
    """One shard, as a writer sees it, which is sent to other processes with the writer."""

    def send(self, method: str, *args: Any) -> Any:
        """Call a method of the shard without waiting; what stands for the answer. Calls arrive in order."""

    def result(self, pending: Any, wait: float | None) -> Any:
        """The answer, or `Lost`, `Failed`, or after so many seconds `Late`. None waits without end."""


class Hosts(Protocol):
    """All shards, as the learner sees them."""

    @property
    def count(self) -> int:
        """How many there are."""

    def host(self, k: int) -> Host:
        """One of them."""

    def ask(self, method: str, calls: Mapping[int, tuple[Any, ...]], wait: float | None) -> dict[int, Any]:
        """Call a method of some shards at once, with these arguments; the answers, as those of `Host.result`."""

    def close(self) -> None:
        """End all shards."""
