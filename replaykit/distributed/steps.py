"""Checks the steps that are passed to a writer in another process, before they are sent."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from replaykit.field import Array, Leaf, as_float64, refuse_too_large
from replaykit.spec import Spec
from replaykit.storage.base import Storage
from replaykit.trees import Tree


def axes_of_step(reward: Any, leaf: Leaf, num_envs: int) -> tuple[int, ...]:
    """The leading axes of one step, found from its reward: ``()`` or ``(num_envs,)``."""
    if num_envs == 1 and (type(reward) is float or np.shape(reward) == leaf.shape):
        return ()
    return (num_envs,)


def axes_of_steps(reward: Any, leaf: Leaf, num_envs: int) -> tuple[int, ...]:
    """The leading axes of T steps, found from the rewards: ``(T,)`` or ``(T, num_envs)``. A single step is an error."""
    shape = np.shape(reward)
    count = len(shape) - len(leaf.shape)
    if count < 1:
        expected = ("T", num_envs, *leaf.shape)
        raise ValueError(f"reward has shape {shape}; expected {expected}; use add for a single step")
    return shape[:1] if num_envs == 1 and count == 1 else (shape[0], num_envs)


def checked_steps(
    spec: Spec, values: tuple[Tree, ...], extras: Mapping[str, Tree], lead: tuple[int, ...], num_envs: int,
    mask: Any, td_error: Any, largest_priority: float,
) -> tuple[list[Array], Any, Any]:  # fmt: skip
    """The leaves of steps, their mask and their TD errors. The last two can be None. Invalid values raise an error.

    Leaves and TD errors have the axes `lead`, with zeros where the mask is False.
    """
    chosen = None if mask is None else checked_mask(mask, lead, num_envs)
    given = list(zip(spec.leaves, spec.flatten(values, extras), strict=True))
    leaves = [leaf.coerce(value, lead, chosen) for leaf, value in given]
    for (leaf, _), array in zip(given, leaves, strict=True):
        if leaf.name == "reward":
            Storage.refuse_rewards(array)
    errors = None
    if td_error is not None:
        errors = as_float64("td_error", td_error)
        if errors.shape != lead:
            raise ValueError(f"td_error has shape {errors.shape}; expected {lead}")
        errors = errors if chosen is None else errors[chosen]
        refuse_too_large("td_error", errors, largest_priority)
    if chosen is not None:
        leaves = [_spread(leaf, chosen) for leaf in leaves]
        errors = None if errors is None else _spread(errors, chosen)
    return leaves, chosen, errors


def checked_mask(mask: Any, lead: tuple[int, ...], num_envs: int) -> npt.NDArray[np.bool_]:
    """A mask of the lanes, or of the leading axes, broadcast to the leading axes. Other shapes raise ValueError."""
    array, lanes = np.asarray(mask), (num_envs,)
    if array.dtype != np.bool_ or array.shape not in (lead, lanes):
        shapes = " or ".join(map(str, sorted({lead, lanes})))
        raise ValueError(f"mask has shape {array.shape} and dtype {array.dtype}; expected {shapes} and bool")
    return array.reshape(()) if lead == () else np.broadcast_to(array, lead)


def _spread(entries: Array, mask: npt.NDArray[np.bool_]) -> Array:
    """The entries at the positions that the mask selects, and zeros elsewhere."""
    array = np.zeros(mask.shape + entries.shape[1:], entries.dtype)
    array[mask] = entries
    return array
