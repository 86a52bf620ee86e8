"""The summary in words. Every word that judges is made from an interval."""

from collections.abc import Sequence
from typing import Any

from .replays import REPLAYS

QUESTION = "Does it matter more that a batch is i.i.d. than what its TD errors are?"
FLAWS = """\
The original protocol is kept as far as it is settings, its flaws among them:
- every end of an episode, a time limit too, is learned as terminal and rewarded with -10, which with a discount of
  0.8 makes reaching MountainCar's goal worse than never reaching it;
- TD errors, in statistics and in priorities, are those of the moment of insertion, never refreshed;
- importance-sampling weights are computed and not used;
- correlation_count is the same for every batch of MountainCar, and tells little elsewhere;
- 300 episodes each, so that an agent that fails sooner, or lasts longer, learns from other numbers of steps.
Corrected are mistakes of the program, which nobody would choose: random actions were always action 0, the capacity
held for prioritized replay only, nothing was seeded, hindsight was announced and absent. It has no replays that vary
one factor, so it cannot answer the question; --protocol sound does.
"""


def duration(seconds: float) -> str:
    """In words."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def as_text(summary: dict[str, Any]) -> str:
    """The whole report."""
    parts = [f"Protocol {summary['protocol']}, {summary['seeds']} seeds. 95 % intervals in brackets.\n"]
    for env, task in summary["tasks"].items():
        parts.append(_task(env, task))
    if len(summary["tasks"]) > 1:
        parts.append(_together(summary["together"]))
    if "effects" in summary:
        parts.append(_effects(summary))
    parts.append(_correlations(summary["correlations"]))
    if summary["protocol"] == "original":
        parts.append(FLAWS)
    return "\n".join(parts)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, the first to the left."""
    widths = [max(len(row[place]) for row in [header, *rows]) for place in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines) + "\n"


def number(value: float | None, places: int = 1) -> str:
    """With so many places, or a dash for what there is not."""
    if value is None or value != value:
        return "-"
    return f"{value + 0.0:.{places}f}" if abs(value) < 1e5 else f"{value:.2g}"


def interval(found: dict[str, float], places: int = 1) -> str:
    """An estimate and what it lies between."""
    return f"{number(found['estimate'], places)} [{number(found['low'], places)}, {number(found['high'], places)}]"


def _task(env: str, task: dict[str, Any]) -> str:
    header = ["replay", "greedy return, IQM", "better than uniform", "last", "design eff.", "energy d.", "rel. age"]
    header += ["TD-lift", "Q - return"]
    rows = [
        [
            REPLAYS[name].label,
            interval(found["return_iqm"]),
            "" if name == "uniform" else interval(found["better_than_uniform"], 2),
            number(found["last_return"]),
            number(found["design_effect"], 2),
            number(found["energy_distance"], 2),
            number(found["relative_age"], 2),
            number(found["td_lift"], 2),
            number(found["overestimation"]),
        ]
        for name, found in task["replays"].items()
    ]
    return f"{env}: mean return of greedy episodes over training\n{table(header, rows)}"


def _together(found: dict[str, Any]) -> str:
    rows = [
        [
            REPLAYS[name].label,
            interval(each["points_iqm"]),
            "" if name == "uniform" else interval(each["better_than_uniform"], 2),
        ]
        for name, each in found.items()
    ]
    header = ["replay", "points, IQM", "better than uniform"]
    return f"All tasks, in points from 0, the worst, to 100, a good agent\n{table(header, rows)}"


def _effects(summary: dict[str, Any]) -> str:
    lines = [
        "One factor at a time, paired over seeds, in points of the whole (strength in doublings of what is measured):"
    ]
    rows = [
        [env, contrast, number(found["doublings"]), interval(found)]
        for env, task in summary["tasks"].items()
        for contrast, found in task["contrasts"].items()
    ]
    lines.append(table(["task", "replays", "doublings", "points"], rows))
    titles = {
        "effects": f"{QUESTION}\nH: |independence| + |identity| > |TD errors|, in points for each doubling.",
        "whole_effects": "The same for the strongest dose of each as a whole, which is another question:",
    }
    for kind, title in titles.items():
        groups = summary[kind]["tasks"] | {"all tasks": summary[kind]["together"]}
        rows = [
            [
                name,
                *(interval(found[factor]) for factor in ("independence", "identity", "td", "difference")),
                f"{found.get('adjusted_p_value', found['p_value']):.3f}",
                found["verdict"],
            ]
            for name, found in groups.items()
        ]
        header = ["", "independence", "identity", "TD errors", "|ind.| + |id.| - |TD|", "p (Holm)", "H is"]
        lines += [title, table(header, rows)]
    verdict = summary["effects"]["together"]["verdict"]
    answers = {
        "supported": "Yes: here both halves of i.i.d. together weigh more than TD errors, doubling for doubling.",
        "refuted": "No: here TD errors weigh more than both halves of i.i.d. together, doubling for doubling.",
        "unresolved": "These runs do not tell.",
    }
    lines.append(f"H over all tasks is {verdict}. {answers[verdict]}\n")
    return "\n".join(lines)


def _correlations(found: dict[str, Any]) -> str:
    rows = [[env, number(each["iid_given_td"], 2), number(each["td_given_iid"], 2)] for env, each in found.items()]
    header = ["task", "return and effective batch size", "return and TD-lift"]
    warning = (
        "Warning: do not judge by this. Partial rank correlations over runs mix what a replay does to batches with\n"
        "all else that it does, and with what good agents see because they are good. They stand here because the\n"
        "original study meant to use such.\n"
    )
    return f"{warning}{table(header, rows)}"
