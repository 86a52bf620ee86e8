"""Measures of how healthy a replay is, and of how far its batches are from independent uniform draws.

The measures are functions of NumPy arrays that return numbers. They are compared with their expectation under
independent uniform draws, so you can read them without a baseline: i.i.d. draws give 1, or 0 if the docstring says so.

- TD errors: `td_error_stats`, `top_share`.
- Independence, within a batch and between successive batches: `duplicates`, `overlap`, `same_episode_pairs`,
  `temporal_distance`, `autocorrelation`, `design_effect`.
- Distribution shift between a batch and the buffer: `mean_shift`, `energy_distance`, `relative_age`, `td_lift`,
  `weighted_td_lift`. Independence and distribution shift in one number: `batch_mean_error`.
- Importance sampling and priorities: `effective_sample_size`, `weight_stats`, `draw_distribution`, `draw_count_stats`.
- `ReplayMonitor` records all of them during training.
"""

from replaykit.diagnostics.arguments import Compared
from replaykit.diagnostics.distribution_shift import (
    energy_distance,
    mean_shift,
    relative_age,
    td_lift,
    weighted_td_lift,
)
from replaykit.diagnostics.independence import (
    BatchMeanError,
    autocorrelation,
    batch_mean_error,
    design_effect,
    duplicates,
    overlap,
    same_episode_pairs,
    temporal_distance,
)
from replaykit.diagnostics.monitor import ReplayMonitor
from replaykit.diagnostics.priorities import draw_count_stats, draw_distribution, effective_sample_size, weight_stats
from replaykit.diagnostics.td_error import td_error_stats, top_share

__all__ = [
    "BatchMeanError",
    "Compared",
    "ReplayMonitor",
    "autocorrelation",
    "batch_mean_error",
    "design_effect",
    "draw_count_stats",
    "draw_distribution",
    "duplicates",
    "effective_sample_size",
    "energy_distance",
    "mean_shift",
    "overlap",
    "relative_age",
    "same_episode_pairs",
    "td_error_stats",
    "td_lift",
    "temporal_distance",
    "top_share",
    "weight_stats",
    "weighted_td_lift",
]
