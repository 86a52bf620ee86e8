"""Plots of a monitor's history."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Panel(NamedTuple):
    """One plot of the figure.

    Attributes
    ----------
    title : str
    lines : dict of str to str
        The plotted numbers: the monitor's names, and their labels.
    iid : float, optional
        The value under i.i.d. draws, drawn as a dashed line.
    scale : {"linear", "log", "share"}
        The scale of the vertical axis. "share" is linear from 0 to 1.
    """

    title: str
    lines: dict[str, str]
    iid: float | None = None
    scale: str = "linear"


PANELS = {
    "td_error": Panel(
        "TD error of a batch",
        {"td_error_max": "largest", "td_error_q90": "90 %", "td_error_mean": "mean", "td_error_median": "median"},
        scale="log",
    ),
    "pairs": Panel(
        "Pairs of a batch, over chance",
        {"same_episode": "same episode", "temporal_distance": "distance in time", "relative_age": "age"},
        iid=1.0,
        scale="log",
    ),
    "mean": Panel(
        "Error of a batch's mean, over chance",
        {"mean_shift": "mean squared error", "design_effect": "its variance: design effect"},
        iid=1.0,
        scale="log",
    ),
    "states": Panel(
        "States of a batch against those stored",
        {"energy_distance": "energy distance"},
        iid=0.0,
    ),
    "weights": Panel(
        "Weights and priorities",
        {
            "weight_effective_share": "effective share of a batch",
            "probability_perplexity_share": "effective share of the buffer",
            "probability_top_percent_share": "mass of the top 1 %",
        },
        scale="share",
    ),
    "draws": Panel(
        "Transitions never drawn",
        {"draws_never_share": "share", "draws_never_expected": "under uniform draws"},
        scale="share",
    ),
}


def draw_panels(history: Sequence[dict[str, float]], ax: Any, panels: Sequence[str] | None) -> Any:
    """Draw panels on the given axes, or on a new figure, and return the figure."""
    names = list(PANELS if panels is None else [panels] if isinstance(panels, str) else panels)
    for name in names:
        if name not in PANELS:
            raise ValueError(f"panels contains {name!r}; expected one or more of {', '.join(PANELS)}")
    if not names:
        raise ValueError(f"panels is empty; expected one or more of {', '.join(PANELS)}")
    if ax is None:
        axes, figure = _new_axes(len(names))
    else:
        axes = list(np.ravel(np.asarray(ax, object)))
        figure = axes[0].figure
        if panels is not None and len(axes) < len(names):
            raise ValueError(f"ax has {len(axes)} axes; expected {len(names)}, the number of panels")
    for name, axis in zip(names, axes, strict=False):
        _draw(PANELS[name], history, axis)
    return figure


def _new_axes(number: int) -> tuple[list[Any], Any]:
    from matplotlib.figure import Figure

    columns = min(number, 3)
    rows = -(-number // columns)
    figure = Figure(figsize=(4.4 * columns, 3.3 * rows), layout="constrained")  # without pyplot and its global state
    return list(figure.subplots(rows, columns, squeeze=False).flat)[:number], figure


def _draw(panel: Panel, history: Sequence[dict[str, float]], ax: Any) -> None:
    batches = np.array([row["recorded_batches"] for row in history])
    is_drawn = False
    for name, label in panel.lines.items():
        values = np.array([row[name] for row in history])
        known = np.isfinite(values) & ((values > 0.0) | (panel.scale != "log"))
        if known.any():
            ax.plot(batches[known], values[known], label=label, marker="." if known.sum() < 3 else None)
            is_drawn = True
    if panel.iid is not None:
        ax.axhline(panel.iid, color="0.4", linestyle="--", linewidth=1.0, label="i.i.d.")
    if is_drawn and panel.scale == "log":
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter("{x:g}")
        if panel.iid is not None:  # wide limits, so that values near i.i.d. look close to it
            low, high = ax.get_ylim()
            ax.set_ylim(min(low, panel.iid / 15.0), max(high, panel.iid * 15.0))
    elif panel.scale == "share":
        ax.set_ylim(-0.03, 1.03)
    elif panel.iid is not None:
        low, high = ax.get_ylim()
        ax.set_ylim(min(low, panel.iid - 0.05), max(high, panel.iid + 0.25))
    if not is_drawn:
        ax.text(0.5, 0.6, "nothing measured yet", ha="center", va="center", transform=ax.transAxes)
    else:
        ax.legend(fontsize="x-small")
    ax.set_title(panel.title, fontsize="medium")
    ax.set_xlabel("batches")
