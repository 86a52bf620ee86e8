"""Every stack of buffer and wrappers, compared with the model."""

from hypothesis import settings
from hypothesis.stateful import initialize

from replaykit import RateLimit, RateLimitedReplay
from replaykit.testing import ReplayMachine, build, configurations


class HindsightMachine(ReplayMachine):
    """Every operation with goals: of one field, of two, and with three rewards."""

    @initialize(configuration=configurations(specs=("goal", "goals", "objectives")))
    def start(self, configuration):
        super().start(configuration)


class DistinctMachine(ReplayMachine):
    """Every operation with uniform draws without replacement."""

    @initialize(configuration=configurations(kinds=("uniform",), replace=(False,)))
    def start(self, configuration):
        super().start(configuration)


class RecentMachine(ReplayMachine):
    """Every operation with a RecentReplay, with and without replacement."""

    @initialize(configuration=configurations(kinds=("uniform",), replace=(True, False), recent=(1, 3, 8)))
    def start(self, configuration):
        super().start(configuration)


class LargeMachine(ReplayMachine):
    """Every operation with a LargeBatchReplay around any buffer."""

    @initialize(configuration=configurations(kinds=("uniform", "prioritized", "rank"), large=(1, 3)))
    def start(self, configuration):
        super().start(configuration)


class LimitedMachine(ReplayMachine):
    """Every operation with a rate limit that is never reached. It changes no batch, and its counts are exact."""

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
