"""Replay on a Ray cluster: shards in actors, writers in workers that step environments, and one learner."""

from collections.abc import Callable, Mapping
from typing import Any, final

from replaykit.checks import check_count
from replaykit.distributed.ray_hosts import RayHosts, started_ray
from replaykit.distributed.sharded import ShardedReplay, checked_options
from replaykit.rate_limit import RateLimit
from replaykit.replay import Replay

_NAMESPACE = "replaykit"


@final
class RayReplay(ShardedReplay):
    """A replay that stores its transitions in several Ray actors, called shards, for one learner and many workers.

    `make_buffer` is called once in each actor. To use wrappers, return the wrapped buffer from it. The learner uses a
    `RayReplay` like a buffer: `sample`, `update_priorities`, `batches`, `stats`, `save`, `load`. The workers step
    environments. Each worker gets a `ShardWriter` from :meth:`writer` and adds its steps with it.

    A batch takes one round trip. All shards are asked concurrently, each for a number of rows in proportion to the sum
    of its scaled priorities. The learner uses the last sums that it received. The probability of a row is the expected
    share of its shard, times the probability of the row within the shard at the time of the draw. This is the
    exact probability of the draw, so weights are exact even if the sums are slightly out of date.
    ``batches(256, prefetch=2)`` samples batches in a thread, which hides the round trip.

    New transitions of a prioritized shard get the largest priority in that shard. `beta` is an attribute of the whole
    replay. If it is a schedule, it depends on the number of batches that the learner has sampled.

    If a shard dies, only its own transitions are lost. The learner continues with the other shards, and reports the
    loss in a RuntimeWarning, in :meth:`warnings` and in `stats`. Ray restarts the shard. It is then used again, with
    the transitions of the last `save`, or empty if there was none. Its new indices start ``2**40`` steps later, so
    an index is never reused, and all its earlier indices are stale. If the learner dies, the shards end, unless they
    have a `name`. Shards with a `name` live until `close`, and :meth:`connect` finds them.

    `latest`, `episode`, `episodes`, `epoch`, `state_dict`, `draw`, `window`, `reduce` and `weigh` raise
    NotImplementedError, because they would need all transitions in one place.

    Parameters
    ----------
    make_buffer : callable
        Called in each actor without arguments. Returns a buffer, or wrappers around one. Its `capacity` is the capacity
        of one shard, and its `num_envs` is the number of environments that can write to one shard. Its `seed` has no
        effect.
    shards : int
        Number of actors.
    seed : None, int or SeedSequence
        Seed for the number of rows of each shard, and for the draws within the shards.
    block : int
        Number of steps that a writer collects before it sends them.
    patience : float
        Seconds to wait for a shard before the learner continues without it.
    name : str, optional
        If it is given, the shards continue to run after the learner has ended.
    namespace : str
        The Ray namespace of `name`.
    actor_options : dict, optional
        Options of the actors for Ray, such as ``{"num_cpus": 1, "resources": {"replay": 1}}``. By default, actors
        reserve no CPU, are spread over the machines, and are restarted whenever they die.
    rate_limit : RateLimit, optional
        Limits how many transitions are sampled for each added transition. Writers wait before they send a block, and
        `sample` waits before it asks for rows. Shard 0 keeps the counts. Each block and each batch therefore takes one
        more round trip.

    Attributes
    ----------
    shards : list of ActorHandle
        The actors.

    Raises
    ------
    ImportError, RuntimeError
        If Ray is not installed or not started, or if `make_buffer` raises an error in an actor. All actors are ended.

    References
    ----------
    Horgan et al. (2018), Distributed Prioritized Experience Replay.

    Examples
    --------
    ::

        ray.init()
        replay = RayReplay(lambda: PrioritizedBuffer(250_000, spec, num_envs=2), shards=4)
        workers = [act.remote(replay.writer(), seed) for seed in range(8)]
        for batch in replay.batches(256):
            replay.update_priorities(batch.indices, learn(batch))
    """

    def __init__(
        self, make_buffer: Callable[[], Replay], shards: int = 4, *, seed: Any = None, block: int = 64,
        patience: float = 10.0, name: str | None = None, namespace: str = _NAMESPACE,
        actor_options: Mapping[str, Any] | None = None, rate_limit: RateLimit | None = None,
    ) -> None:  # fmt: skip
        started_ray()
        if not callable(make_buffer):
            kind = type(make_buffer).__name__
            raise TypeError(f"make_buffer is a {kind}; expected a function without arguments that returns a buffer")
        checked_options(seed, block, patience)
        count = check_count("shards", shards)
        hosts = RayHosts.started(make_buffer, count, name, namespace, actor_options or {})
        self._start(hosts, seed, block, patience, True, rate_limit)

    def _start(
        self, hosts: RayHosts, seed: Any, block: int, patience: float, is_new: bool, limit: RateLimit | None
    ) -> None:
        try:
            super().__init__(hosts, seed, block, patience, is_new, limit)
        except BaseException:
            if is_new:
                hosts.close()
            raise
        self._handles = hosts.handles

    @classmethod
    def connect(
        cls, name: str, *, namespace: str = _NAMESPACE, seed: Any = None, block: int = 64, patience: float = 10.0
    ) -> "RayReplay":
        """Connect a new learner to the shards that were started with this name, after the previous learner has ended.

        The shards keep their contents, and the count of batches continues. The writers of the previous learner keep
        working. Only one learner at a time may use a replay. Raises ValueError if no replay has this name.
        """
        checked_options(seed, block, patience)
        hosts = RayHosts.found(name, namespace)
        replay: RayReplay = cls.__new__(cls, None)
        RayReplay._start(replay, hosts, seed, block, patience, False, None)
        return replay

    @property
    def shards(self) -> list[Any]:
        """The handles of the actors, one for each shard."""
        return list(self._handles)
