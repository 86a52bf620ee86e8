"""Figures of a study: learning curves, measures of batches, and the effects with their intervals."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from .analysis import FACTOR_LABELS, FACTORS, Row
from .replays import AS_USED, REPLAYS

STYLES = {
    "none": ("#555555", ":"),
    "uniform": ("#1f77b4", "-"),
    "prioritized": ("#d62728", "-"),
    "combined": ("#2ca02c", "-"),
    "hindsight": ("#9467bd", "-"),
    "blocks-8": ("#ff9d3c", "--"),
    "blocks-64": ("#c45a00", "--"),
    "newest-4th": ("#7fc8c8", "-."),
    "newest-16th": ("#0b7f86", "-."),
    "dealt": ("#e78ac3", "-"),
}
MEASURES = {  # for each: its label, its value for an i.i.d. batch, whether its axis is logarithmic
    "td_lift": ("TD-lift", 1.0, True),
    "td_mean": ("mean |TD error|", None, True),
    "design_effect": ("design effect", 1.0, True),
    "relative_age": ("relative age", 1.0, True),
    "energy_distance": ("energy distance", 0.0, False),
}


def draw_all(directory: Path, summary: dict[str, Any], episodes: list[Row], snapshots: list[Row]) -> list[Path]:
    """Save every figure as PNG. Returns the paths."""
    figures = {
        "returns": returns(episodes, snapshots, summary["protocol"]),
        "values": values(snapshots),
        "measures": measures(snapshots),
    }
    if "effects" in summary:
        figures["factors"] = factors(snapshots)
        figures["effects"] = effects(summary)
    paths = []
    for name, figure in figures.items():
        paths.append(directory / f"{name}.png")
        figure.savefig(paths[-1], dpi=110, metadata={"Software": None})
    return paths


def _panels(rows: int, columns: int, width: float = 3.1, height: float = 2.3) -> tuple[Figure, npt.NDArray[Any]]:
    figure = Figure(figsize=(width * columns + 0.4, height * rows + 0.6), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _legend(figure: Figure, columns: int = 5) -> None:
    """One legend for all panels, each name once."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        found |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=columns, fontsize="small")


def _of(rows: Sequence[Row], env: str) -> list[Row]:
    return [row for row in rows if row["env"] == env]


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["env"] for row in rows))


def returns(episodes: list[Row], snapshots: list[Row], protocol: str) -> Figure:
    """The returns of the replays used in practice, by task: training episodes and greedy episodes."""
    envs = _names(snapshots)
    figure, panels = _panels(2, len(envs))
    along = "step" if protocol == "sound" else "episode"
    for env, (top, bottom) in zip(envs, panels.T, strict=True):
        for name in AS_USED:
            of_training = [row for row in _of(episodes, env) if row["replay"] == name]
            if of_training:
                _band(top, *_binned(of_training, along), name)
            _curve(bottom, [row for row in _of(snapshots, env) if row["replay"] == name], "greedy_return", name)
        top.set(title=env, xlabel=f"{along} of training")
        bottom.set(xlabel="environment steps" if protocol == "sound" else "tenth of training")
    panels[0, 0].set_ylabel("return of training episodes")
    panels[1, 0].set_ylabel("return of greedy episodes")
    _legend(figure)
    return figure


def factors(snapshots: list[Row]) -> Figure:
    """The greedy returns of the replays that differ in one factor, one row for each factor."""
    groups = {
        "independence": ("uniform", "blocks-8", "blocks-64"),
        "identity": ("uniform", "newest-4th", "newest-16th"),
        "TD errors": ("uniform", "dealt", "prioritized"),
    }
    envs = _names(snapshots)
    figure, panels = _panels(len(groups), len(envs))
    for row, (factor, names) in zip(panels, groups.items(), strict=True):
        for axes, env in zip(row, envs, strict=True):
            for name in names:
                _curve(axes, [each for each in _of(snapshots, env) if each["replay"] == name], "greedy_return", name)
        row[0].set_ylabel(f"{factor}\ngreedy return")
    for axes, env in zip(panels[0], envs, strict=True):
        axes.set_title(env)
    for axes in panels[-1]:
        axes.set_xlabel("environment steps")
    _legend(figure, 4)
    return figure


def _binned(rows: list[Row], along: str, bins: int = 30) -> tuple[Any, Any]:
    """Centres of equal parts of training, and each seed's mean return of the episodes that end there: (seeds, bins)."""
    last = max(row[along] for row in rows)
    seeds = sorted({row["seed"] for row in rows})
    table = np.full((len(seeds), bins), np.nan)
    for place, seed in enumerate(seeds):
        mine = [row for row in rows if row["seed"] == seed]
        parts = np.array([min(int(row[along] / last * bins), bins - 1) for row in mine])
        each = np.array([row["return"] for row in mine])
        for part in np.unique(parts):
            table[place, part] = each[parts == part].mean()
    used = ~np.isnan(table).all(axis=0)
    return ((np.arange(bins) + 0.5) * last / bins)[used], table[:, used]


def _curve(axes: Axes, rows: list[Row], column: str, name: str) -> None:
    """Draw a column of a replay's snapshots against steps, or against their numbers if runs differ in steps."""
    if rows:
        place = "step" if rows[0]["protocol"] == "sound" else "snapshot"
        _band(axes, _by_seed(rows, place)[0], _by_seed(rows, column), name)


def _by_seed(rows: list[Row], column: str) -> npt.NDArray[np.float64]:
    seeds = sorted({row["seed"] for row in rows})
    return np.array([[row[column] for row in rows if row["seed"] == seed] for seed in seeds])


def _band(axes: Axes, x: Any, table: Any, name: str) -> None:
    """Draw the mean over seeds with a 95 % bootstrap band."""
    color, dashes = STYLES[name]
    rng = np.random.default_rng(0)
    drawn = table[rng.integers(len(table), size=(500, len(table)))]
    counts = (~np.isnan(drawn)).sum(axis=1)
    sums = np.nansum(drawn, axis=1)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    low, high = np.nanquantile(means, [0.025, 0.975], axis=0)
    label = REPLAYS[name].label
    axes.plot(x, np.nanmean(table, axis=0), color=color, linestyle=dashes, linewidth=1.6, label=label)
    axes.fill_between(x, low, high, color=color, alpha=0.13, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.grid(alpha=0.25)


def values(snapshots: list[Row]) -> Figure:
    """The predicted value of the first state of greedy episodes against their return. Above the line is too high."""
    envs = _names(snapshots)
    figure, panels = _panels(1, len(envs), height=2.9)
    for axes, env in zip(panels[0], envs, strict=True):
        extent = []
        for name in AS_USED:
            rows = [row for row in _of(snapshots, env) if row["replay"] == name]
            if not rows:
                continue
            x, y = (_by_seed(rows, f"greedy_{which}") for which in ("discounted_return", "first_value"))
            color = STYLES[name][0]
            axes.plot(x.ravel(), y.ravel(), ".", color=color, markersize=2.5, alpha=min(0.25, 8.0 / len(x)))
            axes.plot(x.mean(0), y.mean(0), "o-", color=color, markersize=4, linewidth=1.2, label=REPLAYS[name].label)
            extent += [x.min(), x.max(), *np.quantile(y, [0.02, 0.98])]
        low, high = min(extent), max(extent)
        room = 0.05 * (high - low)
        axes.plot([low, high], [low, high], color="0.4", linewidth=1, linestyle="--")
        axes.set(title=env, xlabel="discounted return", xlim=(low - room, high + room), ylim=(low - room, high + room))
        axes.grid(alpha=0.25)
    panels[0, 0].set_ylabel("value of the first state")
    _legend(figure)
    return figure


def measures(snapshots: list[Row]) -> Figure:
    """The measures of batches over training, one row for each measure."""
    envs = _names(snapshots)
    figure, panels = _panels(len(MEASURES), len(envs), height=1.9)
    for row, (column, (name, iid, is_log)) in zip(panels, MEASURES.items(), strict=True):
        for axes, env in zip(row, envs, strict=True):
            for replay in REPLAYS:
                rows = [each for each in _of(snapshots, env) if each["replay"] == replay]
                # The newest transitions have a design effect of 0, which a logarithmic axis cannot show
                if rows and (not is_log or _by_seed(rows, column).min() > 0.0):
                    _median_line(axes, rows, column, replay)
            if is_log:
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                low, high = axes.get_ylim()
                axes.yaxis.set_minor_formatter(FuncFormatter(_two_and_five) if high < 30.0 * low else NullFormatter())
            if iid is not None:
                axes.axhline(iid, color="0.4", linewidth=0.8, zorder=0)
            axes.grid(alpha=0.25)
        row[0].set_ylabel(name)
    for axes, env in zip(panels[0], envs, strict=True):
        axes.set_title(env)
    for axes in panels[-1]:
        axes.set_xlabel("tenth of training")
    _legend(figure)
    return figure


def _two_and_five(value: float, _: int) -> str:
    """Labels between powers of ten, for axes that would have at most one label."""
    return f"{value:g}" if f"{value:e}"[0] in "25" else ""


def _median_line(axes: Axes, rows: list[Row], column: str, name: str) -> None:
    color, dashes = STYLES[name]
    middle = np.nanmedian(_by_seed(rows, column), axis=0)
    label = REPLAYS[name].label
    axes.plot(np.arange(1, middle.size + 1), middle, color=color, linestyle=dashes, linewidth=1.4, label=label)


def effects(summary: dict[str, Any]) -> Figure:
    """Each effect with its interval, by task and over all tasks. Below: the difference that determines the verdict."""
    figure, panels = _panels(1, 2, width=4.2, height=3.4)
    titles = {
        "effects": "points per doubling",
        "whole_effects": "points for the strongest dose",
    }
    for axes, (kind, title) in zip(panels[0], titles.items(), strict=True):
        groups = summary[kind]["tasks"] | {"all tasks": summary[kind]["together"]}
        place, ticks, labels = 0.0, [], []
        for env, found in groups.items():
            for factor in (*FACTORS, "difference"):
                interval = found[factor]
                color = {"independence": "#c45a00", "identity": "#0b7f86", "td": "#d62728"}.get(factor, "black")
                axes.plot([interval["low"], interval["high"]], [place, place], color=color, linewidth=2)
                axes.plot(interval["estimate"], place, "o", color=color, markersize=4)
                ticks.append(place)
                labels.append(FACTOR_LABELS.get(factor, f"{env}:  |ind.| + |id.| − |TD|"))
                place += 1.0
            place += 0.8
        axes.axvline(0.0, color="0.4", linewidth=0.8)
        # Limit the axis: with few seeds some intervals are practically unbounded
        found = [list(each[factor].values()) for each in groups.values() for factor in (*FACTORS, "difference")]
        sizes = np.abs(np.nan_to_num(found, posinf=0.0, neginf=0.0))  # of estimates, lows and highs
        room = max(min(1.05 * sizes.max(), 6.0 * sizes[:, 0].max()), 1.0)
        axes.set_xlim(-room, room)
        axes.set(title=title, ylim=(place - 0.8, -1.0))
        axes.set_yticks(ticks, labels if axes is panels[0, 0] else [""] * len(labels), fontsize="small")
        axes.grid(alpha=0.25, axis="x")
    return figure
