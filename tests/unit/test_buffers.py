"""Promises of every buffer: arguments, lanes, episodes, windows, copies, randomness."""

import os
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import replaykit
from replaykit import (
    Field,
    LatestBuffer,
    PrioritizedBuffer,
    ReplayBuffer,
    Spec,
)
from replaykit.testing import assert_lawful
from tests.helpers import FLAT, every_buffer, filled, step, stretch, unchanged


@every_buffer
@pytest.mark.parametrize(
    ("batch_size", "error"),
    [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError), ("2", TypeError), (None, TypeError)],
)
def test_batch_size_must_be_a_positive_int(make, batch_size, error):
    """A batch size that is not a positive int raises an error that names it."""
    buffer = filled(make(4, FLAT, seed=0), 3)
    with unchanged(buffer, error, "batch_size"):
        buffer.sample(batch_size)


@every_buffer
def test_sampling_an_empty_buffer_is_refused(make):
    """Sampling raises an error before the first add, and again after a clear."""
    buffer = make(4, FLAT, seed=0)
    with unchanged(buffer, ValueError, "the buffer is empty"):
        buffer.sample(1)
    filled(buffer, 3).clear()
    with unchanged(buffer, ValueError, "the buffer is empty"):
        buffer.sample(1)


@every_buffer
@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"capacity": 0}, ValueError),
        ({"capacity": -3}, ValueError),
        ({"capacity": 2.0}, TypeError),
        ({"capacity": True}, TypeError),
        ({"num_envs": 0}, ValueError),
        ({"n_step": 0}, ValueError),
        ({"n_step": 1.5}, TypeError),
        ({"gamma": 1.1}, ValueError),
        ({"gamma": float("nan")}, ValueError),
        ({"gamma": "1"}, TypeError),
    ],
)
def test_constructor_arguments_are_checked(make, options, error):
    """Each invalid argument raises an error that names it."""
    options = {"capacity": 4} | options
    with pytest.raises(error, match=next(name for name in options if name != "capacity" or len(options) == 1)):
        make(options.pop("capacity"), FLAT, **options)


@every_buffer
@pytest.mark.parametrize("capacity", [1, 3, 7, 1000])
def test_any_capacity_works(make, capacity):
    """Buffers whose capacity is 1 or no power of two hold exactly that many transitions."""
    buffer = make(capacity, FLAT, seed=0)
    for number in range(2 * capacity + 1):
        buffer.add(**step(number))
    assert len(buffer) == buffer.capacity == capacity
    batch = assert_lawful(buffer, 5)
    assert batch.obs[:, 0].min() > capacity


def test_capacity_is_rounded_up_to_the_lanes():
    """Each lane holds exactly its last C/E transitions."""
    buffer = ReplayBuffer(10, FLAT, num_envs=4)
    assert buffer.capacity == 12
    buffer.extend(**stretch(20, 4))
    assert len(buffer) == 12
    assert buffer.oldest.tolist() == [17 * 4 + lane for lane in range(4)]
    assert buffer.newest.tolist() == [19 * 4 + lane for lane in range(4)]


def test_more_memory_than_the_machine_has_is_refused():
    """The error names the needed bytes, and nothing is allocated."""
    with pytest.raises(MemoryError, match="GiB"):
        ReplayBuffer(10**15, FLAT)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**50
    with pytest.raises(MemoryError, match="lower the capacity"):  # its rows alone would fit
        PrioritizedBuffer(memory // 60, Spec(obs=Field(()), action=Field(())))


@every_buffer
def test_an_add_shows_at_once(make):
    """After an add, its index is stored and is the newest."""
    buffer = make(4, FLAT, seed=0)
    for number in range(9):
        (index,) = buffer.add(**step(number))
        assert buffer.newest[0] == index == number
        assert buffer.latest(1).tolist() == [index]
        assert buffer.probability([index], 2)[0] > 0.0


def test_masked_lanes_get_minus_one_and_pause():
    """Lanes advance independently. The values for a masked lane are ignored."""
    buffer = ReplayBuffer(6, FLAT, num_envs=3, seed=0)
    values = {name: value[0] for name, value in stretch(1, 3).items()}
    values["obs"] = values["obs"].astype(np.float64)
    values["obs"][1] = 1e300  # would be refused, were the lane not masked
    indices = buffer.add(**values, mask=np.array([True, False, True]))
    assert indices.tolist() == [0, -1, 2]
    assert buffer.add(**values, mask=[False, False, False]).tolist() == [-1, -1, -1]
    assert buffer.add(**values, mask=[False, False, True]).tolist() == [-1, -1, 5]
    assert buffer.oldest.tolist() == [0, -1, 2]
    assert len(buffer) == 3
    for mask in ([True], [[True, True, True]], [1, 1, 0]):
        with unchanged(buffer, ValueError, "mask has shape"):
            buffer.add(**values, mask=mask)


def test_a_mask_works_for_one_lane():
    """A masked step of the only lane is not stored."""
    buffer = ReplayBuffer(6, FLAT)
    assert buffer.add(**step(0), mask=[False]).tolist() == [-1]
    assert buffer.add(**step(1), mask=[True]).tolist() == [0]
    assert buffer.extend(**stretch(3), mask=[True, False, True]).tolist() == [1, -1, 2]
    assert len(buffer) == 3


def test_the_newest_are_those_added_last_at_any_pace():
    """If lanes have different lengths, the newest are those added last, and in one add, the higher lanes."""
    buffer = LatestBuffer(40, FLAT, num_envs=2)
    both = {name: value[0] for name, value in stretch(1, 2).items()}
    order = []
    for mask in ([True, True], [False, True], [False, True], [True, False], [True, True], [True, False]):
        order += [int(index) for index in buffer.add(**both, mask=mask) if index >= 0]
    assert buffer.latest(100).tolist() == order
    assert buffer.sample(3).indices.tolist() == order[-3:]


def test_latest_buffer_repeats_while_it_holds_too_few():
    """A batch has the newest B transitions, repeated in turn while fewer are stored. Its shares sum to 1."""
    buffer = filled(LatestBuffer(8, FLAT), 3)
    batch = buffer.sample(7)
    assert batch.indices.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert batch.probabilities.tolist() == [3 / 7, 2 / 7, 2 / 7, 3 / 7, 2 / 7, 2 / 7, 3 / 7]
    assert buffer.probability([0, 1, 2], 2).tolist() == [0.0, 0.5, 0.5]


@given(batch_size=st.integers(1, 9), seed=st.integers(0, 1000))
def test_without_replacement_nothing_is_drawn_twice(batch_size, seed):
    """Without replacement, no index is drawn twice, and a batch larger than the buffer raises an error."""
    buffer = filled(ReplayBuffer(9, FLAT, replace=False, seed=seed), 13)
    batch = assert_lawful(buffer, batch_size)
    assert len(set(batch.indices.tolist())) == batch_size
    with unchanged(buffer, ValueError, "expected at most 9"):
        buffer.sample(10)
    with pytest.raises(TypeError, match="replace is 1"):
        ReplayBuffer(9, FLAT, replace=1)


# -- Episodes and windows ------------------------------------------------------------------------------------------


def windows(rewards, terminated=(), truncated=(), n_step=3, capacity=None, gamma=0.5):
    """A batch of every stored transition of one lane, newest first."""
    count = len(rewards)
    buffer = ReplayBuffer(capacity or count, FLAT, n_step=n_step, gamma=gamma)
    for t, reward in enumerate(rewards):
        buffer.add(**step(t, reward=reward, terminated=t in terminated, truncated=t in truncated))
    fields = buffer.reduce(buffer.window(np.arange(int(buffer.oldest[0]), count)))
    return buffer, fields


def test_windows_end_with_their_episode():
    """An example by hand: 3 steps, discount 1/2, terminated at 2, truncated at 4, running from 5 on."""
    _, got = windows([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0], terminated=[2], truncated=[4])
    assert got["length"].tolist() == [3, 2, 1, 2, 1, 2, 1]
    assert got["reward"].tolist() == [3.0, 4.0, 4.0, 16.0, 16.0, 64.0, 64.0]
    assert got["terminated"].tolist() == [True, True, True, False, False, False, False]
    assert got["truncated"].tolist() == [False, False, False, True, True, False, False]
    assert got["discount"].tolist() == [0.0, 0.0, 0.0, 0.25, 0.5, 0.25, 0.5]
    assert got["next_obs"][:, 0].tolist() == [2.5, 2.5, 2.5, 4.5, 4.5, 6.5, 6.5]


def test_windows_cross_the_end_of_the_array_and_not_the_newest_step():
    """A window crosses the end of the arrays, but not the newest step."""
    buffer, got = windows([1.0] * 11, n_step=4, capacity=8, gamma=1.0)
    assert got["length"].tolist() == [4, 4, 4, 4, 4, 3, 2, 1]
    assert got["next_obs"][:, 0].tolist() == [6.5, 7.5, 8.5, 9.5, 10.5, 10.5, 10.5, 10.5]
    for index in range(3, 11):
        assert buffer.episode([index]) == (0, 0, 10)


def test_terminated_and_truncated_may_both_be_true():
    """If a step is both terminated and truncated, the target does not bootstrap."""
    _, got = windows([1.0, 1.0], terminated=[0], truncated=[0])
    assert got["discount"].tolist() == [0.0, 0.5]


def test_a_window_longer_than_anything_stored_is_fine():
    """`n_step` can be larger than the capacity and than the length of an episode."""
    _, got = windows([1.0] * 5, n_step=50, capacity=3, gamma=1.0, truncated=[3])
    assert got["length"].tolist() == [2, 1, 1]


def test_an_absurd_n_step_costs_no_memory():
    """No window is longer than a lane, so a huge `n_step` takes no memory."""
    buffer = filled(ReplayBuffer(4, FLAT, n_step=2**62, gamma=1.0, seed=0), 9)
    assert buffer.sample(100).length.max() == 4
    assert buffer.n_step == 2**62


def test_a_cut_separates_episodes_without_changing_their_flags():
    """`end_episode` ends windows, but does not change stored flags."""
    buffer = ReplayBuffer(10, FLAT, n_step=5, gamma=1.0)
    buffer.add(**step(0, reward=1.0))
    buffer.end_episode()
    buffer.add(**step(1, reward=1.0))
    got = buffer.reduce(buffer.window(np.array([0, 1])))
    assert got["length"].tolist() == [1, 1]
    assert not got["truncated"].any()
    numbers, starts, ends = buffer.episode([0, 1])
    assert numbers[0] != numbers[1]
    assert starts.tolist() == ends.tolist() == [0, 1]


@every_buffer
def test_reading_what_is_not_stored_is_refused(make):
    """A stale index and an index that was never returned raise different errors."""
    buffer = filled(make(4, FLAT, seed=0), 6)
    calls = (buffer.window, lambda i: buffer.probability(i, 2), buffer.episode, lambda i: buffer.read(i, "obs"))
    for call in calls:
        with unchanged(
            buffer,
            IndexError,
            "contains 1, which is stale: its transition is no longer stored; the oldest stored index of lane 0 is 2",
        ):
            call(np.array([2, 1]))
        for wrong in (6, -2, 10**15, *((-1,) if call in calls[:2] else ())):
            with unchanged(
                buffer,
                IndexError,
                f"contains {wrong}, which the buffer never returned; the newest index of lane 0 is 5",
            ):
                call(np.array([2, wrong]))


@every_buffer
@pytest.mark.parametrize("start", [2**31 - 3, 2**53 - 3, 2**60])
def test_indices_count_beyond_any_power(make, start):
    """Indices stay exact, however many transitions were added."""
    buffer = make(5, FLAT, n_step=2, gamma=0.5, seed=0)
    storage = buffer.parts()["storage"]
    state = storage.state()
    lanes = state["lanes"].copy()
    lanes[:2] = start  # the bounds of the lane
    storage.restore(state | {"lanes": lanes})
    for number in range(8):
        assert buffer.add(**step(number)) == [start + number]
    batch = assert_lawful(buffer, 6)
    np.testing.assert_array_equal(batch.obs[:, 0], batch.indices - start)
    assert buffer.update_priorities(batch.indices, np.ones(6)) in (0, 6)
    assert buffer.episode(batch.indices)[1].tolist() == [start] * 6


@every_buffer
def test_arguments_of_the_verbs_are_checked(make):
    """`probability`, `window` and `episode` check that indices have shape (B,) and batch sizes are counts."""
    buffer = filled(make(4, FLAT, seed=0), 6)
    for call in (buffer.window, buffer.probability, buffer.episode):
        with unchanged(buffer, ValueError, r"indices has shape \(1, 1\); expected \(B,\)"):
            call([[3]])
        with unchanged(buffer, ValueError, r"indices has shape \(\)"):
            call(3)
        with unchanged(buffer, TypeError, "indices has dtype float64"):
            call(np.array([3.0]))
        call([])
    for batch_size, error in ((0, ValueError), (1.5, TypeError), (None, TypeError)):
        with unchanged(buffer, error, "batch_size"):
            buffer.probability([3], batch_size)


@pytest.mark.parametrize("lanes", [1, 2])
def test_fields_of_no_size_are_stored(lanes):
    """A field can have a shape with a 0."""
    buffer = ReplayBuffer(4, Spec(obs=Field((0,)), action=Field((2, 0))), num_envs=lanes, n_step=2, seed=0)
    lead = (3, lanes) if lanes > 1 else (3,)
    none = np.zeros(lead, np.bool_)
    obs, action = np.zeros((*lead, 0), np.float32), np.zeros((*lead, 2, 0), np.float32)
    buffer.extend(obs, action, none.astype(np.float32), obs, none, none)
    assert buffer.sample(5).action.shape == (5, 2, 0)


def test_clear_forgets_everything_but_the_count():
    """Transitions, episodes and priorities are gone; old indices are stale and none is returned twice."""
    buffer = filled(PrioritizedBuffer(8, FLAT, alpha=1.0, seed=0), 5)
    buffer.update_priorities(np.arange(5), np.full(5, 100.0))
    buffer.clear()
    assert len(buffer) == 0
    assert buffer.update_priorities([0, 4], [1.0, 1.0]) == 0
    assert buffer.add(**step(0)).tolist() == [5]
    assert buffer.stats()["scaled_priority_max"] == 1.0
    assert buffer.sample(3).indices.tolist() == [5, 5, 5]
    assert buffer.episode([5])[1].tolist() == [5]
    buffer.check()


@pytest.mark.parametrize("look", [True, False])
def test_no_priority_survives_a_clear(look):
    """It also holds if a new transition takes the slot of one with a large priority."""
    buffer = filled(PrioritizedBuffer(4, FLAT, alpha=1.0, eps=0.0, seed=0), 4)
    buffer.update_priorities(np.arange(4), priorities=[100.0, 1.0, 1.0, 1.0])
    buffer.clear()
    if look:
        buffer.stats()
    buffer.add(**step(0))
    assert buffer.stats()["scaled_priority_max"] == 1.0
    buffer.add(**step(1), td_error=3.0)
    assert buffer.probability([4, 5]).tolist() == [0.25, 0.75]


def test_extras_come_back_under_their_names():
    """Extra fields are passed as keywords, and are fields of the batch."""
    spec = Spec(obs=Field(()), action=Field(()), log_prob=Field(()), info={"hint": Field((2,), np.int8)})
    buffer = ReplayBuffer(4, spec, n_step=2)
    buffer.add(0, 0, 0.0, 1, False, False, log_prob=-0.5, info={"hint": [1, 2]})
    buffer.extend([1], [0], [0.0], [2], [False], [False], log_prob=[-1.5], info={"hint": [[3, 4]]})
    fields = buffer.reduce(buffer.window(np.array([0, 1])))
    assert fields["log_prob"].tolist() == [-0.5, -1.5]
    assert fields["info"]["hint"].tolist() == [[1, 2], [3, 4]]


def test_zero_steps_are_no_change():
    """`extend` by zero steps stores nothing and returns no indices."""
    buffer = filled(ReplayBuffer(4, FLAT, num_envs=1), 2)
    before = pickle.dumps(buffer)
    assert buffer.extend(**stretch(0)).shape == (0,)
    assert pickle.dumps(buffer) == before
    with unchanged(buffer, ValueError, "use add for a single step"):
        buffer.extend(**step(0))


def test_a_refused_add_leaves_the_row_under_the_cursor_whole():
    """An add that raises an error does not damage the oldest transition of a full buffer."""
    buffer = filled(ReplayBuffer(3, FLAT, seed=0), 7)
    with unchanged(buffer, TypeError, "truncated"):
        buffer.add(**step(9, truncated="no"))
    with unchanged(buffer, ValueError, "next_obs"):
        buffer.extend(**stretch(2, next_obs=np.zeros((2, 4))))
    assert sorted({*buffer.sample(30).obs[:, 0]}) == [4.0, 5.0, 6.0]


@pytest.mark.parametrize("make", [ReplayBuffer, PrioritizedBuffer])
@pytest.mark.parametrize("size", [3, 600])
def test_an_extra_of_the_last_step_is_that_of_next_obs(make, size, tmp_path):
    """An extra field can be taken from the last step of a window, also after saving and pickling."""
    last = Field((size,), np.int16, step="last")
    spec = Spec(obs=Field(()), action=Field(()), legal={"next": last, "now": Field((size,), np.int16)})
    buffer = make(20, spec, n_step=3, gamma=0.5, seed=0)
    for t in range(12):
        legal = {"next": np.full(size, t + 1), "now": np.full(size, t)}
        buffer.add(t, 0, 1.0, t + 1, t == 6, False, legal={k: v.astype(np.int16) for k, v in legal.items()})
    buffer.save(tmp_path)
    for replay in (buffer, replaykit.load(tmp_path), pickle.loads(pickle.dumps(buffer))):
        batch = replay.sample(40)
        assert (batch.legal["next"] == batch.next_obs[:, None]).all()
        assert (batch.legal["now"] == batch.obs[:, None]).all()
        assert (batch.length > 1).any()
        assert (replay.read([2], "legal.next") == 3).all()
        assert replay.spec == spec
    assert repr(spec["legal"]["next"]) == f"Field(({size},), int16, step='last')"


def test_only_an_extra_can_be_of_the_last_step():
    """Only an extra field can be taken from the last step. The meaning of the other fields is fixed."""
    last = Field((), step="last")
    with pytest.raises(ValueError, match="obs.x is .*step='last'.*; expected step='first'"):
        Spec(obs={"x": last}, action=Field(()))
    with pytest.raises(ValueError, match="action is .*step='last'.*; expected step='first'"):
        Spec(obs=Field(()), action=last)
    with pytest.raises(ValueError, match="step is 'newest'; expected"):
        Field((), step="newest")
