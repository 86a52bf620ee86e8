"""Storages, distributions and wrappers of a third party pass the machine, in every stack and in every combination."""

import dataclasses

from hypothesis.stateful import initialize

from replaykit.testing import ReplayMachine, build, configurations
from tests.laws.third_party import ListedPriorities, ListStorage, NaiveRecency, Recency


class ListMachine(ReplayMachine):
    """Every distribution on a storage of Python lists."""

    def make(self, configuration):
        return build(configuration, storage=ListStorage)


class RecencyMachine(ReplayMachine):
    """A distribution of one's own on the storage of replaykit."""

    @initialize(configuration=configurations(kinds=("uniform",)))
    def start(self, configuration):
        super().start(configuration)

    def make(self, configuration):
        return build(configuration, NaiveRecency, distribution=Recency)


class PrioritiesMachine(ReplayMachine):
    """Priorities of one's own on a storage of one's own, and no line of the library's in either."""

    @initialize(configuration=configurations(kinds=("prioritized",)))
    def start(self, configuration):
        super().start(dataclasses.replace(configuration, alpha=0.6, beta=0.4, eps=1e-2, weights="batch"))

    def make(self, configuration):
        return build(configuration, storage=ListStorage, distribution=ListedPriorities)


TestLists = ListMachine.TestCase
TestRecency = RecencyMachine.TestCase
TestPriorities = PrioritiesMachine.TestCase
