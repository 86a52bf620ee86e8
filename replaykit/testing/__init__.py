"""The test tools of replaykit, for your own storages, distributions and wrappers.

- `NaiveReplay` is the model: a simple implementation of every buffer with lists and loops.
- `configurations` draws a buffer and any stack of wrappers around it. `build` builds them and their model.
- `ReplayMachine` lets Hypothesis call adds, masks, updates and samples on both, and compares them.
- `assert_lawful` checks any replay against laws that need no model.
- `assert_freed` checks that a deleted replay frees its memory at once.

Pass your own storage or distribution to `build`.

Needs Hypothesis: ``pip install "replaykit-rl[testing]"``.
"""

from replaykit.testing.laws import assert_freed, assert_lawful, bits_of, by_verbs
from replaykit.testing.machine import ReplayMachine
from replaykit.testing.model import NaiveHindsight, NaiveReplay, NaiveStep
from replaykit.testing.strategies import SPECS, Configuration, Relabelling, build, configurations, values_of

__all__ = [
    "SPECS",
    "Configuration",
    "NaiveHindsight",
    "NaiveReplay",
    "NaiveStep",
    "Relabelling",
    "ReplayMachine",
    "assert_freed",
    "assert_lawful",
    "bits_of",
    "build",
    "by_verbs",
    "configurations",
    "values_of",
]
