"""Draw the figures and write the tables of the documentation: ``python -m benchmarks.plot benchmarks/results.json``

All numbers are read from that file. The SVGs are embedded in a page, so their lines and text take its color.
``--format png`` draws them in black on white.
"""

import argparse
import csv
import json
import re
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from benchmarks.adapters import PEERS

NAMES = {
    "replaykit": "replaykit",
    "cpprb": "cpprb",
    "tianshou": "tianshou",
    "stable_baselines3": "Stable-Baselines3",
    "torchrl": "TorchRL",
    "flashbax": "flashbax",
}
ACCENT = "#0a4bfe"
"""A placeholder for the page's own color."""
STYLES = {
    "replaykit": (ACCENT, "o"),
    "cpprb": ("#d1600a", "s"),
    "tianshou": ("#1f9e63", "^"),
    "stable_baselines3": ("#b04fc4", "D"),
    "torchrl": ("#c9344f", "v"),
    "flashbax": ("#8a7a3a", "P"),
    "binary tree": ("#888888", "x"),
}
OVERVIEW = {
    "add-1": "add 1",
    "add-64": "add of 64 lanes",
    "sample-32-obs4": "sample 32",
    "sample-256-obs4": "sample 256",
    "sample-4096-obs4": "sample 4096",
    "per-cycle-256-1e6": "prioritized cycle 256",
    "per-cycle-256-1e6-cold": "prioritized cycle 256, cold",
    "per-dqn-1e6": "add 4, sample 32, update 32",
    "n-step": "sample 256, 3 steps",
    "her": "sample 256, future goals",
    "images-256-stored": "256 images, stored",
    "images-256-once": "256 images, frugal",
}
CAPACITIES = {"1e4": 1e4, "1e5": 1e5, "1e6": 1e6, "1e7": 1e7}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plot", description="Draw the figures and write the tables of a benchmark run."
    )
    parser.add_argument("results", type=Path, help="JSON file that python -m benchmarks --output wrote")
    parser.add_argument(
        "--output", type=Path, default=Path("docs/figures"), help="directory to write to (default: %(default)s)"
    )
    parser.add_argument(
        "--format", choices=("svg", "png"), default="svg", help="file format of the figures (default: %(default)s)"
    )
    options = parser.parse_args()
    results = json.loads(options.results.read_text())
    if "architecture" in results:  # a run of two versions
        table(options.output / "benchmark-architecture.csv", architecture_table(results["architecture"]))
        return
    for section in results["sections"]:
        table(options.output / f"benchmark-{section['name']}.csv", section_table(section))
    if not {section["name"] for section in results["sections"]} >= {"uniform", "per"}:  # a run of a few sections
        return
    rows = {row["key"]: row for section in results["sections"] for row in section["rows"]}
    for name, draw in (("overview", overview), ("capacity", capacity), ("training", training)):
        figure, description = draw(rows)
        if figure is not None:
            save(figure, description, options.output / f"benchmark-{name}.{options.format}")
    table(options.output / "benchmark-targets.csv", targets_table(results["targets"]))
    table(options.output / "benchmark-machine.csv", machine_table(results))


# -- Figures -------------------------------------------------------------------------------------------------


def overview(rows: dict[str, Any]) -> tuple[Figure | None, str]:
    """Each library's time relative to replaykit's, for common workloads."""
    shown = [key for key in OVERVIEW if key in rows][::-1]
    figure = Figure(figsize=(7.6, 0.42 * len(shown) + 1.3), layout="constrained")
    axes = figure.subplots()
    axes.axvline(1.0, color=ACCENT, linewidth=1.5)
    for name in PEERS:
        color, marker = STYLES[name]
        ratios = [
            (rows[key]["figures"][name]["value"] / rows[key]["figures"]["replaykit"]["value"], place)
            for place, key in enumerate(shown)
            if name in rows[key]["figures"]
        ]
        if ratios:
            axes.plot(*zip(*ratios, strict=True), marker, color=color, markersize=7, label=NAMES[name])
    axes.set_xscale("log")
    axes.set_xticks([1, 2, 5, 10, 20, 50, 100], ["1", "2", "5", "10", "20", "50", "100"])
    axes.minorticks_off()
    axes.set_yticks(range(len(shown)), [OVERVIEW[key] for key in shown])
    axes.set_xlabel("time of a call / time of replaykit's call")
    axes.grid(axis="x", alpha=0.25)
    figure.legend(loc="outside upper center", ncols=5, frameon=False, handletextpad=0.2, columnspacing=1.2)
    description = (
        "Time of each library's call divided by the time of replaykit's, for common workloads, on a logarithmic axis"
    )
    return (figure if shown else None), description


def capacity(rows: dict[str, Any]) -> tuple[Figure | None, str]:
    """The prioritized cycle against the capacity, with warm and with cold caches."""
    figure = Figure(figsize=(7.6, 3.6), layout="constrained")
    drawn = False
    for axes, suffix, title in zip(figure.subplots(1, 2, sharey=True), ("", "-cold"), ("warm", "cold"), strict=True):
        found = {at: rows.get(f"per-cycle-256-{size}{suffix}") for size, at in CAPACITIES.items()}
        for name, (color, marker) in STYLES.items():
            points = [
                (at, row["figures"][name]["value"]) for at, row in found.items() if row and name in row["figures"]
            ]
            if points:
                line = "--" if name == "binary tree" else "-"
                label = NAMES.get(name, "binary tree, no Python")
                axes.loglog(
                    *zip(*points, strict=True), line, marker=marker, color=color, label=label if not suffix else None
                )
                drawn = True
        axes.set_title(f"{title} caches", fontsize="medium")
        axes.set_xlabel("capacity")
        axes.grid(alpha=0.25)
        axes.set_yticks([10, 30, 100, 300, 1000], ["10", "30", "100", "300", "1000"])
        axes.minorticks_off()
    figure.axes[0].set_ylabel("add 1, sample 256, update 256, µs")
    figure.legend(loc="outside upper center", ncols=5, frameon=False)
    return (
        figure if drawn else None
    ), "Time of the prioritized cycle against the capacity, with warm and with cold caches"


def training(rows: dict[str, Any]) -> tuple[Figure | None, str]:
    """A DQN step: the time of its network, and the time that each library's replay adds."""
    shown = [rows[key] for key in ("training-uniform", "training-per") if key in rows]
    figure = Figure(figsize=(7.6, 3.0), layout="constrained")
    for axes, row in zip(figure.subplots(1, max(len(shown), 1), sharex=True, squeeze=False)[0], shown, strict=False):
        network = row["figures"]["network"]["value"]
        names = [name for name in NAMES if name in row["figures"]][::-1]
        times = [row["figures"][name]["value"] for name in names]
        axes.barh(range(len(names)), [network] * len(names), color="#888888", label="network")
        colors = [STYLES[name][0] for name in names]
        axes.barh(range(len(names)), [time - network for time in times], left=network, color=colors)
        for place, time in enumerate(times):
            axes.text(time, place, f" {1 - network / time:.0%}", va="center")
        axes.set_yticks(range(len(names)), [NAMES[name] for name in names])
        axes.set_xlim(0, 1.15 * max(times))
        axes.set_title(row["title"], fontsize="medium")
        axes.set_xlabel("µs per step (grey: network)")
    description = "Time of a DQN training step: the time of its network, and the share that replay adds"
    return (figure if shown else None), description


def save(figure: Figure, description: str, path: Path) -> None:
    """Save a figure. An SVG has no background, takes the page's colors, and has a title for screen readers."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.stem}):
        if path.suffix != ".svg":
            figure.savefig(path, dpi=150)
            return
        figure.savefig(path, transparent=True, metadata={"Date": None})
    svg = path.read_text()
    svg = svg[svg.index("<svg") :]
    for unwanted in (
        "<metadata>.*?</metadata>",
        "<style.*?</style>",
        'font-family: [^;"]*; ',
        ' id="[a-z0-9._]+_[0-9]+"',
    ):
        svg = re.sub(unwanted, "", svg, flags=re.DOTALL)  # style and fonts come from the page, and ids may clash
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'width="100%" fill="currentColor"', svg, count=1)
    svg = svg.replace(">", f">\n <title>{description}</title>", 1)
    svg = svg.replace("#000000", "currentColor").replace(ACCENT, "var(--color-brand-primary, #0a4bff)")
    path.write_text("\n".join(line.rstrip() for line in svg.splitlines() if line.strip()) + "\n")


# -- Tables --------------------------------------------------------------------------------------------------


def section_table(section: dict[str, Any]) -> list[list[str]]:
    """A line for each row: replaykit's time, its ratio to the floor, and time and ratio of each other library."""
    present = [name for name in PEERS if any(name in row["figures"] for row in section["rows"])]
    floors = any(row["floors"] for row in section["rows"])
    units = {figure["unit"] for row in section["rows"] for figure in row["figures"].values()}
    unit = f", {'µs' if units == {'us'} else units.pop()}" if len(units) == 1 and units != {"x"} else ""
    lines = [
        [f"call{unit}", "replaykit", *(["relative to floor"] if floors else []), *(NAMES[name] for name in present)]
    ]
    for row in section["rows"]:
        figures = row["figures"]
        if "replaykit" not in figures:
            lines.append([row["title"], "–", *[""] * floors, *["–"] * len(present)])
            continue
        ours = figures["replaykit"]["value"]
        line = [row["title"], _number(ours)]
        if floors:
            floor = next(iter(row["floors"]), None)
            line.append(f"{_ratio(ours / figures[floor]['value'])}× {floor}" if floor else "")
        for name in present:
            found = figures.get(name)
            line.append(f"{_number(found['value'])} ({_ratio(found['value'] / ours)}×)" if found and ours else "–")
        lines.append(line)
    return lines


def targets_table(targets: list[dict[str, Any]]) -> list[list[str]]:
    """The targets, and whether they are met."""
    lines = [["ratio", "measured", "target (at most)", ""]]
    for target in targets:
        verdict = "met" if target["met"] else "**missed**"
        lines.append([target["title"], f"{target['value']:.2g}", f"{target['must']:g}", verdict])
    return lines


def architecture_table(judged: list[dict[str, Any]]) -> list[list[str]]:
    """The limits of the architecture, before and after."""
    lines = [["call", "before", "after", "ratio", "compared with", "target (at most)", ""]]
    for line in judged:
        unit = line["unit"].replace("us", "µs")
        before, after = ("–" if line[name] is None else f"{_number(line[name])} {unit}" for name in ("before", "after"))
        ratio, must = (f"{line['ratio']['value']:.2f}" if line["ratio"] else "–"), line["must"]
        verdict = {True: "met", False: "**missed**", None: ""}[line["met"]]
        lines.append([line["title"], before, after, ratio, line["over"], "" if must is None else f"{must:g}", verdict])
    return lines


def machine_table(results: dict[str, Any]) -> list[list[str]]:
    """The conditions of the run, and the spread of its figures."""
    lines = [["", ""]]
    for name, value in results["machine"].items():
        lines.append([name, ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)])
    lines.append(["versions", ", ".join(f"{name} {number}" for name, number in results["versions"].items())])
    lines.append(["rounds", str(results["settings"]["rounds"])])
    figures = (
        figure for section in results["sections"] for row in section["rows"] for figure in row["figures"].values()
    )
    spreads = [figure["high"] / figure["low"] for figure in figures if figure["unit"] == "us"]
    if spreads:
        lines.append(
            [
                "90th / 10th percentile of the rounds",
                f"{median(spreads):.2f} (median), {max(spreads):.2f} (maximum)",
            ]
        )
    return lines


def table(path: Path, lines: list[list[str]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)


def _number(value: float) -> str:
    """A number with three digits."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def _ratio(value: float) -> str:
    """A number with two digits, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.2g}"


if __name__ == "__main__":
    main()
