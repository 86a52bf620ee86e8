"""Ctrl-C at any moment: no row is torn, no overwritten index is drawn, and every invariant holds."""

import numpy as np
import pytest

from replaykit import CombinedReplay, Field, PrioritizedBuffer, Spec
from tests.helpers import interrupted, stored_indices

SPEC = Spec(obs=Field((4,)), action=Field((), np.int64))


def row(number):
    """A transition in which every field tells the number."""
    return np.full(4, number, np.float32), number, float(number), np.full(4, number, np.float32), False, False


def rows(numbers):
    """A stretch of them."""
    numbers = np.asarray(numbers)
    wide = np.repeat(numbers[:, None], 4, axis=1).astype(np.float32)
    none = np.zeros(numbers.size, np.bool_)
    return wide, numbers, numbers.astype(np.float32), wide, none, none


CALLS = {
    "add": lambda b: b.add(*row(50)),
    "add with a TD error": lambda b: b.add(*row(50), td_error=2.0),
    "extend": lambda b: b.extend(*rows(range(50, 59))),
    "sample": lambda b: b.sample(5),
    "update": lambda b: b.update_priorities(np.arange(20, 30), np.linspace(0, 3, 10)),
    "episode": lambda b: b.episode([25]),
    "clear": lambda b: b.clear(),
}


@pytest.mark.parametrize("share", ["none", "all"])
@pytest.mark.parametrize("name", CALLS)
def test_an_interrupt_anywhere_tears_no_row(name, share):
    """At every line of every call; at worst the oldest rows are gone early."""
    at = 0
    while True:
        at += 1
        buffer = CombinedReplay(PrioritizedBuffer(10, SPEC, alpha=1.0, share=share, seed=at))
        buffer.extend(*rows(range(30)))
        buffer.update_priorities(np.arange(20, 30), priorities=[0.0, *[1.0] * 8, 5.0])
        if at % 2:
            buffer.add(*row(30))  # something pending, too
        if not interrupted(lambda b=buffer: CALLS[name](b), at):
            break
        if len(buffer) and name not in ("update", "clear"):
            (newest,) = buffer.newest
            stored = stored_indices(buffer)
            largest = buffer.probability(stored, 2 * len(buffer)).max()
            pending = newest >= 30 and not (name == "add with a TD error" and newest == 30 + at % 2)
            if pending:  # it has the largest priority, whoever had its slot before
                assert buffer.inner.probability([newest])[0] == buffer.inner.probability(stored).max()
            assert largest > 0.0
        if len(buffer):
            batch = buffer.sample(40)
            assert (batch.obs == batch.action[:, None]).all()
            assert (batch.next_obs == batch.action[:, None]).all()
            assert (batch.reward == batch.action).all()
            if name in ("sample", "update", "episode"):
                assert (batch.action == batch.indices).all()
            assert np.isin(batch.indices, stored_indices(buffer)).all()
        buffer.check()
        buffer.extend(*rows(range(60, 75)))
        assert sorted({*buffer.sample(400).action.tolist()}) == list(range(65, 75))
        buffer.check()
    assert at > 5
