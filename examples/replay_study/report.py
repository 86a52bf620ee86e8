"""The summary as text and tables. Every judgement is derived from an interval."""

import csv
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image

from .analysis import FACTOR_LABELS
from .replays import REPLAYS

TextTable: TypeAlias = tuple[list[str], list[list[str]]]

QUESTION = "Does it matter more that a batch is i.i.d. than what its TD errors are?"
ANSWERS = {
    "supported": "Per doubling, the two halves of i.i.d. together have a larger effect than TD errors.",
    "refuted": "Per doubling, TD errors have a larger effect than the two halves of i.i.d. together.",
    "unresolved": "The 95 % interval of the difference contains 0.",
}
ENDLESS = 1e4
"""Points: a wider interval counts as unbounded, as with two or three seeds."""
WARNING = """\
Warning: these correlations do not show causes. Over runs, they mix three things: the effect of a replay on batches, its
other effects, and the different states that good agents see. They are listed because the original study planned to use
them.
"""
FLAWS = """\
The original protocol keeps the settings of the original study. These include its flaws:
- Every end of an episode, including a time limit, is learned as terminal with a reward of -10. With a discount of 0.8,
  reaching MountainCar's goal is then worse than never reaching it.
- TD errors, in statistics and in priorities, are computed at insertion and never updated.
- Importance-sampling weights are computed but not used.
- correlation_count is the same for every batch of MountainCar, and shows little elsewhere.
- Each run has 300 episodes, so agents with short and long episodes learn from different numbers of steps.
Errors of the original program are corrected: random actions were always action 0, the capacity applied only to
prioritized replay, nothing was seeded, and hindsight was announced but missing. The protocol has no replays that vary
one factor, so it cannot answer the question. --protocol sound can.
"""


def duration(seconds: float) -> str:
    """A duration as text."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


# -- Tables --------------------------------------------------------------------------------------------------


def number(value: float | None, places: int = 1) -> str:
    """A number with `places` decimals; a dash if it is missing, and an infinity sign if it is unbounded."""
    if value is None or value != value:
        return "–"
    if abs(value) >= ENDLESS:
        return "∞" if value > 0.0 else "-∞"
    return f"{round(value, places) + 0.0:.{places}f}"


def interval(found: dict[str, float], places: int = 1) -> str:
    """An estimate and its interval."""
    return f"{number(found['estimate'], places)} [{number(found['low'], places)}, {number(found['high'], places)}]"


def p_value(value: float) -> str:
    """A p-value with three decimals, or that it is below 0.001."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def tables(summary: dict[str, Any]) -> dict[str, TextTable]:
    """Every table of the report by name: its header and its rows."""
    found = {env: _of_task(task) for env, task in summary["tasks"].items()}
    if len(summary["tasks"]) > 1:
        found["together"] = _of_all_tasks(summary["together"])
    if "effects" in summary:
        found["contrasts"] = _of_contrasts(summary["tasks"])
        found["effects"] = _of_effects(summary["effects"])
        found["whole-effects"] = _of_effects(summary["whole_effects"])
    header = ["task", "return and effective batch size", "return and TD-lift"]
    rows = [
        [env, number(each["iid_given_td"], 2), number(each["td_given_iid"], 2)]
        for env, each in summary["correlations"].items()
    ]
    return found | {"correlations": (header, rows)}


def _better(name: str, found: dict[str, Any]) -> str:
    return "" if name == "uniform" else interval(found["better_than_uniform"], 2)


def _of_task(task: dict[str, Any]) -> TextTable:
    header = ["replay", "greedy return, IQM", "better than uniform", "at the end", "design effect", "energy distance"]
    header += ["relative age", "TD-lift", "perplexity", "Q - return"]
    columns = {"last_return": 1, "design_effect": 2, "energy_distance": 2, "relative_age": 2, "td_lift": 2}
    columns |= {"perplexity_share": 2, "overestimation": 1}
    rows = [
        [
            REPLAYS[name].label,
            interval(found["return_iqm"]),
            _better(name, found),
            *(number(found[column], places) for column, places in columns.items()),
        ]
        for name, found in task["replays"].items()
    ]
    return header, rows


def _of_all_tasks(found: dict[str, Any]) -> TextTable:
    rows = [[REPLAYS[name].label, interval(each["points_iqm"]), _better(name, each)] for name, each in found.items()]
    return ["replay", "points, IQM", "better than uniform"], rows


def _of_contrasts(tasks: dict[str, Any]) -> TextTable:
    rows = [
        [
            env,
            FACTOR_LABELS[each["factor"]],
            f"{REPLAYS[each['more']].label} - {REPLAYS[each['less']].label}",
            number(each["doublings"]),
            interval(each),
        ]
        for env, task in tasks.items()
        for each in task["contrasts"]
    ]
    return ["task", "factor", "replays", "doublings", "points"], rows


def _of_effects(found: dict[str, Any]) -> TextTable:
    groups = found["tasks"] | {"all tasks": found["together"]}
    header = ["task", "independence", "identity", "TD errors", "difference", "resampled", "p (Holm)", "H is"]
    rows = [
        [
            name,
            *(interval(each[factor]) for factor in ("independence", "identity", "td", "difference")),
            f"[{number(each['resampled']['low'])}, {number(each['resampled']['high'])}]",
            p_value(each.get("adjusted_p_value", each["p_value"])),
            each["verdict"],
        ]
        for name, each in groups.items()
    ]
    return header, rows


# -- Words ---------------------------------------------------------------------------------------------------


def verdict(summary: dict[str, Any]) -> str:
    """The answer, for each task and over all tasks."""
    effects = summary["effects"]
    words = [f"{env}: {found['verdict']}" for env, found in effects["tasks"].items()]
    over_all = effects["together"]["verdict"]
    tasks = f" By task: {'; '.join(words)}." if len(words) > 1 else ""
    return f"H over all tasks is {over_all}. {ANSWERS[over_all]}{tasks}\n"


def as_text(summary: dict[str, Any]) -> str:
    """The whole report."""
    found = {name: _aligned(*table) for name, table in tables(summary).items()}
    parts = [f"Protocol {summary['protocol']}, {summary['seeds']} seeds. 95 % intervals in brackets.\n"]
    parts += [f"{env}: mean return of greedy episodes over training\n{found[env]}" for env in summary["tasks"]]
    if "together" in found:
        parts.append(f"All tasks, in points: 0 is the worst return, 100 that of a good agent\n{found['together']}")
    if "effects" in found:
        parts += [
            f"One factor at a time, paired over seeds, and by how many doublings it varies\n{found['contrasts']}",
            f"{QUESTION}\nH: |independence| + |identity| > |TD errors|, in points per doubling. H holds if the "
            f"difference is positive.\nThe intervals of a row hold together.\n{found['effects']}",
            f"The same for the strongest dose of each factor, which is a different question\n{found['whole-effects']}",
            verdict(summary),
        ]
    parts.append(f"{WARNING}{found['correlations']}")
    if summary["protocol"] == "original":
        parts.append(FLAWS)
    return "\n".join(parts)


def _aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, the first to the left."""
    widths = [max(len(row[place]) for row in [header, *rows]) for place in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines) + "\n"


# -- The page of the documentation ---------------------------------------------------------------------------


def write_page(directory: Path, summary: dict[str, Any], runs: Path, pictures: Sequence[Path]) -> None:
    """Write the files of the documentation's page from the same results: tables, verdict, data and figures."""
    start = f"study-{summary['protocol']}"
    for name, (header, rows) in tables(summary).items():
        with (directory / f"{start}-{name.lower()}.csv").open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([header, *rows])
    seeds, tasks = summary["seeds"], len(summary["tasks"])
    count = seeds * sum(len(task["replays"]) for task in summary["tasks"].values())
    text = f"{seeds} seeds, {tasks} tasks, {count} runs."
    (directory / f"{start}-verdict.txt").write_text(f"{text} {verdict(summary) if 'effects' in summary else ''}\n")
    shutil.copyfile(runs, directory / f"{start}-runs.csv.gz")
    for path in pictures:
        with Image.open(path) as picture:  # few colors take a third of the space
            few = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
            few.save(directory / f"{start}-{path.name}", optimize=True)
