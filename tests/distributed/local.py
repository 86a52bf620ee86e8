"""Shards in this process, without an engine. Everything that is sent is pickled, and shards can be killed."""

import pickle
from typing import Any

from replaykit.distributed.hosts import Failed, Late, Lost
from replaykit.distributed.shard import Shard
from replaykit.distributed.sharded import ShardedReplay


class Cluster:
    """Some shards. `answers` is False for a shard that does not answer now. A dead shard is None in `shards`."""

    def __init__(self, make_buffer: Any, shards: int) -> None:
        self.make, self.count = make_buffer, shards
        self.shards: list[Any] = [Shard(make_buffer, k, shards) for k in range(shards)]
        self.answers = [True] * shards
        self.calls = 0

    def kill(self, k: int) -> None:
        self.shards[k] = None

    def start_again(self, k: int) -> None:
        self.shards[k] = Shard(self.make, k, self.count)

    def host(self, k: int) -> "LocalHost":
        return LocalHost(self, k)

    def ask(self, method: str, calls: Any, wait: Any) -> dict[int, Any]:
        self.calls += 1
        return {k: self.host(k).result(self.host(k).send(method, *args), wait) for k, args in calls.items()}

    def close(self) -> None:
        self.shards = [None] * self.count


class LocalHost:
    """The handle of one shard. Pickled copies refer to the same cluster, as if they were in other processes."""

    def __init__(self, cluster: Cluster, k: int) -> None:
        self.cluster, self.k = cluster, k

    def __reduce__(self) -> Any:
        _CLUSTERS[id(self.cluster)] = self.cluster
        return _found, (id(self.cluster), self.k)

    def send(self, method: str, *args: Any) -> Any:
        shard, sent = self.cluster.shards[self.k], pickle.dumps(args)
        if shard is None:
            return Lost("it was killed")
        try:
            answer = getattr(shard, method)(*pickle.loads(sent))
        except Exception as error:
            answer = Failed(error)
        return pickle.dumps(answer)

    def result(self, pending: Any, wait: Any) -> Any:
        if isinstance(pending, Lost):
            return pending
        return pickle.loads(pending) if self.cluster.answers[self.k] else Late(f"no answer for {wait} s")


_CLUSTERS: dict[int, Cluster] = {}


def _found(number: int, k: int) -> LocalHost:
    return LocalHost(_CLUSTERS[number], k)


class LocalReplay(ShardedReplay):
    """A sharded replay whose shards are in this process."""

    def __init__(self, make_buffer: Any, shards: int = 4, seed: Any = None, block: int = 64, limit: Any = None) -> None:
        self._cluster = Cluster(make_buffer, shards)
        super().__init__(self._cluster, seed, block, 10.0, True, limit)

    @property
    def cluster(self) -> Cluster:
        return self._cluster
