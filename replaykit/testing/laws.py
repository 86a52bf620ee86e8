"""Laws that every replay obeys, whatever it wraps: no model needed."""

import pickle

import numpy as np

from replaykit.batch import Batch
from replaykit.replay import Replay
from replaykit.trees import leaves_of


def assert_lawful(replay: Replay, batch_size: int) -> Batch:
    """Sample a batch and hold it to the laws of a replay; returns it.

    - Every index is stored, and its probability is what `probability` says.
    - The discount is 0 exactly where terminated, else ``gamma**length`` with a length from 1 to `n_step`.
    - Weights are positive.
    - Every field has B rows, and no array shares memory with the storage.
    - Sampling leaves what is stored, the invariants and the global random state as they were.

    Raises
    ------
    AssertionError
        Naming the broken law.
    """
    ring = replay._storage.ring
    before = [array.tobytes() for array in ring.arrays()], ring.cursor.copy()
    global_state = pickle.dumps(np.random.get_state())  # noqa: NPY002
    batch = replay.sample(batch_size)
    assert pickle.dumps(np.random.get_state()) == global_state, "global random state was used"  # noqa: NPY002
    assert [array.tobytes() for array in ring.arrays()] == before[0], "sampling changed what is stored"
    assert (ring.cursor == before[1]).all(), "sampling changed the cursors"
    living = np.isin(batch.indices, ring.living())
    assert living.all(), f"index {batch.indices[~living][:1]} of the batch is not stored"
    np.testing.assert_allclose(
        batch.probabilities,
        replay.probability(batch.indices, batch_size),
        rtol=1e-12,
        err_msg="the probabilities of a draw are not those that `probability` tells",
    )
    assert ((batch.length >= 1) & (batch.length <= replay.n_step)).all(), "a window has no step, or too many"
    powers = np.array([replay.gamma**k for k in range(int(batch.length.max()) + 1)])
    expected = np.where(batch.terminated, 0.0, powers[batch.length]).astype(batch.discount.dtype)
    assert (batch.discount == expected).all(), "the discount is not gamma**length * (1 - terminated)"
    assert (batch.weights > 0.0).all(), "a weight is not positive"
    for path, array in leaves_of(dict(batch.items())):
        assert array.shape[0] == batch_size, f"{path} has not one row for each transition"
        assert array.flags.writeable, f"{path} is read-only"
        for stored in ring.arrays():
            assert not np.may_share_memory(array, stored), f"{path} shares memory with the storage"
    replay.check()
    return batch


def bits_of(batch: Batch) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """All that a batch holds, to be compared bit for bit: dtype, shape and bytes of each array by its path."""
    return {path: (str(array.dtype), array.shape, array.tobytes()) for path, array in leaves_of(dict(batch.items()))}
