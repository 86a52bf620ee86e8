"""Targets of replaykit: ratios between figures of one run, and the best ratio seen in an experiment."""

from dataclasses import dataclass
from typing import Any

Place = tuple[str, str]
"""A row's key, and a name in it."""


@dataclass(frozen=True)
class Target:
    """A figure of replaykit must be at most `must` times another figure, or at most `must` without another figure."""

    title: str
    row: str
    over: Place | None
    must: float
    best: float | None = None


def over_cpprb(title: str, row: str, must: float, best: float | None = None) -> Target:
    return Target(f"{title}, over cpprb", row, (row, "cpprb"), must, best)


TARGETS = (
    over_cpprb("add 1", "add-1", 0.08, 0.05),
    over_cpprb("add 1, prioritized", "add-1-per", 0.08, 0.05),
    over_cpprb("add of 64 lanes", "add-64", 0.15, 0.07),
    over_cpprb("extend by 64", "extend-64", 0.15, 0.07),
    over_cpprb("sample 32, D=4", "sample-32-obs4", 0.35, 0.20),
    over_cpprb("sample 256, D=4", "sample-256-obs4", 0.25, 0.17),
    over_cpprb("sample 4096, D=4", "sample-4096-obs4", 0.25, 0.16),
    over_cpprb("sample 32, D=17, A=6", "sample-32-obs17", 0.35, 0.20),
    over_cpprb("sample 256, D=17, A=6", "sample-256-obs17", 0.25, 0.17),
    over_cpprb("sample 4096, D=17, A=6", "sample-4096-obs17", 0.25, 0.16),
    Target("4096 given indices, D=4, over reads", "given-4096-obs4", ("given-4096-obs4", "random reads"), 2.0, 1.5),
    Target("4096 given indices, D=17, over reads", "given-4096-obs17", ("given-4096-obs17", "random reads"), 2.0, 1.5),
    over_cpprb("prioritized sample 256, 1e6", "per-sample-256-1e6", 0.15, 0.09),
    over_cpprb("prioritized update 256, 1e6", "per-update-256-1e6", 0.35),
    over_cpprb("cycle 256, 1e6", "per-cycle-256-1e6", 0.15, 0.086),
    over_cpprb("cycle 256, 1e6, cold", "per-cycle-256-1e6-cold", 0.25, 0.175),
    over_cpprb("cycle 32, 1e6", "per-cycle-32-1e6", 0.22, 0.16),
    over_cpprb("cycle 4096, 1e6", "per-cycle-4096-1e6", 0.16, 0.09),
    Target("cycle 256, 1e7 over 1e4", "per-cycle-256-1e7", ("per-cycle-256-1e4", "replaykit"), 4.5, 2.9),
    *(
        Target(
            f"cycle 256, {size}, over the binary tree",
            f"per-cycle-256-{size}",
            (f"per-cycle-256-{size}", "binary tree"),
            1.5,
        )
        for size in ("1e4", "1e5", "1e6", "1e7")
    ),
    over_cpprb("images, sample 256", "images-256-stored", 0.70, 0.62),
    Target(
        "images, sample 256, over a memory copy", "images-256-stored", ("images-256-stored", "memory copy"), 1.5, 1.35
    ),
    Target("images, frames kept once over stored", "images-256-once", ("images-256-stored", "replaykit"), 0.75, 0.52),
    Target("3 steps over 1 step", "n-step", ("n-step-uniform", "replaykit"), 2.5),
    Target("future goals over goals as stored", "her", ("her-uniform", "replaykit"), 2.0, 1.9),
    Target("import, seconds", "import", None, 0.3, 0.06),
    Target("first batch, compile cache warm, seconds", "first-batch-warm", None, 0.4, 0.27),
    Target("first batch, compile cache cold, seconds", "first-batch-cold", None, 3.0, 1.3),
    Target("peak memory over the rows", "memory-small", None, 1.15),
    Target("a batch of 256 as tensors, over torch.from_numpy", "tensors-256", ("tensors-256", "torch.from_numpy"), 1.8),
    Target("a checkpoint, over numpy.save", "saving-save", ("saving-save", "numpy.save"), 2.5),
    Target("another one after 1,000 adds, over the first", "saving-save-again", ("saving-save", "replaykit"), 0.15),
)
FASTEST_PEER, FASTEST_PEER_OF_IMAGES = 0.5, 0.8
NOT_AGAINST_PEERS = "import first-batch memory training add-4 extend-4096 frame threads saving tensors sb3"
"""Prefixes of the keys of rows that are not compared with the fastest other library."""


def judge(sections: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every target with available figures, and whether it is met. Then each row against the fastest library."""
    rows = {row["key"]: row for section in sections for row in section["rows"]}
    judged = []
    for target in TARGETS:
        ours, other = _value(rows, (target.row, "replaykit")), 1.0 if target.over is None else _value(rows, target.over)
        if ours is not None and other is not None:
            judged.append(_verdict(target.title, ours / other, target.must, target.best))
    for key, row in rows.items():
        peers = {name: figure for name, figure in row["figures"].items() if name not in ("replaykit", *row["floors"])}
        if not peers or key.startswith(tuple(NOT_AGAINST_PEERS.split())) or "replaykit" not in row["figures"]:
            continue
        fastest = min(peers, key=lambda name: float(peers[name]["value"]))
        must = FASTEST_PEER_OF_IMAGES if key.startswith("images") else FASTEST_PEER
        ratio = row["figures"]["replaykit"]["value"] / peers[fastest]["value"]
        judged.append(_verdict(f"{row['title']}, over {fastest}", ratio, must, None) | {"fastest peer": fastest})
    return judged


def _value(rows: dict[str, Any], place: Place) -> float | None:
    key, name = place
    found = rows.get(key, {"figures": {}})["figures"].get(name)
    return None if found is None else float(found["value"])


def _verdict(title: str, value: float, must: float, best: float | None) -> dict[str, Any]:
    return {"title": title, "value": round(value, 3), "must": must, "best seen": best, "met": value <= must}
