"""The buffers that most people want: which storage, and which distribution."""

import os
from collections.abc import Callable
from typing import Literal, TypeAlias, final

from replaykit.buffer import Buffer, Seed
from replaykit.checks import check_choice
from replaykit.declared import read_only
from replaykit.distributions.base import Distribution
from replaykit.distributions.latest import Latest
from replaykit.distributions.prioritized import Draws, Weights
from replaykit.distributions.proportional import Proportional
from replaykit.distributions.rank import Rank
from replaykit.distributions.uniform import Uniform
from replaykit.saving.checkpoint import Path, load_innermost
from replaykit.spec import Spec
from replaykit.storage.columns import Padding, Share
from replaykit.storage.local import LocalStorage
from replaykit.storage.mapped import MappedStorage

Variant: TypeAlias = Literal["proportional", "rank"]


def _place(
    path: Path | None, capacity: int, spec: Spec, num_envs: int, stack: int, padding: Padding, share: Share
) -> LocalStorage:
    """The storage of a buffer: in memory, or in files of a directory."""
    if path is None:
        return LocalStorage(capacity, spec, num_envs, stack=stack, padding=padding, share=share)
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"storage is a {type(path).__name__}; expected the path of a directory, or None")
    return MappedStorage(path, capacity, spec, num_envs, stack=stack, padding=padding, share=share)


@final
class ReplayBuffer(Buffer):
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
        Observations in each of a batch, k: the last k of the episode, along a new first axis. Only frames are stacked:
        fields of `obs` with at least two axes. Add them one by one. If the agent needs stacks itself, use
        ``FrameStackObservation(record(env, buffer), k)``.
    padding : {"reset", "zero"}
        What fills up a stack at an episode's start: its first observation or zeros, as in Gymnasium's
        ``FrameStackObservation``, which uses the lower bound of a Box without zeros.
    share : {"large", "all", "none"}
        Which observations are kept once, rather than in each step and stack that they belong to: those above 1 KB, all,
        or none. Only equal observations are shared, so batches do not depend on it.
    storage : str or path-like, optional
        A directory for the transitions, which are kept in memory otherwise: in files that may be larger than memory,
        and outlive the process. See `MappedStorage <replaykit.storage.MappedStorage>`.
    replace : bool
        Whether a transition can be drawn twice for a batch. If not, a batch is at most as large as the buffer's size.
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

    replace: bool = read_only("_distribution.replace", "Whether a transition can be drawn twice for a batch.")

    def __init__(
        self, capacity: int, spec: Spec, *, num_envs: int = 1, n_step: int = 1, gamma: float = 0.99, stack: int = 1,
        padding: Padding = "reset", share: Share = "large", storage: Path | None = None, replace: bool = True,
        seed: Seed = None,
    ) -> None:  # fmt: skip
        place = _place(storage, capacity, spec, num_envs, stack, padding, share)
        super().__init__(place, Uniform(place, replace=replace), n_step=n_step, gamma=gamma, seed=seed)


@final
class LatestBuffer(Buffer):
    """No replay: a batch of B is the B newest transitions, oldest first.

    This is how an agent without a replay memory learns, the baseline of every study of replay. While fewer than B are
    stored, they are repeated in turn.

    Parameters
    ----------
    capacity, spec, num_envs, n_step, gamma, stack, padding, share, storage, seed
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
        self, capacity: int, spec: Spec, *, num_envs: int = 1, n_step: int = 1, gamma: float = 0.99, stack: int = 1,
        padding: Padding = "reset", share: Share = "large", storage: Path | None = None, seed: Seed = None,
    ) -> None:  # fmt: skip
        place = _place(storage, capacity, spec, num_envs, stack, padding, share)
        super().__init__(place, Latest(place), n_step=n_step, gamma=gamma, seed=seed)


@final
class PrioritizedBuffer(Buffer):
    """Prioritized replay: transitions with a large TD error are drawn more often.

    A transition with TD error δ has the priority ``p = abs(δ) + eps``, and is drawn with the probability ``P = p**alpha
    / sum(p**alpha)``. The weights ``w = (N P)**-beta`` correct learning for that. A new transition gets the largest
    priority in the buffer, or 1 if there is none, so that it is soon seen once.

    With ``variant="rank"`` the probability is ``P = rank**-alpha / sum(rank**-alpha)``, where the largest priority has
    the rank 1. So outliers, and the unit of the TD errors, make no difference. Of equal priorities the newer transition
    of a lane, which has the larger index, comes first. A priority of 0 has the last rank, and is drawn, too.

    Parameters
    ----------
    capacity, spec, num_envs, n_step, gamma, stack, padding, share, storage, seed
        As those of `ReplayBuffer`.
    alpha : float
        How much priorities count: 0 is uniform replay, 1 is proportional to the priority, or to 1 / rank. The paper
        uses 0.6, and 0.7 for ranks.
    beta : float or callable
        How much of the bias is corrected, from 0 to 1: a number, which can be set at any time, or a function of the
        number of batches sampled so far, such as ``LinearSchedule(0.4, 1.0, steps)``. Anneal it to 1 over training.
    eps : float, optional
        Added to every ``abs(td_error)``, so that no transition is starved: 1e-2 unless given, which suits TD errors
        around 1. With ``variant="rank"`` it must be left out, since it changes no rank.
    draws : {"stratified", "iid"}
        Whether one transition is drawn from each of B equal parts of the mass, or all independently.
    weights : {"batch", "buffer", "none"}
        What weights are divided by: the largest of the batch; the largest of any stored transition, where one tiny
        priority makes all weights so small that learning stalls; or nothing.
    variant : {"proportional", "rank"}
        Whether probabilities follow from priorities or from their ranks. Ranks take 2 to 4 times as long, and about 60
        bytes more for each transition; see `Rank <replaykit.distributions.Rank>`.

    References
    ----------
    Schaul et al. (2016), Prioritized Experience Replay, sections 3.3 and 3.4, appendix B.2.1.

    Examples
    --------
    >>> import numpy as np
    >>> from replaykit import Field, PrioritizedBuffer, Spec
    >>> buffer = PrioritizedBuffer(4, Spec(obs=Field(()), action=Field(())), alpha=1.0, beta=1.0, eps=0.0, seed=0)
    >>> for step in range(4):
    ...     index = buffer.add(step, 0, 1.0, step + 1, False, False)
    >>> buffer.update_priorities([0, 1, 2, 3], td_errors=[3.0, 0.0, -1.0, 2.0])
    4
    >>> buffer.probability([0, 1, 2, 3])
    array([0.5       , 0.        , 0.16666667, 0.33333333])
    >>> batch = buffer.sample(3)
    >>> batch.indices
    array([0, 0, 3])
    >>> batch.weights  # proportional to 1 / probability
    array([0.6666667, 0.6666667, 1.       ], dtype=float32)
    """

    alpha: float = read_only("_distribution.alpha", "How much priorities count.")
    eps: float = read_only("_distribution.eps", "Added to the magnitude of every TD error; 0 for ranks.")
    draws: Draws = read_only("_distribution.draws", "How the points of a draw lie on the mass.")
    weights: Weights = read_only("_distribution.weights", "What weights are divided by.")
    variant: Variant = read_only("_variant", "Whether probabilities follow from priorities or from their ranks.")

    def __init__(
        self, capacity: int, spec: Spec, *, num_envs: int = 1, n_step: int = 1, gamma: float = 0.99, stack: int = 1,
        padding: Padding = "reset", share: Share = "large", storage: Path | None = None, alpha: float = 0.6,
        beta: float | Callable[[int], float] = 0.4, eps: float | None = None, draws: Draws = "stratified",
        weights: Weights = "batch", variant: Variant = "proportional", seed: Seed = None,
    ) -> None:  # fmt: skip
        check_choice("variant", variant, Variant)
        if variant == "rank" and eps is not None:
            raise ValueError(
                f'eps is {eps!r} with variant="rank"; expected none, since it changes no rank: leave it out'
            )
        self._variant = variant
        place = _place(storage, capacity, spec, num_envs, stack, padding, share)
        distribution: Distribution
        if variant == "rank":
            distribution = Rank(place, alpha=alpha, beta=beta, draws=draws, weights=weights)
        else:
            eps = 1e-2 if eps is None else eps
            distribution = Proportional(place, alpha=alpha, beta=beta, eps=eps, draws=draws, weights=weights)
        super().__init__(place, distribution, n_step=n_step, gamma=gamma, seed=seed)


def load(path: Path, *, progress: bool = False) -> Buffer:
    """The buffer of a checkpoint, built as it was when it was saved; of wrapped ones, the innermost.

    A buffer with a function for `beta`, or with a storage or a distribution of yours, must be built by you: then use
    its own ``load``. Parameters and errors are those of :meth:`Replay.load`.

    Examples
    --------
    >>> import tempfile
    >>> import replaykit
    >>> from replaykit import Field, ReplayBuffer, Spec
    >>> buffer = ReplayBuffer(1000, Spec(obs=Field(()), action=Field(())), n_step=3)
    >>> index = buffer.add(0.0, 0, 1.0, 1.0, False, False)
    >>> path = tempfile.mkdtemp()
    >>> buffer.save(path)
    >>> replaykit.load(path)
    ReplayBuffer(1 of 1000, num_envs=1, n_step=3)
    """
    buffer: Buffer = load_innermost(path, {kind.__name__: kind for kind in Buffer.__subclasses__()}, progress)
    return buffer
