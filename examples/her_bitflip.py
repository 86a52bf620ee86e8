"""Flip bits until they equal a goal: plain DQN fails from about 12 bits on, DQN with hindsight does not.

    python examples/her_bitflip.py
    python examples/her_bitflip.py --bits 10 20 30 --strategy future final --seeds 0 1 2
    python examples/her_bitflip.py --bits 50 --strategy future --cycles 5000

For each number of bits, the script trains one agent with and one without `HindsightReplay`, plays new greedy episodes,
prints a table and saves a picture like figure 1 of the paper. The default run takes three minutes on an idle core.

There are 2^N states, and only the goal has a different reward. With many bits, no agent finds the goal by chance. But
each episode shows how to reach the state in which it ends. Hindsight uses that state as the goal.

Shapes in the comments: B batch, E parallel environments, N bits.

References
----------
Andrychowicz et al. (2017), Hindsight Experience Replay, sections 3.1 and 4.5.
"""

import argparse
import copy
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector.utils import batch_space
from matplotlib.figure import Figure
from options import COLORS, Strategy, at_least, picture, share
from torch import Tensor, nn
from tqdm import tqdm

from replaykit import HindsightReplay, Replay, ReplayBuffer, record

Obs: TypeAlias = dict[str, npt.NDArray[np.int8]]

# These settings are close to the paper's, except for the length of training
GAMMA = 0.98
CAPACITY = 1_000_000  # the maximum; smaller if training stores fewer transitions
EPISODES = 16  # per cycle, in parallel: E
UPDATES = 40  # per cycle
BATCH_SIZE = 128
HIDDEN = 256
LEARNING_RATE = 1e-3
EPSILON = 0.2  # share of random actions in training
TARGET_RATE = 0.05  # how far the target network moves after each cycle
EVAL_EVERY, EVAL_EPISODES = 10, 500  # an evaluation every EVAL_EVERY cycles ...
STOP_AT = 0.99  # ... with this success ends training
TEST_EPISODES = 1_000
SOLVED = 0.95  # success in the final test that counts as solved


class BitFlip(gymnasium.vector.VectorEnv[Obs, Any, npt.NDArray[Any]]):
    """N random bits and N random goal bits. An action flips one bit. The reward is 0 at the goal, else -1.

    Episodes last N steps, which is enough for any goal. All environments begin and end at the same time.
    """

    def __init__(self, bits: int, num_envs: int) -> None:
        self.bits, self.num_envs = bits, num_envs
        self.metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.DISABLED}
        goal = gymnasium.spaces.MultiBinary(bits)
        self.single_observation_space = gymnasium.spaces.Dict(observation=goal, achieved_goal=goal, desired_goal=goal)
        self.single_action_space = gymnasium.spaces.Discrete(bits)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Obs, dict[str, Any]]:
        super().reset(seed=seed)
        self.state, self.goal = self.np_random.integers(2, size=(2, self.num_envs, self.bits), dtype=np.int8)
        self.steps = 0
        return self.observe(), {}

    def step(self, actions: npt.NDArray[np.int64]) -> tuple[Obs, Any, Any, Any, dict[str, Any]]:
        self.state[np.arange(self.num_envs), actions] ^= 1
        self.steps += 1
        reward = self.compute_reward(self.state, self.goal, {})  # (E,)
        # The episode ends by a time limit, so the last state keeps its value
        terminated, truncated = np.zeros(self.num_envs, np.bool_), np.full(self.num_envs, self.steps == self.bits)
        return self.observe(), reward, terminated, truncated, {}

    def observe(self) -> Obs:
        """The observation is the achieved goal: three arrays of shape (E, N)."""
        return {"observation": self.state.copy(), "achieved_goal": self.state.copy(), "desired_goal": self.goal.copy()}

    @staticmethod
    def compute_reward(achieved_goal: Any, desired_goal: Any, info: Any) -> npt.NDArray[np.float64]:
        """For any number of goals at once: (..., N) -> (...)."""
        reward: npt.NDArray[np.float64] = (achieved_goal == desired_goal).all(-1) - 1.0
        return reward


class QNetwork(nn.Module):
    """The value of each flip, given the bits and the goal: one hidden layer of ReLU."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2 * bits, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, bits))

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        """Bits (..., N) and goal (..., N) -> (..., N)."""
        bits = torch.cat((obs["observation"], obs["desired_goal"]), -1)
        values: Tensor = self.layers(2.0 * bits - 1.0)
        return values

    @torch.no_grad()
    def greedy(self, obs: Obs) -> npt.NDArray[np.int64]:
        """The best action for each observation: (E, N) -> (E,)."""
        tensors = {name: torch.from_numpy(array) for name, array in obs.items()}
        actions: npt.NDArray[np.int64] = self(tensors).argmax(-1).numpy()
        return actions


def update(q_net: QNetwork, target_net: QNetwork, optimizer: torch.optim.Optimizer, buffer: Replay) -> float:
    """Learn from one batch, with or without relabelled transitions. Returns the loss."""
    batch = buffer.sample(BATCH_SIZE).to_torch()  # goals and bits (B, N), everything else (B,)
    with torch.no_grad():
        q_next = target_net(batch.next_obs).amax(1)  # (B,)
        target = batch.reward + batch.discount * q_next  # (B,)
        target.clamp_(-1.0 / (1.0 - GAMMA), 0.0)  # no return can be lower or higher
    q = q_net(batch.obs).gather(1, batch.action.unsqueeze(1)).squeeze(1)  # (B,)
    loss = (q - target).square().mean()

    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


@torch.no_grad()
def move_target(target_net: QNetwork, q_net: QNetwork) -> None:
    """Move the target network a little towards the online one."""
    for slow, fast in zip(target_net.parameters(), q_net.parameters(), strict=True):
        slow.lerp_(fast, TARGET_RATE)


def evaluate(q_net: QNetwork, env: BitFlip) -> float:
    """The share of new greedy episodes, with new goals, in which the bits equal the goal at any step."""
    obs, _ = env.reset()
    reached = np.zeros(env.num_envs, np.bool_)
    for _ in range(env.bits):
        obs, reward, *_ = env.step(q_net.greedy(obs))
        reached |= reward == 0.0
    return float(reached.mean())


@dataclass(frozen=True)
class Result:
    """The result of one agent."""

    bits: int
    strategy: Strategy
    success: float  # share of the test episodes
    cycles: int  # of training


def train(bits: int, strategy: Strategy, ratio: float, cycles: int, seed: int, progress: bool = True) -> Result:
    """Train until an evaluation reaches STOP_AT, for at most `cycles` cycles. Then test on new episodes."""
    env, eval_env, test_env = BitFlip(bits, EPISODES), BitFlip(bits, EVAL_EPISODES), BitFlip(bits, TEST_EPISODES)
    for place, each in enumerate((env, eval_env, test_env)):
        each.reset(seed=3 * seed + place)
    buffer_seed, agent_seed = np.random.SeedSequence(seed).spawn(2)
    rng = np.random.default_rng(agent_seed)
    torch.manual_seed(seed)  # the initial weights

    capacity = min(cycles * EPISODES * bits, CAPACITY)
    buffer: Replay = ReplayBuffer.from_env(env, capacity, gamma=GAMMA, seed=buffer_seed)
    if strategy != "none":
        buffer = HindsightReplay(buffer, env.compute_reward, strategy=strategy, ratio=ratio)
    recorded = record(env, buffer)  # stores each step with its original goal

    q_net = QNetwork(bits)
    target_net = copy.deepcopy(q_net)
    optimizer = torch.optim.Adam(q_net.parameters(), lr=LEARNING_RATE, fused=True)
    bar = tqdm(total=cycles, desc=f"{bits} bits, {strategy}", unit="cycle", disable=not progress)
    for cycle in range(1, cycles + 1):
        obs, _ = recorded.reset()
        for _ in range(bits):
            explore, random_action = rng.random(EPISODES) < EPSILON, rng.integers(bits, size=EPISODES)
            obs, *_ = recorded.step(np.where(explore, random_action, q_net.greedy(obs)))

        loss = np.mean([update(q_net, target_net, optimizer, buffer) for _ in range(UPDATES)])
        move_target(target_net, q_net)
        bar.update()

        if cycle % EVAL_EVERY == 0:
            success = evaluate(target_net, eval_env)
            bar.set_postfix(success=f"{success:.2f}", loss=f"{loss:.2g}", refresh=False)
            if success >= STOP_AT:
                break
    bar.close()
    return Result(bits, strategy, evaluate(target_net, test_env), cycle)


def summarise(results: list[Result]) -> None:
    """Print the success and the number of training cycles for each number of bits, averaged over seeds."""
    strategies = list(dict.fromkeys(result.strategy for result in results))
    print(f"Success in {TEST_EPISODES} new greedy episodes (in brackets: cycles of training):")
    print("bits" + "".join(f"{strategy:>17}" for strategy in strategies))
    solved: dict[Strategy, list[str]] = {strategy: [] for strategy in strategies}
    for bits in sorted({result.bits for result in results}):
        row = f"{bits:4}"
        for strategy in strategies:
            cell = [(each.success, each.cycles) for each in results if (each.bits, each.strategy) == (bits, strategy)]
            success, cycles = np.mean(cell, axis=0) if cell else (np.nan, np.nan)  # nan: the run was interrupted before
            row += f"{success:9.3f} ({cycles:5.0f})"
            if success >= SOLVED:
                solved[strategy].append(str(bits))
        print(row)
    for strategy, bits_solved in solved.items():
        print(f"Solved at least {SOLVED:.0%} with --strategy {strategy}: {', '.join(bits_solved) or 'no'} bits.")


def plot(results: list[Result], title: str, path: Path) -> None:
    """Plot success against the number of bits: a dot for each agent, a line through the means of each strategy."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")  # without pyplot: no window, no global state
    axes = figure.subplots()
    for strategy, color in COLORS.items():
        dots = [(each.bits, each.success) for each in results if each.strategy == strategy]
        if dots:
            bits, success = np.array(sorted(dots)).T
            label = "DQN" if strategy == "none" else f"DQN with hindsight: {strategy}"
            axes.plot(bits, success, "o", color=color, alpha=0.5)
            axes.plot(np.unique(bits), [success[bits == n].mean() for n in np.unique(bits)], color=color, label=label)
    axes.set(xlabel="number of bits", ylabel="success in new greedy episodes", ylim=(-0.04, 1.04), title=title)
    axes.set_xticks(sorted({result.bits for result in results}))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=120)


def parse_arguments() -> argparse.Namespace:
    """Parse and check the options."""
    parser = argparse.ArgumentParser(
        description="Train agents with hindsight experience replay on the bit-flip task.", allow_abbrev=False
    )
    add = parser.add_argument
    add(
        "--bits",
        type=at_least(2),
        nargs="+",
        default=[5, 8, 10, 12, 15, 20],
        help="numbers of bits (default: 5 8 10 12 15 20)",
    )
    add(
        "--strategy",
        choices=COLORS,
        nargs="+",
        default=["none", "future"],
        help="ways to choose hindsight goals (default: none future)",
    )
    add(
        "--ratio",
        type=share,
        default=0.8,
        help="share of each batch that gets a hindsight goal, from 0 to 1 (default: %(default)s)",
    )
    add(
        "--cycles",
        type=at_least(1),
        default=1_000,
        help=f"maximum number of training cycles of {EPISODES} episodes each (default: %(default)s)",
    )
    add("--seeds", type=at_least(0), nargs="+", default=[0], help="random seeds; one agent for each seed (default: 0)")
    output = Path(__file__).resolve().parent / "runs" / "her-bitflip.png"
    add(
        "--output",
        type=picture,
        default=str(output),
        help="save the picture to this file (default: a file in runs/, beside this script)",
    )
    return parser.parse_args()


def main() -> None:
    """Train an agent for each number of bits, strategy and seed. Print a table and save a picture."""
    options = parse_arguments()
    torch.set_num_threads(1)  # networks this small are slower with more threads
    results: list[Result] = []
    try:
        for bits, strategy, seed in itertools.product(options.bits, options.strategy, options.seeds):
            results.append(train(bits, strategy, options.ratio, options.cycles, seed))
    except KeyboardInterrupt:
        print("Interrupted: these are the results so far.")
    if results:
        summarise(results)
        plot(results, f"Bit flip, at most {options.cycles} cycles of {EPISODES} training episodes", options.output)
        print(f"Picture: {options.output}")


if __name__ == "__main__":
    main()
