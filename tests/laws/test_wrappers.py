"""Wrappers: one without overrides changes nothing, and the order of wrappers on different verbs does not matter."""

from replaykit import CombinedReplay, PrioritizedBuffer, ReplayWrapper
from replaykit.testing import bits_of
from tests.helpers import FLAT, filled


def test_a_wrapper_that_overrides_nothing_is_the_identity():
    """A wrapper without overrides changes no bit, around and inside other wrappers."""

    class Plain(ReplayWrapper):
        pass

    batches = []
    for wrap in (lambda b: b, Plain, lambda b: Plain(Plain(b))):
        batches.append(bits_of(wrap(filled(PrioritizedBuffer(9, FLAT, seed=2), 20)).sample(16)))
        batches.append(bits_of(Plain(wrap(filled(PrioritizedBuffer(9, FLAT, seed=2), 20))).sample(16)))
    assert all(batch == batches[0] for batch in batches)


def test_wrappers_on_different_verbs_commute():
    """A wrapper of the window inside or outside one of the draw gives the same bits."""

    class Doubled(ReplayWrapper):
        def change(self, window):
            window.reward = window.reward * 2
            return window

    one = Doubled(CombinedReplay(filled(PrioritizedBuffer(9, FLAT, n_step=3, seed=2), 20), latest=2))
    two = CombinedReplay(Doubled(filled(PrioritizedBuffer(9, FLAT, n_step=3, seed=2), 20)), latest=2)
    for _ in range(5):
        assert bits_of(one.sample(8)) == bits_of(two.sample(8))
