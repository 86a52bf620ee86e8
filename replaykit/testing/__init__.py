"""What replaykit is tested with, for buffers and wrappers of your own.

- `NaiveReplay` is the model: every promise of the buffers in lists and loops, and nothing else.
- `configurations` and `build` draw a buffer, any stack of wrappers around it, and its model.
- `ReplayMachine` lets Hypothesis drive both through adds, masks, updates, resets and samples and compares them.
- `assert_lawful` holds any replay to the laws that need no model.

Needs Hypothesis: ``pip install "replaykit[testing]"``.
"""

from replaykit.testing.laws import assert_lawful, bits_of
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
    "configurations",
    "values_of",
]
