"""Sequences through every operation, against their model."""

from replaykit.testing.sequences import SequenceMachine

TestSequences = SequenceMachine.TestCase
