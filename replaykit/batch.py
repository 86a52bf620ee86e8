"""What a sample passes through: a Draw of indices, a Window of steps at each, and the Batch."""

from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from replaykit.tensors import to_tensordict, to_tensors
from replaykit.trees import leaves_of

Strategy: TypeAlias = Literal["future", "final", "episode", "random"]
"""Where hindsight goals come from."""


@dataclass(slots=True)
class Draw:
    """Indices (B,) of transitions, and the expected share of a batch of each, as `probabilities` (B,).

    `least` is the smallest positive probability of any stored transition, which ``weights="buffer"`` normalises by. If
    it is None, weights are normalised as with ``weights="batch"``. Of a mixture it has the smallest of each source, NaN
    for None.
    """

    indices: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float64]
    least: float | npt.NDArray[np.float64] | None = None


class Rewrite(NamedTuple):
    """Values (R, ...) for R windows, of the numbers `rows` (R,), that replace stored ones when windows are reduced.

    All `fields` receive them: leaves of the spec of one dtype, such as ``("obs.goal", "next_obs.goal")``.
    """

    fields: tuple[str, ...]
    rows: npt.NDArray[np.int64]
    values: npt.NDArray[Any]


class Look(NamedTuple):
    """What hindsight asks about later steps: their achieved goals, for a share `ratio` of the rows of a batch.

    A goal has a part in each of `leaves`.
    """

    leaves: tuple[str, ...]
    ratio: float
    strategy: Strategy


class Ahead(NamedTuple):
    """The answer to a `Look` at windows of shape (B,) or (B, T), n steps each: other goals for W windows of S steps.

    Goals are tuples, with an array for each leaf of the `Look`.

    Attributes
    ----------
    chosen : ndarray of shape (B,), bool
        Which rows of the batch get another goal. All T windows of a row get the same.
    windows, goals : ndarray of shape (W,), int64, and tuple of ndarray of shape (W, ...)
        The numbers of the windows in these rows, and the new goal of each.
    places : ndarray of shape (S,), int64
        Where the rewards of their steps are in ``window.reward.reshape(M * n, ...)``, window after window.
    achieved, wanted : tuple of ndarray of shape (S, ...)
        The goal achieved in each of these steps, and its new goal.
    """

    chosen: npt.NDArray[np.bool_]
    windows: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    achieved: tuple[npt.NDArray[Any], ...]
    wanted: tuple[npt.NDArray[Any], ...]
    goals: tuple[npt.NDArray[Any], ...]


@dataclass(slots=True)
class Window:
    """Up to n consecutive steps of one episode from each of M indices on.

    A wrapper may change or replace `reward`, `length`, `terminated` and `truncated`, and add to `rewrites` and `added`.

    Attributes
    ----------
    indices : ndarray of shape (M,), int64
        The first step of each window. Those of successive steps differ by `stride`.
    shape : tuple of int
        (B,), or (B, T) if T windows belong to each row of the batch, so that M = B T.
    reward : ndarray of shape (M, n), or (M, n, k), float64
        The reward of each step, or its k rewards. Entries past the length are 0.
    length : ndarray of shape (M,), int64
        The number of steps, from 1 to n. If it is made shorter, `next_obs` is that of the new last step.
    terminated, truncated : ndarray of shape (M,), bool
        Flags of the last step.
    rewrites : list of Rewrite
        Values that replace stored ones, applied in this order.
    added : dict of str to ndarray of shape (B, ...)
        Further fields of the batch.
    ahead : Ahead or None
        The answer to the `look` of the wrapper that receives the window, if it is known already.
    opened
        Only for the storage that made the window.
    """

    indices: npt.NDArray[np.int64]
    shape: tuple[int, ...]
    stride: int
    reward: npt.NDArray[np.float64]
    length: npt.NDArray[np.int64]
    terminated: npt.NDArray[np.bool_]
    truncated: npt.NDArray[np.bool_]
    opened: Any = None
    rewrites: list[Rewrite] = field(default_factory=list)
    added: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    ahead: Ahead | None = None


class Batch:
    """B transitions as fresh arrays that belong to the caller.

    Every field is an attribute and a key: ``batch.reward is batch["reward"]``. Nested observations and actions are
    dicts and tuples of arrays. The learning target is always ``batch.reward + batch.discount * q_next``. Stacks of
    frames in `obs` and `next_obs` may be views of one array, since they overlap: copy one before you change it.

    Attributes
    ----------
    obs, action : array of shape (B, ...)
        Of the first step of each window.
    reward : array of shape (B,), or (B, k)
        The n-step return: the discounted sum of the rewards of the window, or of each of the k rewards of its steps.
    next_obs, terminated, truncated : array of shape (B, ...), and (B,), bool
        Of the last step of the window.
    discount : array of shape (B,)
        ``gamma**length``, and 0 where terminated.
    length : array of shape (B,), int64
        Steps of the window: `n_step`, or fewer at an episode's end and at the newest step.
    weights : array of shape (B,), float32
        Importance-sampling weights; 1 if nothing is corrected for.
    probabilities : array of shape (B,), float64
        The expected share of the batch of each transition.
    indices : array of shape (B,), int64
        For ``update_priorities``.
    relabelled : array of shape (B,), bool
        Only with a `HindsightReplay`: whether a transition has another goal than it was stored with.
    mask, loss_mask, is_first, step_indices : array of shape (B, T)
        Only with a `SequenceReplay`, with which all but `weights`, `probabilities` and `indices` have the axes (B, T).

    Examples
    --------
    >>> import numpy as np
    >>> batch = Batch(reward=np.zeros(2), obs={"speed": np.ones((2, 3))})
    >>> batch
    Batch(2: reward float64, obs.speed (3,) float64)
    >>> batch["obs"]["speed"].shape, "reward" in batch, len(batch)
    ((2, 3), True, 2)
    """

    obs: Any
    action: Any
    reward: Any
    next_obs: Any
    terminated: Any
    truncated: Any
    discount: Any
    length: Any
    weights: Any
    probabilities: Any
    indices: Any

    def __init__(self, **fields: Any) -> None:
        self.__dict__ = fields

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "Batch":
        """A batch of `fields`, which become its own."""
        batch = cls.__new__(cls)
        batch.__dict__ = fields
        return batch

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"this batch has no field {name!r}; it has {', '.join(self.__dict__)}")

    def __getitem__(self, name: str) -> Any:
        if name not in self.__dict__:
            raise KeyError(f"this batch has no field {name!r}; it has {', '.join(self.__dict__)}")
        return self.__dict__[name]

    def __contains__(self, name: object) -> bool:
        return name in self.__dict__

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dict__)

    def __len__(self) -> int:
        """B, the number of transitions."""
        return next((int(array.shape[0]) for _, array in leaves_of(self.__dict__)), 0)

    def keys(self) -> KeysView[str]:
        """The names of the fields."""
        return self.__dict__.keys()

    def values(self) -> ValuesView[Any]:
        """The fields."""
        return self.__dict__.values()

    def items(self) -> ItemsView[str, Any]:
        """The names and the fields."""
        return self.__dict__.items()

    def __repr__(self) -> str:
        leaves = ((path, tuple(array.shape[1:]), array.dtype) for path, array in leaves_of(self.__dict__))
        fields = (f"{path} {shape} {dtype}" if shape else f"{path} {dtype}" for path, shape, dtype in leaves)
        return f"Batch({len(self)}: {', '.join(fields)})"

    def to_torch(self, device: Any = None, *, dtype: Any = None, column: bool = False) -> "Batch":
        """The same batch as tensors. On the CPU they share the memory of the arrays; read-only arrays are copied.

        On another device all tensors are views of one block of memory, which is copied at once, from pinned memory to a
        CUDA device, and without waiting for it.

        Parameters
        ----------
        device : torch.device or str, optional
            The CPU unless given.
        dtype : torch.dtype, optional
            Of the floating-point fields. Each keeps its own unless given.
        column : bool
            Whether `reward`, `discount`, `terminated`, `truncated` and `weights` have shape (B, 1) rather than (B,);
            those of sequences (B, T, 1) rather than (B, T). A reward of shape (B, k) stays as it is.

        Raises
        ------
        TypeError
            For a field with a dtype that torch does not have.
        RuntimeError
            If the device is not there.
        """
        return Batch.of(to_tensors(self.__dict__, device, dtype, column))

    def to_tensordict(self, device: Any = None) -> Any:
        """The same batch as a ``tensordict.TensorDict``, with the keys of TorchRL. Needs the extra ``tensordict``.

        `obs` is ``"observation"``, or its keys if it is a dict. What belongs to the next step is in ``"next"``:
        `next_obs`, ``"reward"``, ``"terminated"``, ``"truncated"`` and ``"done"``, of shape (B, 1). `indices` is
        ``"index"``, `weights` ``"priority_weight"``, and `length` ``"steps_to_next_obs"``, from which TorchRL's losses
        compute the discount. The other fields keep their names. Of sequences the batch size is (B, T), ``"index"`` is
        `step_indices`, and every transition has the weight of its row.
        """
        return to_tensordict(self.__dict__, device)
