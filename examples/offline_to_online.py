"""Learn sparse MountainCar from a few demonstrations and the agent's own steps: DQN on a mixture of two buffers.

    python examples/offline_to_online.py
    python examples/offline_to_online.py --demo-share 0 0.25 0.5 --seeds 0
    python examples/offline_to_online.py --demos my_demonstrations.npz

The reward is 1 at the flag and 0 everywhere else. Random actions hardly ever reach the flag, so an agent without
demonstrations sees no reward for thousands of steps. The demonstrations are ten episodes of a simple driver, which
always pushes in the direction of motion. They are recorded, written to a file and read back. A share of each batch
comes from them, and the rest from the agent's own steps. The demonstrations have their own buffer, so the agent's steps
never overwrite them, and their share stays constant.

The default run trains three agents with demonstrations and three without, prints a table and saves a picture of the
learning curves. Each agent takes about half a minute on one core. With demonstrations, all three agents reached the
flag in 100 of 100 new episodes; without them, no agent did. The agent learns with `update` of dqn.py, which does not
depend on the mixture.

Shapes in the comments: B batch, D observation.

References
----------
Hester et al. (2018), Deep Q-learning from demonstrations.
Ball et al. (2023), Efficient online reinforcement learning with offline data: half of each batch, section 4.1.
"""

import argparse
import copy
import itertools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from dqn import QNetwork, Settings, evaluate, move_target, update
from matplotlib.figure import Figure
from options import at_least, picture, share
from torch import Tensor
from tqdm import tqdm

from replaykit import LinearSchedule, MixedReplay, PrioritizedBuffer, Replay, ReplayBuffer, record
from replaykit.io import from_npz, to_npz

ENV_ID = "SparseMountainCar-v0"
TIME_LIMIT = 200
SETTINGS = Settings(
    total_timesteps=8_000,
    batch_size=128,
    learning_rate=5e-4,
    target_rate=0.01,
    eval_every=500,
    eval_episodes=40,
)
REPLAY: dict[str, Any] = {"n_step": 5, "gamma": 0.99}  # must be equal in both buffers
EPSILON = 0.1  # share of random actions in training
TEST_EPISODES = 100
SOLVED = 0.9  # success in an evaluation; the first step at which it is reached is reported
COLORS = ("tab:red", "tab:blue", "tab:green", "tab:purple", "tab:orange", "tab:brown")


class SparseReward(gymnasium.Wrapper[Any, int, Any, int]):
    """A reward of 1 where the episode terminates, else 0."""

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, _, terminated, truncated, info = self.env.step(action)
        return obs, float(terminated), terminated, truncated, info


def make_env(**options: Any) -> gymnasium.Env[Any, int]:
    """The environment that `gymnasium.make` creates for ENV_ID."""
    return SparseReward(gymnasium.make("MountainCar-v0", max_episode_steps=TIME_LIMIT, **options))


gymnasium.register(ENV_ID, make_env)


class CarNetwork(QNetwork):
    """The value of each action, given position and velocity."""

    def __init__(self) -> None:
        super().__init__(observations=2, actions=3, hidden=SETTINGS.hidden)

    def forward(self, obs: Tensor) -> Tensor:
        """(..., 2) -> (..., 3)."""
        return super().forward(obs * torch.tensor([1.0, 15.0]))  # a speed is at most 0.07


def drive(obs: npt.NDArray[Any]) -> int:
    """The demonstrator: push in the direction in which the car is moving, (2,) -> action."""
    return 2 if obs[1] >= 0.0 else 0


def demonstrate(path: Path, episodes: int, seed: int) -> None:
    """Record episodes of the demonstrator and write them to a file."""
    env = gymnasium.make(ENV_ID)
    buffer = ReplayBuffer.from_env(env, episodes * TIME_LIMIT)
    env = record(env, buffer)  # stores each step
    for episode in tqdm(range(episodes), desc="demonstrations", unit="episode"):
        obs, _ = env.reset(seed=seed + episode)
        done = False
        while not done:
            obs, _, terminated, truncated, _ = env.step(drive(obs))
            done = terminated or truncated
    env.close()
    to_npz(buffer, path)


def make_replay(env: Any, demos: Path, demo_share: float, settings: Settings, seed: np.random.SeedSequence) -> Replay:
    """Prioritized replay of the agent's steps, mixed with demonstrations if their share is positive."""
    beta = LinearSchedule(0.4, 1.0, steps=max(settings.batches_by(settings.total_timesteps), 1))
    online_seed, demos_seed, mixture_seed = seed.spawn(3)
    online = PrioritizedBuffer.from_env(env, settings.total_timesteps, beta=beta, seed=online_seed, **REPLAY)
    if not demo_share:
        return online
    stored = from_npz(demos, spec=online.spec, seed=demos_seed, **REPLAY)
    return MixedReplay(
        {"demos": stored, "online": online},
        shares={"demos": demo_share, "online": 1.0 - demo_share},
        add_to="online",
        seed=mixture_seed,
    )


@dataclass
class Result:
    """The result of one agent."""

    demo_share: float
    seed: int
    steps: list[int] = field(default_factory=list)  # of each evaluation ...
    success: list[float] = field(default_factory=list)  # ... the share of greedy episodes that reached the flag
    test_success: float = 0.0  # the same after training, in other episodes


def train(demos: Path, demo_share: float, settings: Settings, seed: int) -> Result:
    """Train one agent and evaluate it regularly."""
    first = 1_000_000 * seed  # training, evaluations and the test use different episodes and random streams
    replay_seed, agent_seed = np.random.SeedSequence(seed).spawn(2)
    rng = np.random.default_rng(agent_seed)
    torch.manual_seed(seed)  # the initial weights

    env: Any = gymnasium.make(ENV_ID)
    replay = make_replay(env, demos, demo_share, settings, replay_seed)
    env = record(env, replay)  # adds to the online buffer
    q_net = CarNetwork()
    target_net = copy.deepcopy(q_net)
    optimizer = torch.optim.Adam(q_net.parameters(), lr=settings.learning_rate, fused=True)
    result, batches, loss = Result(demo_share, seed), 0, float("nan")
    bar = tqdm(total=settings.total_timesteps, desc=f"{demo_share:.0%} demonstrations, seed {seed}", unit="step")
    obs, _ = env.reset(seed=first)  # (D,)
    for step in range(1, settings.total_timesteps + 1):
        explore, random_action = rng.random() < EPSILON, rng.integers(3)
        obs, _, terminated, truncated, _ = env.step(random_action if explore else q_net.greedy(obs).item())
        if terminated or truncated:
            obs, _ = env.reset()
        while batches < settings.batches_by(step):
            loss = update(q_net, target_net, optimizer, replay, settings)
            move_target(target_net, q_net, settings.target_rate)
            batches += 1
        bar.update()
        if step % settings.eval_every == 0 or step == settings.total_timesteps:
            success = float(evaluate(q_net, ENV_ID, settings.eval_episodes, first + 500_000).mean())
            result.steps.append(step)
            result.success.append(success)
            bar.set_postfix(success=f"{success:.2f}", loss=f"{loss:.2g}", refresh=False)
    bar.close()
    env.close()
    result.test_success = float(evaluate(q_net, ENV_ID, TEST_EPISODES, first + 900_000).mean())
    return result


def summarise(results: list[Result]) -> None:
    """Print the result of each agent."""
    print(f"Share of greedy episodes that reach the flag, in the evaluations and in {TEST_EPISODES} new episodes:")
    print(f"demonstrations  seed  at the end  mean on the way  first {SOLVED:.0%} at step")
    for each in results:
        reached = (step for step, success in zip(each.steps, each.success, strict=True) if success >= SOLVED)
        mean = np.mean(each.success)
        print(f"{each.demo_share:>14.0%}{each.seed:6}{each.test_success:12.2f}{mean:17.2f}{next(reached, '-'):>17}")
    for demo_share in dict.fromkeys(each.demo_share for each in results):
        ends = [each.test_success for each in results if each.demo_share == demo_share]
        print(f"{demo_share:.0%} demonstrations: {np.mean(ends):.2f} at the end, mean of {len(ends)}.")


def plot(results: list[Result], path: Path) -> None:
    """Plot success against training steps: a thin line for each agent, a thick one for their mean."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")  # without pyplot: no window, no global state
    axes = figure.subplots()
    for demo_share, color in zip(dict.fromkeys(each.demo_share for each in results), itertools.cycle(COLORS)):
        agents = [each for each in results if each.demo_share == demo_share]
        for each in agents:
            axes.plot(each.steps, each.success, color=color, linewidth=0.7, alpha=0.5)
        label = f"{demo_share:.0%} of each batch from demonstrations" if demo_share else "the agent's own steps only"
        mean = np.mean([each.success for each in agents], axis=0)
        axes.plot(agents[0].steps, mean, color=color, linewidth=2.5, label=label)
    axes.set(xlabel="environment steps", ylabel="greedy episodes that reach the flag", ylim=(-0.04, 1.04))
    axes.set_title("MountainCar with a reward only at the flag: DQN")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=120)


def parse_arguments() -> argparse.Namespace:
    """Parse and check the options."""
    parser = argparse.ArgumentParser(
        description="Train an agent on batches that mix demonstrations and online steps.", allow_abbrev=False
    )
    add = parser.add_argument
    text = "share of demonstrations in each batch, from 0 to 1; one set of agents for each share (default: 0 0.5)"
    add("--demo-share", type=share, nargs="+", default=[0.0, 0.5], help=text)
    add("--demos", type=Path, help="demonstrations in a file written by to_npz (default: record new ones)")
    add(
        "--demo-episodes",
        type=at_least(1),
        default=10,
        help="number of demonstration episodes to record (default: %(default)s)",
    )
    steps = SETTINGS.total_timesteps
    add(
        "--total-timesteps",
        type=at_least(1),
        default=steps,
        help="environment steps of each agent (default: %(default)s)",
    )
    add(
        "--seeds",
        type=at_least(0),
        nargs="+",
        default=[0, 1, 2],
        help="random seeds; one agent for each seed (default: 0 1 2)",
    )
    output = Path(__file__).resolve().parent / "runs" / "offline-to-online.png"
    add(
        "--output",
        type=picture,
        default=str(output),
        help="save the picture to this file (default: a file in runs/, beside this script)",
    )
    return parser.parse_args()


def main() -> None:
    """Record demonstrations, and train an agent for each share and seed. Print the results and save a picture."""
    options = parse_arguments()
    torch.set_num_threads(1)  # networks this small are slower with more threads
    demos = options.demos
    if demos is None:
        demos = options.output.with_suffix(".npz")
        demonstrate(demos, options.demo_episodes, seed=0)
    settings = replace(SETTINGS, total_timesteps=options.total_timesteps)
    results: list[Result] = []
    try:
        for seed, demo_share in itertools.product(options.seeds, options.demo_share):
            results.append(train(demos, demo_share, settings, seed))
    except KeyboardInterrupt:
        print("Interrupted: these are the results so far.")
    if results:
        summarise(results)
        plot(results, options.output)
        print(f"Picture: {options.output}")


if __name__ == "__main__":
    main()
