"""Episodes, windows, goals and stacks that end, wrap, pause or are partly overwritten."""

import itertools
import pickle

import numpy as np
import pytest

from replaykit import Field, HindsightReplay, PrioritizedBuffer, ReplayBuffer, Spec
from replaykit.testing import bits_of
from tests.faults.stacks import STACKS, every_stack, full
from tests.helpers import FLAT as PLAIN
from tests.helpers import GOAL_SPEC, goal_episodes, sparse, step

GAMMA = 0.5


def lane(rewards, *, capacity=None, n_step=3, terminated=(), truncated=()):
    """A buffer of one lane with these rewards, and all its transitions, oldest first."""
    replay = ReplayBuffer(capacity or len(rewards), PLAIN, n_step=n_step, gamma=GAMMA, seed=0)
    for t, reward in enumerate(rewards):
        replay.add(**step(t, reward=reward, terminated=t in terminated, truncated=t in truncated))
    return replay, replay.fetch(replay.stored())


def expected(rewards, *, first, n_step=3, terminated=(), truncated=()):
    """Length, return, discount and next_obs of each transition from `first` on, computed from the definition."""
    rows = []
    for start in range(first, len(rewards)):
        last = start
        while last + 1 < len(rewards) and last + 1 - start < n_step and last not in {*terminated, *truncated}:
            last += 1
        used = range(start, last + 1)
        total = sum(GAMMA ** (t - start) * rewards[t] for t in used)
        discount = 0.0 if last in terminated else GAMMA ** len(used)
        rows.append((len(used), total, discount, last + 0.5, last in terminated, last in truncated))
    return rows


def rows_of(fields):
    return list(
        zip(
            fields["length"].tolist(),
            fields["reward"].tolist(),
            fields["discount"].tolist(),
            fields["next_obs"][:, 0].tolist(),
            fields["terminated"].tolist(),
            fields["truncated"].tolist(),
            strict=True,
        )
    )


def assert_as_defined(count, *, capacity=None, **ends):
    """Check every window of a lane against the definition."""
    rewards = [float(2**t) for t in range(count)]
    replay, fields = lane(rewards, capacity=capacity, **ends)
    assert rows_of(fields) == expected(rewards, first=count - len(replay), **ends)
    replay.check()
    return replay


# -- The ring and its episodes -----------------------------------------------------------------------------------


def test_windows_of_a_running_episode_cross_the_end_of_the_arrays():
    """A running episode continues when the ring wraps from the last slot to the first."""
    assert_as_defined(11, capacity=8)


def test_windows_end_with_their_episode():
    """A window ends at the end of its episode, and `next_obs` is the last observation of that episode."""
    assert_as_defined(9, terminated=(2,), truncated=(5,))


def test_an_episode_that_ended_across_the_seam_is_kept_apart():
    """Episodes are also kept apart if one ends where the ring wraps."""
    for end in range(12):
        assert_as_defined(12, capacity=5, truncated=(end,))


def test_an_episode_longer_than_the_buffer_is_served():
    """If an episode is longer than the buffer, its stored steps are drawn."""
    replay = assert_as_defined(30, capacity=4)
    assert set(replay.sample(200).indices.tolist()) == {26, 27, 28, 29}


def test_an_episode_of_exactly_the_capacity_is_served():
    """If an episode is exactly as long as the buffer, all its steps are drawn."""
    replay = assert_as_defined(6, capacity=6, terminated=(5,))
    assert set(replay.sample(200).indices.tolist()) == set(range(6))


def test_terminated_and_truncated_may_both_be_true():
    """If a step is both terminated and truncated, the episode ends and the target does not bootstrap."""
    assert_as_defined(5, terminated=(1,), truncated=(1,))


def test_a_truncated_step_is_bootstrapped_and_a_terminated_one_is_not():
    """`discount` is 0 after `terminated`, but not after `truncated`."""
    _, fields = lane([1.0, 1.0, 1.0], n_step=1, terminated=(0,), truncated=(1,))
    assert fields["discount"].tolist() == [0.0, GAMMA, GAMMA]


def test_an_episode_of_one_step_is_served():
    """Consecutive episodes of one step each have windows of one step."""
    assert_as_defined(6, capacity=4, terminated=(0, 2, 4), truncated=(1, 3, 5))


def test_n_steps_longer_than_the_episode_stop_at_its_end():
    """The last steps of an episode are stored and drawn. Their windows are shorter than n."""
    assert_as_defined(7, n_step=50, terminated=(3,))


def test_n_steps_longer_than_the_buffer_stop_at_the_newest():
    """If n is larger than the capacity, a window ends at the newest step."""
    assert_as_defined(9, capacity=3, n_step=50)
    assert_as_defined(9, capacity=1, n_step=50)


def test_a_window_at_the_newest_step_has_one_step():
    """The newest step can be drawn immediately. Its window has one step and reads no older data."""
    for count in range(1, 12):
        replay, fields = lane([float(t) for t in range(count)], capacity=4)
        assert rows_of(fields)[-1] == (1, count - 1.0, GAMMA, count - 0.5, False, False)
        assert count - 1 in replay.sample(100).indices


def test_a_window_at_the_seam_reads_the_step_that_follows():
    """A window continues from the last slot to the first, but never from the newest step to the oldest."""
    replay, fields = lane([float(t) for t in range(10)], capacity=4, n_step=2)
    at_seam = replay.stored().tolist().index(7)  # the last slot of the second lap
    assert 7 % 4 == 3
    assert rows_of(fields)[at_seam][:2] == (2, 7.0 + GAMMA * 8.0)
    assert rows_of(fields)[-1][0] == 1


# -- Lanes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [ReplayBuffer, PrioritizedBuffer])
def test_episodes_and_windows_never_cross_lanes(make):
    """Each environment is a separate stream. `next_obs` and returns never come from another environment."""
    replay = make(24, PLAIN, num_envs=3, n_step=3, gamma=1.0, seed=0)
    for t in range(13):
        number = np.arange(3) * 100.0 + t
        obs = np.repeat(number[:, None], 3, 1).astype(np.float32)
        ends = np.arange(3) == t % 3
        replay.add(obs, np.ones(3, int), number, obs + np.float32(0.5), ends & (t % 2 == 0), ends & (t % 2 == 1))
    batch = replay.sample(500)
    env, start = np.divmod(batch.obs[:, 0], 100)
    np.testing.assert_array_equal(env, batch.indices % 3)
    np.testing.assert_array_equal(batch.next_obs[:, 0], env * 100 + start + batch.length - 0.5)
    returns = batch.length * (env * 100 + start) + batch.length * (batch.length - 1) / 2
    np.testing.assert_array_equal(batch.reward, returns)


@pytest.mark.parametrize("make", [ReplayBuffer, PrioritizedBuffer])
def test_a_lane_that_pauses_for_long_goes_on_where_it_stopped(make):
    """A paused lane keeps its steps and its running episode, however many steps the other lanes add."""
    replay = make(8, PLAIN, num_envs=2, n_step=4, gamma=1.0, seed=0)
    both = {name: np.stack([value] * 2) for name, value in step(1.0).items()}
    for _ in range(2):
        replay.add(**both)
    for _ in range(100):
        replay.add(**both, mask=[True, False])
    assert replay.stored().tolist() == [196, 198, 200, 202, 1, 3]
    replay.add(**both)
    assert replay.newest.tolist() == [204, 5]
    numbers, starts, ends = replay.episode([1, 5])
    assert numbers[0] == numbers[1]
    assert starts.tolist() == [1, 1]
    assert ends.tolist() == [5, 5]
    assert replay.fetch(np.array([1, 3, 5]))["reward"].tolist() == [3.0, 2.0, 1.0]
    assert set(replay.sample(400).indices.tolist()) == set(replay.stored().tolist())
    replay.check()


@every_stack
def test_a_mask_that_is_all_false_stores_nothing(stack):
    """If a mask leaves all lanes out, nothing is stored, and the returned indices are -1."""
    replay = stack.build(num_envs=2)
    replay.extend(**stack.steps((5, 2)))
    assert replay.add(**stack.steps((2,)), mask=[False, False]).tolist() == [-1, -1]
    before = pickle.dumps(replay)
    assert replay.add(**stack.steps((2,)), mask=[False, False]).tolist() == [-1, -1]
    assert replay.extend(**stack.steps((3, 2)), mask=[False, False]).tolist() == [[-1, -1]] * 3
    assert pickle.dumps(replay) == before
    assert len(replay) == 6


# -- Indices -----------------------------------------------------------------------------------------------------


def counted_from(start, capacity=5, **options):
    """A prioritized buffer whose first index is `start`."""
    replay = PrioritizedBuffer(capacity, PLAIN, n_step=2, gamma=GAMMA, alpha=1.0, eps=0.0, seed=0, **options)
    storage = replay.parts()["storage"]
    state = storage.state()
    lanes = state["lanes"].copy()
    lanes[:2] = start
    storage.restore(state | {"lanes": lanes})
    return replay


def assert_counts_from(start):
    """Adds, windows, episodes, draws and updates are exact around `start`."""
    replay = counted_from(start)
    for number in range(8):
        assert replay.add(**step(number)).tolist() == [start + number]
    batch = replay.sample(50)
    np.testing.assert_array_equal(batch.obs[:, 0], batch.indices - start)
    np.testing.assert_array_equal(batch.next_obs[:, 0], batch.obs[:, 0] + batch.length - 0.5)
    assert set((batch.indices - start).tolist()) == {3, 4, 5, 6, 7}
    assert replay.update_priorities(start + np.arange(8), np.arange(8.0)) == 5
    np.testing.assert_allclose(replay.probability(start + np.arange(3, 8)), np.arange(3, 8) / 25)
    assert replay.episode([start + 5])[1].tolist() == [start]
    with pytest.raises(IndexError, match=str(start + 8)):
        replay.update_priorities([start + 8], [1.0])
    replay.check()


def test_indices_beyond_two_to_the_31_are_exact():
    """Indices beyond 2**31 and 2**32 are exact. Nothing is counted in 32 bits."""
    assert_counts_from(2**31 - 3)
    assert_counts_from(2**32 - 3)


def test_indices_beyond_two_to_the_53_are_exact():
    """Indices beyond 2**53 are exact. No index is converted to float64."""
    assert_counts_from(2**53 - 3)
    assert_counts_from(2**62)


# -- Goals -------------------------------------------------------------------------------------------------------


def relabelled(lengths, *, capacity=100, num_envs=2, ends="truncated", strategy="future", n_step=1):
    """Rows with new goals: the lane and the moment of the observation, and those of the goal."""
    buffer = ReplayBuffer(capacity, GOAL_SPEC, num_envs=num_envs, n_step=n_step, seed=0)
    goal_episodes(buffer, lengths, ends)
    replay = HindsightReplay(buffer, sparse, strategy=strategy, ratio=1.0)
    batch = replay.sample(2000)
    assert batch.relabelled.all()
    np.testing.assert_array_equal(batch.obs["desired_goal"], batch.next_obs["desired_goal"])
    replay.check()
    return batch.obs["achieved_goal"].astype(int), batch.obs["desired_goal"].astype(int)


def assert_goals_are_of_the_future(lengths, **options):
    """Check that each later step of the episode is a goal of each step, and that no other step is."""
    obs, goals = relabelled(lengths, **options)
    last_of = np.repeat(np.cumsum(np.array(lengths) + 1) - 1, np.array(lengths) + 1)
    assert (obs[:, 0] == goals[:, 0]).all(), "a goal of another lane"
    assert (goals[:, 1] > obs[:, 1]).all(), "a goal that is not strictly later"
    assert (goals[:, 1] <= last_of[obs[:, 1]]).all(), "a goal of another episode"
    for moment in np.unique(obs[:, 1]):
        assert set(goals[obs[:, 1] == moment, 1]) == set(range(moment + 1, last_of[moment] + 1))
    return obs


def test_hindsight_goals_of_running_episodes_are_of_their_own_future():
    """Hindsight goals of a running episode come from its later stored steps."""
    assert_goals_are_of_the_future([6], ends=None)


def test_hindsight_goals_of_truncated_episodes_are_of_their_own_future():
    """Hindsight goals of an episode that a time limit ended never come from the next episode."""
    assert_goals_are_of_the_future([1, 3, 2, 5], ends="truncated")
    assert_goals_are_of_the_future([1, 3, 2, 5], ends="terminated")


def test_hindsight_goals_of_partly_overwritten_episodes_are_of_their_own_future():
    """Hindsight goals of a partly overwritten episode come from its stored steps."""
    obs = assert_goals_are_of_the_future([6, 3, 4], capacity=20)  # of each lane the last 10 of 13 steps
    assert obs[:, 1].min() == 3


def test_the_final_hindsight_goal_is_the_last_step_of_the_episode():
    """The strategy `final` takes the last stored step of an episode, which may be running or partly overwritten."""
    for ends, capacity in itertools.product(("truncated", None), (100, 14)):
        lengths = [5] if ends is None else [4, 5]
        obs, goals = relabelled(lengths, capacity=capacity, ends=ends, strategy="final")
        last_of = np.repeat(np.cumsum(np.array(lengths) + 1) - 1, np.array(lengths) + 1)
        assert (goals[:, 1] == last_of[obs[:, 1]]).all()
        assert (goals[:, 0] == obs[:, 0]).all()


def test_hindsight_leaves_what_is_stored_as_it_was():
    """Hindsight replay does not change stored goals and rewards."""
    buffer = ReplayBuffer(100, GOAL_SPEC, seed=0)
    goal_episodes(buffer, [5, 5])
    before = buffer.read(buffer.stored(), "obs.desired_goal"), buffer.read(buffer.stored(), "reward")
    HindsightReplay(buffer, sparse, ratio=1.0).sample(500)
    np.testing.assert_array_equal(before[0], buffer.read(buffer.stored(), "obs.desired_goal"))
    np.testing.assert_array_equal(before[1], buffer.read(buffer.stored(), "reward"))


# -- Stacks ------------------------------------------------------------------------------------------------------


def assert_stacks(capacity, count, ends, padding):
    """Check every stored stack against the last three frames of its episode in the whole history."""
    frames = np.arange(1, count + 2, dtype=np.uint8)[:, None, None].repeat(2, 1).repeat(3, 2)
    replay = ReplayBuffer(capacity, Spec(Field((2, 3), np.uint8), Field(())), stack=3, padding=padding, seed=0)
    starts = []
    for t in range(count):
        starts.append(t if not t or t - 1 in ends else starts[-1])
        replay.add(frames[t], 0.0, 0.0, frames[t + 1], False, t in ends)
    fields = replay.fetch(replay.stored())
    for row, t in enumerate(replay.stored().tolist()):
        for name, last in (("obs", t), ("next_obs", t + 1)):
            moments = [last - 2, last - 1, last]
            wanted = [frames[max(m, starts[t])] * (m >= starts[t] or padding == "reset") for m in moments]
            np.testing.assert_array_equal(fields[name][row], wanted, err_msg=f"{name} of step {t}")


@pytest.mark.parametrize("padding", ["reset", "zero"])
def test_stacks_at_the_first_steps_of_an_episode_are_padded(padding):
    """A stack never contains frames of the previous episode. It repeats the first frame, or contains zeros."""
    assert_stacks(20, 12, {3, 4, 8}, padding)


@pytest.mark.parametrize("padding", ["reset", "zero"])
def test_stacks_at_the_seam_of_the_ring_are_whole(padding):
    """A stack is complete where the ring wraps, and also if older steps of its frames were overwritten."""
    for count in range(5, 16):
        assert_stacks(5, count, {2, 6, 7}, padding)


# -- Clear -------------------------------------------------------------------------------------------------------


@every_stack
def test_clear_forgets_transitions(stack):
    """After `clear`, no earlier transition is drawn, and earlier indices are stale."""
    replay = full(stack)
    replay.clear()
    assert len(replay) == 0
    replay.add(**stack.steps())
    assert set(replay.sample(20).indices.tolist()) == {10}
    with pytest.raises(IndexError, match="stale"):
        replay.read([9], "reward")
    replay.check()


@every_stack
def test_clear_forgets_priorities(stack):
    """After `clear`, a new transition has priority 1. Earlier priorities have no effect."""
    replay = full(stack)
    replay.update_priorities(replay.stored(), np.full(6, 1e6))
    replay.clear()
    replay.add(**stack.steps())
    replay.add(**stack.steps(), td_error=1.0)
    assert replay.stats().get("scaled_priority_max", 1.0) < 2.0
    replay.check()


@every_stack
def test_clear_ends_episodes(stack):
    """After `clear`, the first step begins a new episode."""
    replay = full(stack)
    before = replay.episode([9])[0]
    replay.clear()
    (index,) = replay.add(**stack.steps())
    number, start, end = replay.episode([index])
    assert number != before
    assert start == end == index


@every_stack
def test_clear_goes_on_with_indices(stack):
    """`clear` does not reset indices, so an earlier index is never reused, and its updates are ignored."""
    replay = full(stack)
    replay.clear()
    assert replay.add(**stack.steps()).tolist() == [10]
    assert replay.update_priorities([4, 9], [5.0, 5.0]) == 0


@every_stack
def test_clear_goes_on_with_counters(stack):
    """`clear` does not reset the counters of `stats`."""
    replay = full(stack)
    before = replay.stats()
    replay.clear()
    after = replay.stats()
    assert after["size"] == 0.0
    assert {name: after[name] for name in ("added", "batches")} == {name: before[name] for name in ("added", "batches")}
    assert after.get("stale_updates") == before.get("stale_updates")


def test_clear_goes_on_with_the_generator():
    """`clear` does not reset the random generator."""
    replay, first = full(STACKS["uniform"]), full(STACKS["uniform"])
    state = replay.rng.bit_generator.state
    replay.clear()
    assert replay.rng.bit_generator.state == state
    replay.extend(**STACKS["uniform"].steps((6,)))
    first.extend(**STACKS["uniform"].steps((6,)))
    batch, other = replay.sample(9), first.sample(9)
    assert bits_of(batch) == bits_of(other)


def test_a_cut_ends_an_episode_without_changing_its_flags():
    """`end_episode` ends windows at this step, but does not change the stored flags."""
    replay = ReplayBuffer(10, PLAIN, n_step=5, gamma=1.0)
    replay.add(**step(0, reward=1.0))
    replay.end_episode()
    replay.add(**step(1, reward=1.0))
    fields = replay.fetch(np.array([0, 1]))
    assert fields["length"].tolist() == [1, 1]
    assert not fields["truncated"].any()
