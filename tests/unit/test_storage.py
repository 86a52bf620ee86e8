"""Storages: the place of their arrays, the values of padding, and rewrites of windows."""

import pickle

import numpy as np
import pytest

from replaykit import Buffer, Field, FieldNameError, LatestBuffer, PrioritizedBuffer, ReplayBuffer, Spec
from replaykit.batch import Look, Rewrite
from replaykit.distributions import Distribution, Proportional, Uniform
from replaykit.storage import LocalStorage, Storage
from replaykit.testing import SPECS, assert_lawful, bits_of, values_of
from tests.helpers import (
    FLAT,
    GOAL_SPEC,
    every_buffer,
    filled,
    frame,
    goal_episodes,
    interrupted,
    stacked_lanes,
    step,
    stretch,
    unchanged,
)
from tests.kernels.forms import PLAIN
from tests.laws.third_party import ListStorage

both_storages = pytest.mark.parametrize("make", [LocalStorage, ListStorage])


# -- The place of arrays -------------------------------------------------------------------------------------------


def test_an_array_allocated_again_keeps_its_rows():
    """It may have more rows or the same number. Only the last array of a name counts in `nbytes`."""
    storage = ListStorage(3, FLAT)
    one = storage.allocate("notes", (2, 3), np.int16)
    assert not one.any()
    one[:] = [[1, 2, 3], [4, 5, 6]]
    two = storage.allocate("notes", (4, 3), np.int16)
    assert two.tolist() == [[1, 2, 3], [4, 5, 6], [0, 0, 0], [0, 0, 0]]
    assert storage.arrays["notes"] is two
    assert storage.nbytes == 24


class MappedStorage(LocalStorage):
    """A storage with every array in a file, in a new directory."""

    directory = None

    def allocate(self, name, shape, dtype):
        if 0 in shape:
            return super().allocate(name, shape, dtype)
        number = sum(1 for _ in self.directory.iterdir())
        array = np.memmap(self.directory / f"{number}-{name}", dtype, "w+", shape=shape).view(np.ndarray)
        former = self.arrays.get(name)
        if former is not None:
            array[: len(former)] = former
        self.arrays[name] = array
        return array


@pytest.mark.parametrize(("spec", "stack"), [("flat", 1), ("nested", 1), ("large", 1), ("frames", 1), ("frames", 3)])
@pytest.mark.parametrize("num_envs", [1, 3])
def test_arrays_may_be_in_files(tmp_path, monkeypatch, spec, stack, num_envs):
    """A storage that overrides `allocate` is bit for bit the same, through growth, masks and copies."""
    monkeypatch.setattr(MappedStorage, "directory", tmp_path)
    buffers = []
    for kind in (LocalStorage, MappedStorage):
        storage = kind(12, SPECS[spec], num_envs, stack=stack, share="all")
        buffer = Buffer(storage, Proportional(storage), n_step=2, seed=0)
        rng = np.random.default_rng(0)
        batches = []
        for number in range(20):
            values = {
                name: [values_of(buffer.spec[name], 7 * number + e) for e in range(num_envs)] for name in buffer.spec
            }
            values["terminated"], values["truncated"] = rng.random((2, num_envs)) < 0.2
            mask = rng.random(num_envs) < 0.7 if number > 4 and num_envs > 1 else None
            buffer.add(**{name: stacked_lanes(value, num_envs) for name, value in values.items()}, mask=mask)
            batches.append(assert_lawful(buffer, 9))
            buffer.update_priorities(batches[-1].indices, batches[-1].reward)
        buffers.append(buffer)
        buffers.append([bits_of(batch) for batch in batches])
    assert buffers[1] == buffers[3]
    assert list(tmp_path.iterdir())
    arrays = buffers[2].storage.arrays.values()
    assert all(array.base is not None for array in arrays if array.size), "an array is not in a file"
    assert buffers[0].nbytes == buffers[2].nbytes


# -- Padding -------------------------------------------------------------------------------------------------------


@both_storages
@pytest.mark.parametrize("spec", ["nested", "large", "frames"])
def test_padding_reads_as_zeros(make, spec):
    """Padding reads as zeros and has no episode: among stored indices, alone, and in an empty buffer."""
    storage = make(5, SPECS[spec], 1)
    buffer = Buffer(storage, Uniform(storage), seed=0)
    for leaf in storage.spec.leaves:
        assert not buffer.read([-1, -1], leaf.name).any()
    for number in range(7):
        buffer.add(
            **{name: values_of(storage.spec[name], 5 + number) for name in storage.spec}
            | {"terminated": False, "truncated": False}
        )
    for leaf in storage.spec.leaves:
        found = buffer.read([-1, 4, -1, 6], leaf.name)
        assert not found[[0, 2]].any()
        np.testing.assert_array_equal(found[[1, 3]], buffer.read([4, 6], leaf.name))
        assert found.dtype == leaf.dtype
        assert buffer.read([], leaf.name).shape == (0, *leaf.shape)
    assert [found.tolist() for found in buffer.episode([-1, 4, -1])] == [[-1, 0, -1], [-1, 0, -1], [-1, 6, -1]]
    with unchanged(buffer, FieldNameError, "unknown field 'nothing'; expected one of obs"):
        buffer.read([4], "nothing")


# -- Rewrites of windows -------------------------------------------------------------------------------------------


def rewritten(make, rewrite, spec=FLAT):
    """The fields of four windows, with some rows replaced."""
    storage = make(9, spec, 1)
    buffer = filled(Buffer(storage, Uniform(storage), seed=0), 6)
    window = buffer.window(np.arange(4))
    window.rewrites.append(rewrite)
    return buffer.reduce(window)


@both_storages
@pytest.mark.parametrize("values", [np.int64(7), np.array([7]), np.array([7, 7]), np.array([7, 7], np.int16)])
def test_values_of_a_rewrite_are_broadcast(make, values):
    """One value can replace all rows, in a dtype that casts to that of the field."""
    rows = np.array([0, 3])
    assert rewritten(make, Rewrite(("action",), rows, values))["action"].tolist() == [7, 1, 1, 7]


@both_storages
@pytest.mark.parametrize(
    ("rows", "values", "error"),
    [
        ([0, 3], np.array([7, 7, 7]), ValueError),
        ([0, 3, 1], np.array([7, 7]), ValueError),
        ([0, 4], np.array([7, 7]), IndexError),
        ([0, -5], np.array([7, 7]), IndexError),
    ],
)
def test_rewrites_that_do_not_fit_are_refused(make, rows, values, error):
    """A rewrite that does not fit raises an error, before anything outside the arrays is read or written."""
    with pytest.raises(error):
        rewritten(make, Rewrite(("action",), np.array(rows), values))


def test_no_row_of_a_rewrite_counts_from_the_end():
    """The row -1 of a rewrite raises an error, in the first rewrite and in later ones."""
    storage = LocalStorage(9, FLAT)
    buffer = filled(Buffer(storage, Uniform(storage)), 6)
    right, wrong = (Rewrite(("action",), np.array(rows), np.array([7, 7])) for rows in ([0, 3], [0, -1]))
    for rewrites in ([wrong], [right, wrong]):
        window = buffer.window(np.arange(4))
        window.rewrites += rewrites
        with pytest.raises(IndexError, match=r"rewrites has the row -1; expected rows in \[0, 4\)"):
            buffer.reduce(window)


@pytest.mark.parametrize("name", ["reward", "length", "terminated", "truncated"])
def test_what_replaces_an_array_of_a_window_has_its_shape(name):
    """An array that replaces an array of a window must have its shape. Nothing is broadcast."""
    buffer = filled(ReplayBuffer(9, FLAT, n_step=3), 6)
    window = buffer.window(np.arange(4))
    setattr(window, name, getattr(window, name)[:1])
    shapes = r"\(1, 3\); expected \(4, 3\)" if name == "reward" else r"\(1,\); expected \(4,\)"
    with pytest.raises(ValueError, match=rf"window.{name} has shape {shapes}"):
        buffer.reduce(window)


@pytest.mark.parametrize("length", [-1, 0, 4, 2**40])
@pytest.mark.parametrize("in_place", [False, True])
def test_windows_of_an_impossible_length_are_refused(length, in_place):
    """A window of an impossible length raises an error, before anything outside the arrays is read."""
    buffer = ReplayBuffer(9, GOAL_SPEC, n_step=3)
    goal_episodes(buffer, [6])
    window = buffer.window(np.arange(4))
    if in_place:
        window.length[2] = length
    else:
        window.length = np.array([1, 1, length, 1])
    look = Look(("next_obs.achieved_goal",), 0.8, "future")
    for call in (buffer.reduce, lambda window: buffer.look_ahead(window, look, np.zeros((2, 4)))):
        with pytest.raises(ValueError, match=f"window.length contains {length}; expected lengths from 1 to 3"):
            call(window)


def test_fields_of_a_rewrite_may_lie_in_different_places():
    """One rewrite can replace a field in the rows and a field in a column, in either order."""
    spec = Spec(obs=Field((), np.float32), action=Field((), np.float32))
    for names in (("obs", "action"), ("action", "obs")):
        buffer = ReplayBuffer(9, spec, share="all", seed=0)
        for number in range(4):
            buffer.add(number, number, 0.0, number + 1, False, False)
        window = buffer.window(np.arange(4))
        window.rewrites.append(Rewrite(names, np.array([1]), np.array([9.0], np.float32)))
        fields = buffer.reduce(window)
        assert fields["obs"].tolist() == fields["action"].tolist() == [0.0, 9.0, 2.0, 3.0]


# -- Rewards -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@both_storages
def test_a_negative_zero_survives(make, n_step, dtype):
    """Returns are summed from their first term, not from 0.0, so -0.0 is kept."""
    storage = make(9, Spec(obs=Field(()), action=Field(()), reward=Field((), dtype)), 1)
    buffer = Buffer(storage, Uniform(storage), n_step=n_step, seed=0)
    for number in range(6):
        buffer.add(0, 0, -0.0, 0, number == 4, False)
    for batch in (buffer.sample(20), buffer.sample(20)):
        assert np.signbit(batch.reward).all()
        assert batch.reward.dtype == dtype
    assert np.signbit(buffer.read([0, 5], "reward")).all()


# -- One lane with a leading axis ----------------------------------------------------------------------------------


@every_buffer
def test_values_of_one_lane_may_have_a_leading_axis(make):
    """A vector environment with one environment returns this axis. All values have it, or none."""
    plain, given = make(4, FLAT, seed=0), make(4, FLAT, seed=0)
    for number in range(6):
        values = {name: np.asarray(value)[None] for name, value in step(number).items()}
        assert given.add(**values).tolist() == plain.add(**step(number)).tolist() == [2 * number]
        given.add(**values, mask=[True], td_error=[0.5])
        plain.add(**step(number), td_error=0.5)
    assert bits_of(given.sample(9)) == bits_of(plain.sample(9))
    for name in values:
        with unchanged(given, ValueError, "has shape"):
            given.add(**(values | {name: step(1)[name]}))
    with unchanged(given, ValueError, "has shape"):
        given.add(**{name: np.asarray(value)[None].repeat(2, axis=0) for name, value in step(1).items()})


# -- The parts of a buffer -----------------------------------------------------------------------------------------


def test_a_buffer_joins_a_storage_and_a_distribution_of_it():
    """`Buffer` needs a storage and a distribution of it. Other arguments raise an error that names them."""
    storage = LocalStorage(5, FLAT)
    buffer = Buffer(storage, Proportional(storage, alpha=0.5), seed=0)
    assert buffer.storage is storage
    assert buffer.distribution.alpha == 0.5
    assert list(buffer.parts().values()) == [storage, buffer.distribution, buffer]
    with pytest.raises(ValueError, match="distribution draws from another storage"):
        Buffer(LocalStorage(5, FLAT), Uniform(storage))
    with pytest.raises(TypeError, match="storage is a int"):
        Buffer(5, Uniform(storage))
    with pytest.raises(TypeError, match="distribution is a str"):
        Buffer(storage, "uniform")
    with pytest.raises(TypeError, match="storage is a int"):
        Uniform(5)


def test_a_buffer_and_its_constructor_give_the_same_bits():
    """`Buffer(storage, distribution)` gives the same bits as the three constructors."""
    storage = LocalStorage(7, FLAT, stack=1)
    one = Buffer(storage, Proportional(storage, alpha=0.5, draws="iid"), n_step=2, seed=3)
    two = PrioritizedBuffer(7, FLAT, alpha=0.5, draws="iid", n_step=2, seed=3)
    for buffer in (one, two):
        filled(buffer, 10)
        buffer.update_priorities([8, 9], [3.0, 4.0])
    assert bits_of(one.sample(20)) == bits_of(two.sample(20))


def test_settings_are_read_only_but_for_beta():
    """Values derived from a setting are computed when the buffer is built."""
    prioritized, uniform = PrioritizedBuffer(5, FLAT), ReplayBuffer(5, FLAT, replace=False)
    for name in ("alpha", "eps", "draws", "weights", "n_step", "gamma", "capacity", "num_envs", "spec", "stack"):
        with pytest.raises(AttributeError):
            setattr(prioritized, name, getattr(prioritized, name))
    assert uniform.replace is False
    with pytest.raises(AttributeError):
        uniform.replace = True
    with pytest.raises(AttributeError, match="has no priorities, so it has no beta"):
        uniform.beta = 0.5
    with pytest.raises(AttributeError, match="has no priorities, so it has no beta"):
        LatestBuffer(5, FLAT).beta  # noqa: B018
    prioritized.beta = 0.9
    assert prioritized.beta == 0.9


def test_capacities_and_specs_are_checked():
    """Every storage checks capacities and specs."""
    for make in (LocalStorage, ListStorage):
        with pytest.raises(ValueError, match="capacity is 0"):
            make(0, FLAT)
        with pytest.raises(TypeError, match="spec is a dict; expected a Spec"):
            make(3, {})
        assert make(10, FLAT, 3).capacity == 12
        assert make(10, FLAT, 3).length == 4


def test_interfaces_have_no_more_than_their_abstract_methods():
    """The abstract methods are those that the class docstrings list."""
    assert Storage.__abstractmethods__ == {
        "write", "end_episode", "clear", "window", "reduce", "read", "episode", "latest",
    }  # fmt: skip
    assert Distribution.__abstractmethods__ == {"draw", "probability"}


# -- Frames are columns --------------------------------------------------------------------------------------------


def test_rows_of_frames_that_were_never_published_are_written_again():
    """A write that ends between retiring and publishing leaves stale rows; the next write takes their place."""
    spec = Spec(obs=Field((3, 4), np.uint8), action=Field(()))
    at = 0
    while True:
        at += 1
        buffer = PrioritizedBuffer(6, spec, stack=3, num_envs=2, seed=0)
        frames = [np.stack([frame(i, (3, 4)), frame(i + 50, (3, 4))]) for i in range(20)]
        zeros, none = np.zeros(2), np.zeros(2, np.bool_)
        for i in range(8):
            buffer.add(frames[i], zeros, zeros, frames[i + 1], none, none)
        call = frames[15], zeros, zeros, frames[16], none, none
        if not interrupted(lambda b=buffer, c=call: b.add(*c), at):
            break
        buffer.check()
        for i in range(8, 14):
            buffer.add(frames[i], zeros, zeros, frames[i + 1], none, none)
            buffer.check()
        batch = buffer.sample(30)
        done = int(buffer.newest[0]) // 2 - 13  # whether the interrupted step was stored
        for row, index in enumerate(batch.indices.tolist()):
            assert (batch.obs[row, -1] == frames[index // 2 - done][index % 2]).all()
    assert at > 20


@pytest.mark.parametrize("num_envs", [1, 2])
@pytest.mark.parametrize("spec", ["frames", "large"])
def test_columns_are_written_between_retiring_and_publishing(spec, num_envs, monkeypatch):
    """While columns are written, no index of the new steps counts as stored, and no stored index has their slots."""
    storage = LocalStorage(6, SPECS[spec], num_envs, share="all")
    buffer, calls = Buffer(storage, Uniform(storage), seed=0), []
    lead = (num_envs,) if num_envs > 1 else ()

    def watched(write, place):
        def watching(*arguments):
            indices = arguments[place]
            assert not np.isin(indices % storage.capacity, storage.stored() % storage.capacity).any()
            result = write(*arguments)
            assert not np.isin(indices % storage.capacity, storage.stored() % storage.capacity).any()
            calls.append(len(indices))
            return result

        return watching

    for columns in storage.columns:
        monkeypatch.setattr(columns, "write", watched(columns.write, 1))
    monkeypatch.setattr("replaykit.storage.frames.kernels", PLAIN.frames)  # and what one kernel calls
    names = PLAIN.frames.store_at_once.__globals__
    monkeypatch.setitem(names, "write", watched(names["write"], 3))
    for number in range(9):
        values = {name: values_of(buffer.spec[name], number) for name in buffer.spec}
        given = {name: stacked_lanes([value] * num_envs, num_envs) for name, value in values.items()}
        buffer.add(**given, mask=np.arange(num_envs) != number % 3 if lead else None)
    assert len(calls) == 9 * len(storage.columns) > 0


def test_zero_steps_of_lanes_change_nothing():
    """A mask that selects no step also changes nothing."""
    for spec in ("flat", "frames"):
        buffer = PrioritizedBuffer(6, SPECS[spec], num_envs=2, share="all", seed=0)
        values = {name: values_of(buffer.spec[name], 1) for name in buffer.spec}
        given = {name: stacked_lanes([value, value], 2) for name, value in values.items()}
        buffer.add(**given)
        before = pickle.dumps(buffer)
        assert buffer.add(**given, mask=[False, False]).tolist() == [-1, -1]
        again = pickle.loads(before)
        assert bits_of(again.sample(9)) == bits_of(buffer.sample(9))
    flat = PrioritizedBuffer(6, FLAT, num_envs=2, seed=0)
    assert flat.extend(**stretch(0, 2)).shape == (0, 2)
