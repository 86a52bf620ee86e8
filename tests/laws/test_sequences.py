"""Every operation on sequences, compared with their model."""

from hypothesis import settings

from replaykit.testing.sequences import SequenceMachine

TestSequences = SequenceMachine.TestCase
TestSequences.settings = settings(max_examples=settings().max_examples // 2)  # each takes a second
