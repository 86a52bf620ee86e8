"""Laws that hold for every replay, with any storage, distribution and wrappers. They need no model."""

import copy
import gc
import pickle
import weakref
from collections.abc import MutableMapping
from typing import Any

import numpy as np
import numpy.typing as npt

from replaykit.batch import Batch
from replaykit.declared import Declared
from replaykit.replay import Replay
from replaykit.storage.base import Storage
from replaykit.trees import leaves_of


def assert_lawful(replay: Replay, batch_size: int) -> Batch:
    """Sample a batch, check it against the laws of a replay, and return it.

    - Every index is stored. Its probability equals the result of `probability`, and `least` of the draw is correct if
      it is given. This is skipped if `probability` raises an error, as in a ``LargeBatchReplay``.
    - The batch is identical to that of a copy which calls `draw`, `window`, `reduce` and `weigh` separately.
    - The discount is 0 exactly where the window terminated, otherwise ``gamma**length`` with 1 <= length <= `n_step`.
    - Weights are positive.
    - If rows are sequences, padding is 0 in every field of the spec.
    - Every field has B rows, and no array shares memory with the storage.
    - Sampling does not change the stored data, the invariants or the global random state.

    Raises
    ------
    AssertionError
        If a law is broken. The message names it.
    """
    storages = [part for part in replay.parts().values() if isinstance(part, Storage)]
    twin = copy.deepcopy(replay)
    before = pickle.dumps([part.copied_state() for part in storages])
    global_state = pickle.dumps(np.random.get_state())  # noqa: NPY002
    batch = replay.sample(batch_size).to_numpy()
    assert pickle.dumps(np.random.get_state()) == global_state, "global random state was used"  # noqa: NPY002
    assert pickle.dumps([part.copied_state() for part in storages]) == before, "sampling changed the stored data"
    is_stored = np.isin(batch.indices, replay.stored())
    assert is_stored.all(), f"index {batch.indices[~is_stored][:1]} of the batch is not stored"
    if not replay.is_conditional:
        np.testing.assert_allclose(
            batch.probabilities,
            numbers(replay.probability(batch.indices, batch_size)),
            rtol=1e-12,
            err_msg="the probabilities of a draw differ from those of `probability`",
        )
    assert bits_of(by_verbs(twin, batch_size)) == bits_of(batch), "a batch differs from that of the verbs"
    least = twin.draw(batch_size).least
    if least is not None:
        least = numbers(least)
        right = numbers(twin.least_probability(batch_size, twin.backend.indices("none", np.zeros(0, np.int64))))
        right = np.where(np.isnan(least), np.nan, right)  # a source of a mixture may not know it
        np.testing.assert_allclose(least, right, rtol=1e-9, err_msg="`least` of a draw is not the least probability")
    is_real = batch.mask if "mask" in batch else np.ones(batch.length.shape, np.bool_)
    length, discount = batch.length[is_real], batch.discount[is_real]
    assert ((length >= 1) & (length <= replay.n_step)).all(), "the length of a window is not between 1 and n_step"
    powers = np.array([replay.gamma**k for k in range(int(length.max()) + 1)])
    expected = np.where(batch.terminated[is_real], 0.0, powers[length]).astype(discount.dtype)
    assert (discount == expected).all(), "the discount is not gamma**length * (1 - terminated)"
    for name in (*replay.spec, "discount", "length"):
        for path, array in leaves_of(batch[name], name):
            assert not array[~is_real].any(), f"{path} is not 0 where the mask says that there is no transition"
    assert (batch.weights > 0.0).all(), "a weight is not positive"
    held = [array for part in storages for array in (*part.arrays.values(), *_arrays_in(part.state()))]
    arrays = [numbers(array) for array in held]
    for path, array in leaves_of(dict(batch.items())):
        assert array.shape[0] == batch_size, f"{path} does not have one row for each transition"
        assert array.flags.writeable, f"{path} is read-only"
        for stored in arrays:
            assert not np.may_share_memory(array, stored), f"{path} shares memory with the storage"
    replay.check()
    return batch


def assert_freed(variables: MutableMapping[str, Any], name: str) -> None:
    """Delete the last reference to a replay, ``variables[name]``, and check that all its memory is freed at once.

    A reference cycle would keep the arrays until Python's garbage collector runs, which may be much later.

    Raises
    ------
    AssertionError
        If a part or an array of the replay still exists. The message names it.

    Examples
    --------
    >>> from replaykit import Field, ReplayBuffer, Spec
    >>> variables = {"buffer": ReplayBuffer(10, Spec(obs=Field((3,)), action=Field(())))}
    >>> assert_freed(variables, "buffer")
    >>> variables
    {}
    """
    references = _memory_of(variables[name])
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        del variables[name]
        left = [path for path, reference in references.items() if reference() is not None]
    finally:
        if was_enabled:
            gc.enable()
    assert not left, f"{', '.join(left)} of a deleted replay still in memory; look for a reference cycle"


def _memory_of(replay: Replay) -> "dict[str, weakref.ref[Any]]":
    """Weak references to the replay, to each of its parts, and to each array of its storages."""
    parts: dict[str, Any] = {"replay": replay, **replay.parts()}
    for name, part in list(parts.items()):
        parts |= {f"{name}.{key}": value for key, value in vars(part).items() if isinstance(value, Declared)}
    for name, part in list(parts.items()):
        if isinstance(part, Storage):
            parts |= {f"{name}.{key}": array for key, array in part.arrays.items()}
    return {name: weakref.ref(part) for name, part in parts.items()}


def by_verbs(replay: Replay, batch_size: int) -> Batch:
    """A batch of `batch_size`, made by separate calls of the verbs."""
    draw = replay.draw(batch_size)
    fields = replay.reduce(replay.window(draw.indices))
    fields |= {"weights": replay.weigh(draw), "probabilities": draw.probabilities, "indices": draw.indices}
    return Batch.of(fields).to_numpy()


def numbers(array: Any) -> npt.NDArray[Any]:
    """An array, a number or a tensor as a NumPy array. On the CPU it shares the tensor's memory."""
    return array.detach().cpu().numpy() if hasattr(array, "detach") else np.asarray(array)


def _arrays_in(state: dict[str, Any]) -> list[Any]:
    return [value for value in state.values() if isinstance(value, np.ndarray)]


def bits_of(batch: Batch) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """The contents of a batch for an exact comparison: dtype, shape and bytes of each array by its path."""
    return {path: (str(array.dtype), array.shape, array.tobytes()) for path, array in leaves_of(dict(batch.items()))}
