"""The figures as text: in microseconds, over replaykit's, and over the floor's."""

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
    """Every target, met or missed."""
    lines = [f"\n== Targets: ratios of replaykit's figures\n{'':56}{'value':>8}{'must':>8}{'best seen':>11}"]
    for target in targets:
        best = "" if target["best seen"] is None else f"{target['best seen']:g}"
        verdict = "" if target["met"] else "   MISSED"
        lines.append(f"{target['title']:56}{target['value']:8.3f}{target['must']:8g}{best:>11}{verdict}")
    met = sum(target["met"] for target in targets)
    return "\n".join([*lines, f"{met} of {len(targets)} met"])


def _number(value: float) -> str:
    """Three or four digits."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
