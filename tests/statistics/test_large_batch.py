"""Large-batch replay: the identity that makes its weights unbiased, by exact expectations over every large batch."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from replaykit import Buffer, Field, LargeBatchReplay, Spec
from replaykit.batch import Draw
from replaykit.distributions import Distribution
from replaykit.storage import LocalStorage

PRIORITIES, VALUES = [1.0, 2.0, 3.0, 6.0], [10.0, 20.0, 30.0, 40.0]
SIZE = 4
"""Rows of a large batch."""


class Chosen(Distribution):
    """A distribution that draws given indices, with given probabilities."""

    def __init__(self, storage, shares):
        super().__init__(storage)
        self.shares, self.rows = np.array(shares), np.zeros(SIZE, np.int64)

    def draw(self, batch_size, rng):
        return Draw(self.rows.copy(), self.probability(self.rows, batch_size))

    def probability(self, indices, batch_size):
        return self.shares[indices]

    def weigh(self, draw, size):
        return (1.0 / (size * draw.probabilities)).astype(np.float32)


def outcomes(buffer, rows):
    """Every row that can be drawn from a large batch: index, probability and weight, as often as the batch has it."""
    found = {}
    while found.keys() != set(rows):
        batch = buffer.sample(1)
        found[int(batch.indices[0])] = float(batch.probabilities[0]), float(batch.weights[0])
    return [(index, *found[index]) for index in rows]


@pytest.mark.parametrize("shares", [[0.25, 0.25, 0.25, 0.25], [0.4, 0.1, 0.3, 0.2]], ids=["uniform", "weighted"])
def test_the_expectation_over_all_large_batches_is_the_mean_over_the_buffer(shares):
    """To the rounding of float32 weights, without statistics: all 256 large batches of four rows, and all their rows.

    Also where the large batch is drawn with other probabilities, for which its own weights correct. Without weights,
    large priorities count more: the expectations are those that fractions give.
    """
    spec = Spec(obs=Field(()), action=Field(()))
    storage = LocalStorage(4, spec)
    drawing = Chosen(storage, shares)
    inner = Buffer(storage, drawing, seed=0)
    for index in range(4):
        inner.add(VALUES[index], 0, PRIORITIES[index], 0, False, False)
    buffer = LargeBatchReplay(inner, SIZE, priority_fn=lambda batch: batch.reward)
    weighted = plain = 0.0
    exact = Fraction(0)
    for rows in product(range(4), repeat=SIZE):
        drawing.rows[:] = rows
        chance, total = np.prod(drawing.shares[list(rows)]), sum(PRIORITIES[index] for index in rows)
        for index, probability, weight in outcomes(buffer, rows):
            weighted += chance * probability * weight * VALUES[index]
            plain += chance * probability * VALUES[index]
            parts = [Fraction(str(shares[each])) for each in rows]
            exact += (
                parts[0] * parts[1] * parts[2] * parts[3] * Fraction(PRIORITIES[index] / total) * int(VALUES[index])
            )
    np.testing.assert_allclose(weighted, np.mean(VALUES), rtol=1e-6)
    np.testing.assert_allclose(plain, float(exact), rtol=1e-9)
    assert abs(plain - np.mean(VALUES)) > 3.0
