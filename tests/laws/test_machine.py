"""Every stack of buffer and wrappers, driven against the model."""

from hypothesis import settings
from hypothesis.stateful import initialize

from replaykit import RateLimit, RateLimitedReplay
from replaykit.testing import ReplayMachine, build, configurations


class HindsightMachine(ReplayMachine):
    """The same with goals, which a third of the configurations have: of one field, of two, and with three rewards."""

    @initialize(configuration=configurations(specs=("goal", "goals", "objectives")))
    def start(self, configuration):
        super().start(configuration)


class DistinctMachine(ReplayMachine):
    """Uniform draws without replacement."""

    @initialize(configuration=configurations(kinds=("uniform",), replace=(False,)))
    def start(self, configuration):
        super().start(configuration)


class RecentMachine(ReplayMachine):
    """The newest of uniform buffers, with and without replacement."""

    @initialize(configuration=configurations(kinds=("uniform",), replace=(True, False), recent=(1, 3, 8)))
    def start(self, configuration):
        super().start(configuration)


class LargeMachine(ReplayMachine):
    """Batches from large batches of any buffer, also of its newest."""

    @initialize(configuration=configurations(kinds=("uniform", "prioritized", "rank"), large=(1, 3)))
    def start(self, configuration):
        super().start(configuration)


class LimitedMachine(ReplayMachine):
    """A limit around any stack, too wide to be reached: what counts is neither seen in batches nor lost on the way."""

    def make(self, configuration):
        replay, model = build(configuration)
        return RateLimitedReplay(replay, RateLimit(1.0, tolerance=1e9)), model


TestLimited = LimitedMachine.TestCase
TestLimited.settings = settings(max_examples=settings().max_examples // 4)
TestDistinct = DistinctMachine.TestCase
TestRecent = RecentMachine.TestCase
TestRecent.settings = settings(max_examples=settings().max_examples // 2)
TestLarge = LargeMachine.TestCase
TestLarge.settings = settings(max_examples=settings().max_examples // 2)
TestEveryReplay = ReplayMachine.TestCase
TestEveryReplay.settings = settings(max_examples=3 * settings().max_examples)
TestHindsight = HindsightMachine.TestCase
TestHindsight.settings = settings(max_examples=2 * settings().max_examples)
