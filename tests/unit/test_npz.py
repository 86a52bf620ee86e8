"""Reading and writing of files of plain arrays, and invalid files."""

import subprocess
import sys

import numpy as np
import pytest

from replaykit import Field, FieldNameError, ReplayBuffer, Spec
from replaykit.io import from_npz, to_npz
from tests.helpers import FLAT, filled, stretch, unchanged


def test_a_plain_file_needs_only_the_fields(tmp_path):
    """A file needs only the fields. It gives one lane, with episodes that end at the flags."""
    fields = stretch(6, terminated=np.arange(6) == 2)
    np.savez(tmp_path / "plain.npz", **fields | {"reward": np.ones(6)})
    buffer = from_npz(tmp_path / "plain.npz", n_step=9)
    assert buffer.spec == Spec(Field((3,)), Field((), np.int64), reward=Field((), np.float64))
    assert buffer.window(np.arange(6)).length.tolist() == [3, 2, 1, 3, 2, 1]
    two = from_npz(tmp_path / "plain.npz", num_envs=2)
    assert len(two) == 6 and two.capacity == 6 and set(two.stored() % 2) == {0, 1}
    with pytest.raises(TypeError, match="num_envs is '2'"):
        from_npz(tmp_path / "plain.npz", num_envs="2")


def test_lanes_and_episodes_come_back(tmp_path):
    """Lanes and episodes are restored, including episodes that ended without a flag."""
    buffer = ReplayBuffer(12, FLAT, num_envs=3)
    buffer.extend(**stretch(2, 3), mask=np.array([True, False, True]))
    buffer.end_episode(np.array([True, False, False]))
    buffer.extend(**stretch(1, 3), mask=np.array([True, False, True]))
    to_npz(buffer, tmp_path / "file.npz")
    twin = from_npz(tmp_path / "file.npz", n_step=9)
    assert (twin.stored() % 3).tolist() == [0, 0, 0, 2, 2, 2]
    assert twin.window(twin.stored()).length.tolist() == [2, 1, 1, 3, 2, 1]


def test_lanes_of_writers_are_left_alone(tmp_path):
    """If a lane has a writer, reading raises an error and adds nothing to any lane."""
    to_npz(filled(ReplayBuffer(5, FLAT), 3), tmp_path / "file.npz")
    buffer = ReplayBuffer(10, FLAT, num_envs=2)
    with buffer.writer([1]), pytest.raises(ValueError, match="lanes contains 1, which already has a writer"):
        from_npz(tmp_path / "file.npz", buffer)
    assert len(buffer) == 0


def test_an_empty_buffer_is_written_and_read(tmp_path):
    """The file has all fields and no rows."""
    to_npz(ReplayBuffer(5, FLAT, num_envs=2), tmp_path / "empty.npz")
    buffer = from_npz(tmp_path / "empty.npz")
    assert len(buffer) == 0 and buffer.spec == FLAT


def test_files_that_do_not_fit_are_refused_by_name(tmp_path):
    """A file that does not fit raises an error. The buffer is unchanged, and no code in the file is run."""
    path, buffer, fields = tmp_path / "file.npz", filled(ReplayBuffer(9, FLAT), 2), stretch(3)

    def refused(error, match, **options):
        with unchanged(buffer, error, match):
            from_npz(path, buffer, **options)

    refused(FileNotFoundError, "file.npz")
    path.write_bytes(b"no file of arrays")
    refused(ValueError, "file.npz is not a file of plain arrays")
    np.savez(path, obs=np.array([{}, None]))
    refused(ValueError, "file.npz is not a file of plain arrays.*pickle")
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    refused(ValueError, "single array without a name")
    np.savez(path, **{name: value for name, value in fields.items() if name != "truncated"})
    refused(FieldNameError, "has no array 'truncated'")
    np.savez(path, **fields, cost=np.zeros(3))
    refused(FieldNameError, "has the array 'cost', which is not a field")
    np.savez(path, **fields | {"action": np.zeros(2, int)})
    refused(ValueError, r"action has shape \(2,\); expected 3 rows, the number of rows of reward")
    np.savez(path, **fields | {"obs": np.zeros((3, 4))})
    refused(ValueError, r"file.npz: obs has shape \(3, 4\); expected \(3, 3\)")
    np.savez(path, **fields | {"reward": np.array([0.0, np.inf, 0.0])})
    refused(ValueError, "file.npz: reward contains inf")
    for wrong in (np.zeros(2, int), np.zeros(3), np.array([0, -1, 0])):
        np.savez(path, **fields, _lane=wrong)
        refused(ValueError, r"_lane has shape.*expected \(3,\) and integers of at least 0")
    np.savez(path, **fields)
    refused(TypeError, "capacity is an option of a new buffer", capacity=5)
    refused(TypeError, "spec is an option of a new buffer", spec=FLAT)
    with pytest.raises(TypeError, match="buffer is a ReplayBuffer|buffer is a str"):
        from_npz(path, "buffer")
    with pytest.raises(TypeError, match="buffer is a str"):
        to_npz("buffer", path)
    assert from_npz(path, buffer) is buffer and len(buffer) == 5


def test_a_given_spec_decides_how_arrays_are_nested(tmp_path):
    """Names that are numbers give a tuple, unless the given spec has a dict there."""
    spec = Spec(obs={"0": Field(()), "1": Field(())}, action=(Field(()), Field(())))
    buffer = ReplayBuffer(5, spec)
    buffer.add({"0": 1.0, "1": 2.0}, (3.0, 4.0), 0.0, {"0": 5.0, "1": 6.0}, False, True)
    to_npz(buffer, tmp_path / "file.npz")
    assert from_npz(tmp_path / "file.npz", spec=spec).sample(1).obs["1"] == 2.0
    assert from_npz(tmp_path / "file.npz").sample(1).obs[1] == 2.0


def test_without_tqdm_a_warning_names_it(tmp_path, monkeypatch):
    """Without tqdm, a warning points to the line that asked for a bar, and the file is written."""
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.warns(RuntimeWarning, match="progress=True needs tqdm: pip install tqdm") as warned:
        to_npz(filled(ReplayBuffer(5, FLAT), 3), tmp_path / "file.npz", progress=True)
    assert warned[0].filename == __file__
    assert len(from_npz(tmp_path / "file.npz")) == 3


def test_importing_is_light():
    """`import replaykit.io` imports nothing heavy."""
    heavy = {"minari", "h5py", "gymnasium", "torch", "tqdm", "numba"}
    program = f"import sys, replaykit.io; assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
