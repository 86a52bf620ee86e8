"""The ready-made buffers: `ReplayBuffer`, `PrioritizedBuffer` and `LatestBuffer`."""

import os
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, final

from replaykit._kernels import LazyModule
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

on_device: Any = LazyModule("replaykit.on_device")
_ON_DEVICE = "it needs the CPU's memory; leave the device out, and pass device= to batches instead"
Variant: TypeAlias = Literal["proportional", "rank"]


def _place(
    path: Path | None, device: Any, pin_memory: bool, capacity: int, spec: Spec, num_envs: int, stack: int,
    padding: Padding, share: Share,
) -> Any:  # fmt: skip
    """The storage of a buffer: in memory, in files in a directory, or on a device."""
    if device is not None:
        from replaykit.on_device import DeviceStorage, PinnedStorage

        if path is not None:
            raise ValueError(f"storage is {path!r} with device={str(device)!r}; expected None: {_ON_DEVICE}")
        kind = PinnedStorage if pin_memory else DeviceStorage
        return kind(capacity, spec, num_envs, stack=stack, padding=padding, share=share, device=device)
    if pin_memory:
        raise ValueError("pin_memory is True without a device; pass the device that draws and reads batches")
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
        Maximum number of transitions, C, rounded up to a multiple of `num_envs`. Each lane keeps its last C/E.
    spec : Spec
        The fields of a transition.
    num_envs : int
        Number of parallel environments that share the buffer, E. Each has its own lane.
    n_step : int
        Number of steps in a sampled transition. There are fewer at an episode's end and at the newest step.
    gamma : float
        Discount per step, for n-step returns and ``batch.discount``.
    stack : int
        Number of observations in a stack, k. A batch contains the last k observations of the episode along a new first
        axis. Only frames are stacked: fields of `obs` with at least two axes. Add single frames, not stacks. If the
        agent also needs stacks when it acts, use ``FrameStackObservation(record(env, buffer), k)``.
    padding : {"reset", "zero"}
        How to fill a stack at an episode's start: with the first observation, or with zeros. Gymnasium's
        ``FrameStackObservation`` does the same, except that it uses the lower bound of a Box that excludes 0.
    share : {"large", "all", "none"}
        Which observations are stored once, although several steps or stacks contain them: above 1 KB, all or none.
        Only equal observations are shared, so batches do not depend on this option.
    storage : str or path-like, optional
        A directory. The transitions are then stored in files there, which may be larger than memory and outlive the
        process. By default they are kept in memory. See `MappedStorage <replaykit.storage.MappedStorage>`.
    device : torch.device or str, optional
        Keep the transitions as tensors on this device, for environments that are simulated there. Batches are then
        tensors, and :doc:`/how-to/gpu-simulators` shows what else differs. By default everything is in NumPy arrays.
    pin_memory : bool
        Keep the transitions in the CPU's memory, and only the priorities on `device`. The device still draws and reads
        the batches. Use it for environments on the CPU, or for more transitions than the device can hold.
    replace : bool
        Whether a transition can occur twice in a batch. If not, `batch_size` is at most the number of transitions.
    seed : None, int, SeedSequence or Generator
        The same seed and the same calls give identical batches.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is out of range.
    MemoryError, OSError
        If there is not enough memory or disk space for `capacity` transitions, or `storage` cannot be opened.

    Examples
    --------
    >>> from replaykit import Field, ReplayBuffer, Spec
    >>> buffer = ReplayBuffer(1000, Spec(obs=Field((3,)), action=Field((), "int64")), seed=0)
    >>> for step in range(5):
    ...     index = buffer.add([step] * 3, step % 2, 1.0, [step + 1] * 3, step == 4, False)
    >>> batch = buffer.sample(2)
    >>> batch  # doctest: +NORMALIZE_WHITESPACE
    Batch(2: obs (3,) float32, action int64, reward float32, next_obs (3,) float32,
    terminated bool, truncated bool, discount float32, length int64, weights float32,
    probabilities float64, indices int64)
    >>> batch.probabilities
    array([0.2, 0.2])
    """

    replace: bool = read_only("_distribution.replace", "Whether a transition can occur twice in a batch.")

    def __init__(
        self, capacity: int, spec: Spec, *, num_envs: int = 1, n_step: int = 1, gamma: float = 0.99, stack: int = 1,
        padding: Padding = "reset", share: Share = "large", storage: Path | None = None, replace: bool = True,
        device: Any = None, pin_memory: bool = False, seed: Seed = None,
    ) -> None:  # fmt: skip
        place = _place(storage, device, pin_memory, capacity, spec, num_envs, stack, padding, share)
        kind = on_device.DeviceUniform if place.backend.device else Uniform
        super().__init__(place, kind(place, replace=replace), n_step=n_step, gamma=gamma, seed=seed)


@final
class LatestBuffer(Buffer):
    """No replay: a batch consists of the B newest transitions, oldest first.

    Use it as the baseline of a study: an agent without replay. If fewer than B are stored, they are repeated in order.

    Parameters
    ----------
    capacity, spec, num_envs, n_step, gamma, stack, padding, share, storage, device, pin_memory, seed
        As in `ReplayBuffer`. A batch larger than the capacity repeats transitions.

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
        padding: Padding = "reset", share: Share = "large", storage: Path | None = None, device: Any = None,
        pin_memory: bool = False, seed: Seed = None,
    ) -> None:  # fmt: skip
        place = _place(storage, device, pin_memory, capacity, spec, num_envs, stack, padding, share)
        kind = on_device.DeviceLatest if place.backend.device else Latest
        super().__init__(place, kind(place), n_step=n_step, gamma=gamma, seed=seed)


@final
class PrioritizedBuffer(Buffer):
    """Prioritized replay: transitions with a large TD error are drawn more often.

    A transition with TD error δ has the priority ``p = abs(δ) + eps``. Its probability is ``P = p**alpha /
    sum(p**alpha)``. The weights ``w = (N P)**-beta`` correct the resulting bias. A new transition gets the largest
    priority in the buffer, or 1 in an empty buffer, so that it is likely to be drawn soon.

    With ``variant="rank"`` the probability is ``P = rank**-alpha / sum(rank**-alpha)``. The largest priority has rank
    1, so outliers and the unit of the TD errors have no influence. Among equal priorities of a lane, the newer
    transition, which has the larger index, comes first. Transitions of priority 0 come last, but they are still drawn.

    Parameters
    ----------
    capacity, spec, num_envs, n_step, gamma, stack, padding, share, storage, device, pin_memory, seed
        As in `ReplayBuffer`.
    alpha : float
        The strength of prioritization. 0 is uniform replay. With 1, probabilities are proportional to the priority, or
        to 1 / rank. The paper uses 0.6, and 0.7 for ranks.
    beta : float or callable
        The strength of the bias correction, from 0 to 1. Either a number, which you can set at any time, or a function
        of the number of batches sampled so far, such as ``LinearSchedule(0.4, 1.0, steps)``. Anneal it to 1.
    eps : float, optional
        Added to every ``abs(td_error)``, so that every transition can be drawn. The default, 1e-2, suits TD errors
        around 1. Leave it out with ``variant="rank"``: it would not change any rank.
    draws : {"stratified", "iid"}
        Whether one transition is drawn from each of B equal parts of the total priority, or all independently.
    weights : {"batch", "buffer", "none"}
        Divide weights by the largest weight of the batch ("batch"), by the largest weight of any stored transition
        ("buffer"), or by nothing. With "buffer", one tiny priority can make all weights so small that learning stalls.
    variant : {"proportional", "rank"}
        Whether probabilities depend on priorities or on their ranks. Ranks take 2 to 4 times as long, and about 60
        bytes more per transition; see `Rank <replaykit.distributions.Rank>`.

    References
    ----------
    Schaul et al. (2016), Prioritized Experience Replay, sections 3.3 and 3.4, appendix B.2.1.

    Examples
    --------
    >>> from replaykit import Field, PrioritizedBuffer, Spec
    >>> buffer = PrioritizedBuffer(4, Spec(Field(), Field()), alpha=1, beta=1, eps=0, seed=0)
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

    alpha: float = read_only("_distribution.alpha", "The strength of prioritization.")
    eps: float = read_only("_distribution.eps", "Added to the absolute value of every TD error; 0 for ranks.")
    draws: Draws = read_only("_distribution.draws", "Whether draws are stratified or independent.")
    weights: Weights = read_only("_distribution.weights", "How weights are normalized.")
    variant: Variant = read_only("_variant", "Whether probabilities depend on priorities or on their ranks.")

    def __init__(
        self, capacity: int, spec: Spec, *, num_envs: int = 1, n_step: int = 1, gamma: float = 0.99, stack: int = 1,
        padding: Padding = "reset", share: Share = "large", storage: Path | None = None, alpha: float = 0.6,
        beta: float | Callable[[int], float] = 0.4, eps: float | None = None, draws: Draws = "stratified",
        weights: Weights = "batch", variant: Variant = "proportional", device: Any = None, pin_memory: bool = False,
        seed: Seed = None,
    ) -> None:  # fmt: skip
        check_choice("variant", variant, Variant)
        if variant == "rank" and eps is not None:
            raise ValueError(
                f'eps is {eps!r} with variant="rank"; leave it out, since a number added to all errors changes no rank'
            )
        self._variant = variant
        place = _place(storage, device, pin_memory, capacity, spec, num_envs, stack, padding, share)
        distribution: Distribution
        if variant == "rank":
            if place.backend.device:
                raise ValueError('variant is "rank" with a device; expected "proportional": ' + _ON_DEVICE)
            distribution = Rank(place, alpha=alpha, beta=beta, draws=draws, weights=weights)
        else:
            eps = 1e-2 if eps is None else eps
            kind = on_device.DeviceProportional if place.backend.device else Proportional
            distribution = kind(place, alpha=alpha, beta=beta, eps=eps, draws=draws, weights=weights)
        super().__init__(place, distribution, n_step=n_step, gamma=gamma, seed=seed)


def load(path: Path, *, progress: bool = False) -> Buffer:
    """Load a checkpoint into a new buffer with the saved settings. Wrappers of the saved buffer are not rebuilt.

    If `beta` is a function, or the storage or the distribution is your own, build the buffer yourself and call its
    ``load`` method. Parameters and errors are those of :meth:`Replay.load`.

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
