"""Every stack of buffer and wrappers, driven against the model."""

from hypothesis import settings

from replaykit.testing import ReplayMachine

TestEveryReplay = ReplayMachine.TestCase
TestEveryReplay.settings = settings(max_examples=3 * settings().max_examples)
