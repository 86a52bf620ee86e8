"""Priorities: which are refused, which are ignored, and draws that follow them exactly."""

import pickle

import numpy as np
import pytest
from scipy import stats

from replaykit import CombinedReplay, PrioritizedBuffer, ReplayBuffer, SumTree
from tests.faults.stacks import FLAT, STACKS, Stack, every_stack, full, prioritized_stacks, refused
from tests.helpers import prioritized

every_prioritized = pytest.mark.parametrize("stack", prioritized_stacks, ids=["buffer", "combined", "both wrappers"])
SIGNIFICANCE = 1e-6
"""The probability that a test of frequencies would fail for a right buffer, before its seed was fixed."""


def shares(replay, indices):
    """The probability of each index in the buffer inside all wrappers."""
    while hasattr(replay, "inner"):
        replay = replay.inner
    return replay.probability(indices)


# -- Values ------------------------------------------------------------------------------------------------------


@every_stack
def test_a_nan_td_error_is_refused(stack):
    """A TD error of NaN raises an error in every buffer, and no entry of the update is applied."""
    replay = full(stack)
    with refused(replay, ValueError, "td_errors", "expected finite", "nan"):
        replay.update_priorities([5, 6], [1.0, np.nan])


@every_stack
def test_an_infinite_td_error_is_refused(stack):
    """An infinite TD error raises an error."""
    replay = full(stack)
    for value in (np.inf, -np.inf):
        with refused(replay, ValueError, "td_errors", "expected finite", value):
            replay.update_priorities([5, 6], [value, 1.0])


@every_stack
def test_a_nan_priority_is_refused(stack):
    """A priority of NaN raises an error."""
    replay = full(stack)
    with refused(replay, ValueError, "priorities", "expected finite", "nan"):
        replay.update_priorities([5, 6], priorities=[1.0, np.nan])


@every_stack
def test_an_infinite_priority_is_refused(stack):
    """An infinite priority raises an error."""
    replay = full(stack)
    with refused(replay, ValueError, "priorities", "expected finite", "inf"):
        replay.update_priorities([5, 6], priorities=[np.inf, 1.0])


@every_stack
def test_a_negative_priority_is_refused(stack):
    """A negative priority raises an error, even if it is tiny."""
    replay = full(stack)
    for value in (-1.0, -1e-300):
        with refused(replay, ValueError, "priorities", "non-negative", value):
            replay.update_priorities([5, 6], priorities=[1.0, value])


def test_a_negative_td_error_counts_by_its_magnitude():
    """A negative TD error has the same effect as a positive one of the same magnitude."""
    replay = prioritized([1.0, 1.0], eps=0.0)
    assert replay.update_priorities([0, 1], [-3.0, 1.0]) == 2
    np.testing.assert_allclose(replay.probability([0, 1]), [0.75, 0.25])


@every_prioritized
def test_a_priority_whose_sum_would_overflow_is_refused(stack):
    """A priority so large that the sum of all priorities could become infinite raises an error."""
    replay = full(Stack(lambda *a, **k: stack.make(*a, alpha=1.0, **k), stack.spec))
    with refused(replay, ValueError, "priorities", "at most", "1e+308"):
        replay.update_priorities([5], priorities=[1e308])


@every_stack
def test_a_column_of_td_errors_is_refused(stack):
    """TD errors of shape (B, 1) instead of (B,) raise an error that suggests how to reshape them."""
    replay = full(stack)
    with refused(replay, ValueError, "td_errors has shape", (2, 1), "expected", (2,), "td_errors.squeeze(-1)"):
        replay.update_priorities([5, 6], [[1.0], [2.0]])


@every_stack
def test_more_indices_than_td_errors_are_refused(stack):
    """Indices and TD errors of different lengths raise an error. A single TD error is not repeated."""
    replay = full(stack)
    for errors in ([1.0], [1.0, 2.0, 3.0], 1.0):
        with refused(replay, ValueError, "td_errors has shape", np.shape(errors), "expected", (2,)):
            replay.update_priorities([5, 6], errors)


@every_stack
def test_td_errors_and_priorities_together_are_refused(stack):
    """Passing neither or both of `td_errors` and `priorities` raises an error."""
    replay = full(stack)
    with refused(replay, TypeError, "td_errors", "priorities"):
        replay.update_priorities([5], [1.0], priorities=[1.0])
    with refused(replay, TypeError, "td_errors", "priorities"):
        replay.update_priorities([5])


@every_stack
def test_td_errors_that_are_no_numbers_are_refused(stack):
    """TD errors that are text, objects or complex numbers raise an error."""
    replay = full(stack)
    for errors in (["1"], [None], [1j]):
        with refused(replay, TypeError, "td_errors", "expected real numbers"):
            replay.update_priorities([5], errors)


# -- Indices -----------------------------------------------------------------------------------------------------


@every_stack
def test_an_index_that_was_never_given_out_is_refused(stack):
    """An index larger than the newest raises an error. Nothing is written outside the arrays."""
    replay = full(stack)
    for index in (10, 11, 10**6, 2**62):
        with refused(replay, IndexError, "indices", index, "never returned", "newest"):
            replay.update_priorities([5, index], [1.0, 1.0])


@every_stack
def test_an_index_of_an_empty_buffer_is_refused(stack):
    """In an empty buffer, every index raises an error."""
    replay = stack.build()
    with refused(replay, IndexError, "indices", "0", "empty"):
        replay.update_priorities([0], [1.0])


@every_stack
def test_a_negative_index_is_refused(stack):
    """A negative index raises an error. -1 does not mean the last transition."""
    replay = full(stack)
    for index in (-1, -6, -(2**63)):
        with refused(replay, IndexError, "indices", index, "never returned"):
            replay.update_priorities([5, index], [1.0, 1.0])


@every_stack
def test_a_float_index_is_refused(stack):
    """A float or a bool as an index raises an error."""
    replay = full(stack)
    for index in (5.0, np.float32(5), True):
        with refused(replay, TypeError, "indices has dtype", "expected integers"):
            replay.update_priorities([index], [1.0])


@every_stack
def test_an_index_beyond_int64_is_refused(stack):
    """An unsigned index of 2**63 raises an error. It does not become negative."""
    replay = full(stack)
    with refused(replay, IndexError, "indices", 2**63):
        replay.update_priorities(np.array([2**63], np.uint64), [1.0])


@every_prioritized
def test_a_stale_index_is_ignored_and_counted(stack):
    """An update of an overwritten transition is ignored. The new transition in its slot keeps its own priority."""
    replay = full(stack)
    before = shares(replay, replay.stored())
    assert replay.update_priorities([0, 3], [50.0, 60.0]) == 0
    np.testing.assert_array_equal(shares(replay, replay.stored()), before)
    assert replay.stats()["stale_updates"] == 2.0
    assert replay.update_priorities([0, 5], [50.0, 60.0]) == 1
    assert shares(replay, replay.stored()).argmax() == 1


@every_prioritized
def test_of_duplicates_in_one_update_the_last_wins(stack):
    """If an index occurs twice in an update, the last value counts."""
    one, other = full(stack), full(stack)
    one.update_priorities([5, 6, 5, 5], [9.0, 2.0, 8.0, 0.5])
    other.update_priorities([6, 5], [2.0, 0.5])
    np.testing.assert_array_equal(shares(one, one.stored()), shares(other, other.stored()))


@every_stack
def test_an_empty_update_changes_nothing(stack):
    """An update of zero indices returns 0 and does not change the buffer."""
    replay = full(stack)
    before = pickle.dumps(replay)
    assert replay.update_priorities([], []) == 0
    assert replay.update_priorities(np.empty(0, np.int64), priorities=np.empty(0)) == 0
    assert pickle.dumps(replay) == before


# -- Zeros and scales --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draws", ["stratified", "iid"])
@pytest.mark.parametrize("weights", ["batch", "buffer", "none"])
def test_every_priority_zero_is_a_clear_error(draws, weights):
    """If all priorities are 0, sampling raises an error. It does not hang."""
    replay = prioritized([0.0, 0.0, 0.0], draws=draws, weights=weights)
    with refused(replay, ValueError, "every priority is 0"):
        replay.sample(2)
    replay.update_priorities([1], priorities=[1e-300])
    assert set(replay.sample(9).indices.tolist()) == {1}


@pytest.mark.parametrize("draws", ["stratified", "iid"])
def test_a_transition_of_priority_zero_is_never_drawn(draws):
    """A transition of priority 0 is never drawn in 400,000 draws, wherever it is stored."""
    values = np.where(np.arange(37) % 3, np.geomspace(1e-6, 1e6, 37), 0.0)
    replay = prioritized(values, draws=draws)
    for _ in range(100):
        assert (values[replay.sample(4000).indices] > 0.0).all()


@pytest.mark.parametrize("draws", ["stratified", "iid"])
@pytest.mark.parametrize("capacity", [5, 64, 100])
def test_a_slot_that_is_not_filled_is_never_drawn(draws, capacity):
    """While a buffer fills up, only stored transitions are drawn, each with its exact probability."""
    replay = PrioritizedBuffer(capacity, FLAT, alpha=1.0, draws=draws, seed=0)
    for count in range(1, 5):
        replay.add(**STACKS["prioritized"].steps())
        batch = replay.sample(500)
        assert set(batch.indices.tolist()) <= set(range(count))
        np.testing.assert_allclose(batch.probabilities, 1.0 / count)


def test_priorities_over_600_decades_are_drawn_in_proportion():
    """Probabilities are exact for priorities from 1e-300 to 1e300, and every weight is positive."""
    values = np.array([1e-300, 1e-150, 1.0, 2.0, 1e300])
    replay = prioritized(values)
    np.testing.assert_allclose(replay.probability(np.arange(5)), values / values.sum(), rtol=1e-12)
    assert (replay.sample(9).weights > 0.0).all()
    replay.update_priorities([4], priorities=[0.0])  # what is left has its own proportions again
    np.testing.assert_allclose(replay.probability([0, 1, 2, 3]), [1e-300 / 3, 1e-150 / 3, 1 / 3, 2 / 3], rtol=1e-12)


def test_a_huge_priority_that_falls_again_leaves_no_trace():
    """After one priority was 1e300 and fell again, all other priorities are exact, and new priorities are not huge."""
    replay = prioritized([1.0, 2.0, 3.0, 4.0])
    replay.update_priorities([2], priorities=[1e300])
    replay.sample(4)
    replay.update_priorities([2], priorities=[3.0])
    assert replay.probability([0, 1, 2, 3]).tolist() == [0.1, 0.2, 0.3, 0.4]
    assert replay.stats()["scaled_priority_max"] == 4.0


def test_twenty_thousand_updates_and_then_one_positive_priority_draw_only_that_one():
    """Sums of priorities do not drift. If at last all priorities but one are 0, only that transition is drawn."""
    rng = np.random.default_rng(0)
    replay = prioritized(np.ones(100))
    for _ in range(200):
        values = rng.choice([0.0, 1e-300, 1e-12, 0.1, 1.0, 1e8, 1e300], 100) * rng.random(100)
        replay.update_priorities(rng.integers(0, 100, 100), priorities=values)
        replay.sample(3)
    last = np.zeros(100)
    last[61] = 0.1
    replay.update_priorities(np.arange(100), priorities=last)
    assert set(replay.sample(1000).indices.tolist()) == {61}
    assert replay.probability([61]).tolist() == [1.0]
    replay.check()


def test_a_point_on_a_boundary_never_finds_a_zero_leaf():
    """A draw that falls exactly on the boundary between two priorities, or one bit beside it, finds a positive one."""
    values = [3.0, 0.0, 0.0, 1.0, 0.1, 0.0, 0.2, 0.0]
    tree = SumTree(8)
    tree.set(np.arange(8), values)
    for mass in np.cumsum(values):
        for point in (np.nextafter(mass, 0), mass, np.nextafter(mass, np.inf)):
            if point < tree.total:
                assert values[tree.find([point])[0]] > 0.0


# -- Options -----------------------------------------------------------------------------------------------------


def test_alpha_zero_is_uniform_replay():
    """With alpha = 0, every transition is equally likely, for any priorities."""
    replay = prioritized([0.5, 1.0, 100.0], alpha=0.0)
    np.testing.assert_array_equal(replay.probability([0, 1, 2]), [1 / 3] * 3)
    assert replay.sample(6).weights.tolist() == [1.0] * 6


def test_a_wrong_alpha_is_refused():
    """A negative, infinite or NaN alpha raises an error."""
    for value in (-0.1, float("nan"), float("inf"), "0.6", None, True):
        with refused(None, (ValueError, TypeError), "alpha is", "non-negative", repr(value)):
            PrioritizedBuffer(4, FLAT, alpha=value)


def test_a_wrong_beta_is_refused():
    """A beta outside [0, 1] raises an error."""
    for value in (-0.1, 1.1, float("nan"), "0.4", None, True):
        with refused(None, (ValueError, TypeError), "beta", "[0, 1]", repr(value)):
            PrioritizedBuffer(4, FLAT, beta=value)


def test_a_wrong_eps_is_refused():
    """A negative, infinite or NaN eps raises an error."""
    for value in (-1e-9, float("nan"), float("inf"), "0"):
        with refused(None, (ValueError, TypeError), "eps is", "non-negative", repr(value)):
            PrioritizedBuffer(4, FLAT, eps=value)


def test_an_unknown_choice_is_refused_with_the_choices():
    """An unknown value of `draws` or `weights` raises an error that lists the valid values."""
    for name, value in (("draws", "uniform"), ("weights", "max"), ("weights", None), ("draws", 1)):
        with refused(None, ValueError, f"{name} is {value!r}", "expected one of"):
            PrioritizedBuffer(4, FLAT, **{name: value})


# -- New transitions ---------------------------------------------------------------------------------------------


@every_prioritized
def test_a_new_transition_over_a_low_priority_slot_has_the_largest_priority(stack):
    """A new transition does not inherit the priority of the transition that it overwrites."""
    replay = full(stack)
    stored = replay.stored()
    replay.update_priorities(stored, priorities=[1e-9, 2.0, 3.0, 5.0, 4.0, 1.0])
    (new,) = replay.add(**stack.steps())
    assert new % replay.capacity == stored[0] % replay.capacity, "the same slot"
    assert shares(replay, [new])[0] == shares(replay, replay.stored()).max() == shares(replay, [stored[3]])[0]


@every_prioritized
@pytest.mark.parametrize("lanes", [1, 2])
def test_td_errors_of_an_extend_that_wraps_go_to_their_own_rows(stack, lanes):
    """If `extend` continues from the last slot to the first, each step still gets its own TD error."""
    replay = Stack(lambda *a, **k: stack.make(*a, alpha=1.0, eps=0.0, **k), stack.spec).build(8, num_envs=lanes)
    errors = np.arange(1.0, 15.0).reshape((7, 2) if lanes == 2 else 14)
    indices = replay.extend(**stack.steps(errors.shape), td_error=-errors)
    kept = errors.ravel()[-8:]
    np.testing.assert_allclose(shares(replay, indices.ravel()[-8:]), kept / kept.sum(), rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.uint64, list])
def test_priorities_of_every_dtype_give_the_same_result(dtype):
    """Priorities as float16 to float64, as integers and as lists give the same probabilities."""
    values = [1, 2, 4, 9]
    replay = prioritized([1.0] * 4)
    replay.update_priorities([0, 1, 2, 3], priorities=values if dtype is list else np.array(values, dtype))
    np.testing.assert_array_equal(replay.probability([0, 1, 2, 3]), np.array(values) / 16)


# -- Exactness ---------------------------------------------------------------------------------------------------

VALUES = np.array([0.0, 1.0, 2.0, 0.5, 7.0, 1e-3, 3.0, 0.0, 4.0])
P = VALUES / VALUES.sum()


@pytest.mark.parametrize("draws", ["stratified", "iid"])
def test_frequencies_are_the_probabilities(draws):
    """In 200,000 draws, the count of each transition is within the exact binomial bounds of its probability."""
    replay = prioritized(VALUES, draws=draws)
    counts = np.zeros(len(P), int)
    for _ in range(200):
        counts += np.bincount(replay.sample(1000).indices, minlength=len(P))
    low, high = stats.binom.ppf([[SIGNIFICANCE], [1 - SIGNIFICANCE]], counts.sum(), P)
    assert ((low <= counts) & (counts <= high)).all()


def test_weights_are_their_formula():
    """Each weight is (N P)**-beta, divided by the largest weight of the batch."""
    replay = prioritized(VALUES, beta=0.7)
    batch = replay.sample(40)
    weights = (len(P) * P[batch.indices]) ** -0.7
    np.testing.assert_allclose(batch.weights, weights / weights.max(), rtol=1e-6)


def test_inclusion_counts_of_stratified_draws_are_exact():
    """With stratified draws, the number of times that a transition is drawn differs from B P by less than 2."""
    replay = prioritized(VALUES)
    for _ in range(50):
        counts = np.bincount(replay.sample(64).indices, minlength=len(P))
        assert (np.abs(counts - 64 * P) < 2.0).all()


@pytest.mark.parametrize("make", [ReplayBuffer, PrioritizedBuffer])
def test_probabilities_of_combined_replay_are_true_inclusion_probabilities(make):
    """Probabilities of combined replay include the newest transitions, and draws are within the exact bounds."""
    replay = CombinedReplay(make(9, FLAT, seed=0), latest=2)
    replay.extend(**STACKS["uniform"].steps((9,)))
    expected = replay.probability(np.arange(9), 8)
    assert expected.sum() == pytest.approx(1.0)
    inner = replay.inner.probability(np.arange(9))
    np.testing.assert_allclose(expected, (6 * inner + np.arange(9) // 7) / 8)
    counts = np.zeros(9, int)
    for _ in range(5000):
        counts += np.bincount(replay.sample(8).indices, minlength=9)
    low, high = stats.binom.ppf([[SIGNIFICANCE], [1 - SIGNIFICANCE]], 5000 * 6, inner)
    drawn = counts - 5000 * (np.arange(9) // 7)
    assert ((low <= drawn) & (drawn <= high)).all()
