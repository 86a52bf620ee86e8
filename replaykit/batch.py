"""What a sample passes through: a Draw of indices, a Window on the ring at each, and the Batch."""

from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from replaykit.trees import leaves_of, map_tree


@dataclass(slots=True)
class Draw:
    """Which transitions, and with what probability.

    Attributes
    ----------
    indices : ndarray of shape (B,), int64
        Of the drawn transitions.
    probabilities : ndarray of shape (B,), float64
        Of each drawn transition, its expected share of a batch.
    least : float or None
        The smallest positive probability of any stored transition, where weights are normalised by it: with
        ``weights="buffer"``. Without it they are normalised as with ``weights="batch"``.
    """

    indices: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float64]
    least: float | None = None


@dataclass(slots=True)
class Rewrite:
    """Other values for some rows of one field, put in when a window is reduced.

    Attributes
    ----------
    field : str
        Which one, as in ``"action"``, or ``"obs.desired_goal"`` of a nested one.
    rows : ndarray of shape (R,), int64
    values : ndarray of shape (R, ...)
    """

    field: str
    rows: npt.NDArray[np.int64]
    values: npt.NDArray[Any]


@dataclass(slots=True)
class Window:
    """What is there: up to n consecutive steps of one episode from each index on.

    Attributes
    ----------
    indices : ndarray of shape (B,), int64
        The first step of each window.
    fields : list
        Of the first steps, what a reduction needs: the storage's business.
    length : ndarray of shape (B,), int64
        Steps in each window, from 1 to n.
    reward : ndarray of shape (B, n)
        Of each step; entries past the length are 0.
    terminated, truncated : ndarray of shape (B,), bool
        Of the last step of each window.
    rewritten : tuple of Rewrite
        What takes the place of stored values, in this order.
    added : tuple of (str, ndarray of shape (B, ...))
        Further fields of the batch, by name.
    """

    indices: npt.NDArray[np.int64]
    fields: list[npt.NDArray[Any]]
    length: npt.NDArray[np.int64]
    reward: npt.NDArray[Any]
    terminated: npt.NDArray[np.bool_]
    truncated: npt.NDArray[np.bool_]
    rewritten: tuple[Rewrite, ...] = ()
    added: tuple[tuple[str, npt.NDArray[Any]], ...] = ()


class Batch:
    """B transitions as fresh arrays that belong to the caller.

    Every field is an attribute and a key: ``batch.reward is batch["reward"]``. Nested observations and actions are
    dicts and tuples of arrays. The learning target is always ``batch.reward + batch.discount * q_next``.

    Stacks of frames in `obs` and `next_obs` overlap, so they may be views of one array: copy one before changing it.

    Attributes
    ----------
    obs, action : array of shape (B, ...)
        Of the first step of each window.
    reward : array of shape (B,)
        The n-step return: the discounted sum of the rewards of the window.
    next_obs : array of shape (B, ...)
        The observation after the last step of the window.
    terminated, truncated : array of shape (B,), bool
        Of the last step of the window.
    discount : array of shape (B,)
        ``gamma**length``, and 0 where terminated.
    length : array of shape (B,), int64
        Steps of the window: `n_step`, or fewer at an episode's end and at the newest step.
    weights : array of shape (B,), float32
        Importance-sampling weights; 1 where nothing is corrected for.
    probabilities : array of shape (B,), float64
        Of each transition, its expected share of the batch.
    indices : array of shape (B,), int64
        For ``update_priorities``.
    relabelled : array of shape (B,), bool
        Under a `HindsightReplay` only: which transitions have another goal than they were stored with.

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
        try:
            return self.__dict__[name]
        except KeyError:
            raise KeyError(f"this batch has no field {name!r}; it has {', '.join(self.__dict__)}") from None

    def __contains__(self, name: object) -> bool:
        return name in self.__dict__

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dict__)

    def __len__(self) -> int:
        """B, the number of transitions."""
        for _, array in leaves_of(self.__dict__):
            return int(array.shape[0])
        return 0

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
        fields = (
            f"{path} {tuple(array.shape[1:])} {array.dtype}" if len(array.shape) > 1 else f"{path} {array.dtype}"
            for path, array in leaves_of(self.__dict__)
        )
        return f"Batch({len(self)}: {', '.join(fields)})"

    def to_torch(self, device: Any = None) -> "Batch":
        """The same batch with tensors for arrays, on the CPU sharing their memory.

        Parameters
        ----------
        device : torch.device or str, optional
            Where the tensors go; without one, or with the CPU, nothing is copied. Copies to a CUDA device go
            through pinned memory and do not wait.

        Raises
        ------
        TypeError
            For a dtype that torch does not have, naming the field.
        """
        import torch

        target = torch.device("cpu" if device is None else device)

        def convert(array: npt.NDArray[Any], path: str) -> Any:
            try:
                tensor = torch.from_numpy(array)
            except TypeError as error:
                raise TypeError(f"{path} has dtype {array.dtype}, which torch does not have: {error}") from error
            if target.type == "cpu":
                return tensor
            return tensor.pin_memory().to(target, non_blocking=True) if target.type == "cuda" else tensor.to(target)

        return Batch.of(map_tree(convert, self.__dict__))


_constants: dict[tuple[int, float, type], npt.NDArray[Any]] = {}


def constant(size: int, value: float, dtype: type) -> npt.NDArray[Any]:
    """A fresh array of one value: copying a kept one takes a fraction of the time of filling a new one."""
    kept = _constants.get((size, value, dtype))
    if kept is None:
        if len(_constants) >= 64:
            _constants.clear()
        kept = _constants[size, value, dtype] = np.full(size, value, dtype)
    return kept.copy()
