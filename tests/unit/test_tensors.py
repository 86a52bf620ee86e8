"""Batches as tensors: shared, copied in one block, in the shapes that scripts expect, and with TorchRL's keys."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replaykit import Batch, CombinedReplay, Field, PrioritizedBuffer, ReplayBuffer, Spec
from replaykit.tensors import _moved, packed
from replaykit.trees import leaves_of

torch = pytest.importorskip("torch")

NESTED = Spec(
    obs={"image": Field((5, 6), np.uint8), "pair": (Field((2,)), Field((), np.float64))},
    action=Field((3,), np.int16),
    reward=Field((), np.float64),
    done_by=Field((2,), np.bool_),
)


def filled(spec, count=20, make=PrioritizedBuffer, **options):
    """A buffer with random values."""
    rng, buffer = np.random.default_rng(0), make(50, spec, seed=0, **options)

    def values(tree):
        if isinstance(tree, dict):
            return {key: values(entry) for key, entry in tree.items()}
        if isinstance(tree, tuple):
            return tuple(map(values, tree))
        return (rng.random(tree.shape) * 200).astype(tree.dtype)

    for step in range(count):
        extras = {name: values(spec[name]) for name in spec.extra}
        buffer.add(
            values(spec["obs"]), values(spec["action"]), 1.5, values(spec["obs"]), step % 7 == 6, False, **extras
        )
    return buffer


def assert_equal(tensors, batch):
    found, expected = (list(leaves_of(dict(fields.items()))) for fields in (tensors, batch))
    assert [path for path, _ in found] == [path for path, _ in expected]
    for (path, tensor), (_, array) in zip(found, expected, strict=True):
        assert tensor.numpy().dtype == array.dtype, path
        assert tensor.shape == array.shape, path
        np.testing.assert_array_equal(tensor.numpy(), array, err_msg=path)


@pytest.mark.parametrize("options", [{}, {"n_step": 3}, {"stack": 3}, {"share": "none"}])
def test_a_block_on_a_device_has_the_same_numbers(options):
    """All tensors on a device are views of one block. Stacks that share memory are copied once."""
    for buffer in (filled(NESTED, **options), CombinedReplay(filled(NESTED, **options))):
        batch = buffer.sample(8)
        tensors = _moved(dict(batch.items()), torch.device("cpu"), torch)
        assert_equal(tensors, batch)
        storages = {tensor.untyped_storage().data_ptr() for _, tensor in leaves_of(tensors)}
        assert len(storages) == 1
        assert not any(
            np.may_share_memory(t.numpy(), a)
            for (_, t), (_, a) in zip(leaves_of(tensors), leaves_of(dict(batch.items())), strict=True)
        )


def test_stacks_are_copied_once():
    buffer = ReplayBuffer(50, Spec(obs=Field((20, 20), np.uint8), action=Field(())), stack=4, seed=0)
    for step in range(20):
        buffer.add(np.full((20, 20), step), 0, 1.0, np.full((20, 20), step + 1), False, False)
    batch = buffer.sample(16)
    assert np.may_share_memory(batch.obs, batch.next_obs)
    copies, _, nbytes = packed([batch.obs, batch.next_obs])
    assert len(copies) == 1
    assert nbytes < 0.7 * (batch.obs.nbytes + batch.next_obs.nbytes)
    assert_equal(_moved(dict(batch.items()), torch.device("cpu"), torch), batch)


@given(st.data())
def test_any_arrays_are_packed(data):
    """Arrays can be views of one another, strided, in Fortran order, empty, and of any size."""
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    arrays = []
    for _ in range(data.draw(st.integers(1, 5))):
        dtype = data.draw(st.sampled_from(["u1", "i2", "f4", "f8", "?"]))
        array = (rng.random(data.draw(st.lists(st.integers(0, 5), max_size=3))) * 9).astype(dtype)
        arrays.append(array)
        kind = data.draw(st.integers(0, 4))
        if kind == 1 and array.ndim:
            arrays.append(array[::2])
        if kind == 2 and array.ndim:
            arrays.append(array[::-1])
        if kind == 3:
            arrays.append(array.T)
        if kind == 4 and array.ndim:
            arrays.append(array[1:])
    copies, places, nbytes = packed(arrays)
    block = np.zeros(nbytes, np.uint8)
    for start, source in copies:
        assert start % 64 == 0
        block[start : start + len(source)] = source
    for array, place in zip(arrays, places, strict=True):
        strides = tuple(stride * array.itemsize for stride in place.strides)
        view = np.ndarray(array.shape, array.dtype, block, place.start * array.itemsize, strides)
        np.testing.assert_array_equal(view, array)


def test_read_only_arrays_are_copied_and_never_written_through():
    stored = np.arange(4.0)
    stored.flags.writeable = False
    backwards = np.arange(6)[::-1]
    tensors = Batch(x=stored, y={"z": stored, "b": backwards}).to_torch()
    tensors.x += 1.0
    tensors.y["z"] += 1.0
    tensors.y["b"] += 1
    assert stored.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert backwards.tolist() == [5, 4, 3, 2, 1, 0]


def test_writable_arrays_are_shared():
    batch = filled(NESTED).sample(4)
    tensors = batch.to_torch()
    assert_equal(tensors, batch)
    tensors.reward += 1.0
    assert (batch.reward == tensors.reward.numpy()).all()


def test_dtype_is_that_of_the_floating_point_fields():
    batch = filled(NESTED).sample(4)
    tensors = batch.to_torch(dtype=torch.float16)
    for path, tensor in leaves_of(dict(tensors.items())):
        array = dict(leaves_of(dict(batch.items())))[path]
        expected = torch.float16 if array.dtype.kind == "f" else torch.from_numpy(array).dtype
        assert tensor.dtype == expected, path
    assert batch.to_torch(dtype=torch.float32).weights.data_ptr() == batch.weights.ctypes.data


def test_columns_have_two_axes():
    tensors = filled(NESTED).sample(4).to_torch(column=True)
    for name in ("reward", "discount", "terminated", "truncated", "weights"):
        assert tensors[name].shape == (4, 1), name
    assert tensors.indices.shape == tensors.length.shape == (4,)
    assert tensors.obs["pair"][0].shape == (4, 2)


def test_a_device_that_is_not_there_is_refused():
    for call in (
        lambda: filled(NESTED).sample(4).to_torch("cuda:77"),
        lambda: filled(NESTED).batches(4, device="cuda:77"),
    ):
        with pytest.raises(RuntimeError, match="device is 'cuda:77', which torch cannot use here"):
            call()
    with pytest.raises(RuntimeError, match="nonsense"):
        filled(NESTED).sample(4).to_torch("nonsense")


@pytest.mark.parametrize("device", [None, "meta"])
def test_a_dtype_that_torch_lacks_is_named(device):
    spec = Spec(obs={"x": Field((2,), np.longdouble)}, action=Field(()))
    with pytest.raises(TypeError, match=r"obs\.x has dtype .*, which torch does not have"):
        filled(spec).sample(3).to_torch(device)


# -- TensorDict --------------------------------------------------------------------------------------------------


def test_a_tensordict_has_the_keys_of_torchrl():
    pytest.importorskip("tensordict")
    spec = Spec(obs=Field((3,)), action=Field((), np.int64), note=Field((2,)))
    batch = filled(spec, n_step=3).sample(5)
    found = batch.to_tensordict()
    assert found.batch_size == torch.Size([5])
    assert set(found.keys()) == {
        *("observation", "action", "next", "index", "priority_weight", "probabilities", "steps_to_next_obs"),
        *("discount", "note"),
    }
    assert set(found["next"].keys()) == {"observation", "reward", "terminated", "truncated", "done"}
    assert found["next", "reward"].shape == found["next", "done"].shape == found["steps_to_next_obs"].shape == (5, 1)
    np.testing.assert_array_equal(found["observation"].numpy(), batch.obs)
    np.testing.assert_array_equal(found["next", "observation"].numpy(), batch.next_obs)
    np.testing.assert_array_equal(found["next", "reward"].numpy()[:, 0], batch.reward)
    np.testing.assert_array_equal(found["next", "done"].numpy()[:, 0], batch.terminated | batch.truncated)
    np.testing.assert_array_equal(found["index"].numpy(), batch.indices)
    np.testing.assert_array_equal(found["priority_weight"].numpy(), batch.weights)


def test_the_keys_of_dict_observations_are_those_of_the_tensordict():
    pytest.importorskip("tensordict")
    found = filled(NESTED).sample(5).to_tensordict()
    assert found["image"].shape == found["next", "image"].shape == (5, 5, 6)
    assert found["pair", "0"].shape == (5, 2)


def test_a_key_that_the_tensordict_needs_is_refused():
    pytest.importorskip("tensordict")
    with pytest.raises(ValueError, match="obs has the key 'reward'"):
        filled(Spec(obs={"reward": Field(())}, action=Field(()))).sample(2).to_tensordict()


def test_without_tensordict_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensordict", None)
    with pytest.raises(ImportError, match=r"pip install 'replaykit-rl\[tensordict\]'"):
        filled(NESTED).sample(2).to_tensordict()
