"""Every stack of buffer and wrappers, driven against the model."""

from hypothesis import settings
from hypothesis.stateful import initialize

from replaykit.testing import ReplayMachine, configurations


class HindsightMachine(ReplayMachine):
    """The same with goals, which a seventh of the configurations have."""

    @initialize(configuration=configurations(specs=("goal",)))
    def start(self, configuration):
        super().start(configuration)


class DistinctMachine(ReplayMachine):
    """Uniform draws without replacement."""

    @initialize(configuration=configurations(kinds=("uniform",), replace=(False,)))
    def start(self, configuration):
        super().start(configuration)


TestDistinct = DistinctMachine.TestCase
TestEveryReplay = ReplayMachine.TestCase
TestEveryReplay.settings = settings(max_examples=3 * settings().max_examples)
TestHindsight = HindsightMachine.TestCase
TestHindsight.settings = settings(max_examples=2 * settings().max_examples)
