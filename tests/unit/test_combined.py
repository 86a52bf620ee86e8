"""Combined replay: the newest transitions are in every batch, and probabilities include them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replaykit import CombinedReplay, LatestBuffer, PrioritizedBuffer, ReplayBuffer
from replaykit.testing import assert_lawful
from tests.helpers import FLAT, filled, prioritized, step, unchanged


@given(
    values=st.lists(st.sampled_from([0.5, 1.0, 4.0, 9.0]), min_size=1, max_size=12),
    latest=st.integers(1, 4),
    extra=st.integers(0, 9),
    weights=st.sampled_from(["batch", "buffer", "none"]),
)
def test_probabilities_and_weights_are_those_of_the_mixture(values, latest, extra, weights):
    """Q = ((B - k) P + [newest]) / B sums to 1, and w = (N q)**-beta over its maximum."""
    inner = prioritized(values, beta=0.5, weights=weights)
    buffer = CombinedReplay(inner, latest=latest)
    batch_size = latest + extra
    count, k = len(values), min(latest, len(values))
    p = np.array(values) / np.sum(values)
    q = ((batch_size - k) * p + (np.arange(count) >= count - k)) / batch_size
    np.testing.assert_allclose(q.sum(), 1.0)
    np.testing.assert_allclose(buffer.probability(np.arange(count), batch_size), q, rtol=1e-12)
    batch = assert_lawful(buffer, batch_size)
    assert batch.indices[batch_size - k :].tolist() == list(range(count - k, count))
    np.testing.assert_allclose(batch.probabilities, q[batch.indices], rtol=1e-12)
    w = np.where(q > 0, count * q, np.inf) ** -0.5
    divisor = {"batch": w[batch.indices].max(), "buffer": w.max(), "none": 1.0}[weights]
    np.testing.assert_allclose(batch.weights, w[batch.indices] / divisor, rtol=1e-6)


def test_a_batch_smaller_than_the_newest_is_refused():
    """A batch may consist only of the newest transitions."""
    buffer = CombinedReplay(filled(ReplayBuffer(10, FLAT, seed=0), 5), latest=3)
    with unchanged(buffer, ValueError, "batch_size is 2; expected at least latest=3"):
        buffer.sample(2)
    assert buffer.sample(3).indices.tolist() == [2, 3, 4]
    assert buffer.sample(3).probabilities.tolist() == [1 / 3] * 3
    for latest, error in ((0, ValueError), (1.0, TypeError)):
        with pytest.raises(error, match="latest"):
            CombinedReplay(buffer, latest=latest)
    with pytest.raises(TypeError, match="inner is a int"):
        CombinedReplay(3)


def test_a_wrapper_passes_everything_else_on():
    """Adds, updates, episodes, clears, beta and stats are those of the wrapped buffer."""
    inner = PrioritizedBuffer(8, FLAT, alpha=1.0, beta=0.3, eps=0.0, seed=0)
    buffer = CombinedReplay(CombinedReplay(inner), latest=2)
    buffer.add(**step(0), td_error=3.0)
    buffer.extend(**{name: np.asarray(value)[None] for name, value in step(1).items()}, td_error=[1.0])
    assert inner.probability([0, 1]).tolist() == [0.75, 0.25]
    assert buffer.update_priorities([1], priorities=[9.0]) == 1
    assert inner.probability([1]).tolist() == [0.75]
    buffer.end_episode()
    buffer.add(**step(2))
    assert buffer.episode([2])[1].tolist() == [2]
    buffer.beta = 1.0
    assert buffer.beta == inner.beta == 1.0
    assert buffer.stats() == inner.stats()
    assert buffer.nbytes == inner.nbytes
    assert repr(buffer) == "CombinedReplay(CombinedReplay(PrioritizedBuffer(3 of 8, num_envs=1, n_step=1)))"
    assert_lawful(buffer, 6)
    buffer.clear()
    assert len(inner) == 0
    with pytest.raises(AttributeError, match="has no priorities, so it has no beta"):
        _ = CombinedReplay(ReplayBuffer(3, FLAT)).beta


def test_combined_over_latest_counts_the_newest_twice():
    """Around a LatestBuffer, the newest transition is in the batch twice."""
    buffer = CombinedReplay(filled(LatestBuffer(9, FLAT), 9))
    batch = assert_lawful(buffer, 4)
    assert batch.indices.tolist() == [6, 7, 8, 8]
    np.testing.assert_allclose(batch.probabilities, [0.25, 0.25, 0.5, 0.5])
