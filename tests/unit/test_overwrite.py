"""Replacing fields of stored transitions, and passes over everything that is stored."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import replaykit
from replaykit import (
    CombinedReplay,
    Field,
    FieldNameError,
    HindsightReplay,
    PrioritizedBuffer,
    ReplayBuffer,
    SequenceReplay,
    Spec,
)
from replaykit.testing import bits_of
from replaykit.testing.strategies import reward_of_goal
from replaykit.trees import leaves_of
from tests.laws.third_party import ListStorage
from tests.unit.test_sequences import counted, of_goals

SPEC = Spec(
    obs={"image": Field((2, 2), np.uint8), "pair": (Field(()), Field((1,), np.int16))},
    action=Field((), np.int64),
    big=Field((300,)),
    state=Field((2,)),
    flag=Field((), np.bool_),
)
NAMES = [leaf.name for leaf in SPEC.leaves if leaf.name not in ("terminated", "truncated")]


def values_at(rng, shape):
    """Values of every field except the flags."""

    def obs():
        pair = rng.random(shape, np.float32), rng.integers(-9, 9, (*shape, 1), np.int16)
        return {"image": rng.integers(0, 255, (*shape, 2, 2), np.uint8), "pair": pair}

    return {
        "obs": obs(),
        "action": rng.integers(0, 9, shape),
        "reward": rng.random(shape, np.float32),
        "next_obs": obs(),
        "big": rng.random((*shape, 300), np.float32),
        "state": rng.random((*shape, 2), np.float32),
        "flag": rng.random(shape) < 0.5,
    }


def filled(num_envs=2, steps=9, capacity=12, storage=None, **options):
    """A buffer whose ring has wrapped."""
    rng = np.random.default_rng(1)
    place = {} if storage is None else {"storage": storage}
    buffer = PrioritizedBuffer(capacity, SPEC, num_envs=num_envs, seed=0, **place, **options)
    for step in range(steps):
        flags = {"terminated": np.full(num_envs, step == 5), "truncated": np.zeros(num_envs, np.bool_)}
        buffer.add(**values_at(rng, (num_envs,)), **flags)
    return buffer


@given(
    indices=st.lists(st.integers(-1, 17), max_size=12),
    names=st.sets(st.sampled_from(["obs", "action", "reward", "next_obs", "big", "state", "flag"]), min_size=1),
    seed=st.integers(0, 99),
)
def test_fields_are_replaced_where_they_are_still_stored(indices, names, seed):
    """The last value of a repeated index is kept. Stale indices and padding are ignored."""
    buffer, given_values = filled(), values_at(np.random.default_rng(seed), (len(indices),))
    stored = buffer.stored()
    before = {name: buffer.read(stored, name) for name in NAMES}
    shares = buffer.probability(stored)
    expected = {name: values.copy() for name, values in before.items()}
    place = {int(index): row for row, index in enumerate(stored)}
    flat = dict(leaves_of(given_values))
    for row, index in enumerate(indices):
        for name in NAMES:
            if index in place and name.partition(".")[0] in names:
                expected[name][place[index]] = flat[name][row]
    count = buffer.overwrite(np.array(indices, np.int64), **{name: given_values[name] for name in names})
    assert count == sum(index in place for index in indices)
    for name in NAMES:
        np.testing.assert_array_equal(buffer.read(stored, name), expected[name])
    np.testing.assert_array_equal(buffer.probability(stored), shares)
    buffer.check()


def test_states_are_replaced_at_the_steps_of_sequences():
    """Indices of shape (B, T), with -1 for padding, work through any wrappers."""
    replay = CombinedReplay(SequenceReplay(filled(), 4))
    batch = replay.sample(3)
    states = np.random.default_rng(2).random((3, 4, 2), np.float32)
    assert replay.overwrite(batch.step_indices, state=states) == batch.mask.sum()
    for row in range(3):
        last = {int(i): states[r, t] for r in range(3) for t, i in enumerate(batch.step_indices[r])}
        real = batch.step_indices[row][batch.mask[row]]
        np.testing.assert_array_equal(replay.read(real, "state"), [last[int(i)] for i in real])


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"terminated": [True]}, ValueError, "terminated cannot be overwritten, since it defines the episodes"),
        ({"truncated": [True]}, ValueError, "truncated cannot be overwritten"),
        ({"sate": [[1.0, 2.0]]}, FieldNameError, "unknown field 'sate'; .* did you mean 'state'"),
        ({"state": [[1.0, 2.0, 3.0]]}, ValueError, r"state has shape \(1, 3\); expected \(1, 2\)"),
        ({"action": [0.5]}, TypeError, "action has dtype float64; expected int64"),
        ({"reward": [np.inf]}, ValueError, "reward contains inf; expected finite"),
        ({"state": [[1.0, 2.0]], "reward": [np.nan]}, ValueError, "reward contains nan; expected finite"),
        ({"obs": {"image": np.zeros((1, 2, 2), np.uint8)}}, FieldNameError, "obs lacks the key 'pair'"),
    ],
)
@pytest.mark.parametrize("make", [filled, lambda: filled(capacity=12, steps=20)])
def test_a_wrong_field_changes_nothing(make, fields, error, message):
    """The buffer is bit-identical to before."""
    buffer = make()
    before = pickle.dumps(buffer)
    with pytest.raises(error, match=message):
        buffer.overwrite(buffer.newest[:1], **fields)
    assert pickle.dumps(buffer) == before


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        ([18], IndexError, "indices contains 18, which the buffer never returned"),
        ([-2], IndexError, "indices contains -2, which the buffer never returned"),
        ([1.0], TypeError, "indices has dtype float64; expected integers"),
    ],
)
def test_a_wrong_index_changes_nothing(indices, error, message):
    """An invalid index raises an error, and nothing changes, even if other indices are valid."""
    buffer = filled()
    before = pickle.dumps(buffer)
    with pytest.raises(error, match=message):
        buffer.overwrite([*indices, 10], action=[1, 2])
    assert pickle.dumps(buffer) == before


def test_frames_are_not_replaced():
    """Frames cannot be replaced, because several transitions share them."""
    spec = Spec(obs=Field((40, 40), np.uint8), action=Field(()))
    frames = np.zeros((1, 40, 40), np.uint8)
    shared, whole = ReplayBuffer(9, spec), ReplayBuffer(9, spec, share="none")
    for buffer in (shared, whole):
        buffer.add(frames[0], 0, 0.0, frames[0], False, False)
    with pytest.raises(ValueError, match="obs cannot be overwritten, since its frames are shared .* share='none'"):
        shared.overwrite([0], obs=frames)
    assert whole.overwrite([0], next_obs=frames + 7) == 1
    assert (whole.read([0], "next_obs") == 7).all()
    assert not whole.read([0], "obs").any()


def test_a_storage_without_replace_says_so():
    """A user's storage without `overwrite` raises an error that says so."""
    buffer = replaykit.Buffer(storage := ListStorage(9, Spec(obs=Field(()), action=Field(()))), uniform(storage))
    buffer.add(0.0, 0, 0.0, 1.0, False, False)
    with pytest.raises(NotImplementedError, match="a ListStorage cannot overwrite stored fields"):
        buffer.overwrite([0], action=[1.0])


def uniform(storage):
    return replaykit.distributions.Uniform(storage)


def test_nothing_is_overwritten_while_a_batch_is_made():
    """A user's function that overwrites while a batch is made raises an error."""
    buffer = of_goals(kind=ReplayBuffer)

    def reward_fn(achieved, desired, info):
        buffer.overwrite([0], cost=[1.0])
        return reward_of_goal(achieved, desired, info)

    with pytest.raises(RuntimeError, match="sampl"):
        HindsightReplay(buffer, reward_fn, ratio=1.0).sample(4)


@pytest.mark.parametrize("place", ["memory", "files"])
def test_a_second_save_writes_what_was_overwritten(tmp_path, place):
    """An incremental save writes the overwritten values, so both checkpoints are exact."""
    spec, count = Spec(obs=Field((500,)), action=Field(()), state=Field(())), 4000
    options = ({"storage": tmp_path / "rows"} if place == "files" else {}) | {"share": "none"}
    buffer = ReplayBuffer(count, spec, seed=0, **options)
    zeros = np.zeros(count)
    obs = np.arange(count, dtype=np.float32)[:, None].repeat(500, axis=1)
    buffer.extend(obs, zeros, zeros, obs, zeros > 0, zeros > 0, state=zeros)
    buffer.save(tmp_path / "saved")
    files = {path.name for path in (tmp_path / "saved").iterdir()}
    buffer.overwrite([3, 3000], state=[5.0, 6.0], obs=np.full((2, 500), -1.0, np.float32))
    buffer.save(tmp_path / "saved")
    kept = files & {path.name for path in (tmp_path / "saved").iterdir()}
    assert kept, "an incremental save wrote everything again"
    loaded = ReplayBuffer(count, spec, seed=0, share="none")
    loaded.load(tmp_path / "saved")
    assert loaded.read([3, 3000, 4], "state").tolist() == [5.0, 6.0, 0.0]
    assert loaded.read([3, 3000, 4], "obs")[:, 0].tolist() == [-1.0, -1.0, 4.0]
    assert bits_of(loaded.sample(50)) == bits_of(buffer.sample(50))


# -- Passes ----------------------------------------------------------------------------------------------------------


def test_episodes_are_whole_and_marked():
    """Episodes come in the order of lanes and time. Partly overwritten and running ones are marked."""
    buffer = counted(steps=17, capacity=12, ends=[3, 9, 13])
    found = [(e.obs.tolist(), bool(e.has_beginning), bool(e.is_running)) for e in buffer.episodes()]
    assert found == [
        ([5.0, 6.0, 7.0, 8.0, 9.0], False, False),
        ([10.0, 11.0, 12.0, 13.0], True, False),
        ([14.0, 15.0, 16.0], True, True),
    ]
    assert [e.indices.tolist() for e in buffer.episodes()] == [[*range(5, 10)], [*range(10, 14)], [14, 15, 16]]
    assert list(counted(steps=0).episodes()) == []


@given(num_envs=st.integers(1, 3), n_step=st.integers(1, 3), steps=st.integers(0, 30), seed=st.integers(0, 99))
def test_episodes_have_every_transition_once(num_envs, n_step, steps, seed):
    """Every stored transition is in exactly one episode, as `fetch` returns it."""
    buffer = filled(num_envs, steps, 15, n_step=n_step)
    episodes = list(buffer.episodes())
    assert np.concatenate([e.indices for e in episodes] or [buffer.stored()]).tolist() == buffer.stored().tolist()
    for episode in episodes:
        fields = {name: value for name, value in episode.items() if name not in ("has_beginning", "is_running")}
        fields.pop("indices")
        assert bits_of(replaykit.Batch.of(fields)) == bits_of(replaykit.Batch.of(buffer.fetch(episode.indices)))
        numbers, first, last = buffer.episode(episode.indices)
        assert len(set(numbers.tolist())) == 1
        assert bool(episode.has_beginning) == (first[0] == episode.indices[0])
        assert last[0] == episode.indices[-1]


def test_what_is_overwritten_during_a_pass_is_left_out():
    """A pass covers the transitions that were stored at its start and still are."""
    buffer = counted(steps=12, capacity=12, ends=[3, 7])
    episodes, parts = buffer.episodes(), buffer.epoch(5)
    first, part = next(episodes), next(parts)
    for step in range(12, 18):
        buffer.add(step, 0, 1.0, step + 1, False, False)
    rest = [(e.indices.tolist(), bool(e.has_beginning), bool(e.is_running)) for e in episodes]
    assert first.indices.tolist() == [0, 1, 2, 3]
    assert rest == [([6, 7], False, False), ([8, 9, 10, 11], True, False)]
    seen = [int(i) for p in (part, *parts) for i in p.indices]
    assert len(set(seen)) == len(seen)
    assert set(seen) - set(part.indices.tolist()) == set(range(6, 12)) - set(part.indices.tolist())


def test_hindsight_gives_an_episode_one_goal():
    """In an episode, either all transitions are relabelled or none."""
    replay = HindsightReplay(of_goals(kind=ReplayBuffer, n_step=2), reward_of_goal, ratio=0.5)
    kinds = set()
    for episode in replay.episodes():
        goals = episode.obs["desired_goal"]
        assert (goals == goals[0]).all()
        assert episode.relabelled.shape == (len(goals),)
        assert len(set(episode.relabelled.tolist())) == 1
        kinds.add(bool(episode.relabelled[0]))
    assert kinds == {True, False}


@pytest.mark.parametrize("wrap", [lambda b: b, CombinedReplay, lambda b: SequenceReplay(b, 4, stride=3)])
def test_an_epoch_has_each_row_once(wrap):
    """An epoch has each row once, in random order and equal parts. The same generator gives the same order."""
    replay, twin = wrap(counted(steps=20, ends=[6])), wrap(counted(steps=20, ends=[6]))
    expected = [i for i in replay.stored() if replay.begins_row(np.array([i]))[0]]
    parts = list(replay.epoch(3))
    assert sorted(i for part in parts for i in part.indices.tolist()) == expected
    assert [len(part.indices) for part in parts[:-1]] == [3] * (len(parts) - 1)
    assert [bits_of(part) for part in parts] == [bits_of(part) for part in twin.epoch(3)]
    assert [i for part in parts for i in part.indices.tolist()] != expected
    for part in parts:
        fields = {name: part[name] for name in part if name not in ("weights", "probabilities", "indices")}
        assert bits_of(replaykit.Batch.of(fields)) == bits_of(replaykit.Batch.of(replay.fetch(part.indices)))
        assert (part.weights == 1.0).all()
        np.testing.assert_allclose(part.probabilities, 1 / len(expected))
    assert list(wrap(counted(steps=0)).epoch(3)) == []


def test_a_wrong_size_of_an_epoch_is_refused_at_once():
    """The error is not delayed to the first batch."""
    with pytest.raises(ValueError, match="batch_size is 0; expected"):
        counted().epoch(0)


def test_is_full():
    """`is_full` is True from the step that fills the last slot."""
    buffer = counted(steps=9, capacity=10)
    assert not buffer.is_full
    buffer.add(9, 0, 1.0, 10, False, False)
    assert buffer.is_full
    assert SequenceReplay(buffer, 4).is_full
    buffer.clear()
    assert not buffer.is_full
