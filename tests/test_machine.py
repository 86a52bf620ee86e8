"""Every stack of buffer and wrappers, driven against the model."""

from replaykit.testing import ReplayMachine

TestEveryReplay = ReplayMachine.TestCase
