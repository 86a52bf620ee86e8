"""Rank-based prioritized replay: probabilities follow the order of priorities, exactly after every change."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replaykit import CombinedReplay, PrioritizedBuffer
from replaykit.testing import assert_lawful
from tests.helpers import FLAT, filled, prioritized, step, stretch, unchanged


def powers(count, alpha):
    """The probabilities of the ranks, from rank 1 on."""
    powers = np.arange(1.0, count + 1.0) ** -alpha
    return powers / powers.sum()


@given(
    values=st.lists(st.sampled_from([0.0, 1e-300, 0.5, 1.0, 3.0, 1e300]), min_size=1, max_size=30),
    alpha=st.sampled_from([0.0, 0.7, 1.0, 3.0]),
    weights=st.sampled_from(["batch", "buffer", "none"]),
    draws=st.sampled_from(["stratified", "iid"]),
)
def test_probabilities_and_weights_follow_from_ranks(values, alpha, weights, draws):
    """P = rank**-alpha over the sum; of equal priorities the newer comes first; w = (N P)**-beta over its largest."""
    buffer = prioritized(values, alpha=alpha, beta=0.5, weights=weights, draws=draws, variant="rank")
    order, p = np.lexsort((-np.arange(len(values)), -np.array(values))), powers(len(values), alpha)
    np.testing.assert_allclose(buffer.probability(order), p, rtol=1e-12)
    batch = assert_lawful(buffer, 7)
    everything = (len(values) * p) ** -0.5
    divisor = {"batch": batch.probabilities.min() ** -0.5 * len(values) ** -0.5, "buffer": everything.max()}
    expected = (len(values) * batch.probabilities) ** -0.5 / divisor.get(weights, 1.0)
    np.testing.assert_allclose(batch.weights, expected, rtol=1e-6)
    assert buffer.distribution.mass() == pytest.approx((np.arange(1.0, len(values) + 1.0) ** -alpha).sum())


def test_a_new_transition_has_the_first_rank_at_once():
    """A new transition has the first rank before anything is sorted, and replaces the overwritten one."""
    buffer = prioritized(np.arange(100.0), variant="rank", alpha=1.0)
    first = powers(100, 1.0)
    for number in range(100, 105):
        (new,) = buffer.add(**step(number))
        np.testing.assert_allclose(
            buffer.probability([new, 99, 98, number - 99]), first[[0, number - 99, number - 98, -1]]
        )
    buffer.update_priorities([103], priorities=[0.0])
    np.testing.assert_allclose(buffer.probability([104, 103, 102]), first[[0, 99, 1]])
    buffer.check()


def test_the_size_of_a_priority_does_not_count():
    """An outlier or another unit of the TD errors does not change batches."""
    errors = np.random.default_rng(0).normal(size=50)
    batches = []
    for scale in (1.0, 1e-6, 1e6):
        buffer = prioritized(np.abs(errors) * scale, variant="rank", seed=1)
        buffer.update_priorities([3], [1e9 * scale])
        batches.append(buffer.sample(20).indices.tolist())
    assert batches[0] == batches[1] == batches[2]


def test_a_priority_of_zero_has_the_last_rank_and_is_drawn():
    """A transition of priority 0 has the last rank and can be drawn, unlike with proportional priorities."""
    buffer = prioritized([0.0, 0.0, 2.0], variant="rank", alpha=1.0)
    np.testing.assert_allclose(buffer.probability([2, 1, 0]), powers(3, 1.0))
    buffer.update_priorities([2], [0.0])
    assert set(buffer.sample(60).indices.tolist()) == {0, 1, 2}
    (new,) = buffer.add(**step(3))
    assert buffer.stats()["priority_max"] == 1.0
    assert buffer.probability([new]) == powers(3, 1.0)[0]


def test_many_changes_at_once_give_the_order_of_few():
    """Sorting all priorities again gives the same order as moving them one by one."""
    rng = np.random.default_rng(0)
    one, two = (prioritized(np.ones(300), variant="rank") for _ in range(2))
    for _ in range(5):
        indices, errors = rng.integers(0, 300, 240), rng.normal(size=240).round(1)
        one.update_priorities(indices, errors)
        for k in range(0, 240, 6):
            two.update_priorities(indices[k : k + 6], errors[k : k + 6])
        np.testing.assert_array_equal(one.probability(np.arange(300)), two.probability(np.arange(300)))
        one.check()
        two.check()


def test_numbers_for_a_logger():
    """`stats` has the largest and the median priority. Both are 0 in an empty buffer."""
    empty = PrioritizedBuffer(4, FLAT, variant="rank")
    assert {empty.stats()[name] for name in ("priority_max", "priority_median")} == {0.0}
    stats = prioritized([5.0, 1.0, 2.0, 9.0, 3.0], variant="rank", beta=0.3).stats()
    assert (stats["priority_max"], stats["priority_median"], stats["beta"]) == (9.0, 3.0, 0.3)


def test_the_least_probability_is_that_of_the_last_rank():
    """The least probability is that of the last rank, also without some indices or in combined replay."""
    buffer = prioritized([4.0, 1.0, 3.0, 2.0], variant="rank", alpha=1.0, weights="buffer")
    p = powers(4, 1.0)
    assert buffer.least_probability(2, np.array([0, 1])) == p[2]
    assert buffer.least_probability(2, np.arange(4)) == np.inf
    assert_lawful(CombinedReplay(buffer, latest=2), 5)


@pytest.mark.parametrize("eps", [0.0, 1e-2, 0.5])
def test_options_that_mean_nothing_are_refused(eps):
    """`eps` raises an error, because ranks do not depend on it, and so does an unknown variant."""
    with pytest.raises(ValueError, match=r'eps is .* with variant="rank"; leave it out, since'):
        PrioritizedBuffer(4, FLAT, variant="rank", eps=eps)
    with pytest.raises(ValueError, match="variant is 'ranks'; expected one of 'proportional', 'rank'"):
        PrioritizedBuffer(4, FLAT, variant="ranks")
    buffer = PrioritizedBuffer(4, FLAT, variant="rank")
    assert (buffer.variant, buffer.alpha, buffer.eps) == ("rank", 0.6, 0.0)
    assert (PrioritizedBuffer(4, FLAT).variant, PrioritizedBuffer(4, FLAT).eps) == ("proportional", 1e-2)
    with pytest.raises(AttributeError, match="variant of a PrioritizedBuffer cannot be set later"):
        buffer.variant = "proportional"


def test_refused_updates_and_indices_change_nothing():
    """Invalid updates and indices change nothing, as with proportional priorities."""
    buffer = filled(PrioritizedBuffer(6, FLAT, variant="rank", seed=0), 9)
    with unchanged(buffer, IndexError, "indices contains 2, which is stale"):
        buffer.probability([3, 2])
    for values in ([np.nan], [np.inf], [-1.0]):
        with unchanged(buffer, ValueError, "priorities contains"):
            buffer.update_priorities([3], priorities=values)
    assert buffer.update_priorities([1, 4], [1.0, 2.0]) == 1


def test_ranks_are_there_after_mapped_files_are_opened_again(tmp_path):
    """After mapped files are opened again, the order is computed from the priorities."""
    buffer = filled(PrioritizedBuffer(40, FLAT, variant="rank", storage=tmp_path, seed=0), 60)
    buffer.update_priorities(buffer.stored(), np.random.default_rng(0).normal(size=40).round(1))
    expected = buffer.probability(buffer.stored())
    del buffer
    again = PrioritizedBuffer(40, FLAT, variant="rank", storage=tmp_path, seed=0)
    np.testing.assert_array_equal(again.probability(again.stored()), expected)
    again.check()


def test_another_alpha_takes_the_priorities_of_a_checkpoint():
    """A checkpoint can be loaded with another alpha, because priorities are saved without the exponent."""
    saved = prioritized([3.0, 1.0, 2.0], variant="rank", alpha=1.0)
    other = PrioritizedBuffer(3, FLAT, variant="rank", alpha=0.5)
    pytest.importorskip("torch")
    other.load_state_dict(saved.state_dict(), exact=False)
    np.testing.assert_allclose(other.probability([0, 2, 1]), powers(3, 0.5))


@pytest.mark.parametrize("lanes", [1, 3])
def test_nothing_from_before_a_clear_is_drawn(lanes):
    """After a clear, no earlier transition is drawn, including those of paused lanes."""
    buffer = PrioritizedBuffer(10 * lanes, FLAT, num_envs=lanes, variant="rank", seed=0)
    buffer.extend(**stretch(9, lanes))
    buffer.sample(5)
    buffer.clear()
    buffer.check()
    last = buffer.add(**{name: value[0] for name, value in stretch(1, lanes).items()})
    assert set(buffer.sample(50).indices.tolist()) <= set(last.tolist())
    buffer.check()
