"""Storages, distributions and wrappers of third parties pass the state machine in every combination."""

import dataclasses

import numpy as np
import pytest
from hypothesis.stateful import initialize

from replaykit import PrioritizedBuffer
from replaykit.testing import ReplayMachine, assert_lawful, build, configurations
from tests.helpers import FLAT, filled
from tests.laws.third_party import (
    Doubtful,
    ListedPriorities,
    ListStorage,
    NaiveDoubtful,
    NaiveRecency,
    Recency,
    Stale,
)


class ListMachine(ReplayMachine):
    """Every distribution on a storage of Python lists."""

    def make(self, configuration):
        return build(configuration, storage=ListStorage)


class RecencyMachine(ReplayMachine):
    """A user's distribution on replaykit's storage."""

    @initialize(configuration=configurations(kinds=("uniform",)))
    def start(self, configuration):
        super().start(configuration)

    def make(self, configuration):
        return build(configuration, NaiveRecency, distribution=Recency)


class PrioritiesMachine(ReplayMachine):
    """A user's priorities on a user's storage, without any code of replaykit in them."""

    @initialize(configuration=configurations(kinds=("prioritized",)))
    def start(self, configuration):
        super().start(dataclasses.replace(configuration, alpha=0.6, beta=0.4, eps=1e-2, weights="batch"))

    def make(self, configuration):
        return build(configuration, storage=ListStorage, distribution=ListedPriorities)


class DoubtfulMachine(ReplayMachine):
    """A wrapper with different draws, around every kind of buffer."""

    def make(self, configuration):
        replay, model = build(dataclasses.replace(configuration, combined=()), NaiveDoubtful)
        return Doubtful(replay), model


TestLists = ListMachine.TestCase
TestRecency = RecencyMachine.TestCase
TestPriorities = PrioritiesMachine.TestCase
TestDoubtful = DoubtfulMachine.TestCase


def test_a_wrong_least_probability_of_a_draw_is_found():
    """A wrapper that keeps the wrong `least` of the inner draw is detected."""
    buffer = filled(PrioritizedBuffer(20, FLAT, weights="buffer", seed=0), 20)
    buffer.update_priorities(buffer.stored(), priorities=np.arange(20) + 1.0)
    assert_lawful(Doubtful(buffer), 6)
    with pytest.raises(AssertionError, match="`least` of a draw is not the least probability"):
        assert_lawful(Stale(buffer), 6)
