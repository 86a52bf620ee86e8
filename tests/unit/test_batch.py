"""The contents of a batch, and its conversions."""

import copy
import pickle
import warnings

import numpy as np
import pytest

from replaykit import Batch, Field, ReplayBuffer, Spec
from tests.helpers import arrays_of

NESTED = Spec(
    obs={"image": Field((2, 2), np.uint8), "pair": (Field(()), Field((1,), np.float64))},
    action=(Field((2,), np.float16), Field((), np.bool_)),
)


def batch_of(spec, count=5):
    from replaykit.testing import values_of

    buffer = ReplayBuffer(8, spec, seed=0)
    for number in range(8):
        obs, action = values_of(spec["obs"], number), values_of(spec["action"], number)
        buffer.add(obs, action, number, obs, False, False)
    return buffer.sample(count)


def test_fields_are_attributes_and_keys():
    """A field is the same object as attribute and as key. An unknown name raises an error that lists the fields."""
    batch = batch_of(NESTED)
    assert batch.obs is batch["obs"]
    assert batch["obs"]["pair"][1].shape == (5, 1)
    assert "reward" in batch
    assert "rewards" not in batch
    expected = [
        "obs", "action", "reward", "next_obs", "terminated", "truncated", "discount", "length",
        "weights", "probabilities", "indices",
    ]  # fmt: skip
    assert list(batch) == list(batch.keys()) == expected
    assert len(list(batch.values())) == len(list(batch.items())) == 11
    assert len(batch) == 5
    with pytest.raises(AttributeError, match="no field 'rewards'; it has obs, action"):
        _ = batch.rewards
    with pytest.raises(KeyError, match="no field 'rewards'"):
        batch["rewards"]


def test_repr_is_short():
    """The repr shows shapes and dtypes, but no numbers."""
    assert repr(batch_of(NESTED)) == (
        "Batch(5: obs.image (2, 2) uint8, obs.pair.0 float32, obs.pair.1 (1,) float64, action.0 (2,) float16, "
        "action.1 bool, reward float32, next_obs.image (2, 2) uint8, next_obs.pair.0 float32, "
        "next_obs.pair.1 (1,) float64, terminated bool, truncated bool, discount float32, length int64, "
        "weights float32, probabilities float64, indices int64)"
    )
    assert repr(Batch()) == "Batch(0: )"


def test_arrays_are_contiguous_and_of_their_dtypes():
    """Arrays are contiguous and have the dtypes of their fields, so a network needs no further copy."""
    for array in arrays_of(batch_of(NESTED)).values():
        assert array.flags.c_contiguous
        assert array.flags.aligned
        assert array.flags.writeable


@pytest.mark.parametrize("dtype", ["?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "c8", "c16"])
def test_to_torch_shares_memory_for_every_dtype(dtype):
    """On the CPU, `to_torch` copies nothing and issues no warning."""
    torch = pytest.importorskip("torch")
    batch = batch_of(Spec(obs=Field((3,), dtype), action=Field(())))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensors = batch.to_torch()
    assert isinstance(tensors, Batch)
    assert tensors.obs.shape == (5, 3)
    assert tensors.obs.data_ptr() == batch.obs.ctypes.data
    tensors.reward[0] = 42.0
    assert batch.reward[0] == 42.0
    np.testing.assert_array_equal(tensors.obs.numpy(), batch.obs)
    assert batch.to_torch("cpu").indices.dtype == torch.int64
    assert "obs (3,)" in repr(tensors)
    assert len(tensors) == 5


def test_to_torch_keeps_the_structure_and_moves_to_a_device():
    """`to_torch` returns dicts and tuples of tensors on a device, here the device "meta"."""
    pytest.importorskip("torch")
    tensors = batch_of(NESTED).to_torch("meta")
    assert tensors.obs["pair"][1].device.type == "meta"
    assert tensors.action[0].shape == (5, 2)


def test_to_torch_names_a_dtype_that_torch_lacks():
    """A dtype that torch does not have raises an error that names the field."""
    pytest.importorskip("torch")
    if np.dtype(np.longdouble) == np.dtype(np.float64):
        pytest.skip("long double is double here")
    with pytest.raises(TypeError, match="obs.x has dtype"):
        batch_of(Spec(obs={"x": Field((), np.longdouble)}, action=Field(()))).to_torch()


def test_batches_copy_and_pickle():
    """A batch can be copied and pickled."""
    batch = batch_of(NESTED)
    for twin in (copy.deepcopy(batch), pickle.loads(pickle.dumps(batch))):
        for path, array in arrays_of(twin).items():
            np.testing.assert_array_equal(array, arrays_of(batch)[path])
