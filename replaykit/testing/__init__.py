"""What replaykit is tested with, for storages, distributions and wrappers of your own.

- `NaiveReplay` is the model: every promise of the buffers in lists and loops, and nothing else.
- `configurations` and `build` draw a buffer, any stack of wrappers around it, and its model.
- `ReplayMachine` lets Hypothesis drive both through adds, masks, updates and samples, and compares them.
- `assert_lawful` holds any replay to the laws that need no model.

A storage or a distribution of your own goes into `build`.

Needs Hypothesis: ``pip install "replaykit-rl[testing]"``.
"""

from replaykit.testing.laws import assert_lawful, bits_of, by_verbs
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
    "assert_lawful",
    "bits_of",
    "build",
    "by_verbs",
    "configurations",
    "values_of",
]
