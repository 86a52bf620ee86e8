"""Convert batches to tensors. On the CPU they share memory with the arrays; other devices need a single copy."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from replaykit.trees import entries_of, leaves_of, map_tree

Array = npt.NDArray[Any]

_COLUMNS = ("reward", "terminated", "truncated", "discount", "weights")
"""Fields of shape (B,) to which ``column=True`` adds an axis: (B, 1), or (B, T, 1) for sequences."""
_ALIGNED = 64
_MOST_WASTE = 1.25, 4096
"""A factor and a number of bytes: memory of several arrays is copied whole up to a size of factor * needed + bytes."""


def to_tensors(
    fields: Mapping[str, Any], device: Any = None, dtype: Any = None, column: bool = False
) -> dict[str, Any]:
    """The fields of a batch as tensors. See `Batch.to_torch`."""
    import torch

    target = None if device is None else device_of(device)
    if any(isinstance(leaf, torch.Tensor) for _, leaf in leaves_of(fields)):  # of a buffer on a device
        made = {name: map_tree(lambda leaf, _: torch.as_tensor(leaf).to(target), fields[name]) for name in fields}
    elif target is None or target.type == "cpu":
        made = _shared(fields, torch)
    else:
        made = _moved(fields, target, torch)
    if dtype is not None:
        made = {name: _cast(value, dtype) for name, value in made.items()}
    if column:
        most = 2 if "step_indices" in made else 1
        made |= {name: made[name].unsqueeze(-1) for name in _COLUMNS if name in made and made[name].ndim <= most}
    return made


def _cast(value: Any, dtype: Any) -> Any:
    """Convert floating-point tensors, or those of a tree, to this dtype."""
    if isinstance(value, dict | tuple):
        return map_tree(lambda tensor, _: _cast(tensor, dtype), value)
    own = value.dtype
    return value.to(dtype) if own is not dtype and own.is_floating_point else value


@functools.cache
def device_of(device: Any) -> Any:
    """The torch device of this name. Raises RuntimeError if torch cannot use it."""
    import torch

    target = torch.device("cpu" if device is None else device)
    try:
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise RuntimeError(f"device is {str(target)!r}, which torch cannot use here: {error}") from error
    return target


def _shared(fields: Mapping[str, Any], torch: Any) -> dict[str, Any]:
    """Tensors on the CPU that share the memory of writable arrays."""
    from_numpy, made = torch.from_numpy, {}
    try:
        for name, value in fields.items():
            is_plain = type(value) is np.ndarray and value.flags.writeable
            made[name] = from_numpy(value) if is_plain else map_tree(_tensor, value, name)
    except (TypeError, ValueError):
        return {name: map_tree(_tensor, value, name) for name, value in fields.items()}
    return made


def _tensor(array: Array, path: str) -> Any:
    """A tensor of one array. The array is copied if it is read-only or has negative strides."""
    import torch

    _dtype_of(array.dtype, path)
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    return torch.from_numpy(array)


def _dtype_of(dtype: np.dtype[Any], path: str) -> Any:
    """The torch dtype that corresponds to a NumPy dtype."""
    found = _known_dtype(dtype)
    if found is None:
        raise TypeError(f"{path} has dtype {dtype}, which torch does not have; expected another dtype in the spec")
    return found


@functools.cache
def _known_dtype(dtype: np.dtype[Any]) -> Any:
    import torch

    try:
        return torch.from_numpy(np.empty(0, dtype)).dtype
    except TypeError:
        return None


class _Place(NamedTuple):
    """The location of an array in a block: the position of its first element, and its strides, both in elements."""

    start: int
    strides: tuple[int, ...]


def packed(arrays: list[Array]) -> tuple[list[tuple[int, Array]], list[_Place], int]:
    """Lay out arrays in one block of memory. Returns the copies to make, the place of each array, and the block's size.

    Arrays that are views of the same memory also share memory in the block, unless too much of it is used by no array.
    """
    owners = [_owner(array) for array in arrays]
    needed: dict[int, int] = {}
    for array, owner in zip(arrays, owners, strict=True):
        needed[id(owner)] = needed.get(id(owner), 0) + array.nbytes
    copies, places, starts, nbytes = [], [], dict[int, int](), 0
    for array, owner in zip(arrays, owners, strict=True):
        source, size = owner, array.itemsize
        factor, more = _MOST_WASTE
        offset = array.__array_interface__["data"][0] - owner.__array_interface__["data"][0]
        is_wasteful = not owner.flags.c_contiguous or owner.nbytes > factor * needed[id(owner)] + more
        if is_wasteful or offset % size or any(stride % size or stride < 0 for stride in array.strides):
            source, offset = np.ascontiguousarray(array), 0
            array = source
        if id(source) not in starts:
            starts[id(source)] = nbytes
            copies.append((nbytes, source.reshape(-1).view(np.uint8)))
            nbytes += -(-source.nbytes // _ALIGNED) * _ALIGNED
        strides = tuple(stride // size for stride in array.strides)
        places.append(_Place((starts[id(source)] + offset) // size, strides))
    return copies, places, nbytes


def _owner(array: Array) -> Array:
    """The array that owns the memory of this array."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _moved(fields: Mapping[str, Any], target: Any, torch: Any) -> dict[str, Any]:
    """Tensors on a device. They are views of one block, which is sent in one copy; to CUDA, from pinned memory."""
    leaves = list(leaves_of(fields))
    dtypes = [_dtype_of(array.dtype, path) for path, array in leaves]
    if target.type == "mps":  # without float64, a block cannot be viewed in every dtype
        return {
            n: map_tree(lambda array, path: _tensor(array, path).to(target), value, n) for n, value in fields.items()
        }
    copies, places, nbytes = packed([array for _, array in leaves])
    host = torch.empty(nbytes, dtype=torch.uint8, pin_memory=target.type == "cuda")
    memory = host.numpy()
    for start, source in copies:
        memory[start : start + len(source)] = source
    block = host.to(target, non_blocking=True)
    views = {dtype: block.view(dtype) for dtype in set(dtypes)}
    tensors = [
        torch.as_strided(views[dtype], array.shape, place.strides, place.start)
        for (_, array), dtype, place in zip(leaves, dtypes, places, strict=True)
    ]
    found = iter(tensors)
    return {name: map_tree(lambda _array, _path: next(found), value, name) for name, value in fields.items()}


def to_tensordict(fields: Mapping[str, Any], device: Any = None) -> Any:
    """The fields of a batch, with the keys that TorchRL uses; see `Batch.to_tensordict`."""
    try:
        from tensordict import TensorDict
    except ImportError as error:
        raise ImportError("to_tensordict needs tensordict: pip install 'replaykit-rl[tensordict]'") from error

    tensors = to_tensors(fields, device)
    if "step_indices" in tensors:  # sequences: each transition gets its own index and the weight of its row
        tensors["indices"] = tensors.pop("step_indices")
        for name in ("weights", "probabilities", "relabelled"):
            if name in tensors:
                tensors[name] = tensors[name][:, None].expand(tensors["indices"].shape)
    size = tensors["indices"].shape
    obs, next_obs = ({"observation": tensors.pop(name)} for name in ("obs", "next_obs"))
    if isinstance(obs["observation"], dict):
        obs, next_obs = obs["observation"], next_obs["observation"]
    step = {name: tensors.pop(name).reshape(*size, -1) for name in ("reward", "terminated", "truncated")}
    step["done"] = step["terminated"] | step["truncated"]
    renamed = {"indices": "index", "weights": "priority_weight"}
    others = {renamed.get(name, name): value for name, value in tensors.items()}
    others["steps_to_next_obs"] = others.pop("length").reshape(*size, 1)
    others["discount"] = others["discount"].reshape(*size, 1)
    taken = sorted((obs.keys() & (others.keys() | {"next"})) | (next_obs.keys() & step.keys()))
    if taken:
        raise ValueError(
            f"obs has the key {taken[0]!r}, which the TensorDict uses for another field; rename it in the environment"
        )
    return TensorDict(_by_name(obs | others | {"next": next_obs | step}), batch_size=size)


def _by_name(tree: Any) -> Any:
    """A tree in which tuples are replaced by dicts with numbers as keys."""
    if isinstance(tree, Mapping | tuple):
        return {str(key): _by_name(entry) for key, entry in entries_of(tree)}
    return tree
