"""Round trips through files, for any buffer and any stack of wrappers."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replaykit import PrioritizedBuffer, ReplayBuffer
from replaykit.io import from_minari, from_npz, to_minari, to_npz
from replaykit.testing.strategies import build, configurations, values_of
from tests.helpers import stacked_lanes

EVENTS = ("go on", "terminate", "truncate", "both", "end without a flag", "wait")


@st.composite
def filled_replays(draw):
    """A replay after some steps. In each lane, a step begins at the previous observation, unless the episode ended."""
    replay, _ = build(draw(configurations()))
    lanes, spec = replay.num_envs, replay.spec
    moments = np.arange(lanes) * 1000
    for _ in range(draw(st.integers(1, 12))):
        events = draw(st.lists(st.sampled_from(EVENTS), min_size=lanes, max_size=lanes))
        rows = [
            {name: values_of(spec[name], int(moment) + (name == "next_obs")) for name in spec}
            | {"terminated": event in ("terminate", "both"), "truncated": event in ("truncate", "both")}
            for moment, event in zip(moments, events, strict=True)
        ]
        mask = np.array([event != "wait" for event in events])
        replay.add(**stacked_lanes(rows, lanes), mask=mask if lanes > 1 else bool(mask[0]))
        is_cut = np.array([event == "end without a flag" for event in events])
        replay.end_episode(is_cut if lanes > 1 else is_cut.reshape(()))
        is_over = np.array([event in EVENTS[1:5] for event in events])
        moments += np.where(is_over, 50, mask)
    return replay


def episodes_in(replay):
    """The lane and the fields of each stored episode, as they were added."""
    stored = replay.stored()
    numbers = replay.episode(stored)[0]
    found = []
    for number in dict.fromkeys(numbers.tolist()):
        indices, fields = stored[numbers == number], {}
        for leaf in replay.spec.leaves:
            values = replay.read(indices, leaf.name)
            fields[leaf.name] = values[:, -1] if values.ndim > len(leaf.shape) + 1 else values
        found.append((int(indices[0] % replay.num_envs), fields))
    return found


def assert_same(one, other):
    """The same episodes, bit for bit."""
    assert len(one) == len(other)
    for first, second in zip(one, other, strict=True):
        assert first.keys() == second.keys()
        for name in first:
            assert first[name].dtype == second[name].dtype, name
            assert first[name].tobytes() == second[name].tobytes(), name


@given(filled_replays(), st.booleans(), st.integers(1, 3))
def test_a_file_of_arrays_holds_all_steps_episodes_and_lanes(replay, compress, num_envs):
    """A file restores all steps in their lanes, or as the same episodes in other lanes."""
    before = episodes_in(replay)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "steps.npz")
        to_npz(replay, path, compress=compress)
        assert [file.name for file in Path(folder).iterdir()] == ["steps.npz"]
        with np.load(path) as arrays:
            assert set(arrays.files) == {leaf.name for leaf in replay.spec.leaves} | {"indices", "_lane", "_episode"}
            assert (arrays["indices"] == replay.stored()).all()
        twin = from_npz(path, spec=replay.spec, num_envs=replay.num_envs)
        other = from_npz(path, PrioritizedBuffer(num_envs * 200, replay.spec, num_envs=num_envs))
        guessed = from_npz(path)
    assert_same([fields for _, fields in episodes_in(replay)], [fields for _, fields in before])
    assert [lane for lane, _ in episodes_in(twin)] == [lane for lane, _ in before]
    assert_same([fields for _, fields in episodes_in(twin)], [fields for _, fields in before])
    in_order = sorted(fields["reward"].tobytes() for _, fields in before)
    assert sorted(fields["reward"].tobytes() for _, fields in episodes_in(other)) == in_order
    assert {leaf.name: leaf.field for leaf in guessed.spec.leaves} == {
        leaf.name: leaf.field for leaf in replay.spec.leaves
    }
    for buffer in (twin, other, guessed):
        buffer.check()


@given(filled_replays())
def test_a_data_set_of_minari_holds_all_episodes(replay):
    """True last observations and both flags are restored. An episode without a flag gets none."""
    minari = pytest.importorskip("minari")
    before = [fields for _, fields in episodes_in(replay)]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", folder)
        if not before:
            with pytest.raises(ValueError, match="no episode"):
                to_minari(replay, "test/any-v0")
            assert not list(Path(folder).iterdir())
            return
        to_minari(replay, "test/any-v0")
        dataset = minari.load_dataset("test/any-v0")
        assert dataset.total_steps == len(replay) and dataset.total_episodes == len(before)
        twin = from_minari(dataset, ReplayBuffer(dataset.total_steps, replay.spec))
        known = list(dataset.storage.get_episode_metadata(dataset.episode_indices))
    assert_same([fields for _, fields in episodes_in(twin)], before)
    stored = replay.stored()
    numbers, first, _ = replay.episode(stored)
    has_beginning = {int(number): int(start) in stored for number, start in zip(numbers, first, strict=True)}
    assert [entry["has_beginning"] for entry in known] == list(has_beginning.values())
    assert [entry["lane"] for entry in known] == [lane for lane, _ in episodes_in(replay)]
    assert not any(entry["truncation_added"] for entry in known)
    twin.check()
