"""The figures as text. ``python -m benchmarks.report FILE`` prints those of a saved run."""

import json
import sys
from pathlib import Path
from typing import Any

HEAD = f"{'':26}{'':>10}{'10-90 %':>20}{'/replaykit':>12}{'/floor':>9}"


def section_text(section: dict[str, Any]) -> str:
    """Every figure of a section."""
    lines = [f"\n== {section['title']}", HEAD]
    for row in section["rows"]:
        lines.append(row["title"])
        figures = row["figures"]
        ours = figures.get("replaykit", {}).get("value")
        floor = figures[row["floors"][0]]["value"] if row["floors"] else None
        for name, figure in figures.items():
            value = figure["value"]
            spread = f"{_number(figure['low'])}-{_number(figure['high'])}" if figure["rounds"] > 1 else ""
            over_ours = f"{value / ours:.2f}" if ours else ""
            over_floor = f"{value / floor:.2f}" if floor else ""
            shown = f"  ({name})" if name in row["floors"] else f"  {name}"
            lines.append(f"{shown:26}{_number(value):>7} {figure['unit']:2}{spread:>20}{over_ours:>12}{over_floor:>9}")
        lines += [f"  {name:24}-- {reason}" for name, reason in row["absent"].items()]
    return "\n".join(lines)


def targets_text(targets: list[dict[str, Any]]) -> str:
    """Every target, and whether it is met."""
    lines = [f"\n== Targets: ratios of replaykit's figures\n{'':56}{'value':>8}{'must':>8}{'best seen':>11}"]
    for target in targets:
        best = "" if target["best seen"] is None else f"{target['best seen']:g}"
        verdict = "" if target["met"] else "   MISSED"
        lines.append(f"{target['title']:56}{target['value']:8.3f}{target['must']:8g}{best:>11}{verdict}")
    met = sum(target["met"] for target in targets)
    return "\n".join([*lines, f"{met} of {len(targets)} met"])


def versions_text(section: dict[str, Any]) -> str:
    """Every row of a section, before and after."""
    lines = [f"\n== {section['title']}", f"{'':52}{'before':>10}{'after':>10}{'ratio':>8}{'10-90 %':>15}"]
    for row in section["rows"]:
        figures = row["figures"]
        before, after = (_figure(figures.get(name)) for name in ("before", "after"))
        line = f"{row['title']:52}{before:>10}{after:>10}"
        if "ratio" in figures:
            ratio = figures["ratio"]
            line += f"{ratio['value']:8.2f}{_spread(ratio):>15}"
        lines.append(line)
        lines += [f"{f'  ({name})':62}{_figure(figures[name]):>10}" for name in row["floors"]]
        lines += [f"  {name}: {reason}" for name, reason in row["absent"].items()]
    return "\n".join(lines)


def architecture_text(table: list[dict[str, Any]]) -> str:
    """Every limit of the architecture, and whether it is met."""
    head = f"{'':52}{'before':>10}{'after':>10}{'ratio':>8}{'10-90 %':>15}{'must':>6}          over"
    lines = [f"\n== Limits of the architecture\n{head}"]
    for line in table:
        before, after = (
            "-" if line[name] is None else f"{_number(line[name])} {line['unit']}" for name in ("before", "after")
        )
        ratio, spread = (f"{line['ratio']['value']:.2f}", _spread(line["ratio"])) if line["ratio"] else ("-", "")
        must = "" if line["must"] is None else f"{line['must']:g}"
        verdict = {True: "met", False: "MISSED", None: ""}[line["met"]]
        columns = f"{before:>10}{after:>10}{ratio:>8}{spread:>15}{must:>6}"
        lines.append(f"{line['title']:52}{columns}  {verdict:6}  {line['over']}")
    judged = [line["met"] for line in table if line["met"] is not None]
    return "\n".join([*lines, f"{sum(judged)} of {len(judged)} met"])


def _figure(figure: dict[str, Any] | None) -> str:
    return "-" if figure is None else f"{_number(figure['value'])} {figure['unit']}"


def _spread(figure: dict[str, Any]) -> str:
    return f"{figure['low']:.2f}-{figure['high']:.2f}" if figure["rounds"] > 1 else ""


def _number(value: float) -> str:
    """A number with three or four digits."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def main() -> None:
    """Print the file given on the command line."""
    content = json.loads(Path(sys.argv[1]).read_text())
    is_of_versions = "architecture" in content
    for section in content["sections"]:
        print((versions_text if is_of_versions else section_text)(section))
    print(architecture_text(content["architecture"]) if is_of_versions else targets_text(content["targets"]))


if __name__ == "__main__":
    main()
