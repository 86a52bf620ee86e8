"""Large-batch replay: a batch is chosen from a large batch, by priorities from a function of the user."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replaykit import CombinedReplay, HindsightReplay, LargeBatchReplay, PrioritizedBuffer, RecentReplay, ReplayBuffer
from replaykit.batch import Draw
from replaykit.diagnostics import ReplayMonitor
from replaykit.testing import assert_lawful
from tests.helpers import FLAT, GOAL_SPEC, filled, goal_episodes, prioritized, sparse


def rewards(batch):
    """The priority of each row: its reward, which is its index here, and a constant."""
    return batch.reward + 0.5


def large(inner, factor=4, priority_fn=rewards):
    return LargeBatchReplay(inner, factor, priority_fn=priority_fn)


@given(
    batch_size=st.integers(1, 9),
    factor=st.integers(1, 5),
    kind=st.sampled_from(["uniform", "proportional", "rank"]),
    seed=st.integers(0, 99),
)
def test_a_batch_is_drawn_from_the_large_batch_by_its_priorities(batch_size, factor, kind, seed):
    """Rows are chosen by priority. Their weights are mean(p) / p, times the weights of the large batch."""
    options = {"seed": seed} if kind == "uniform" else {"seed": seed, "variant": kind}
    inner = filled((ReplayBuffer if kind == "uniform" else PrioritizedBuffer)(30, FLAT, **options), 40)
    seen = []

    def priority_fn(batch):
        seen.append(batch)
        return rewards(batch)

    buffer = large(inner, factor, priority_fn)
    batch = assert_lawful(buffer, batch_size)
    (everything,) = seen[:1]
    p = np.asarray(rewards(everything), np.float64)
    assert len(p) == factor * batch_size
    rng = np.random.default_rng(seed)
    rng.random(factor * batch_size)
    rows = np.searchsorted(p.cumsum(), rng.random(batch_size) * p.sum(), "right")
    assert batch.indices.tolist() == everything.indices[rows].tolist()
    np.testing.assert_allclose(batch.probabilities, p[rows] / p.sum())
    np.testing.assert_allclose(batch.weights, everything.weights[rows] * p.mean() / p[rows], rtol=1e-6)


def test_weights_make_means_over_the_batch_those_over_the_large_batch():
    """P_j w_j = 1 / M, so weighted means over a batch estimate the mean over the large batch without bias."""
    rng = np.random.default_rng(0)
    buffer = large(filled(ReplayBuffer(50, FLAT, seed=0), 50), 5, lambda batch: rng.exponential(size=len(batch)))
    for batch_size in (1, 8, 30):
        batch = buffer.sample(batch_size)
        np.testing.assert_allclose(batch.probabilities * batch.weights, 1 / (5 * batch_size), rtol=1e-6)


def test_the_whole_estimate_is_unbiased():
    """The weighted mean over many batches is that of the buffer, within 5 standard errors; the plain mean is not."""
    buffer = large(filled(ReplayBuffer(20, FLAT, seed=0), 20))
    f = np.arange(20.0)
    batches = [buffer.sample(16) for _ in range(1500)]
    weighted = np.array([(batch.weights * f[batch.indices]).mean() for batch in batches])
    plain = np.array([f[batch.indices].mean() for batch in batches])
    error = weighted.std() / len(batches) ** 0.5
    assert abs(weighted.mean() - f.mean()) < 5 * error
    assert abs(plain.mean() - f.mean()) > 20 * error


@pytest.mark.parametrize(
    ("priority_fn", "error", "words"),
    [
        (lambda batch: np.full(len(batch), np.nan), ValueError, "returned nan; expected finite numbers of at least 0"),
        (lambda batch: np.full(len(batch), np.inf), ValueError, "returned inf; expected finite numbers"),
        (lambda batch: -np.ones(len(batch)), ValueError, "returned -1.0; expected finite numbers of at least 0"),
        (lambda batch: np.zeros(len(batch)), ValueError, "returned only zeros; expected a positive number"),
        (lambda batch: np.ones(3), ValueError, r"returned shape \(3,\); expected \(12,\), one priority for each row"),
        (lambda batch: np.ones((len(batch), 1)), ValueError, r"returned shape \(12, 1\); expected \(12,\)"),
        (lambda batch: None, TypeError, "the result of priority_fn .* has dtype object; expected real numbers"),
        (lambda batch: batch.missing, RuntimeError, "raised AttributeError: .*it was given a Batch of 12 rows"),
    ],
)
def test_wrong_priorities_are_refused(priority_fn, error, words):
    """The error names the function, and the next batch draws the same random numbers."""
    inner = filled(ReplayBuffer(9, FLAT, seed=0), 9)
    buffer = large(inner, 4, _Once(priority_fn))
    expected = large(filled(ReplayBuffer(9, FLAT, seed=0), 9)).sample(3)
    for draw in (buffer.sample, buffer.draw):
        before = inner.rng.bit_generator.state
        with pytest.raises(error, match=words):
            draw(3)
        assert inner.rng.bit_generator.state == before
    assert inner.stats()["batches"] == 0
    buffer.priority_fn.function = rewards
    assert buffer.sample(3).indices.tolist() == expected.indices.tolist()


class _Once:
    """A function that can be replaced."""

    def __init__(self, function):
        self.function = function

    def __call__(self, batch):
        return self.function(batch)


def test_rows_with_priority_zero_are_not_drawn_at_any_scale():
    """Rows with priority 0 are not chosen, for priorities of 600 decades, subnormal numbers and integers."""
    inner = filled(ReplayBuffer(40, FLAT, seed=0), 40)
    for scale in (1e-300, 5e-324, 1.0, 1e308):
        batch = large(inner, 8, lambda batch, scale=scale: (batch.indices % 2) * scale).sample(20)
        assert (batch.indices % 2 == 1).all()
        assert np.isfinite(batch.weights).all()
        assert (batch.weights > 0.0).all()
    assert (large(inner, 8, lambda batch: batch.indices % 2).sample(9).indices % 2 == 1).all()


def test_tensors_with_a_history_are_accepted():
    """Priorities can be tensors that require grad, as from a network."""
    torch = pytest.importorskip("torch")
    buffer = large(filled(ReplayBuffer(9, FLAT, seed=0), 9), 2, lambda b: torch.ones(len(b), requires_grad=True) * 2)
    assert (buffer.sample(3).weights == 1.0).all()


def test_probabilities_of_single_transitions_are_refused_with_the_reason():
    """`probability` and its callers raise the error. The monitor leaves them out."""
    buffer = large(filled(ReplayBuffer(20, FLAT, seed=0), 20))
    with (
        unchanged_calls(buffer),
        pytest.raises(RuntimeError, match="conditional on the large batch.*use those of a batch"),
    ):
        buffer.probability([0])
    with pytest.raises(ValueError, match="inner contains a LargeBatchReplay, whose transitions have"):
        CombinedReplay(buffer)
    with pytest.raises(TypeError, match=r"draw is a Draw; expected the result of draw\(\) of a"):
        buffer.weigh(Draw(np.arange(2), np.ones(2)))
    monitor = ReplayMonitor(buffer, every=1)
    monitor.record(buffer.sample(8), np.ones(8))
    stats = monitor.stats()
    assert np.isnan(stats["probability_perplexity_share"])
    assert np.isfinite(stats["relative_age"])


class unchanged_calls:  # noqa: N801
    """A context that must not change the generator."""

    def __init__(self, replay):
        self.rng = replay.rng

    def __enter__(self):
        self.before = self.rng.bit_generator.state

    def __exit__(self, *exception):
        assert self.rng.bit_generator.state == self.before


def test_orders_that_mean_nothing_are_refused():
    """Wrappers in an order without meaning raise an error, such as goals that the function has not seen."""
    goals = HindsightReplay(ReplayBuffer(9, GOAL_SPEC), sparse)
    with pytest.raises(ValueError, match="inner has a HindsightReplay; .*put the HindsightReplay around"):
        large(goals)
    with pytest.raises(ValueError, match="inner has a CombinedReplay; expected another replay, since its newest"):
        large(CombinedReplay(ReplayBuffer(9, FLAT)))
    with pytest.raises(ValueError, match="factor is 0; expected an int of at least 1"):
        large(ReplayBuffer(9, FLAT), 0)
    with pytest.raises(TypeError, match="priority_fn is 3; expected a function of a Batch"):
        large(ReplayBuffer(9, FLAT), 4, 3)
    with pytest.raises(ValueError, match="nothing"):
        large(ReplayBuffer(9, FLAT)).sample(2)


def test_goals_in_hindsight_are_given_to_the_chosen():
    """A HindsightReplay around a large batch relabels the chosen rows, with windows of three steps."""
    replay = HindsightReplay(large(PrioritizedBuffer(60, GOAL_SPEC, n_step=3, seed=0), 3, lambda b: b.length), sparse)
    goal_episodes(replay, [5, 9, 12])
    batch = assert_lawful(replay, 20)
    assert batch.relabelled.any()
    assert replay.update_priorities(batch.indices, np.ones(20)) == 20


def test_a_function_that_writes_to_the_buffer_is_refused():
    """A priority function that writes to the buffer raises an error, because a batch is being made."""
    inner = filled(ReplayBuffer(9, FLAT, seed=0), 9)
    buffer = large(inner, 2, lambda batch: inner.clear())
    with pytest.raises(RuntimeError, match="raised RuntimeError"):
        buffer.sample(3)
    assert len(inner) == 9


def test_a_large_batch_of_the_newest():
    """Around a LatestBuffer, batches are chosen from the newest transitions."""
    recent = RecentReplay(filled(ReplayBuffer(50, FLAT, seed=0), 50), newest=5)
    buffer = large(recent, 3)
    assert set(buffer.sample(30).indices.tolist()) <= set(range(45, 50))
    assert (buffer.factor, buffer.priority_fn, buffer.is_conditional) == (3, rewards, True)
    weighted = large(prioritized([1.0, 4.0], beta=1.0, weights="none"), 5, lambda batch: np.ones(len(batch)))
    batch = weighted.sample(4)
    np.testing.assert_allclose(batch.weights, np.where(batch.indices == 0, 2.5, 0.625), rtol=1e-6)
