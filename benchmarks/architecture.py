"""Limits for the architecture: the largest ratio of a call's time to its earlier time, or to that of another call.

The table has a line for each limit, from a run of ``python -m benchmarks --only architecture --before CHECKOUT``.
Ratios are medians over rounds. Both times of a ratio are from the same round.
"""

from dataclasses import dataclass
from typing import Any

from benchmarks.adapters.base import N_STEP
from benchmarks.sections.inputs import LANES, OF_ONE, OF_SEVERAL
from benchmarks.sections.pauses import pause_key
from benchmarks.sections.startup import KINDS as FIRST_BATCHES
from benchmarks.sections.wrappers import BATCHES, KINDS, STACKS, sample_key
from benchmarks.timing import Measured, figure
from benchmarks.versions import AFTER, BEFORE, MEDIAN, ratios


@dataclass(frozen=True)
class Limit:
    """A row of the later version may take at most `must` times the value that it is compared with.

    Parameters
    ----------
    row : str
        The row's key.
    must : float or None
        The largest ratio, or the largest value without a comparison. None: the row is shown without a verdict.
    over : str
        The comparison: "before", "" for none, or the key of another row of the later version.
    floor : bool
        Whether to compare with the row's first floor instead.
    """

    row: str
    must: float | None
    over: str = BEFORE
    floor: bool = False


def _samples() -> list[Limit]:
    """The limits of sampling, for each stack of buffer and wrappers, with one step and with several."""
    most = {
        ("buffer", 1): 1.1,
        ("buffer", N_STEP): 0.8,
        ("hindsight", 1): 1.05,
        ("hindsight", N_STEP): 0.5,
    }
    over_inside = {"uniform": 3.0, "prioritized": 2.0}
    made = []
    for stack in STACKS:
        for kind in KINDS:
            for n_step in (1, N_STEP):
                for batch_size in BATCHES:
                    key = sample_key(stack, kind, n_step, batch_size)
                    if stack == "combined":
                        inside = sample_key("buffer", kind, n_step, batch_size)
                        made.append(Limit(key, over_inside[kind], inside))
                    else:
                        made.append(Limit(key, most.get((stack, n_step))))
    return made


LIMITS = (
    *_samples(),
    *(Limit(f"update-{batch_size}", 1.1) for batch_size in BATCHES),
    *(Limit(key, 1.1) for key in ("add-4", "add-64", "add-masked", "extend-64", "extend-1024", "extend-4096")),
    *(Limit(key, 1.5) for key in ("add-1", "add-1-goals")),
    *(Limit(f"input-1-{key}", 2.0, "input-1-stored") for key in OF_ONE if key != "stored"),
    *(
        Limit(f"input-{lanes}-{key}", 2.0, f"input-{lanes}-stored")
        for lanes in LANES
        for key in OF_SEVERAL
        if key != "stored"
    ),
    *(Limit(key, 5.0, floor=True) for key in ("frame-single", "frame-stack")),
    *(Limit(pause_key(lanes, lap), 1.0, "") for lanes in (1, 64) for lap in (2, 3)),
    *(Limit(key, 1.5) for key in ("first-batch-cold", *(f"first-{kind}-cold" for kind in FIRST_BATCHES))),
    *(Limit(key, 0.3, "") for key in ("first-batch-warm", "first-uniform-warm")),
)


def judge(measured: list[Measured]) -> list[dict[str, Any]]:
    """A line for each limit whose row was measured."""
    rows = {row.key: row for row in measured}
    return [line for limit in LIMITS if (line := _line(limit, rows)) is not None]


def _line(limit: Limit, rows: dict[str, Measured]) -> dict[str, Any] | None:
    row = rows.get(limit.row)
    if row is None:
        return None
    line: dict[str, Any] = {"key": row.key, "title": row.title, "unit": row.unit, "must": limit.must}
    for name in (BEFORE, AFTER):
        line[name] = figure(row.values[name], row.unit, MEDIAN)["value"] if name in row.values else None
    line["over"], others = _other(limit, row, rows)
    line["ratio"] = line["met"] = None
    after = row.values.get(AFTER)
    if after is None:
        line["met"] = None if limit.must is None else False
    elif others is not None:
        line["ratio"] = figure(ratios(after, others) if others else after, "x", MEDIAN)
        line["met"] = None if limit.must is None else line["ratio"]["value"] <= limit.must
    return line


def _other(limit: Limit, row: Measured, rows: dict[str, Measured]) -> tuple[str, list[float] | None]:
    """The name and the values of the comparison. The values are empty without a comparison, and None if missing."""
    if limit.floor:
        return row.floors[0], row.values[row.floors[0]]
    if limit.over == BEFORE:
        return BEFORE, row.values.get(BEFORE)
    if not limit.over:
        return f"{row.unit}, not a ratio", []
    other = rows.get(limit.over)
    return (other.title, other.values.get(AFTER)) if other else (limit.over, None)
