"""The stages of a sample: a `Draw` of indices, a `Window` of steps at each index, and the `Batch`."""

from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from replaykit.tensors import to_tensordict, to_tensors
from replaykit.trees import leaves_of, map_tree

Strategy: TypeAlias = Literal["future", "final", "episode", "random"]
"""Where hindsight goals come from."""


@dataclass(slots=True)
class Draw:
    """Drawn `indices` (B,), and `probabilities` (B,): the expected fraction of a batch that each of them gets.

    `least` is the smallest positive probability of any stored transition, for ``weights="buffer"``. If it is None,
    weights are normalized as with ``weights="batch"``. A mixture has one value for each source, with NaN for None.
    """

    indices: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float64]
    least: float | npt.NDArray[np.float64] | None = None


class Rewrite(NamedTuple):
    """New `values` (R, ...) for the R windows with the numbers `rows` (R,). They replace stored values in `reduce`.

    Every field in `fields`, such as ``("obs.goal", "next_obs.goal")``, gets these values. All fields have the same
    shape and dtype. On a device, `rows` can also be flags (M,) for all windows. Each window then has a value.
    """

    fields: tuple[str, ...]
    rows: npt.NDArray[np.int64]
    values: npt.NDArray[Any]


class Look(NamedTuple):
    """A request of hindsight for the achieved goals of other steps, for a fraction `ratio` of the batch's rows.

    A goal consists of the values of all fields in `leaves`. `strategy` determines the steps.
    """

    leaves: tuple[str, ...]
    ratio: float
    strategy: Strategy


class Ahead(NamedTuple):
    """The answer to a `Look`: new goals for W of the windows, which have S steps in total.

    Goals are tuples, with an array for each leaf of the `Look`. On a device, W = M and S = M n, so that shapes do not
    depend on the draw: `windows` are flags for all windows, and a shorter window repeats its last step.

    Attributes
    ----------
    chosen : ndarray of shape (B,), bool
        The rows of the batch that get a new goal. All T windows of a row get the same one.
    windows, goals : ndarray of shape (W,), int64, and tuple of ndarray of shape (W, ...)
        The numbers of the windows in these rows, and the new goal of each window.
    places : ndarray of shape (S,), int64
        The positions of the steps' rewards in ``window.reward.reshape(M * n, ...)``, window by window.
    achieved, wanted : tuple of ndarray of shape (S, ...)
        The achieved goal and the new goal of each of these steps.
    """

    chosen: npt.NDArray[np.bool_]
    windows: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    achieved: tuple[npt.NDArray[Any], ...]
    wanted: tuple[npt.NDArray[Any], ...]
    goals: tuple[npt.NDArray[Any], ...]


@dataclass(slots=True)
class Window:
    """Up to n consecutive steps of one episode, starting at each of M indices.

    A wrapper may change or replace `reward`, `length`, `terminated` and `truncated`, and extend `rewrites` and `added`.

    Attributes
    ----------
    indices : ndarray of shape (M,), int64
        The first step of each window. The indices of consecutive steps differ by `stride`.
    shape : tuple of int
        (B,), or (B, T) if each row of the batch has T windows, so that M = B T.
    reward : ndarray of shape (M, n), or (M, n, k), float64
        The reward of each step, or its k rewards. Entries past the length are 0.
    length : ndarray of shape (M,), int64
        The number of steps, from 1 to n. If you shorten a window, `next_obs` comes from its new last step.
    terminated, truncated : ndarray of shape (M,), bool
        Flags of the last step.
    rewrites : list of Rewrite
        Values that replace stored ones, applied in this order.
    added : dict of str to ndarray of shape (B, ...)
        Additional fields of the batch.
    ahead : Ahead or None
        The answer to the `look` of the wrapper that receives the window, if it is already known.
    opened
        Private data of the storage that made the window.
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


def _as_numpy(leaf: Any, _path: str) -> npt.NDArray[Any]:
    """A leaf of a batch as a NumPy array, without copying one that is already on the CPU."""
    return leaf if isinstance(leaf, np.ndarray) else np.asarray(leaf.detach().cpu().numpy())


class Batch:
    """B transitions in new arrays that belong to the caller.

    Every field is an attribute and a key: ``batch.reward is batch["reward"]``. Nested observations and actions are
    dicts and tuples of arrays. The learning target is always ``batch.reward + batch.discount * q_next``. Stacks of
    frames in `obs` and `next_obs` overlap, so they may be views of one array: copy a stack before you change it.

    Attributes
    ----------
    obs, action : array of shape (B, ...)
        From the first step of each window.
    reward : array of shape (B,), or (B, k)
        The n-step return: the discounted sum of the window's rewards, or of each of the k rewards of its steps.
    next_obs, terminated, truncated : array of shape (B, ...), and (B,), bool
        From the last step of each window.
    discount : array of shape (B,)
        ``gamma**length``, and 0 where terminated.
    length : array of shape (B,), int64
        The number of steps in the window: `n_step`, or fewer at an episode's end, the newest step or a hindsight goal.
    weights : array of shape (B,), float32
        Importance-sampling weights; 1 without a correction.
    probabilities : array of shape (B,), float64
        The expected fraction of the batch that each transition gets.
    indices : array of shape (B,), int64
        The argument of ``update_priorities``.
    relabelled : array of shape (B,), bool
        Only with a `HindsightReplay`: whether the goal of a transition was replaced.
    mask, loss_mask, is_first, step_indices : array of shape (B, T)
        Only with a `SequenceReplay`. All fields except `weights`, `probabilities` and `indices` then have axes (B, T).

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
        """A batch with these fields. The dict is not copied."""
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
        """The arrays of the fields; nested fields are dicts or tuples."""
        return self.__dict__.values()

    def items(self) -> ItemsView[str, Any]:
        """The names of the fields, each with its array."""
        return self.__dict__.items()

    def __repr__(self) -> str:
        leaves = ((path, tuple(array.shape[1:]), array.dtype) for path, array in leaves_of(self.__dict__))
        fields = (f"{path} {shape} {dtype}" if shape else f"{path} {dtype}" for path, shape, dtype in leaves)
        return f"Batch({len(self)}: {', '.join(fields)})"

    def to_torch(self, device: Any = None, *, dtype: Any = None, column: bool = False) -> "Batch":
        """The same batch as tensors. On the CPU they share the arrays' memory; read-only arrays are copied.

        On another device all tensors are views of one block of memory, which is transferred in one copy. To a CUDA
        device the copy starts from pinned memory and is asynchronous.

        Parameters
        ----------
        device : torch.device or str, optional
            The CPU by default.
        dtype : torch.dtype, optional
            The dtype of floating-point fields. By default each field keeps its dtype.
        column : bool
            Whether `reward`, `discount`, `terminated`, `truncated` and `weights` of shape (B,) or (B, T) get a last
            axis of length 1. `update_priorities` takes TD errors without this axis: pass ``td_errors.squeeze(-1)``.

        Raises
        ------
        TypeError
            If torch does not have the dtype of a field.
        RuntimeError
            If the device does not exist.
        """
        return Batch.of(to_tensors(self.__dict__, device, dtype, column))

    def to_numpy(self) -> "Batch":
        """The same batch as NumPy arrays. Waits for the device of tensors. NumPy arrays are not copied."""
        return Batch.of({name: map_tree(_as_numpy, value, name) for name, value in self.__dict__.items()})

    def to_tensordict(self, device: Any = None) -> Any:
        """The same batch as a ``tensordict.TensorDict`` with TorchRL's keys. Needs the extra ``tensordict``.

        `obs` becomes ``"observation"``, or its own keys if it is a dict. The entry ``"next"`` holds `next_obs`,
        ``"reward"``, ``"terminated"``, ``"truncated"`` and ``"done"``, each of shape (B, 1). `indices` becomes
        ``"index"``, `weights` ``"priority_weight"``, and `length` ``"steps_to_next_obs"``, from which TorchRL's losses
        compute the discount. The other fields keep their names. For sequences, the batch size is (B, T), ``"index"`` is
        `step_indices`, and each transition has the weight of its row. Such a key in `obs` raises ValueError.
        """
        return to_tensordict(self.__dict__, device)
