"""Shards that run in Ray actors."""

from collections.abc import Callable, Mapping
from typing import Any

from replaykit.distributed.hosts import Failed, Late, Lost
from replaykit.distributed.shard import Shard

NEEDED = 'RayReplay needs Ray: pip install "replaykit-rl[ray]"'


def started_ray() -> Any:
    """Import Ray. Raises ImportError if it is not installed, and RuntimeError if it is not started."""
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}; {NEEDED}") from error
    if not ray.is_initialized():
        raise RuntimeError("Ray is not started; call ray.init() first, or ray.init(address='auto') on a cluster")
    return ray


class RayHost:
    """A handle of a shard in a Ray actor. It can be pickled in any process in which Ray is started."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle

    def send(self, method: str, *args: Any) -> Any:
        """Call a method without waiting; returns a reference to the answer."""
        return getattr(self.handle, method).remote(*args)

    def result(self, pending: Any, wait: float | None) -> Any:
        """The answer, or `Lost`, `Failed` or `Late`."""
        import ray

        ready, _ = ray.wait([pending], timeout=wait)
        return answer_of(pending) if ready else _late(wait)


def answer_of(reference: Any) -> Any:
    """The answer of a finished call, or `Lost` or `Failed`."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        return Failed(error.cause if isinstance(error.cause, Exception) else error)
    except ray.exceptions.RayError as error:
        return Lost(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")


def _late(wait: float | None) -> Late:
    return Late(f"it did not answer within {wait:g} s")


class RayHosts:
    """The actors of all shards.

    Parameters
    ----------
    handles : list of ActorHandle
    """

    def __init__(self, handles: list[Any]) -> None:
        self.handles = handles
        self._hosts = [RayHost(handle) for handle in handles]

    @classmethod
    def started(
        cls, make_buffer: Callable[[], Any], shards: int, name: str | None, namespace: str, options: Mapping[str, Any]
    ) -> "RayHosts":
        """Start an actor for each shard. If one actor cannot be started, all are ended."""
        ray = started_ray()
        chosen = {"max_restarts": -1, "num_cpus": 0, "scheduling_strategy": "SPREAD"} | dict(options)
        actor, handles = ray.remote(Shard), list[Any]()
        try:
            for k in range(shards):
                names = {} if name is None else named(name, k, namespace) | {"lifetime": "detached"}
                handles.append(actor.options(**chosen, **names).remote(make_buffer, k, shards))
        except BaseException as error:
            cls(handles).close()
            if name is not None and isinstance(error, ValueError) and "already" in str(error):
                raise ValueError(
                    f"name is {name!r}, which a running replay has; choose another name, or use RayReplay.connect"
                ) from error
            raise
        return cls(handles)

    @classmethod
    def found(cls, name: str, namespace: str) -> "RayHosts":
        """The actors of a replay that was started with a name."""
        ray = started_ray()
        try:
            first = ray.get_actor(**named(name, 0, namespace))
            shards = ray.get(first.count.remote())
            return cls([first, *(ray.get_actor(**named(name, k, namespace)) for k in range(1, shards))])
        except ValueError as error:
            raise ValueError(f"no replay named {name!r} is running in the namespace {namespace!r}") from error

    @property
    def count(self) -> int:
        """The number of shards."""
        return len(self.handles)

    def host(self, k: int) -> RayHost:
        """The handle of shard k."""
        return self._hosts[k]

    def ask(self, method: str, calls: Mapping[int, tuple[Any, ...]], wait: float | None) -> dict[int, Any]:
        """Call a method of several shards concurrently; returns their answers."""
        import ray

        sent = {k: self._hosts[k].send(method, *args) for k, args in calls.items()}
        if not sent:
            return {}
        ready, _ = ray.wait(list(sent.values()), num_returns=len(sent), timeout=wait)
        there = set(ready)
        return {k: answer_of(reference) if reference in there else _late(wait) for k, reference in sent.items()}

    def close(self) -> None:
        """End all actors."""
        import ray

        if ray.is_initialized():
            for handle in self.handles:
                ray.kill(handle, no_restart=True)


def named(name: str, k: int, namespace: str) -> dict[str, str]:
    """The name and the namespace of a shard's actor, as options of Ray."""
    return {"name": f"{name}-{k}", "namespace": namespace}
