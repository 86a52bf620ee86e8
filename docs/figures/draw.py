"""Draw the figures of the documentation: ``python docs/figures/draw.py``.

They are put into the pages as they are, so that `currentColor` and the theme's colors make them readable on a
light and on a dark page. Every number in them comes from the library or from the arithmetic that a page explains.
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from replaykit import (
    Buffer,
    CombinedReplay,
    Field,
    HindsightReplay,
    MixedReplay,
    PrioritizedBuffer,
    RecentReplay,
    ReplayBuffer,
    SequenceReplay,
    Spec,
    SumTree,
)

ACCENT = "var(--color-brand-primary, #0a4bff)"
MUTED = "var(--color-foreground-muted, #808080)"
SURFACE = "var(--color-background-secondary, none)"


class Drawing:
    """An SVG of the given size, with a text for those who cannot see it."""

    def __init__(self, width: int, height: int, description: str) -> None:
        self.size = width, height
        self.parts = [f"<title>{description}</title>"]

    def line(self, x1, y1, x2, y2, color="currentColor", width=1.2, dashed=False):
        """A straight line between two points."""
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        self.parts.append(
            f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" '
            f'style="stroke: {color}" stroke-width="{width}"{dash}/>'
        )

    def arrow(self, x1, y1, x2, y2, color="currentColor", width=1.2):
        """A line with a point at its second end."""
        self.line(x1, y1, x2, y2, color, width)
        along = np.array([x2 - x1, y2 - y1]) / np.hypot(x2 - x1, y2 - y1)
        across = np.array([-along[1], along[0]])
        tip = np.array([x2, y2])
        corners = (tip, tip - 8 * along + 4 * across, tip - 8 * along - 4 * across)
        points = " ".join(f"{x:.4g},{y:.4g}" for x, y in corners)
        self.parts.append(f'<polygon points="{points}" style="fill: {color}"/>')

    def text(self, x, y, words, color="currentColor", size=14, anchor="middle", bold=False):
        """Words, with their baseline at y."""
        weight = ' font-weight="bold"' if bold else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size}"{weight} '
            f'style="fill: {color}">{words}</text>'
        )

    def box(self, x, y, width, height, color="currentColor", stroke=1.2, fill=SURFACE, radius=4):
        """A rectangle, given its upper left corner."""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius}" stroke-width="{stroke}" '
            f'style="fill: {fill}; stroke: {color}"/>'
        )

    def circle(self, x, y, radius, color="currentColor", stroke=1.2, fill=SURFACE):
        """A circle, given its center."""
        self.parts.append(
            f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" stroke-width="{stroke}" '
            f'style="fill: {fill}; stroke: {color}"/>'
        )

    def save(self, name: str) -> None:
        """Write the drawing beside this script."""
        width, height = self.size
        content = "\n".join(self.parts)
        path = Path(__file__).with_name(name)
        path.write_text(
            f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {width} {height}" '
            f'style="max-width: {width}px; width: 100%; color: var(--color-foreground-primary, black); '
            f'font-family: inherit; margin: 1rem 0">\n{content}\n</svg>\n'
        )


PLACES = {1: (300, 30), 2: (160, 105), 3: (440, 105), 4: (90, 185), 5: (230, 185), 6: (370, 185), 7: (510, 185)}
"""Centers of the nodes, by number: the children of node k are 2k and 2k + 1."""


def draw_nodes(drawing: Drawing, sums: dict[int, float], path: tuple[int, ...], dx: float = 0.0) -> None:
    """The tree of four leaves, with the nodes in `path` and the edges between them set off."""
    places = {node: (x + dx, y) for node, (x, y) in PLACES.items()}
    for node in range(2, 8):
        chosen = node in path and node // 2 in path
        drawing.line(
            *places[node // 2], *places[node], color=ACCENT if chosen else "currentColor", width=3 if chosen else 1.2
        )
    for node, (x, y) in places.items():
        color, stroke = (ACCENT, 3) if node in path else ("currentColor", 1.2)
        drawing.circle(x, y, 21, color, stroke, "var(--color-background-primary, white)")
        drawing.text(x, y + 6, f"{sums[node]:g}", size=17, bold=True, color=ACCENT if node in path else "currentColor")


def sums_of(tree: SumTree) -> dict[int, float]:
    """Every node of a tree of four leaves, by number."""
    leaves = tree.get([0, 1, 2, 3])
    return {
        1: tree.total, 2: leaves[0] + leaves[1], 3: leaves[2] + leaves[3], **{4 + i: leaves[i] for i in range(4)}
    }  # fmt: skip


def draw_query() -> None:
    """find(3.5) in the tree of 3, 0, 1, 2, and the line of masses under it."""
    tree = SumTree(4)
    tree.set([0, 1, 2, 3], [3.0, 0.0, 1.0, 2.0])
    assert tree.find([3.5]).item() == 2
    drawing = Drawing(640, 325, "The query 3.5 goes right at the root, with 0.5 left over, and then left to leaf 2")
    draw_nodes(drawing, sums_of(tree), (1, 3, 6))
    drawing.text(335, 27, "3.5 ≥ 3: go right with 3.5 − 3 = 0.5", ACCENT, anchor="start")
    drawing.text(470, 99, "0.5 &lt; 1: go left", ACCENT, anchor="start")
    drawing.text(22, 237, "leaf", MUTED, anchor="start")
    for leaf, node in enumerate(range(4, 8)):
        drawing.text(PLACES[node][0], 237, leaf, ACCENT if leaf == 2 else MUTED, bold=leaf == 2)
    left, unit, top = 90, 70, 268
    drawing.text(22, top + 20, "mass", MUTED, anchor="start")
    for leaf, (start, stop) in {0: (0, 3), 2: (3, 4), 3: (4, 6)}.items():
        drawing.box(left + start * unit, top, (stop - start) * unit, 30, ACCENT if leaf == 2 else "currentColor")
        drawing.text(left + (start + stop) / 2 * unit, top + 20, f"leaf {leaf}", size=13)
    for mass in range(7):
        drawing.text(left + mass * unit, top + 48, mass, MUTED, 13)
    drawing.arrow(left + 3.5 * unit, top - 14, left + 3.5 * unit, top - 1, ACCENT, 2)
    drawing.text(left + 3.5 * unit + 16, top - 6, "3.5", ACCENT, 13, bold=True)
    drawing.save("query.svg")


def draw_update() -> None:
    """Leaf 1 set to 4: the leaf and its ancestors change."""
    tree = SumTree(4)
    tree.set([0, 1, 2, 3], [3.0, 4.0, 1.0, 2.0])
    drawing = Drawing(640, 250, "After leaf 1 is set to 4, its parent is 3 + 4 = 7 and the root is 7 + 3 = 10")
    draw_nodes(drawing, sums_of(tree), (1, 2, 5))
    drawing.text(335, 27, "10 = 7 + 3", ACCENT, anchor="start")
    drawing.text(130, 99, "7 = 3 + 4", ACCENT, anchor="end")
    drawing.text(22, 237, "leaf", MUTED, anchor="start")
    for leaf, node in enumerate(range(4, 8)):
        drawing.text(PLACES[node][0], 237, leaf, ACCENT if leaf == 1 else MUTED, bold=leaf == 1)
    drawing.save("update.svg")


def draw_schemes() -> None:
    """Four points on the masses 3, 0, 1, 2 in each scheme."""
    tree = SumTree(4)
    tree.set([0, 1, 2, 3], [3.0, 0.0, 1.0, 2.0])
    left, unit = 110, 80
    drawing = Drawing(640, 228, "Four points on the mass: one in each quarter, or each anywhere on the line")
    for leaf, (start, stop) in {0: (0, 3), 2: (3, 4), 3: (4, 6)}.items():
        drawing.box(left + start * unit, 10, (stop - start) * unit, 28)
        drawing.text(left + (start + stop) / 2 * unit, 29, f"leaf {leaf}", size=13)
    rows = {
        "stratified": (np.array([0.7, 0.2, 0.35, 0.6]) + np.arange(4)) / 4,
        "iid": np.array([0.08, 0.16, 0.41, 0.93]),
    }
    for row, (scheme, places) in enumerate(rows.items()):
        y = 85 + 62 * row
        drawing.text(14, y + 5, scheme, anchor="start")
        drawing.line(left, y, left + 6 * unit, y)
        for cut in range(5):
            if scheme != "iid":
                drawing.line(left + cut * 1.5 * unit, y - 14, left + cut * 1.5 * unit, y + 14, MUTED, 1.2, dashed=True)
        for place in places:
            drawing.circle(left + place * 6 * unit, y, 6, ACCENT, 1.2, ACCENT)
        counts = np.bincount(tree.find(places * 6.0), minlength=4)
        words = ", ".join(f"leaf {leaf}: {counts[leaf]}" for leaf in (0, 2, 3))
        drawing.text(left + 6 * unit, y + 30, words, MUTED, 13, anchor="end")
    for boundary in (3, 4):
        drawing.line(left + boundary * unit, 38, left + boundary * unit, 163, "currentColor", 0.8)
    drawing.text(left, 216, "0", MUTED, 13)
    drawing.text(left + 6 * unit, 216, "6", MUTED, 13)
    drawing.line(left, 196, left + 6 * unit, 196, MUTED)
    for boundary in (3, 4):
        drawing.text(left + boundary * unit, 216, boundary, MUTED, 13)
    drawing.save("schemes.svg")


PRIORITIES = [0.4, 1.2, 0.2, 0.7, 2.0, 0.3, 0.9, 40.0, 0.5, 1.5, 0.1, 0.6]


def draw_choices() -> None:
    """How likely each of twelve transitions is, one of which has a priority far above the others."""
    spec, count = Spec(obs=Field(()), action=Field(())), len(PRIORITIES)

    def filled(kind: type[Buffer], **options: Any) -> Buffer:
        buffer = kind(count, spec, seed=0, **options)
        zeros, no = np.zeros(count), np.zeros(count, bool)
        buffer.extend(zeros, zeros, zeros, zeros, no, no)
        buffer.update_priorities(np.arange(count), priorities=PRIORITIES)
        return buffer

    rows = {
        "ReplayBuffer": filled(ReplayBuffer),
        "PrioritizedBuffer": filled(PrioritizedBuffer),
        'variant="rank"': filled(PrioritizedBuffer, variant="rank"),
        "RecentReplay, newest=4": RecentReplay(filled(ReplayBuffer), newest=4),
    }
    drawing = Drawing(640, 60 + 78 * (len(rows) + 1), "Probabilities of twelve transitions under each kind of replay")
    left, width = 190, 34
    shares = {name: replay.probability(np.arange(count)) for name, replay in rows.items()}
    large = np.array([1, 4, 6, 7, 9, 11])
    chosen = np.zeros(count)
    chosen[large] = np.array(PRIORITIES)[large] / np.array(PRIORITIES)[large].sum()
    shares["LargeBatchReplay"] = chosen
    for row, (name, p) in enumerate(shares.items()):
        bottom = 70 + 78 * row
        drawing.text(14, bottom - 18, name, anchor="start", size=13)
        drawing.line(left, bottom, left + count * width, bottom, MUTED)
        for i, share in enumerate(p):
            height = 52 * min(share / 0.4, 1.0)
            x = left + i * width + 5
            if name == "LargeBatchReplay" and i in large:
                drawing.box(x - 3, bottom - 56, width - 4, 58, MUTED, 1.0)
            if share > 0.0:
                drawing.box(x, bottom - height, width - 10, height, ACCENT, 1.0, ACCENT)
            if share > 0.4:
                drawing.text(x + width / 2 - 5, bottom - 38, f"{share:.2f}", SURFACE, 11)
    bottom = 70 + 78 * (len(shares) - 1)
    drawing.text(14, bottom, "boxes: the large batch", MUTED, 11, anchor="start")
    for i, priority in enumerate(PRIORITIES):
        drawing.text(left + (i + 0.5) * width, bottom + 24, f"{priority:g}", MUTED, 12)
    drawing.text(14, bottom + 24, "priority (oldest first)", MUTED, 12, anchor="start")
    drawing.save("choices.svg")


def draw_large_batch() -> None:
    """The expected share of each of four transitions in a batch from a large one, without and with its weights."""
    priorities, size = np.array([1.0, 2.0, 3.0, 6.0]), 4
    rows = np.array(list(itertools.product(range(4), repeat=size)))
    p = priorities[rows]
    drawn = p / p.sum(axis=1, keepdims=True)
    weights = p.mean(axis=1, keepdims=True) / p
    shares = {"without weights": drawn, "with weights": drawn * weights}
    drawing = Drawing(640, 262, "Without weights the shares grow with the priorities; with weights each is a quarter")
    left, width = 190, 104
    for row, (name, values) in enumerate(shares.items()):
        bottom = 100 + 104 * row
        drawing.text(14, bottom - 22, name, anchor="start")
        for i in range(4):
            share = values[rows == i].sum() / len(rows)
            x, height = left + i * width + 22, 140 * share
            drawing.box(x, bottom - height, width - 44, height, ACCENT, 1.0, ACCENT)
            drawing.text(x + width / 2 - 22, bottom - height - 8, f"{share:.3f}", size=13)
        drawing.line(left, bottom - 35, left + 4 * width, bottom - 35, MUTED, dashed=True)
        drawing.line(left, bottom, left + 4 * width, bottom, MUTED)
    drawing.text(left + 4 * width + 6, 70, "1/4", MUTED, 12, anchor="start")
    drawing.text(left + 4 * width + 6, 174, "1/4", MUTED, 12, anchor="start")
    for i, priority in enumerate(priorities):
        drawing.text(left + (i + 0.5) * width, 232, f"{priority:g}", MUTED, 13)
    drawing.text(14, 232, "priority", MUTED, 13, anchor="start")
    drawing.save("large-batch.svg")


def draw_ring() -> None:
    """Two lanes of three slots after five steps of each."""
    buffer = ReplayBuffer(6, Spec(obs=Field(()), action=Field(())), num_envs=2)
    zeros, no = np.zeros(2), np.zeros(2, bool)
    for _ in range(5):
        buffer.add(zeros, zeros, zeros, zeros, no, no)
    assert buffer.oldest.tolist() == [4, 5] and buffer.newest.tolist() == [8, 9]
    drawing = Drawing(
        640, 215, "Indices 4 to 9 of two lanes in six slots: 4, 6 and 8 are in lane 0, and 5, 7 and 9 in lane 1"
    )
    left, width, top = 100, 84, 96
    in_slot = {index % 6: index for index in range(4, 10)}
    for slot in range(6):
        index = in_slot[slot]
        x, even = left + slot * width, index % 2 == 0
        drawing.box(x, top, width, 58, ACCENT if even else "currentColor", 2 if even else 1.2)
        drawing.text(x + width / 2, top + 27, index, ACCENT if even else "currentColor", 19, bold=True)
        drawing.text(x + width / 2, top + 48, f"step {index // 2}, lane {index % 2}", MUTED, 11)
        drawing.text(x + width / 2, top + 78, slot, MUTED)
    drawing.text(14, top + 34, "index", anchor="start")
    drawing.text(14, top + 78, "slot", MUTED, anchor="start")
    drawing.line(left + 4 * width, top - 14, left + 4 * width, top + 90, MUTED, 2, dashed=True)
    drawing.text(left + 4 * width, top + 106, "seam: 9 is the newest, 4 the oldest", MUTED, 12)
    drawing.text(14, 26, "successor", anchor="start")
    for slot in (0, 2):
        start = left + (slot + 0.5) * width
        if slot == 0:
            drawing.line(start, top - 4, start, 60, ACCENT)
            drawing.line(start, 60, start + 2 * width - 8, 60, ACCENT)
            drawing.arrow(start + 2 * width - 8, 60, start + 2 * width - 8, top - 4, ACCENT)
    drawing.text(left + 1.5 * width, 52, "6 + 2 = 8", ACCENT, 13)
    start, end = left + 4.5 * width, left + 0.5 * width - 12
    drawing.line(start, top - 4, start, 28, ACCENT)
    drawing.line(start, 28, end, 28, ACCENT)
    drawing.arrow(end, 28, end, top - 4, ACCENT)
    drawing.text((start + end) / 2, 20, "4 + 2 = 6, past the end of the arrays", ACCENT, 13)
    drawing.save("ring.svg")


def draw_verbs() -> None:
    """The three verbs of a sample, and who overrides which."""
    drawing = Drawing(
        640, 165, "draw returns indices, window opens a window at each, and reduce turns windows into transitions"
    )
    boxes = (("draw", "which transitions?"), ("window", "what is there?"), ("reduce", "one transition each"))
    for i, (verb, question) in enumerate(boxes):
        x = 64 + i * 190
        drawing.box(x, 50, 130, 62, ACCENT, 2)
        drawing.text(x + 65, 77, verb, ACCENT, 17, bold=True)
        drawing.text(x + 65, 98, question, size=11.5)
    for i, (above, below) in enumerate((("B", ""), ("indices", "(B,)"), ("windows", "(B, n)"), ("batch", "(B,)"))):
        x = 6 + i * 190
        drawing.arrow(x, 81, x + 56, 81)
        drawing.text(x + 27, 71, above, size=12)
        drawing.text(x + 27, 99, below, MUTED, 11.5)
    for i, who in enumerate(("PrioritizedBuffer, CombinedReplay", "HindsightReplay, clipping")):
        x = 129 + i * 190
        drawing.line(x, 114, x, 134, MUTED, 1.2, dashed=True)
        drawing.text(x, 150, who, MUTED, 12)
    drawing.text(14, 24, "sample(B) = reduce(window(draw(B)))", anchor="start", bold=True)
    drawing.save("verbs.svg")


def draw_hindsight() -> None:
    """Two walks of six steps, and the steps whose outcome each strategy may make the goal of index 2."""
    goal = Field((), np.int64)  # the outcome of a step is its index here, to find it by
    buffer = ReplayBuffer(12, Spec(obs={"achieved_goal": goal, "desired_goal": goal}, action=Field(())))
    for index in range(12):
        obs, next_obs = ({"achieved_goal": outcome, "desired_goal": -1} for outcome in (index - 1, index))
        buffer.add(obs, 0.0, 0.0, next_obs, False, index % 6 == 5)
    drawing = Drawing(
        640, 275, "Steps that can provide a goal for index 2. future: 2 to 5; final: 5; episode: 0 to 5; random: all"
    )
    left, width = 96, 44

    def center(index):
        return left + (index + 0.5) * width + 14 * (index >= 6)

    for walk in range(2):
        drawing.text(center(6 * walk + 2) + width / 2, 18, f"walk {walk + 1}", MUTED, 13)
    drawing.text(14, 54, "step", anchor="start")
    drawing.text(14, 86, "index", MUTED, 13, anchor="start")
    for index in range(12):
        x, replayed, place = center(index), index == 2, index % 6
        drawing.box(x - width / 2, 30, width, 38, ACCENT if replayed else "currentColor", 2.4 if replayed else 1.2)
        drawing.text(x, 54, f"{place} → {place + 1}", ACCENT if replayed else "currentColor", 13, bold=replayed)
        drawing.text(x, 86, index, ACCENT if replayed else MUTED, 13, bold=replayed)
    for row, strategy in enumerate(("future", "final", "episode", "random")):
        y = 124 + 38 * row
        replay = HindsightReplay(buffer, lambda achieved, desired, info: np.zeros(len(achieved)), strategy=strategy)
        replay.ratio = 1.0
        found = np.unique(replay.reduce(replay.window(np.full(2000, 2)))["obs"]["desired_goal"])
        drawing.text(14, y + 5, strategy, anchor="start")
        drawing.line(left + 4, y, center(11) + width / 2 - 4, y, MUTED, 0.6)
        for index in range(12):
            if index in found:
                drawing.circle(center(index), y, 8, ACCENT, 1.2, ACCENT)
            else:
                drawing.circle(center(index), y, 3, MUTED, 1.2)
    drawing.text(left, 268, "Marked steps: what they achieved may become the goal of index 2", MUTED, 12,
                 anchor="start")  # fmt: skip
    drawing.save("hindsight.svg")


def draw_sequences() -> None:
    """An episode of eight steps and four steps of the next, their spans, and the row that belongs to each span."""
    buffer = ReplayBuffer(12, Spec(obs=Field(()), action=Field(())))
    replay = SequenceReplay(buffer, length=5, burn_in=2, stride=3)
    for index in range(12):
        replay.add(0.0, 0.0, 0.0, 0.0, index == 7, False)
    starts = np.flatnonzero(replay.probability(replay.stored()) > 0.0)
    shares = np.round(replay.probability(starts) * 12).astype(int)
    rows = replay.fetch(starts)
    description = (
        "Rows of five steps that start at index 0, 3, 6, 8 and 11. After the end of an episode, the rest is padding"
    )
    drawing = Drawing(760, 366, description)
    left, width, gap = 92, 36, 16

    def edge(index):
        return left + index * width + gap * (index >= 8)

    for first, words in ((0, "an episode of eight steps"), (8, "a running episode")):
        drawing.text(edge(first), 18, words, MUTED, 13, anchor="start")
    drawing.text(14, 49, "index", anchor="start")
    drawing.text(14, 76, "spans", anchor="start")
    for index in range(12):
        drawing.box(edge(index), 29, width, 30)
        drawing.text(edge(index) + width / 2, 49, index, size=13)
    drawing.text(14, 110, "rows", anchor="start")
    drawing.text(746, 76, "probability", MUTED, 13, anchor="end")
    for number, (start, share) in enumerate(zip(starts, shares, strict=True)):
        y = 92 + 46 * number
        drawing.line(edge(start) + 3, 71, edge(start + share - 1) + width - 3, 71, ACCENT, 3)
        drawing.line(edge(start) + 3, y + 34, edge(start + share - 1) + width - 3, y + 34, ACCENT, 3)
        x, steps = edge(start), rows["step_indices"][number]
        for place in range(5):
            learned, real = rows["loss_mask"][number, place], rows["mask"][number, place]
            draw_step(drawing, x + place * width, y, width, "learned" if learned else "burn-in" if real else "padding")
            if real:
                drawing.text(x + (place + 0.5) * width, y + 19, steps[place], ACCENT if learned else MUTED, 13)
        drawing.text(746, y + 19, f"{share}/12", size=13, anchor="end", bold=True)
    for x, kind, words in (
        (14, "learned", "loss_mask"), (150, "burn-in", "burn-in: only in mask"), (360, "padding", "padding")
    ):  # fmt: skip
        draw_step(drawing, x, 334, width, kind)
        drawing.text(x + width + 8, 353, words, size=13, anchor="start")
    drawing.line(484, 348, 514, 348, ACCENT, 3)
    drawing.text(524, 353, "the span of a row", size=13, anchor="start")
    drawing.save("sequences.svg")


def draw_step(drawing: Drawing, x: float, y: float, width: float, kind: str) -> None:
    """A box for a step of a row, by what becomes of it."""
    if kind == "padding":
        west, east, north, south = x + 2, x + width - 2, y + 1, y + 27
        for side in ((west, north, east, north), (west, south, east, south), (west, north, west, south),
                     (east, north, east, south)):  # fmt: skip
            drawing.line(*side, MUTED, 1, dashed=True)
        return
    color = ACCENT if kind == "learned" else MUTED
    drawing.box(x + 1, y, width - 2, 28, color, 2 if kind == "learned" else 1)


def draw_frames() -> None:
    """Frames of two episodes, stored once, and the numbers of those that some transitions are made of."""
    buffer = ReplayBuffer(8, Spec(obs=Field((1, 1), np.uint8), action=Field(())), stack=3)
    shown = [0, 1, 2, 3, 4, 10, 11, 12]  # what the frames show, by their numbers
    for before, after, ends in ((0, 1, False), (1, 2, False), (2, 3, False), (3, 4, True), (10, 11, False)):
        buffer.add([[before]], 0.0, 0.0, [[after]], ends, False)
    stacks = buffer.reduce(buffer.window(np.arange(5)))
    drawing = Drawing(640, 262, "Each transition is a list of frame numbers; obs and next_obs share most of them")
    left, width = 96, 58
    drawing.text(14, 50, "frames", anchor="start")
    for number in range(7):
        x = left + number * (width + 8) + 18 * (number >= 5)
        drawing.box(x, 22, width, 46)
        height = (9, 21, 31, 37, 40)[number] if number < 5 else (13, 27)[number - 5]
        drawing.circle(x + 10 + 9 * (number if number < 5 else number - 5), 22 + height - 0.5, 4, ACCENT, 1.2, ACCENT)
        drawing.text(x + width / 2, 86, number, MUTED, 13)
    for episode, number in enumerate((2, 5.5)):
        x = left + number * (width + 8) + width / 2 + 18 * episode
        drawing.text(x, 14, ("one episode", "next episode")[episode], MUTED, 12)
    size, top = 31, 160
    for column, index in enumerate((0, 1, 3, 4)):
        x = left + column * 138
        obs, next_obs = (stacks[name][index].ravel().tolist() for name in ("obs", "next_obs"))
        assert obs[1:] == next_obs[:-1]
        drawing.text(x + 2 * size, 118, f"index {index}", MUTED, 13)
        for place, content in enumerate([*obs, next_obs[-1]]):
            drawing.box(x + place * size, top, size, 30)
            drawing.text(x + (place + 0.5) * size, top + 21, shown.index(content), size=15, bold=True)
        drawing.line(x + 3, top - 8, x + 3 * size - 3, top - 8, "currentColor", 3)
        drawing.text(x + 1.5 * size, top - 15, "obs", size=12.5)
        drawing.line(x + size + 3, top + 38, x + 4 * size - 3, top + 38, ACCENT, 3)
        drawing.text(x + 2.5 * size, top + 54, "next_obs", ACCENT, 12.5)
    drawing.text(14, top + 21, "a batch", anchor="start")
    drawing.text(
        left, 252, "Indices 0 and 4 begin an episode, so their first frame is repeated", MUTED, 12, anchor="start"
    )
    drawing.save("frames.svg")


def draw_house() -> None:
    """The layers of the package: each imports only from layers below."""
    floors = [
        (("recording", "testing", "diagnostics"), "around a buffer"),
        (("CombinedReplay", "HindsightReplay", "your wrapper"), "wrappers"),
        (("ReplayBuffer", "PrioritizedBuffer", "LatestBuffer"), "constructors of buffers"),
        (("Buffer", "ReplayWrapper"), "bases of buffers and wrappers"),
        (("Replay",), "the verbs and sample"),
        (("Uniform", "Proportional", "Latest", "your distribution"), "distributions: which?"),
        (("LocalStorage", "Row", "Columns", "your storage"), "storages: what is there?"),
        (("Spec", "Field", "Batch", "Window", "Draw"), "names, shapes, dtypes"),
        (("store", "windows", "tree", "goals", "frames"), "kernels"),
    ]
    width, height, left, right = 760, 46, 250, 740
    drawing = Drawing(
        width, len(floors) * height + 20, "The layers of the package: each imports only from the layers below"
    )
    for floor, (rooms, title) in enumerate(floors):
        y = 10 + floor * height
        drawing.text(12, y + 25, title, MUTED, 13.5, anchor="start")
        size = (right - left - 6 * (len(rooms) - 1)) / len(rooms)
        for room, name in enumerate(rooms):
            x = left + room * (size + 6)
            is_yours = name.startswith("your")
            drawing.box(x, y, size, height - 10, ACCENT if is_yours else "currentColor")
            drawing.text(x + size / 2, y + 23, name, ACCENT if is_yours else "currentColor", 13.5)
    drawing.arrow(left - 14, 10, left - 14, len(floors) * height, MUTED)
    drawing.save("house.svg")


def draw_flows() -> None:
    """The three data flows: add, sample and update, from the call down to the arrays and back."""
    flows = [
        ("add", ["values", "encode:_check, convert", "lock", "store:_retire, write, publish", "indices"]),
        ("sample", ["batch size", "lock", "draw:|settle, find leaves", "open windows,|reduce windows", "batch"]),
        ("update", ["indices,_TD errors", "lock", "drop stale|indices", "settle, set leaves,|recompute sums", "count"]),
    ]
    drawing = Drawing(
        760, 226, "The steps of add, sample and update. In add, values are encoded before the lock is taken"
    )
    for row, (name, steps) in enumerate(flows):
        y = 12 + 72 * row
        drawing.text(12, y + 30, name, size=15, anchor="start", bold=True)
        for place, words in enumerate(steps):
            x = 84 + place * 136
            is_kernel = "|" in words or words.startswith("store")
            drawing.box(x, y, 118, 50, ACCENT if is_kernel else "currentColor")
            lines = words.replace("_", "|").split("|")
            for number, line in enumerate(lines):
                drawing.text(x + 59, y + 29.5 - 8.5 * (len(lines) - 1) + 17 * number, line, size=12)
            if place:
                drawing.arrow(x - 18, y + 25, x - 1, y + 25, MUTED)
    drawing.save("flows.svg")


def draw_mixture() -> None:
    """A batch of eight from two buffers, with the indices of the mixture."""
    spec = Spec(obs=Field(()), action=Field(()))
    demos, online = ReplayBuffer(6, spec, seed=0), ReplayBuffer(10, spec, num_envs=2, seed=1)
    for step in range(6):
        demos.add(step, 0, 0.0, step, False, False)
        online.add([step] * 2, [0] * 2, [0.0] * 2, [step] * 2, [False] * 2, [False] * 2)
    shares = {"demos": 0.25, "online": 0.75}
    replay = MixedReplay({"demos": demos, "online": online}, shares=shares, add_to="online", seed=2)
    drawing = Drawing(700, 300, "A batch of eight: a quarter from demonstrations, three quarters from online steps")
    size, left, top = 44, 150, 28
    places = {}
    lanes = [("demos", "lane 0"), ("online", "lane 1"), ("online", "lane 2")]
    for lane, (name, words) in enumerate(lanes):
        y = top + lane * (size + 6) + (16 if lane else 0)
        drawing.text(14, y + 27, name if lane < 2 else "", anchor="start", bold=True)
        drawing.text(left - 12, y + 27, words, MUTED, 12.5, anchor="end")
        stored = [index for index in replay.stored().tolist() if index % 3 == lane]
        for index in stored:
            x = left + (index // 3) * (size + 6)
            places[index] = x, y
            drawing.box(x, y, size, size, ACCENT if lane else "currentColor")
            drawing.text(x + size / 2, y + 28, index, ACCENT if lane else "currentColor", 16, bold=True)
    x = left + 6 * (size + 6) + 14
    drawing.text(x, top + 27, "share 0.25 of each batch", MUTED, 13, anchor="start")
    drawing.text(x, top + size + 49, "share 0.75, and all", MUTED, 13, anchor="start")
    drawing.text(x, top + size + 67, "added transitions", MUTED, 13, anchor="start")
    batch, y = replay.sample(8), 220
    drawing.text(14, y + 27, "sample(8)", anchor="start", bold=True)
    drawing.text(left - 12, y + 66, "source", MUTED, 12.5, anchor="end")
    for row, (index, source) in enumerate(zip(batch.indices.tolist(), batch.source.tolist(), strict=True)):
        x = left + row * (size + 6)
        drawing.box(x, y, size, size, ACCENT if source else "currentColor")
        drawing.text(x + size / 2, y + 28, index, ACCENT if source else "currentColor", 16, bold=True)
        drawing.text(x + size / 2, y + 66, source, MUTED, 13)
    drawing.save("mixture.svg")


def draw_strip() -> None:
    """Four batches in a row from each replay, while an agent adds four steps between them: episodes of eight steps."""
    spec, capacity, size, batch_size = Spec(obs=Field(()), action=Field(())), 16, 10, 4
    goal = Field((), np.int64)  # the outcome of a step is its index here, to find it by
    goals = Spec(obs={"achieved_goal": goal, "desired_goal": goal}, action=Field(()))
    rows: dict[str, Any] = {
        "ReplayBuffer": ReplayBuffer(capacity, spec, seed=4),
        "PrioritizedBuffer": PrioritizedBuffer(capacity, spec, alpha=1.0, seed=0),
        "CombinedReplay": CombinedReplay(ReplayBuffer(capacity, spec, seed=1)),
        "HindsightReplay": HindsightReplay(
            ReplayBuffer(capacity, goals, seed=7), lambda achieved, desired, info: np.zeros(len(achieved)), ratio=1.0
        ),
        "SequenceReplay": SequenceReplay(ReplayBuffer(capacity, spec, seed=2), length=4),
    }
    notes = {
        "ReplayBuffer": "all equally likely",
        "PrioritizedBuffer": "bars: probabilities",
        "CombinedReplay": "always with the newest",
        "HindsightReplay": "arcs to the new goals",
        "SequenceReplay": "two sequences of four",
    }
    left, width, top, frames = 176, 176, 54, 4
    drawing = Drawing(
        left + frames * width, top + 74 * len(rows) + 30, "Four successive batches from each of five replays"
    )
    for frame in range(frames):
        drawing.text(left + frame * width + 80, 22, f"batch {frame + 1}, after {16 + 4 * frame} steps", MUTED, 12.5)
    for row, (name, replay) in enumerate(rows.items()):
        y = top + 74 * row + 26
        drawing.text(14, y + 2, name, anchor="start", size=13.5, bold=True)
        drawing.text(14, y + 19, notes[name], MUTED, 12, anchor="start")
        for frame in range(frames):
            for step in range(0 if frame == 0 else 12 + 4 * frame, 16 + 4 * frame):
                obs, next_obs = step, step
                if name == "HindsightReplay":
                    obs, next_obs = ({"achieved_goal": at, "desired_goal": -1} for at in (step - 1, step))
                replay.add(obs, 0.0, 0.0, next_obs, step % 8 == 7, False)
            if name == "PrioritizedBuffer" and frame == 0:
                replay.update_priorities(np.arange(16), FIRST_ERRORS)
            first, errors = 4 * frame, None
            if name == "PrioritizedBuffer":
                errors = replay.probability(np.arange(first, first + capacity))
            batch = replay.sample(2 if name == "SequenceReplay" else batch_size)
            drawn = batch.step_indices if name == "SequenceReplay" else batch.indices
            origin = left + frame * width
            draw_drawn(drawing, origin, y, size, first, set(drawn[drawn >= 0].ravel().tolist()), errors)
            if name == "HindsightReplay":
                for index, wanted in zip(batch.indices.tolist(), batch.obs["desired_goal"].tolist(), strict=True):
                    draw_arc(drawing, origin + (index - first + 0.5) * size, origin + (wanted - first + 0.5) * size, y)
            if name == "PrioritizedBuffer":
                replay.update_priorities(batch.indices, np.full(batch_size, 0.1))
    words = "Filled: drawn. Vertical lines: ends of episodes. Dots: the goals, steps of the same episode."
    drawing.text(14, drawing.size[1] - 12, words, MUTED, 13, anchor="start")
    drawing.save("strip.svg")


FIRST_ERRORS = np.array([0.2, 0.3, 0.2, 0.9, 0.3, 0.2, 1.2, 2.0, 0.2, 0.4, 0.2, 0.3, 0.8, 0.2, 0.3, 1.0])


def draw_drawn(
    drawing: Drawing, x: float, y: float, size: float, first: int, drawn: set[int], shares: Any = None
) -> None:
    """Sixteen stored steps, those that were drawn filled, with a bar above each for its share of the probability."""
    for place in range(16):
        color, fill = (ACCENT, ACCENT) if first + place in drawn else (MUTED, SURFACE)
        drawing.box(x + place * size, y, size - 1.5, size + 4, color, 1.0, fill, radius=1)
        if shares is not None:
            height = 110 * float(shares[place])
            drawing.box(x + place * size + 1, y - 4 - height, size - 3.5, height, MUTED, 0.6, MUTED, radius=0)
        if (first + place) % 8 == 7:
            drawing.line(x + (place + 1) * size - 0.75, y - 3, x + (place + 1) * size - 0.75, y + size + 7)


def draw_arc(drawing: Drawing, begin: float, end: float, y: float) -> None:
    """From a drawn step to the dot above the step whose outcome is its goal."""
    height = 10 + 0.3 * (end - begin)
    drawing.circle(end, y - 4, 2.4, ACCENT, 0.8, ACCENT)
    if end > begin:
        drawing.parts.append(
            f'<path d="M{begin:g},{y - 3:g} C{begin:g},{y - 3 - height:g} {end:g},{y - 3 - height:g} '
            f'{end:g},{y - 4:g}" fill="none" style="stroke: {ACCENT}" stroke-width="1.4"/>'
        )


def draw_places() -> None:
    """Who adds to a replay: one process, threads, processes of a machine, or the workers of a cluster."""
    drawing = Drawing(
        820, 330, "Four ways to add to a replay: one process, threads, processes of one machine, a cluster"
    )
    width, gap, top = 190, 16, 44
    columns = [
        ("One process", ["environments"], "record", "a vector environment"),
        ("Threads", ["actor"] * 3, "buffer.writer", "environments that wait"),
        ("Processes", ["actor"] * 3, "ProcessWriters", "slow environments"),
        ("Ray cluster", ["worker"] * 3, "RayReplay", "more than one machine"),
    ]
    for place, (title, actors, name, when) in enumerate(columns):
        x = 6 + place * (width + gap)
        middle = x + width / 2
        drawing.text(middle, 22, title, size=16, bold=True)
        is_apart = place >= 2
        if not is_apart:
            drawing.box(x, top, width, 196, MUTED, 1.0, "none")
        if place == 2:
            drawing.box(x + 28, top + 78, width - 56, 118, MUTED, 1.0, "none")
        size = (width - 24) / len(actors)
        for k, actor in enumerate(actors):
            left = x + 12 + k * size
            drawing.box(left + 2, top + 14, size - 4, 34, MUTED if is_apart else "currentColor", 1.2)
            drawing.text(left + size / 2, top + 36, actor, size=12.5)
            targets = [middle] if place < 3 else [x + width * (0.25 if k < 2 else 0.75)]
            for target in targets:
                drawing.arrow(left + size / 2, top + 50, target + (left + size / 2 - target) * 0.35, top + 88)
        if place < 3:
            drawing.box(x + 40, top + 90, width - 80, 36, ACCENT, 2.0)
            drawing.text(middle, top + 113, "replay", ACCENT, 13.5, bold=True)
        else:
            for k in range(2):
                drawing.box(x + 14 + k * 84, top + 90, 78, 36, ACCENT, 2.0)
                drawing.text(x + 53 + k * 84, top + 113, f"shard {k}", ACCENT, 13.5, bold=True)
        for source in [middle] if place < 3 else [x + 53, x + 137]:
            drawing.arrow(source, top + 128, middle + (source - middle) * 0.3, top + 146)
        drawing.box(x + 40, top + 148, width - 80, 34, "currentColor", 1.2)
        drawing.text(middle, top + 170, "learner", size=12.5)
        drawing.text(middle, top + 222, name, ACCENT, 14, bold=True)
        drawing.text(middle, top + 242, "for " + when, MUTED, 13)
    drawing.text(6, 320, "Grey frames: processes. On a cluster, each box is a process on any machine.", MUTED, 13,
                 anchor="start")  # fmt: skip
    drawing.save("places.svg")


if __name__ == "__main__":
    for draw in (
        draw_query,
        draw_update,
        draw_schemes,
        draw_choices,
        draw_ring,
        draw_verbs,
        draw_hindsight,
        draw_frames,
    ):
        draw()
    draw_sequences()
    draw_large_batch()
    draw_house()
    draw_flows()
    draw_mixture()
    draw_strip()
    draw_places()
