"""From results to the answer: a row for each run, the effect of one factor at a time, and a verdict from intervals.

Effects have a common unit, so that they can be compared. An effect is the gain in the outcome for each *doubling* of a
measured property of batches, between replays that differ only in this property.

============ ========================================= =====================================================
factor       from ... to ...                           doubling of
============ ========================================= =====================================================
independence uniform to runs of 8 and 64               the design effect: half as many independent draws
identity     uniform to the newest quarter and 16th    recency: draws half as old
td           dealt to prioritized                      the TD-lift: TD errors in the batch twice as large
============ ========================================= =====================================================

The outcome is the mean return of greedy episodes over all snapshots, which are equally spaced in steps: the area under
the learning curve. It is given in points: 0 is the worst possible return, 100 that of a good agent.
"""

import csv
import gzip
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .replays import AS_USED
from .run import Result, Run
from .statistics import (
    Comparison,
    Floats,
    Interval,
    compare_effects,
    holm,
    interquartile_mean,
    partial_rank_correlation,
    probability_of_improvement,
    stratified_bootstrap,
)

Row: TypeAlias = dict[str, Any]

WORST_AND_GOOD = {"CartPole-v1": (0.0, 500.0), "Acrobot-v1": (-500.0, -80.0), "MountainCar-v0": (-200.0, -100.0)}
LOGS = {"design_effect": "design_effect_log2", "relative_age": "relative_age_log2", "td_lift": "td_lift_log2"}
SHOWN = (
    "greedy_return",
    "last_return",
    "training_return",
    "overestimation",
    "design_effect",
    "td_design_effect",
    "effective_batch_size",
    "energy_distance",
    "relative_age",
    "same_episode_ratio",
    "duplicate_ratio",
    "td_lift",
    "td_mean",
    "perplexity_share",
    "weight_share",
    "correlation_count",
)
FACTORS = ("independence", "identity", "td")
FACTOR_LABELS = {"independence": "independence", "identity": "identity", "td": "TD errors"}
DOSES = {  # for each factor: the replay with more of it, the replay with less, and the measure of the difference
    "independence": [("blocks-8", "uniform", "design_effect_log2"), ("blocks-64", "uniform", "design_effect_log2")],
    "identity": [("newest-4th", "uniform", "relative_age_log2"), ("newest-16th", "uniform", "relative_age_log2")],
    "td": [("prioritized", "dealt", "td_lift_log2")],
}


# -- Rows ----------------------------------------------------------------------------------------------------


def run_row(run: Run, result: Result) -> Row:
    """The result of a run in one row. Measures, and the logarithms of ratios, are means over its snapshots."""
    settings, snapshots = run.settings, result.snapshots
    worst, good = WORST_AND_GOOD[settings.env]
    good = min(good, settings.time_limit) if good > 0.0 else good
    columns = {name: np.array([row[name] for row in snapshots]) for name in snapshots[0]}
    lengths = np.array([row["length"] for row in result.episodes])
    returns = np.array([row["return"] for row in result.episodes])
    greedy = float(columns["greedy_return"].mean())
    row: Row = {
        "protocol": run.protocol,
        "env": settings.env,
        "replay": run.replay,
        "seed": run.seed,
        "points": 100.0 * (greedy - worst) / (good - worst),
        "last_return": float(columns["greedy_return"][-1]),
        "training_return": float((returns * lengths).sum() / lengths.sum()) if lengths.size else float("nan"),
        "overestimation": _mean(columns["greedy_first_value"] - columns["greedy_discounted_return"]),
    }
    row |= {name: _mean(values) for name, values in columns.items() if name not in ("snapshot", "step", "episodes")}
    with np.errstate(divide="ignore", invalid="ignore"):
        return row | {column: _mean(np.log2(columns[name])) for name, column in LOGS.items()}


def _mean(values: npt.NDArray[Any]) -> float:
    """The mean of the finite values; nan if there are none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


def long_rows(run: Run, rows: Iterable[dict[str, float]]) -> list[Row]:
    """Rows for a table of all runs, with the columns that identify the run."""
    known = {"protocol": run.protocol, "env": run.settings.env, "replay": run.replay, "seed": run.seed}
    return [known | row for row in rows]


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write a table with the columns of its first row, compressed if the name ends in .gz. It is reproducible."""
    lines = [list(rows[0])] + [[_written(value) for value in row.values()] for row in rows]
    with path.open("wb") as raw:
        if path.suffix == ".gz":
            with gzip.GzipFile(fileobj=raw, filename="", mode="wb", mtime=0) as packed:
                packed.write(_csv_text(lines))
        else:
            raw.write(_csv_text(lines))


def _written(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _csv_text(lines: list[list[str]]) -> bytes:
    return "".join(",".join(line) + "\n" for line in lines).encode()


def read_csv(path: Path) -> list[Row]:
    """The rows of a table, with numbers converted."""
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [
        {name: value if name in ("protocol", "env", "replay") else float(value) for name, value in row.items()}
        for row in csv.DictReader(text.decode().splitlines())
    ]


# -- The summary ---------------------------------------------------------------------------------------------


class Table:
    """Rows of runs, as arrays over seeds."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = sorted(rows, key=lambda row: row["seed"])
        self.envs = list(dict.fromkeys(row["env"] for row in rows))
        self.replays = list(dict.fromkeys(row["replay"] for row in rows))
        self.seeds = sorted({int(row["seed"]) for row in rows})

    def has(self, env: str, replay: str) -> bool:
        """Whether a task was trained with a replay."""
        return any(row["env"] == env and row["replay"] == replay for row in self.rows)

    def get(self, env: str, replay: str, column: str) -> Floats:
        """A column of one task and replay, by seed."""
        return np.array([row[column] for row in self.rows if row["env"] == env and row["replay"] == replay])

    def effects(self, env: str) -> Floats:
        """The three effects for each seed, in points per doubling: (seeds, 3)."""
        columns = []
        for factor in FACTORS:
            doublings = np.array([self.doublings(env, dose) for dose in DOSES[factor]])  # (doses,)
            gains = np.stack([self.gain(env, more, less) for more, less, _ in DOSES[factor]])  # (doses, seeds)
            # Least squares through the origin; nan if no dose changed the measure
            square = float(doublings @ doublings) or float("nan")
            columns.append(doublings @ gains / square)
        return np.stack(columns, axis=1)

    def strongest(self, env: str) -> Floats:
        """The effects of the strongest dose of each factor, in points: (seeds, 3)."""
        return np.stack([self.gain(env, *DOSES[factor][-1][:2]) for factor in FACTORS], axis=1)

    def doublings(self, env: str, dose: tuple[str, str, str]) -> float:
        """The size of a dose in doublings of its measure."""
        more, less, column = dose
        change = float(np.nanmean(self.get(env, more, column)) - np.nanmean(self.get(env, less, column)))
        return -change if column == "relative_age_log2" else change  # recency doubles where age halves

    def gain(self, env: str, first: str, second: str) -> Floats:
        """The difference between two replays in points, for each seed."""
        difference: Floats = self.get(env, first, "points") - self.get(env, second, "points")
        return difference


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """All numbers of the report as plain values."""
    table = Table(rows)
    summary: dict[str, Any] = {
        "protocol": rows[0]["protocol"],
        "seeds": len(table.seeds),
        "tasks": {env: _task(table, env) for env in table.envs},
        "together": _together(table),
        "correlations": {env: _correlations(table, env) for env in table.envs},
    }
    has_factors = all(table.has(env, name) for env in table.envs for doses in DOSES.values() for name in doses[0][:2])
    if has_factors:
        summary["effects"] = _compare_all(table, table.effects)
        summary["whole_effects"] = _compare_all(table, table.strongest)
    return summary


def _task(table: Table, env: str) -> dict[str, Any]:
    found = {}
    for name in (name for name in table.replays if table.has(env, name)):
        returns = stratified_bootstrap([table.get(env, name, "greedy_return")], _iqm)
        gain = stratified_bootstrap([table.gain(env, name, "uniform")], _mean_of_first)
        found[name] = {
            "return_iqm": returns._asdict(),
            "gain_over_uniform": gain._asdict(),
            "better_than_uniform": _improvement(table, [env], name)._asdict(),
            **{column: float(np.nanmean(table.get(env, name, column))) for column in SHOWN},
        }
    contrasts = [
        {
            "factor": factor,
            "more": more,
            "less": less,
            "doublings": table.doublings(env, (more, less, column)),
            **stratified_bootstrap([table.gain(env, more, less)], _mean_of_first)._asdict(),
        }
        for factor, doses in DOSES.items()
        for more, less, column in doses
        if table.has(env, more) and table.has(env, less)
    ]
    return {"replays": found, "contrasts": contrasts}


def _together(table: Table) -> dict[str, Any]:
    """The results over all tasks, for the replays that every task has."""
    names = [name for name in table.replays if all(table.has(env, name) for env in table.envs)]
    return {
        name: {
            "points_iqm": stratified_bootstrap([table.get(env, name, "points") for env in table.envs], _iqm)._asdict(),
            "better_than_uniform": _improvement(table, table.envs, name)._asdict(),
        }
        for name in names
    }


def _iqm(tasks: Sequence[Floats]) -> Floats:
    return interquartile_mean(np.concatenate(tasks, axis=-1))


def _mean_of_first(tasks: Sequence[Floats]) -> Floats:
    mean: Floats = tasks[0].mean(axis=-1)
    return mean


def _improvement(table: Table, envs: Sequence[str], name: str) -> Interval:
    """The probability of improvement over uniform replay. Both runs of a seed are resampled together."""
    pairs = [np.stack([table.get(env, each, "points") for each in (name, "uniform")], axis=1) for env in envs]
    return stratified_bootstrap(
        pairs, lambda drawn: probability_of_improvement([(pair[..., 0], pair[..., 1]) for pair in drawn])
    )


def _compare_all(table: Table, effects_of: Any) -> dict[str, Any]:
    """The comparison of effects for each task, corrected for multiple tasks, and for all tasks together."""
    each = {env: compare_effects([effects_of(env)]) for env in table.envs}
    adjusted = holm([comparison.p_value for comparison in each.values()])
    tasks = {}
    for (env, comparison), p_value in zip(each.items(), adjusted, strict=True):
        tasks[env] = _plain(comparison) | {"adjusted_p_value": p_value}
        if p_value > 0.05:
            tasks[env]["verdict"] = "unresolved"
    return {"tasks": tasks, "together": _plain(compare_effects([effects_of(env) for env in table.envs]))}


def _plain(comparison: Comparison) -> dict[str, Any]:
    intervals = {name: getattr(comparison, name)._asdict() for name in (*FACTORS, "difference", "resampled")}
    return intervals | {"p_value": comparison.p_value, "verdict": comparison.verdict}


def _correlations(table: Table, env: str) -> dict[str, float]:
    """Correlations over all runs of a task. They mislead: replays also differ in other ways than those correlated."""
    rows = [row for row in table.rows if row["env"] == env and row["replay"] in AS_USED]
    points, iid, lift = (
        np.array([row[name] for row in rows]) for name in ("points", "effective_batch_size", "td_lift")
    )
    return {
        "iid_given_td": partial_rank_correlation(points, iid, lift),
        "td_given_iid": partial_rank_correlation(points, lift, iid),
    }


def write_summary(path: Path, summary: dict[str, Any]) -> None:
    """Write the summary as JSON, with null for NaN."""
    path.write_text(json.dumps(_without_nan(summary), indent=1, allow_nan=False) + "\n")


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
