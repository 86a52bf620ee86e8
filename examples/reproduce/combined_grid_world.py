"""Learn a grid world with memories of five sizes, with and without the newest transition in every batch.

    python examples/reproduce/combined_grid_world.py
    python examples/reproduce/combined_grid_world.py --runs 30
    python examples/reproduce/combined_grid_world.py --capacities 100 10000 --jobs 1

Tabular Q-learning learns from a batch of 10 after each step, in the grid world of Zhang and Sutton (2017). With uniform
replay, `ReplayBuffer`, recent transitions are drawn less often from a larger memory, and learning slows down. With
combined replay, `CombinedReplay` around the same buffer, each batch has nine draws and the newest transition.

The results are printed beside the results of the paper. They hold for this task and this agent: other agents benefit
from a large memory (Fedus et al. 2020).

References
----------
Zhang and Sutton (2017), A Deeper Look at Experience Replay, sections 4 and 5.
Fedus et al. (2020), Revisiting Fundamentals of Experience Replay.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from harness import judge, parser, run_all, show  # first: it adds the other examples to the path
from matplotlib.figure import Figure
from options import at_least

from replaykit import CombinedReplay, Field, Replay, ReplayBuffer, Spec

STEP_SIZE = 0.1
EPSILON = 0.1  # share of random actions
BATCH_SIZE = 10
EPISODES = 100
TIME_LIMIT = 5_000  # steps of an episode
COLORS = {"uniform": "tab:red", "combined": "tab:blue"}
# The paper's mean return over 100 episodes and 30 runs, by capacity
PAPER = {
    100: {"uniform": -1204, "combined": -900},
    1_000: {"uniform": -2322, "combined": -1065},
    10_000: {"uniform": -3858, "combined": -889},
    100_000: {"uniform": -4125, "combined": -632},
    1_000_000: {"uniform": -2531, "combined": -607},
}
MARGIN, MARGIN_RUNS = 0.12, 10  # relative tolerance, checked with at least MARGIN_RUNS runs
RATIOS = {100: 1.25, 10_000: 3.5, 1_000_000: 2.4}  # minimum ratio of uniform to combined steps, even in one run
QUICK_RUNS, QUICK_CAPACITIES = 1, [100, 10_000]
SPEC = Spec(obs=Field((), np.int64), action=Field((), np.int64))


class GridWorld:
    """A walled room in a square, with an exit at one corner and a corridor around it.

    Each step costs 1. The start is in the middle of the room. The goal, which ends an episode, is in the far corner of
    the corridor.
    """

    def __init__(self, side: int = 20) -> None:
        inner, outer = 1, side - 2  # rows and columns of the walls
        wall = np.zeros((side, side), np.bool_)
        wall[[inner, outer], inner : outer + 1] = wall[inner : outer + 1, [inner, outer]] = True
        wall[inner, inner + 1] = wall[inner + 1, inner] = False
        self.states = side * side
        self.start, self.goal = side // 2 * side + side // 2, side * side - 1
        self.moves = [
            [self._move(wall, row, column, *step) for step in ((-1, 0), (1, 0), (0, -1), (0, 1))]
            for row in range(side) for column in range(side)
        ]  # fmt: skip
        """The next state for each state and action."""

    @staticmethod
    def _move(wall: npt.NDArray[np.bool_], row: int, column: int, down: int, right: int) -> int:
        """The state after a step. Walls and the edge of the world block it."""
        side = len(wall)
        to = row + down, column + right
        if not (0 <= to[0] < side and 0 <= to[1] < side) or wall[to]:
            to = row, column
        return to[0] * side + to[1]


def choose(values: list[float], rng: np.random.Generator) -> int:
    """A random action with probability EPSILON, else one of the best."""
    if rng.random() < EPSILON:
        return int(4.0 * rng.random())
    best = max(values)
    ties = [action for action, value in enumerate(values) if value == best]
    return ties[int(len(ties) * rng.random())] if len(ties) > 1 else ties[0]


def play(world: GridWorld, buffer: Replay, rng: np.random.Generator, episodes: int, time_limit: int) -> list[float]:
    """The return of each episode of an agent that learns from `buffer` while it plays."""
    q = [[0.0] * 4 for _ in range(world.states)]
    returns = []
    for _ in range(episodes):
        state = world.start
        for step in range(1, time_limit + 1):
            action = choose(q[state], rng)
            next_state = world.moves[state][action]
            # A time limit does not terminate the task, so the target still contains the value of the last state
            buffer.add(state, action, -1.0, next_state, next_state == world.goal, step == time_limit)
            learn(q, buffer.sample(BATCH_SIZE))
            state = next_state
            if state == world.goal:
                break
        returns.append(-float(step))
    return returns


def learn(q: list[list[float]], batch: Any) -> None:
    """Q-learning on the transitions of a batch, one by one."""
    fields = (batch.obs, batch.action, batch.reward, batch.next_obs, batch.discount)
    for state, action, reward, next_state, discount in zip(*(field.tolist() for field in fields), strict=True):
        values = q[state]
        values[action] += STEP_SIZE * (reward + discount * max(q[next_state]) - values[action])


def returns_of(task: tuple[str, int, int]) -> list[float]:
    """The returns of a run. A task is a kind of replay, a capacity and a seed."""
    kind, capacity, seed = task
    buffer_seed, agent_seed = np.random.SeedSequence(seed).spawn(2)
    buffer: Replay = ReplayBuffer(capacity, SPEC, gamma=1.0, seed=buffer_seed)
    if kind == "combined":
        buffer = CombinedReplay(buffer)
    return play(GridWorld(), buffer, np.random.default_rng(agent_seed), EPISODES, TIME_LIMIT)


Means = dict[tuple[str, int], npt.NDArray[np.float64]]
"""The mean return of each run, by kind of replay and capacity."""


def tabulate(means: Means, capacities: list[int]) -> list[list[str]]:
    """Mean return with its standard error over runs, the paper's mean return, and their relative difference."""
    rows = [["capacity", *(f"{kind}{part}" for kind in COLORS for part in ("", ", paper", ", apart"))]]
    for capacity in capacities:
        row = [f"{capacity:,}"]
        for kind in COLORS:
            runs = means[kind, capacity]
            error = f" ± {runs.std(ddof=1) / np.sqrt(runs.size):.0f}" if runs.size > 1 else ""
            paper = PAPER.get(capacity, {}).get(kind)
            apart = ["", ""] if paper is None else [f"{paper}", f"{runs.mean() / paper - 1.0:+.0%}"]
            row += [f"{runs.mean():.0f}{error}", *apart]
        rows.append(row)
    return rows


def claims(means: Means, capacities: list[int], runs: int) -> list[tuple[str, bool]]:
    """The claims to check, and whether they hold."""
    made = []
    for capacity in capacities:
        uniform, combined = (float(means[kind, capacity].mean()) for kind in COLORS)
        if capacity in RATIOS:
            least, ratio = RATIOS[capacity], uniform / combined
            made.append(
                (f"at {capacity:,} uniform takes at least {least} times as many steps: {ratio:.2f}", ratio >= least)
            )
        if capacity in PAPER and runs >= MARGIN_RUNS:
            for kind, mean in zip(COLORS, (uniform, combined), strict=True):
                paper = PAPER[capacity][kind]
                near = abs(mean / paper - 1.0) <= MARGIN
                made.append((f"at {capacity:,} {kind} is within {MARGIN:.0%} of the paper's {paper}: {mean:.0f}", near))
    return made


def plot(means: Means, capacities: list[int], path: Path) -> None:
    """Plot mean returns against capacity: dots for runs, lines through the means, and crosses for the paper's means."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")  # without pyplot: no window, no global state
    axes = figure.subplots()
    for kind, color in COLORS.items():
        for capacity in capacities:
            runs = means[kind, capacity]
            axes.plot(np.full(runs.size, capacity), runs, ".", color=color, alpha=0.3)
        axes.plot(capacities, [means[kind, capacity].mean() for capacity in capacities], color=color, label=kind)
        papers = [(capacity, PAPER[capacity][kind]) for capacity in capacities if capacity in PAPER]
        if papers:
            label = f"{kind}, Zhang and Sutton (2017)"
            axes.plot(*np.array(papers).T, "x", color=color, markersize=10, label=label)
    axes.set(xscale="log", xlabel="capacity of the memory", ylabel=f"mean return of {EPISODES} episodes")
    axes.set(title="Grid world, tabular Q-learning")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=100)


def parse_arguments() -> argparse.Namespace:
    """Parse and check the options."""
    quick = f"{QUICK_RUNS} run, capacities {QUICK_CAPACITIES}"
    made = parser("combined-grid-world", "Reproduce the grid-world experiment of combined experience replay.", quick)
    add = made.add_argument
    add(
        "--runs",
        type=at_least(1),
        help="number of runs of each agent and capacity, with seeds 0, 1, ... (default: 10; the paper has 30)",
    )
    add("--capacities", type=at_least(1), nargs="+", help=f"buffer capacities (default: {' '.join(map(str, PAPER))})")
    options = made.parse_args()
    options.runs = options.runs or (QUICK_RUNS if options.quick else MARGIN_RUNS)
    options.capacities = sorted(set(options.capacities or (QUICK_CAPACITIES if options.quick else PAPER)))
    return options


def main() -> None:
    """Play every run with both kinds of replay at each capacity."""
    options = parse_arguments()
    cost = {
        (kind, capacity, seed): -PAPER.get(capacity, PAPER[10_000])[kind] * EPISODES * each
        for kind, each in (("uniform", 11e-6), ("combined", 36e-6))
        for capacity in options.capacities for seed in range(options.runs)
    }  # fmt: skip
    returns = run_all(returns_of, cost, options.jobs)
    means = {
        (kind, capacity): np.array([np.mean(returns[kind, capacity, seed]) for seed in range(options.runs)])
        for kind in COLORS for capacity in options.capacities
    }  # fmt: skip
    print(f"Mean return of {EPISODES} episodes and {options.runs} run{'s' * (options.runs > 1)}:")
    show(tabulate(means, options.capacities), options.output.with_suffix(".csv"))
    plot(means, options.capacities, options.output)
    print(f"Picture: {options.output}")
    judge(claims(means, options.capacities, options.runs))


if __name__ == "__main__":
    main()
