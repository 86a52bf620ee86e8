"""Learn a cliff walk from a memory of thousands of transitions, of which only one has a reward.

    python examples/reproduce/cliffwalk.py
    python examples/reproduce/cliffwalk.py --states 4 6 8 10 12 --seeds 0 1 2

The blind cliffwalk of Schaul et al. (2016) has n states with two actions. The wrong action ends the episode, and n
right actions in a row earn a reward of 1. The memory contains one episode for each of the 2^n sequences of actions. Of
its 2^(n+1) - 2 transitions, one has a reward. Q-learning replays one transition at a time until its values are right.
The script counts the updates for five ways to choose transitions:

uniform       all transitions are equally likely: `ReplayBuffer`
proportional  by the last seen TD error: `PrioritizedBuffer`, alpha 0.6, no importance weights
rank          by the rank of this TD error: ``variant="rank"``, alpha 0.7, no importance weights
greedy        always the largest last seen TD error: a heap, because replaykit has no such buffer
oracle        always the transition that brings the values closest to the true values, which it must know

References
----------
Schaul et al. (2016), Prioritized Experience Replay, sections 3.1 to 3.3, appendix B.1.
"""

import argparse
import heapq
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from harness import judge, parser, positive, run_all, show  # first: it adds the other examples to the path
from matplotlib.figure import Figure
from options import at_least

from replaykit import Field, PrioritizedBuffer, Replay, ReplayBuffer, Spec

ETA = 0.25  # step size of Q-learning
ALPHA = {"proportional": 0.6, "rank": 0.7}
TOLERANCE = 1e-3  # values are right if their mean squared error is below this
PATIENCE = 200  # a run stops after this many updates per transition in the memory
CHUNK = 1024  # number of uniform draws at once
QUICK, MOST_STATES = [6, 8, 10], 20
COLORS = {
    "uniform": "tab:red", "proportional": "tab:blue", "rank": "tab:purple", "greedy": "tab:orange",
    "oracle": "tab:green",
}  # fmt: skip
SPEC = Spec(obs=Field((), np.int64), action=Field((), np.int64), reward=Field((), np.float64))

Transition = tuple[int, int, float, int, float]  # state, action, reward, next state, discount


class Cliffwalk:
    """The task with n states, and a memory of all possible episodes."""

    def __init__(self, states: int) -> None:
        self.states = states
        self.gamma = 1.0 - 1.0 / states
        self.right = [state % 2 for state in range(states)]
        """The right action of each state."""
        self.values = [[0.0, 0.0] for _ in range(states)]
        """The true values; 0 for wrong actions."""
        for state in range(states):
            self.values[state][self.right[state]] = self.gamma ** (states - 1 - state)

    def memory(self, rng: np.random.Generator) -> dict[str, npt.NDArray[Any]]:
        """The 2^(n+1) - 2 transitions of all sequences of n actions, each played until it ends, in random order.

        2^(n-i) sequences reach state i, because their first i actions are right. Half of them take each action.
        """
        times = 2 ** np.arange(self.states, 0, -1)
        state = np.repeat(np.arange(self.states), times)
        action = np.concatenate([np.arange(count) % 2 for count in times])
        order = rng.permutation(state.size)
        state, action = state[order], action[order]
        right = action == np.array(self.right)[state]
        last = state == self.states - 1
        return {
            "obs": state,
            "action": action,
            "reward": (right & last).astype(np.float64),
            "next_obs": np.where(right & ~last, state + 1, 0),
            "terminated": ~right | last,
            "truncated": np.zeros(state.size, np.bool_),
        }


class Learner:
    """Tabular Q-learning, one transition at a time. It computes the distance of its values to the true values."""

    def __init__(self, walk: Cliffwalk, rng: np.random.Generator) -> None:
        self.q: list[list[float]] = rng.normal(
            0.0, 0.1, (walk.states, 2)
        ).tolist()  # greedy would never learn if all values started at 0
        self.true = walk.values
        pairs = 2 * walk.states
        self.loss: float = sum((self.q[i][a] - walk.values[i][a]) ** 2 for i in range(walk.states) for a in (0, 1))
        self.least = TOLERANCE * pairs
        self.updates, self.limit = 0, PATIENCE * 2 ** (walk.states + 1)

    @property
    def is_done(self) -> bool:
        """Whether the values are right or the limit of updates is reached."""
        return self.loss < self.least or self.updates >= self.limit

    def td_error(self, state: int, action: int, reward: float, next_state: int, discount: float) -> float:
        """The TD error of a transition."""
        return reward + discount * max(self.q[next_state]) - self.q[state][action]

    def gain(self, transition: Transition) -> float:
        """The reduction of the loss by learning from a transition."""
        state, action = transition[:2]
        error = self.q[state][action] - self.true[state][action]
        return error**2 - (error + ETA * self.td_error(*transition)) ** 2

    def learn(self, transition: Transition) -> float:
        """Update one value. Returns its TD error before the update."""
        state, action = transition[:2]
        delta = self.td_error(*transition)
        error = self.q[state][action] - self.true[state][action]
        self.q[state][action] += ETA * delta
        self.loss += (error + ETA * delta) ** 2 - error**2
        self.updates += 1
        return delta


def transitions(fields: Any) -> list[Transition]:
    """The transitions of a batch as tuples."""
    names = ("obs", "action", "reward", "next_obs", "discount")
    return list(zip(*(fields[name].tolist() for name in names), strict=True))


def uniform(learner: Learner, buffer: Replay) -> None:
    """Replay uniformly. Draws with replacement are independent, so they can be made in large batches."""
    while True:
        for transition in transitions(buffer.sample(CHUNK)):
            learner.learn(transition)
            if learner.is_done:
                return


def prioritized(learner: Learner, buffer: Replay) -> None:
    """Replay by priority, one transition at a time, because each update changes the next draw."""
    while not learner.is_done:
        batch = buffer.sample(1)
        (transition,) = transitions(batch)
        buffer.update_priorities(batch.indices, [learner.learn(transition)])


def greedy(learner: Learner, buffer: Replay) -> None:
    """Replay the transition with the largest last seen |TD error|. Unseen ones come first, in the buffer's order."""
    memory = everything(buffer)
    heap = [(-np.inf, place) for place in range(len(memory))]
    while not learner.is_done:
        place = heap[0][1]
        heapq.heapreplace(heap, (-abs(learner.learn(memory[place])), place))


def oracle(learner: Learner, buffer: Replay) -> None:
    """Replay the transition that lowers the loss most. Of equal transitions, only one is tried."""
    kinds = sorted(set(everything(buffer)))
    while not learner.is_done:
        learner.learn(max(kinds, key=learner.gain))


def everything(buffer: Replay) -> list[Transition]:
    """All stored transitions."""
    return transitions(buffer.reduce(buffer.window(buffer.latest(len(buffer)))))


METHODS = {"uniform": uniform, "proportional": prioritized, "rank": prioritized, "greedy": greedy, "oracle": oracle}


def updates(task: tuple[str, int, int, float]) -> float:
    """The number of updates until the values are right, or inf. A task is a method, the states, a seed and eps."""
    method, states, seed, eps = task
    walk = Cliffwalk(states)
    rng = np.random.default_rng([seed, states])  # every method starts from the same values and the same order
    learner = Learner(walk, rng)
    memory = walk.memory(rng)
    options: dict[str, Any] = {"gamma": walk.gamma, "seed": rng}
    if method in ALPHA:
        options |= {"alpha": ALPHA[method], "beta": 0.0, "variant": method}
    if method == "proportional":
        options["eps"] = eps
    kind = PrioritizedBuffer if method in ALPHA else ReplayBuffer
    buffer: Replay = kind(memory["obs"].size, SPEC, **options)
    buffer.extend(**memory)
    METHODS[method](learner, buffer)
    return learner.updates if learner.loss < learner.least else np.inf


def seconds(method: str, states: int) -> float:
    """The approximate time of a run."""
    size = 2.0 ** (states + 1)
    each = {"uniform": 1e-5 * size, "greedy": 1.5e-6 * size, "oracle": 1e-3 * states}
    each |= dict.fromkeys(ALPHA, 2.6e-5 * size)
    return 0.002 + each[method]


def slope(medians: dict[tuple[str, int], float], method: str) -> float:
    """The slope of log(updates) against log(N), from six states on. It is 1 if updates are proportional to N."""
    points = [(2.0 ** (states + 1) - 2.0, count) for (name, states), count in medians.items() if name == method]
    size, count = np.log([point for point in sorted(points) if point[0] > 100.0]).T
    return float(np.polyfit(size, count, 1)[0]) if np.isfinite(count).all() else np.inf


def tabulate(medians: dict[tuple[str, int], float], states: list[int]) -> list[list[str]]:
    """Median updates, and in brackets the speed-up over uniform replay."""
    rows = [["states", "transitions", *COLORS]]
    for n in states:
        cells = [f"{n}", f"{2 ** (n + 1) - 2}", f"{medians['uniform', n]:.0f}"]
        others = [medians[method, n] for method in COLORS if method != "uniform"]
        rows.append(cells + [f"{count:.0f} ({medians['uniform', n] / count:.1f})" for count in others])
    return rows


def claims(medians: dict[tuple[str, int], float], states: list[int]) -> list[tuple[str, bool]]:
    """The claims to check, and whether they hold. The paper has only curves and text; the bounds are our choice."""
    made = []
    if 10 in states:
        for method, least in (("proportional", 4), ("rank", 4), ("greedy", 9), ("oracle", 45)):
            ratio = medians["uniform", 10] / medians[method, 10]
            text = f"at 10 states uniform needs at least {least} times as many updates as {method}: {ratio:.1f}"
            made.append((text, ratio >= least))
    if sum(n >= 6 for n in states) >= 2:
        grows, oracle_grows = slope(medians, "uniform"), slope(medians, "oracle")
        made.append((f"uniform grows like the memory, N^0.9 to N^1.15: N^{grows:.2f}", 0.9 <= grows <= 1.15))
        made.append((f"oracle grows more slowly than N^0.4: N^{oracle_grows:.2f}", oracle_grows < 0.4))
    return made


def plot(counts: dict[tuple[str, int, int, float], float], path: Path) -> None:
    """Plot updates against the size of the memory: a dot for each run, a line through the medians."""
    figure = Figure(figsize=(7, 4.8), layout="constrained")  # without pyplot: no window, no global state
    axes = figure.subplots()
    for method, color in COLORS.items():
        dots = np.array([(2 ** (task[1] + 1) - 2, count) for task, count in counts.items() if task[0] == method])
        axes.plot(*dots.T, ".", color=color, alpha=0.3)
        sizes = np.unique(dots[:, 0])
        axes.plot(sizes, [np.median(dots[dots[:, 0] == size, 1]) for size in sizes], color=color, label=method)
    said = (
        "Schaul et al. (2016), figures 1 and 2:\n"
        "the oracle gives an exponential speed-up over uniform\n"
        "choice; greedy TD error reduces the effort substantially."
    )
    axes.text(0.03, 0.97, said, transform=axes.transAxes, va="top", fontsize="small")
    axes.set(xscale="log", yscale="log", xlabel="transitions in the memory", title="Blind cliffwalk")
    axes.set_ylabel("updates until the values are right")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=100)


def parse_arguments() -> argparse.Namespace:
    """Parse and check the options."""
    made = parser("cliffwalk", "Reproduce the blind cliffwalk of prioritized replay.", f"states {QUICK}")
    add = made.add_argument
    add(
        "--states",
        type=at_least(2),
        nargs="+",
        help="numbers of states (default: 4 to 16 in steps of 2); 2 more states take 4 times as long",
    )
    add(
        "--seeds",
        type=at_least(0),
        nargs="+",
        default=list(range(10)),
        help="random seeds; one run for each seed (default: 0 to 9)",
    )
    add(
        "--eps",
        type=positive,
        default=1e-3,
        help="number added to |TD error| by proportional priorities (default: %(default)s)",
    )
    options = made.parse_args()
    options.states = sorted(set(options.states or (QUICK if options.quick else [4, 6, 8, 10, 12, 14, 16])))
    if options.states[-1] > MOST_STATES:
        made.error(
            f"--states: {options.states[-1]} is too large; expected at most {MOST_STATES}, since the memory doubles"
        )
    return options


def main() -> None:
    """Count the updates of every method for each number of states and seed."""
    options = parse_arguments()
    seeds = sorted(set(options.seeds))
    cost = {
        (method, n, seed, options.eps): seconds(method, n)
        for method in COLORS for n in options.states for seed in seeds
    }  # fmt: skip
    counts = run_all(updates, cost, options.jobs)
    medians = {
        (method, n): float(np.median([counts[method, n, seed, options.eps] for seed in seeds]))
        for method in COLORS for n in options.states
    }  # fmt: skip
    print(f"Updates until the mean squared error is below {TOLERANCE}, median of {len(seeds)} seeds")
    print("(in brackets, the speed-up over uniform replay):")
    show(tabulate(medians, options.states), options.output.with_suffix(".csv"))
    plot(counts, options.output)
    print(f"Picture: {options.output}")
    judge(claims(medians, options.states))


if __name__ == "__main__":
    main()
