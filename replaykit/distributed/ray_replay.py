"""Replay on a Ray cluster: shards in actors, writers in the workers that act, and the learner anywhere."""

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
    """A replay whose transitions are in several Ray actors, the shards, for a learner and many workers that act.

    `make_buffer` is called once in each actor. Wrappers that change what is replayed go into it. The learner uses a
    `RayReplay` like a buffer: `sample`, `update_priorities`, `batches`, `stats`, `save`, `load`. Each worker gets a
    `ShardWriter` from :meth:`writer`, and adds with that.

    A batch takes one round trip: every shard is asked at once, for a number of rows in proportion to the sum of its
    scaled priorities, as the learner last knew it. The probability of a row is the expected share of its shard times
    its probability there at that moment. This is the probability of the draw that was made, so weights are exact even
    though the sums are a little old. ``batches(256, prefetch=2)`` makes batches in a thread and hides the round trip.

    New transitions of a prioritized shard get the largest priority in the shard. The exponent `beta` is the replay's
    own: a schedule counts the batches of the learner.

    If a shard dies, its transitions are lost and nothing else. The learner goes on with the others, and says so in a
    RuntimeWarning, in :meth:`warnings` and in `stats`. Ray starts the shard again, and the learner takes it back, with
    what it had in the last `save`, or empty. Its indices continue ``2**40`` steps later, so that no index is given
    twice, and the former ones are stale. If the learner dies, the shards end, unless they have a `name`: then they
    live until `close`, and :meth:`connect` finds them.

    `latest`, `episode`, `episodes`, `epoch`, `state_dict`, and the verbs `draw`, `window`, `reduce` and `weigh` raise
    NotImplementedError, since they would need all transitions in one place.

    Parameters
    ----------
    make_buffer : callable
        Returns a buffer, or wrappers around one; called in each actor without arguments. Its `capacity` is that of a
        shard, and its `num_envs` how many environments write to a shard. Its `seed` has no effect.
    shards : int
        How many actors.
    seed : None, int or SeedSequence
        For the choice of the shards, and for their draws.
    block : int
        Steps that a writer gathers before it sends them.
    patience : float
        Seconds to wait for a shard before the learner goes on without it.
    name : str, optional
        Lets the shards outlive the learner.
    namespace : str
        Of the name.
    actor_options : dict, optional
        For ``options`` of the actors, such as ``{"num_cpus": 1, "resources": {"replay": 1}}``. Unless given, they
        reserve no CPU, are spread over the machines, and are started again whenever they die.
    rate_limit : RateLimit, optional
        How many transitions are sampled for each that is added. Writers wait before they send a block, and `sample`
        waits before it asks for rows. Shard 0 keeps the counts, so each block and each batch takes one more round trip.

    Attributes
    ----------
    shards : list of ActorHandle
        The actors.

    Raises
    ------
    ImportError, RuntimeError
        If Ray is not installed or not started, or if `make_buffer` raises an error in an actor. No actor is left then.

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
        """The replay whose shards were started with this name, for a learner in the place of one that has ended.

        What the shards have is as it was, and the batches are counted on. The writers of the former learner go on.
        Only one learner may use a replay at a time. Raises ValueError if there is none.
        """
        checked_options(seed, block, patience)
        hosts = RayHosts.found(name, namespace)
        replay: RayReplay = cls.__new__(cls, None)
        RayReplay._start(replay, hosts, seed, block, patience, False, None)
        return replay

    @property
    def shards(self) -> list[Any]:
        """The handles of the actors."""
        return list(self._handles)
