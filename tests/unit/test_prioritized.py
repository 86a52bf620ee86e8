"""Prioritized replay: five quantities, and each is exact."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replaykit import CombinedReplay, LinearSchedule, PrioritizedBuffer
from tests.helpers import FLAT, filled, prioritized, step, stretch, unchanged

positive = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20)


@given(values=positive, alpha=st.floats(0, 2), batch_size=st.integers(1, 40), seed=st.integers(0, 99))
def test_probabilities_are_scaled_priorities_over_their_sum(values, alpha, batch_size, seed):
    """P = p**alpha / sum(p**alpha), in a batch and from `probability`."""
    buffer = prioritized(values, alpha=alpha, seed=seed)
    scaled = np.asarray(values) ** alpha
    batch = buffer.sample(batch_size)
    np.testing.assert_allclose(batch.probabilities, (scaled / scaled.sum())[batch.indices], rtol=1e-12)
    np.testing.assert_allclose(buffer.probability(np.arange(len(values))), scaled / scaled.sum(), rtol=1e-12)


@given(values=positive, seed=st.integers(0, 99))
def test_weights_make_the_mean_unbiased(values, seed):
    """With beta = 1 and no normalization, sum_i P_i w_i f_i is exactly the mean of f."""
    buffer = prioritized(values, beta=1.0, weights="none", seed=seed)
    p = buffer.probability(np.arange(len(values)))
    from replaykit.batch import Draw

    weights = buffer.weigh(Draw(np.arange(len(values)), p))
    f = np.random.default_rng(seed).random(len(values))
    np.testing.assert_allclose((p * weights * f).sum(), f.mean(), rtol=1e-6)


@given(
    values=positive,
    alpha=st.sampled_from([0.3, 1.0]),
    beta=st.floats(0, 1),
    mode=st.sampled_from(["batch", "buffer", "none"]),
)
def test_weights_by_their_formula(values, alpha, beta, mode):
    """Weights are (N P)**-beta, divided by the largest of the batch, of the buffer, or not at all."""
    buffer = prioritized(values, alpha=alpha, beta=beta, weights=mode)
    batch = buffer.sample(7)
    weights = (len(values) * batch.probabilities) ** -beta
    everything = (len(values) * buffer.probability(np.arange(len(values)))) ** -beta
    divisor = {"batch": weights.max(), "buffer": everything.max(), "none": 1.0}[mode]
    np.testing.assert_allclose(batch.weights, weights / divisor, rtol=1e-6)


def test_weights_times_scaled_priorities_are_constant():
    """In a batch, weight times p**(alpha beta) is constant."""
    values = np.random.default_rng(0).uniform(0.1, 9.0, 100)
    batch = (buffer := prioritized(values, alpha=0.7, beta=0.5)).sample(64)
    products = batch.weights * values[batch.indices] ** (0.7 * 0.5)
    np.testing.assert_allclose(products, products[0], rtol=1e-6)
    assert buffer.beta == 0.5


def test_new_transitions_get_the_largest_priority_now_in_the_buffer():
    """New transitions get the largest current priority, or 1 if all are 0. Former outliers have no effect."""
    buffer = prioritized([1.0, 1.0, 1.0, 1.0])
    buffer.update_priorities([2], priorities=[100.0])
    (new,) = buffer.add(**step(4))
    assert buffer.probability([new])[0] == pytest.approx(100.0 / 202.0)
    buffer.update_priorities([2, new], priorities=[2.0, 1.0])
    (newer,) = buffer.add(**step(5))
    assert buffer.probability([newer])[0] == pytest.approx(2.0 / 6.0)
    buffer.update_priorities([2, 3, new, newer], priorities=np.zeros(4))
    (newest,) = buffer.add(**step(6))
    assert buffer.probability([newest]).tolist() == [1.0]


def test_a_known_td_error_sets_the_first_priority():
    """A TD error passed to an add sets the initial priority of its step, also with masks and long extends."""
    buffer = PrioritizedBuffer(4, FLAT, alpha=1.0, eps=0.5, seed=0)
    buffer.add(**step(0), td_error=-1.5)
    buffer.add(**step(1), td_error=[0.5])
    buffer.add(**step(2))
    np.testing.assert_allclose(buffer.probability([0, 1, 2]), np.array([2, 1, 2]) / 5)
    buffer.extend(**stretch(7), td_error=np.arange(7.0))
    np.testing.assert_allclose(buffer.probability([6, 7, 8, 9]), np.array([3.5, 4.5, 5.5, 6.5]) / 20)
    lanes = PrioritizedBuffer(8, FLAT, num_envs=2, alpha=1.0, eps=0.0, seed=0)
    lanes.extend(**stretch(2, 2), mask=[[True, False], [True, True]], td_error=[[1.0, np.nan], [2.0, 3.0]])
    np.testing.assert_allclose(lanes.probability([0, 2, 1]), np.array([1, 2, 3]) / 6)
    for wrong in ([1.0, 2.0], [[1.0]], np.nan, np.inf, "1"):
        with unchanged(buffer, (ValueError, TypeError), "td_error"):
            buffer.add(**step(0), td_error=wrong)


@pytest.mark.parametrize(
    ("indices", "errors", "error", "words"),
    [
        ([0, 1], [1.0, np.nan], ValueError, "td_errors contains nan; expected finite"),
        ([0, 1], [np.inf, 1.0], ValueError, "td_errors contains inf"),
        ([0, 1], [[1.0], [1.0]], ValueError, r"td_errors has shape \(2, 1\); expected \(2,\)"),
        ([0, 1], [1.0], ValueError, r"td_errors has shape \(1,\); expected \(2,\)"),
        ([[0, 1]], [[1.0, 1.0]], ValueError, r"indices has shape \(1, 2\)"),
        (0, 1.0, ValueError, r"indices has shape \(\)"),
        (
            [0, 9],
            [1.0, 1.0],
            IndexError,
            "indices contains 9, which the buffer never returned; the newest index of lane 0 is 5",
        ),
        ([0, -1], [1.0, 1.0], IndexError, "indices contains -1"),
        ([0.0, 1.0], [1.0, 1.0], TypeError, "indices has dtype float64"),
        ([True, False], [1.0, 1.0], TypeError, "indices has dtype bool"),
        (np.array([2**63], np.uint64), [1.0], IndexError, "9223372036854775808"),
        ([0, 1], ["a", "b"], TypeError, "td_errors"),
        ([0, 1], None, TypeError, "either td_errors or priorities"),
    ],
)
def test_bad_updates_are_refused_before_anything_changes(indices, errors, error, words):
    """If one entry is invalid, no entry is applied."""
    buffer = filled(PrioritizedBuffer(6, FLAT, seed=0), 6)
    with unchanged(buffer, error, words):
        buffer.update_priorities(indices, errors)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, -1e-300, 1e308])
def test_bad_priorities_are_refused(value):
    """NaN, infinite, negative or too large priorities raise an error."""
    buffer = filled(PrioritizedBuffer(6, FLAT, alpha=1.0, seed=0), 6)
    with unchanged(buffer, ValueError, "priorities contains"):
        buffer.update_priorities([0, 1], priorities=[1.0, value])
    with unchanged(buffer, TypeError, "either"):
        buffer.update_priorities([0], [1.0], priorities=[1.0])


def test_stale_updates_are_ignored_and_counted():
    """Stale updates are ignored and counted. The new transition in the slot keeps its priority."""
    buffer = PrioritizedBuffer(3, FLAT, alpha=1.0, eps=0.0, seed=0)
    filled(buffer, 5)
    before = buffer.probability([2, 3, 4])
    assert buffer.update_priorities([0, 1], [50.0, 60.0]) == 0
    np.testing.assert_array_equal(buffer.probability([2, 3, 4]), before)
    assert buffer.update_priorities([0, 2, 1, 4], [9.0, 3.0, 9.0, -6.0]) == 2
    np.testing.assert_allclose(buffer.probability([2, 3, 4]), [0.3, 0.1, 0.6])
    assert buffer.stats()["stale_updates"] == 4.0


def test_of_duplicates_the_last_wins():
    """The last value of a repeated index is kept, wherever the others are."""
    buffer = prioritized([1.0] * 4)
    assert buffer.update_priorities([1, 0, 1, 1], priorities=[9.0, 2.0, 8.0, 5.0]) == 4
    np.testing.assert_allclose(buffer.probability([0, 1, 2, 3]), np.array([2, 5, 1, 1]) / 9)
    assert buffer.update_priorities([], []) == 0


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8, np.uint32, np.float64, list])
def test_priorities_of_any_dtype_are_the_same(dtype):
    """Priorities as floats of any size, integers, lists and CPU tensors give the same result."""
    values = np.array([1, 2, 4, 9])
    given_values = values.tolist() if dtype is list else values.astype(dtype)
    expected = prioritized(values.astype(float)).probability(np.arange(4))
    np.testing.assert_array_equal(prioritized(given_values).probability(np.arange(4)), expected)


def test_tensors_may_be_given_back():
    """Indices and TD errors can be tensors of any floating dtype, also with a gradient history."""
    torch = pytest.importorskip("torch")
    buffer = prioritized([1.0] * 4, eps=0.0)
    batch = buffer.sample(4).to_torch()
    assert buffer.update_priorities(batch.indices, torch.full((4,), -3.0)) == 4
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        errors = torch.arange(1, 5, dtype=dtype).requires_grad_()
        assert buffer.update_priorities(batch.indices, errors * 2.0) == 4
    with unchanged(buffer, ValueError, "td_errors contains nan"):
        buffer.update_priorities(batch.indices, torch.full((4,), torch.nan, requires_grad=True))


@pytest.mark.parametrize("weights", ["batch", "buffer", "none"])
def test_weights_are_positive_at_every_scale_of_priorities(weights):
    """Weights are positive for priorities over 600 decades, with and without combined replay."""
    buffer = prioritized([1e-300, 1e300, 1.0], beta=0.5, weights=weights)
    assert (buffer.sample(5).weights > 0.0).all()
    assert (CombinedReplay(buffer, latest=1).sample(5).weights > 0.0).all()
    tiny = prioritized([1e-300, 1e-290], alpha=2.0)  # their squares underflow
    assert (tiny.probability([0, 1]) > 0.0).all()


def test_every_priority_zero_is_a_clear_error():
    """If all priorities are 0, sampling raises an error."""
    buffer = prioritized([0.0, 0.0, 0.0])
    assert buffer.least_probability(2, np.array([0])) == np.inf
    with pytest.raises(ValueError, match="every priority is 0"):
        buffer.sample(2)
    buffer.update_priorities([1], priorities=[1e-300])
    assert set(buffer.sample(9).indices.tolist()) == {1}


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"alpha": -0.1}, ValueError),
        ({"alpha": float("nan")}, ValueError),
        ({"alpha": None}, TypeError),
        ({"beta": 1.1}, ValueError),
        ({"beta": -0.1}, ValueError),
        ({"beta": "0.4"}, TypeError),
        ({"eps": -1e-9}, ValueError),
        ({"eps": float("inf")}, ValueError),
        ({"eps": 1e308}, ValueError),
        ({"draws": "uniform"}, ValueError),
        ({"weights": "max"}, ValueError),
        ({"weights": True}, ValueError),
    ],
)
def test_options_are_checked_by_name(options, error):
    """Each option out of its range raises an error that names it."""
    with pytest.raises(error, match=next(iter(options))):
        PrioritizedBuffer(4, FLAT, **options)


def test_beta_is_settable_and_schedulable():
    """Beta can be set at any time, to a number or to a function of the number of sampled batches."""
    buffer = prioritized([1.0, 2.0], beta=LinearSchedule(0.4, 1.0, steps=4))
    assert [round((buffer.sample(2), buffer.beta)[1], 12) for _ in range(6)] == [0.55, 0.7, 0.85, 1.0, 1.0, 1.0]
    buffer.beta = 0.0
    assert buffer.sample(2).weights.tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="beta is 2"):
        buffer.beta = 2
    buffer.beta = lambda batches: 7.0 if batches == 8 else 0.5  # which is not found when it is given
    buffer.sample(2)
    with pytest.raises(ValueError, match="beta is 7"):
        buffer.sample(2)
    with pytest.raises(ValueError, match="steps is 0"):
        LinearSchedule(0.0, 1.0, 0)


@pytest.mark.parametrize("lanes", [1, 3])
def test_nothing_from_before_a_clear_is_drawn(lanes):
    """After a clear, no earlier transition is drawn, including those of paused lanes."""
    buffer = PrioritizedBuffer(10 * lanes, FLAT, num_envs=lanes, seed=0)
    buffer.extend(**stretch(9, lanes))
    buffer.sample(5)
    buffer.clear()
    last = buffer.add(**{name: value[0] for name, value in stretch(1, lanes).items()})
    assert set(buffer.sample(50).indices.tolist()) <= set(last.tolist())
    buffer.check()


def test_lanes_that_pause_are_drawn_at_once():
    """The first batch after a masked add draws from all lanes correctly."""
    buffer = PrioritizedBuffer(30, FLAT, num_envs=3, seed=0)
    added = []
    for number in range(7):
        one = {name: value[0] for name, value in stretch(1, 3).items()}
        mask = np.array([True, number % 2 == 0, number > 3])
        added += [index for index in buffer.add(**one, mask=mask).tolist() if index >= 0]
        assert set(buffer.sample(300).indices.tolist()) == set(added)
        buffer.check()
