"""Uniform replay, and none."""

from typing import Any, TypeVar, final

import numpy as np
import numpy.typing as npt

from replaykit.batch import Draw, constant
from replaykit.field import as_indices
from replaykit.frames import Padding
from replaykit.replay import Replay
from replaykit.ring import Share
from replaykit.spec import Spec
from replaykit.storage import Seed, Storage, check_count

AnyBuffer = TypeVar("AnyBuffer", bound=Replay)


def build_from_env(cls: type[AnyBuffer], env: Any, capacity: int, options: dict[str, Any]) -> AnyBuffer:
    """A buffer of class `cls` for transitions of `env`, with as many lanes as it has environments."""
    spec = Spec.from_env(env)
    num_envs = env.num_envs if hasattr(env, "single_observation_space") else 1
    if options.setdefault("num_envs", num_envs) != num_envs:
        raise ValueError(f"num_envs is {options['num_envs']}; expected {num_envs}, as env has")
    return cls(capacity, spec, **options)  # type: ignore[call-arg, arg-type]


@final
class ReplayBuffer(Replay):
    """Uniform replay: every stored transition is equally likely.

    Parameters
    ----------
    capacity : int
        Transitions to hold, C. Rounded up to a multiple of `num_envs`; each lane holds exactly its last C/E.
    spec : Spec
        The fields of a transition.
    num_envs : int
        Lanes, E: parallel environments that share the buffer.
    n_step : int
        Steps that a sampled transition spans; fewer at an episode's end.
    gamma : float
        Discount of a step, for n-step returns and ``batch.discount``.
    stack : int
        Observations in each of a batch, k: the last k of the episode, along a new first axis. For frames, that is
        fields of `obs` with at least two axes, which are added one by one; other fields are not stacked. An agent's own
        stacks come from ``FrameStackObservation(record(env, buffer), k)``.
    padding : {"reset", "zero"}
        What fills up a stack at an episode's start, its first observation or zeros, as Gymnasium's
        ``FrameStackObservation`` does (but zeros in a Box that has none as well, where that takes its lower bound).
    share : {"large", "all", "none"}
        Which observations are kept once, rather than as the next_obs of a step and as the obs of the following one, or
        in each of several stacks: those above 1 KB, all, or none. Only what is found to be equal is shared, so
        batches do not depend on it.
    replace : bool
        Whether a transition can be twice in a batch. Without replacement a batch is at most as large as the buffer
        is full.
    seed : None, int, SeedSequence or Generator
        Same seed and same calls: same batches, bit for bit.

    Examples
    --------
    >>> import numpy as np
    >>> from replaykit import Field, ReplayBuffer, Spec
    >>> buffer = ReplayBuffer(1000, Spec(obs=Field((3,)), action=Field((), "int64")), seed=0)
    >>> for step in range(5):
    ...     index = buffer.add(np.full(3, step), step % 2, 1.0, np.full(3, step + 1), step == 4, False)
    >>> batch = buffer.sample(2)
    >>> batch
    Batch(2: obs (3,) float32, action int64, reward float32, next_obs (3,) float32, terminated bool, truncated bool, \
discount float32, length int64, weights float32, probabilities float64, indices int64)
    >>> batch.probabilities
    array([0.2, 0.2])
    """

    def __init__(
        self,
        capacity: int,
        spec: Spec,
        *,
        num_envs: int = 1,
        n_step: int = 1,
        gamma: float = 0.99,
        stack: int = 1,
        padding: Padding = "reset",
        share: Share = "large",
        replace: bool = True,
        seed: Seed = None,
    ) -> None:
        if not isinstance(replace, bool):
            raise TypeError(f"replace is {replace!r}; expected True or False")
        super().__init__(Storage(capacity, spec, num_envs, n_step, gamma, stack, padding, share, seed))
        self.replace = replace

    @classmethod
    def from_env(cls, env: Any, capacity: int, **options: Any) -> "ReplayBuffer":
        """A buffer for the transitions of a Gymnasium environment, single or vector; `options` as the constructor's."""
        return build_from_env(cls, env, capacity, options)

    def _fields(self, batch_size: int) -> dict[str, Any]:
        storage = self._storage
        packed = storage.packed
        if self.replace and packed is not None and packed.is_single:
            return packed.uniform(storage.rng.random(batch_size))
        return super()._fields(batch_size)

    def draw(self, batch_size: int) -> Draw:
        """B indices, uniformly. O(B), and O(B E) while lanes hold different steps."""
        storage = self._storage
        size = len(storage.ring)
        if self.replace:
            uniforms = storage.rng.random(batch_size)
        elif batch_size > size:
            raise ValueError(
                f"batch_size is {batch_size}; expected at most {size}, as many as are stored, without replacement"
            )
        else:
            uniforms = (storage.rng.choice(size, batch_size, replace=False) + 0.5) / size
        return Draw(storage.ring.uniform(uniforms), constant(batch_size, 1.0 / size, np.float64))

    def probability(self, indices: npt.ArrayLike, batch_size: int = 1) -> npt.NDArray[np.float64]:
        """1/N for every stored index. Raises IndexError for one that is not stored."""
        check_count("batch_size", batch_size)
        slots = self._storage.ring.slots(as_indices("indices", indices))
        return np.full(slots.shape, 1.0 / max(len(self), 1))


@final
class LatestBuffer(Replay):
    """No replay: a batch of B is the B newest transitions, oldest first.

    What an agent learns from that has no replay memory; the baseline of every study of replay. While fewer than B are
    stored, they are repeated in turn.

    Parameters
    ----------
    capacity, spec, num_envs, n_step, gamma, stack, padding, share, seed
        As those of `ReplayBuffer`; the capacity bounds the useful batch size.

    Examples
    --------
    >>> from replaykit import Field, LatestBuffer, Spec
    >>> buffer = LatestBuffer(64, Spec(obs=Field(()), action=Field(())))
    >>> for step in range(5):
    ...     index = buffer.add(step, 0, 1.0, step + 1, False, False)
    >>> buffer.sample(3).obs
    array([2., 3., 4.], dtype=float32)
    """

    def __init__(
        self,
        capacity: int,
        spec: Spec,
        *,
        num_envs: int = 1,
        n_step: int = 1,
        gamma: float = 0.99,
        stack: int = 1,
        padding: Padding = "reset",
        share: Share = "large",
        seed: Seed = None,
    ) -> None:
        super().__init__(Storage(capacity, spec, num_envs, n_step, gamma, stack, padding, share, seed))

    @classmethod
    def from_env(cls, env: Any, capacity: int, **options: Any) -> "LatestBuffer":
        """A buffer for the transitions of a Gymnasium environment, single or vector; `options` as the constructor's."""
        return build_from_env(cls, env, capacity, options)

    def draw(self, batch_size: int) -> Draw:
        """The B newest indices, oldest first."""
        newest = self._storage.ring.newest(batch_size)
        indices = np.resize(newest, batch_size)
        return Draw(indices, self._share(np.arange(batch_size) % newest.size, newest.size, batch_size))

    def probability(self, indices: npt.ArrayLike, batch_size: int = 1) -> npt.NDArray[np.float64]:
        """1/B for the B newest and 0 for the others; if fewer are stored, their shares. O(B log B)."""
        check_count("batch_size", batch_size)
        entries = as_indices("indices", indices)
        if not self._storage.ring.slots(entries).size:
            return np.zeros(0)
        newest = self._storage.ring.newest(batch_size)
        order = np.argsort(newest)
        places = np.searchsorted(newest, entries, sorter=order).clip(max=newest.size - 1)
        places = order[places]
        return np.where(newest[places] == entries, self._share(places, newest.size, batch_size), 0.0)

    @staticmethod
    def _share(places: npt.NDArray[np.int64], size: int, batch_size: int) -> npt.NDArray[np.float64]:
        """Share of the transition at each place when `size` of them fill a batch in turn."""
        return (batch_size // size + (places < batch_size % size)) / batch_size
