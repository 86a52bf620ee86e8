"""Recent replay: uniform draws from the newest of each lane."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replaykit import (
    CombinedReplay,
    ERESchedule,
    HindsightReplay,
    LatestBuffer,
    PrioritizedBuffer,
    RecentReplay,
    ReplayBuffer,
)
from replaykit.testing import assert_lawful, bits_of
from tests.helpers import FLAT, GOAL_SPEC, filled, goal_episodes, sparse, step, stretch, unchanged


@given(
    count=st.integers(1, 30),
    newest=st.sampled_from([1, 2, 2.5, 7, 100]),
    lanes=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_only_the_newest_of_each_lane_are_drawn(count, newest, lanes, seed):
    """The newest ceil(newest / E) transitions of each lane, or all, are drawn with equal probability."""
    rng = np.random.default_rng(seed)
    buffer = RecentReplay(ReplayBuffer(8 * lanes, FLAT, num_envs=lanes, seed=0), newest)
    buffer.extend(**stretch(count, lanes), mask=rng.random((count, lanes) if lanes > 1 else count) < 0.6)
    if not len(buffer):
        with pytest.raises(ValueError, match="nothing"):
            buffer.sample(3)
        with pytest.raises(ValueError, match="nothing"):
            buffer.draw(3)
        return
    stored = buffer.stored()
    of_lane = [stored[stored % lanes == lane][-int(np.ceil(newest / lanes)) :] for lane in range(lanes)]
    recent = np.concatenate(of_lane)
    expected = np.isin(stored, recent) / recent.size
    np.testing.assert_allclose(buffer.probability(stored), expected)
    batch = assert_lawful(buffer, 200)
    assert set(batch.indices.tolist()) == set(recent.tolist())
    assert (batch.weights == 1.0).all()


def test_a_schedule_is_asked_about_the_batches_so_far():
    """A schedule gets the number of batches so far, also after a load."""
    buffer = RecentReplay(filled(ReplayBuffer(50, FLAT, seed=0), 50), newest=lambda batches: 1 + batches)
    for number in range(1, 6):
        assert buffer.newest_count == number
        assert set(buffer.sample(100).indices.tolist()) == set(range(50 - number, 50))
    pytest.importorskip("torch")
    twin = RecentReplay(ReplayBuffer(50, FLAT), newest=lambda batches: 1 + batches)
    twin.load_state_dict(buffer.state_dict())
    assert twin.newest_count == 6
    assert bits_of(twin.sample(9)) == bits_of(buffer.sample(9))


def test_emphasis_on_recent_experience_is_the_papers():
    """c_k = max(N eta^(1000 k / K), c_min) for the k-th of K updates, with eta from 0.996 to 1."""
    schedule = ERESchedule(100_000, updates=50, steps=10_000)
    for batches in (0, 1, 49, 50, 4_999, 10_000, 1 << 60):
        k, eta = batches % 50 + 1, 0.996 + 0.004 * min(batches / 10_000, 1.0)
        assert schedule(batches) == pytest.approx(max(100_000 * eta ** (1000 * k / 50), 5000))
    assert schedule(10_000) == 100_000
    buffer = RecentReplay(filled(ReplayBuffer(100, FLAT, seed=0), 100), ERESchedule(100, 10, 1000, eta=0.99, least=3))
    oldest = [buffer.sample(2000).indices.min() for _ in range(10)]
    assert oldest == [63, 86, 95, 97, 97, 97, 97, 97, 97, 97]
    for wrong, words in (
        ({"updates": 0}, "updates is 0; expected an int of at least 1"),
        ({"eta": 1.1}, r"eta is 1.1; expected a number in \[0, 1\]"),
        ({"least": 0}, "least is 0"),
    ):
        with pytest.raises(ValueError, match=words):
            ERESchedule(**{"capacity": 10, "updates": 5, "steps": 10} | wrong)


@pytest.mark.parametrize(
    "make",
    [
        lambda: PrioritizedBuffer(9, FLAT),
        lambda: PrioritizedBuffer(9, FLAT, variant="rank"),
        lambda: LatestBuffer(9, FLAT),
        lambda: CombinedReplay(ReplayBuffer(9, FLAT)),
        lambda: RecentReplay(ReplayBuffer(9, FLAT), 3),
    ],
)
def test_draws_that_would_have_no_effect_are_refused(make):
    """A buffer whose draws would be ignored, such as a prioritized one, raises an error."""
    with pytest.raises(ValueError, match="inner contains a .*; expected a replay that draws uniformly"):
        RecentReplay(make(), newest=5)


def test_wrong_numbers_are_refused():
    """Invalid numbers raise an error: in the constructor, and from a schedule when a batch is drawn."""
    inner = ReplayBuffer(9, FLAT, seed=0)
    for newest, error, words in (
        (0, ValueError, "newest is 0; expected a number of at least 1, or a schedule"),
        (float("nan"), ValueError, "newest is nan; expected a finite number"),
        ("5", TypeError, "newest is '5'"),
        (True, TypeError, "newest is True"),
        (lambda batches: 0, ValueError, "newest after 0 batches is 0"),
    ):
        with pytest.raises(error, match=words):
            RecentReplay(inner, newest)
    buffer = RecentReplay(filled(inner, 9), _short_after_two)
    buffer.sample(2)
    buffer.sample(2)
    with unchanged(buffer, ValueError, "newest is 0.5; expected a number of at least 1"):
        buffer.sample(2)
    with unchanged(buffer, IndexError, "indices contains 99"):
        buffer.probability([99])
    with unchanged(buffer, ValueError, "batch_size is 0"):
        buffer.draw(0)
    with pytest.raises(AttributeError, match="newest_count of a RecentReplay cannot be set later"):
        buffer.newest_count = 3


def _short_after_two(batches):
    return 0.5 if batches == 2 else 4.0


def test_without_replacement_the_newest_are_drawn_once():
    """Without replacement, a batch larger than the recent transitions raises an error."""
    buffer = RecentReplay(filled(ReplayBuffer(20, FLAT, replace=False, seed=0), 20), newest=5)
    assert sorted(assert_lawful(buffer, 5).indices.tolist()) == [15, 16, 17, 18, 19]
    with unchanged(buffer, ValueError, "batch_size is 6; expected at most 5, the number of recent transitions"):
        buffer.sample(6)


def test_the_order_around_hindsight_is_free():
    """The order of the wrapper and hindsight does not matter. A combined replay adds its newest."""
    batches = []
    for order in (
        lambda b: RecentReplay(HindsightReplay(b, sparse), 6),
        lambda b: HindsightReplay(RecentReplay(b, 6), sparse),
    ):
        replay = order(ReplayBuffer(40, GOAL_SPEC, seed=0))
        goal_episodes(replay, [5, 9, 12])
        batches.append(bits_of(replay.sample(20)))
    assert batches[0] == batches[1]
    combined = CombinedReplay(RecentReplay(filled(ReplayBuffer(20, FLAT, seed=0), 20), newest=4), latest=2)
    np.testing.assert_allclose(combined.probability(np.arange(14, 20), 4), [0, 0, 0.125, 0.125, 0.375, 0.375])
    assert_lawful(combined, 8)


def test_what_is_added_next_is_recent_at_once():
    """A new transition is recent immediately, also where the ring wraps."""
    buffer = RecentReplay(filled(ReplayBuffer(10, FLAT, seed=0), 10), newest=1)
    for number in range(10, 25):
        (index,) = buffer.add(**step(number))
        assert buffer.sample(3).indices.tolist() == [index] * 3
