"""Train on CartPole with two actor processes and a learner on Ray, as in Ape-X, and compare with a single process.

    python examples/apex_cartpole.py
    python examples/apex_cartpole.py --actors 4 --shards 2 --seed 1
    python examples/apex_cartpole.py --total-timesteps 2000

Each actor is a process with an environment and a copy of the network. Each explores with a different epsilon, and adds
its steps to a `RayReplay` through a writer. After every round of steps, an actor gets the learner's latest weights. At
the same time, the learner samples batches from the shards and updates priorities. It uses `update` of dqn.py without
changes, although several processes store the transitions. The single process does the same with a `PrioritizedBuffer`:
the actors and the learner take turns.

Both runs take the same number of steps and learn from the same number of batches. The figure shows the mean return of
greedy episodes against steps. CartPole is so fast that several processes save little time. They save much time if a
step of the environment takes milliseconds, as in a simulator.

Shapes in the comments: D observation.

References
----------
Horgan et al. (2018), Distributed prioritized experience replay: appendix F for the epsilon of each actor.
"""

import argparse
import copy
import functools
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import ray
import torch
from dqn import QNetwork, Settings, evaluate, move_target, update
from matplotlib.figure import Figure
from options import at_least, picture
from tqdm import tqdm

from replaykit import PrioritizedBuffer, Replay, Spec, record
from replaykit.distributed import RayReplay, ShardWriter
from replaykit.writer import Writer

ENV_ID = "CartPole-v1"
SETTINGS = Settings(total_timesteps=30_000, eval_every=2_000, eval_episodes=40, stop_at=495.0)
ROUND = 250  # steps that an actor takes with the same weights
TEST_EPISODES = 100


@dataclass
class Curve:
    """Pairs of a number of steps and the mean return of greedy episodes, and the duration of the run."""

    evaluations: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0
    test_return: float = 0.0


def make_buffer(capacity: int, lanes: int) -> PrioritizedBuffer:
    """The buffer of a shard, or of the single process."""
    spec = Spec.from_env(gymnasium.make(ENV_ID))
    return PrioritizedBuffer(capacity, spec, num_envs=lanes, n_step=3, alpha=0.6, beta=0.4)


def epsilon_of(actor: int, actors: int) -> float:
    """The epsilon of an actor, from 0.4 for the first actor down to 0.01 for the last."""
    return float(0.4 ** (1.0 + 4.0 * actor / max(actors - 1, 1)))


class Actor:
    """Takes steps in an environment and adds them to the replay."""

    def __init__(self, writer: ShardWriter | Writer, epsilon: float, seed: int) -> None:
        torch.set_num_threads(1)
        self.writer, self.epsilon, self.rng = writer, epsilon, np.random.default_rng(seed)
        self.env = record(gymnasium.make(ENV_ID), writer)
        self.obs, _ = self.env.reset(seed=seed)  # (D,)
        self.q_net = QNetwork(self.obs.size, int(self.env.action_space.n), SETTINGS.hidden)

    def act(self, weights: dict[str, Any], steps: int) -> int:
        """Take `steps` steps with these weights. Returns the number of steps."""
        self.q_net.load_state_dict(weights)
        for _ in range(steps):
            explores = self.rng.random() < self.epsilon
            action = self.rng.integers(self.env.action_space.n) if explores else self.q_net.greedy(self.obs)
            self.obs, _, terminated, truncated, _ = self.env.step(int(action))
            if terminated or truncated:
                self.obs, _ = self.env.reset()
        return steps


class Learner:
    """Makes the updates that are due, and evaluates the network regularly."""

    def __init__(self, replay: Replay, settings: Settings, seed: int, name: str) -> None:
        torch.manual_seed(seed)
        env = gymnasium.make(ENV_ID)
        self.q_net = QNetwork(env.observation_space.shape[0], int(env.action_space.n), settings.hidden)  # type: ignore[index, attr-defined]
        self.target_net, self.best = copy.deepcopy(self.q_net), copy.deepcopy(self.q_net)
        self.optimizer = torch.optim.Adam(self.q_net.parameters(), lr=settings.learning_rate)
        self.replay, self.settings, self.seed = replay, settings, seed
        self.steps, self.batches, self.curve, self.begin = 0, 0, Curve(), time.perf_counter()
        self.bar = tqdm(total=settings.total_timesteps, unit="step", desc=name)

    def learn(self, steps: int) -> bool:
        """Make the updates that are due after `steps` more steps. Returns whether training continues."""
        self.steps += steps
        self.bar.update(steps)
        while self.batches < self.settings.batches_by(self.steps):
            update(self.q_net, self.target_net, self.optimizer, self.replay, self.settings)
            move_target(self.target_net, self.q_net, self.settings.target_rate)
            self.batches += 1
        last = self.curve.evaluations[-1][0] if self.curve.evaluations else 0
        is_over = self.steps >= self.settings.total_timesteps
        if is_over or self.steps >= last + self.settings.eval_every:
            mean = float(evaluate(self.q_net, ENV_ID, self.settings.eval_episodes, self.seed + 1_000).mean())
            if mean >= max((value for _, value in self.curve.evaluations), default=-np.inf):
                self.best.load_state_dict(self.q_net.state_dict())
            self.curve.evaluations.append((self.steps, mean))
            self.bar.set_postfix(eval=f"{mean:.0f}")
            is_over |= mean >= self.settings.stop_at
        return not is_over

    def weights(self) -> dict[str, Any]:
        """A copy of the network's weights, for actors."""
        return copy.deepcopy(self.q_net.state_dict())

    def finish(self) -> Curve:
        """Evaluate the best network, and return the learning curve."""
        self.curve.seconds = time.perf_counter() - self.begin
        self.curve.test_return = float(evaluate(self.best, ENV_ID, TEST_EPISODES, self.seed + 2_000).mean())
        self.bar.close()
        return self.curve


def train_alone(settings: Settings, actors: int, seed: int) -> Curve:
    """Train in one process. In each round, the actors take turns, and then the learner learns."""
    buffer = make_buffer(50_000, actors)
    writers = [buffer.writer(lane) for lane in range(actors)]
    each = [Actor(writer, epsilon_of(k, actors), seed + k) for k, writer in enumerate(writers)]
    learner = Learner(buffer, settings, seed, "one process")
    steps = min(ROUND, -(-settings.total_timesteps // actors))
    while learner.learn(sum(actor.act(learner.weights(), steps) for actor in each)):
        pass
    return learner.finish()


def train_on_ray(settings: Settings, actors: int, shards: int, seed: int) -> Curve:
    """Train on Ray: actors and shards are processes of Ray, and this process is the learner."""
    lanes = -(-actors // shards)
    with RayReplay(functools.partial(make_buffer, 50_000 // shards, lanes), shards, seed=seed, block=32) as replay:
        make = ray.remote(num_cpus=0)(Actor)
        each = [make.remote(replay.writer(), epsilon_of(k, actors), seed + k) for k in range(actors)]
        learner = Learner(replay, settings, seed, f"{actors} actors on Ray")
        steps = min(ROUND, -(-settings.total_timesteps // actors))
        running = {actor.act.remote(learner.weights(), steps): actor for actor in each}
        goes_on = True
        while goes_on:
            (done,), _ = ray.wait(list(running))
            actor = running.pop(done)
            goes_on = learner.learn(ray.get(done))
            running[actor.act.remote(learner.weights(), steps)] = actor
        return learner.finish()


def plot(curves: dict[str, Curve], path: Path) -> None:
    """Plot the returns of greedy episodes against steps."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        label = f"{name}: {curve.test_return:.0f} in {TEST_EPISODES} new episodes, {curve.seconds:.0f} s"
        axes.plot(*np.array(curve.evaluations).T, "o-", label=label)
    axes.set(xlabel="environment steps", ylabel="mean return of greedy episodes", title=ENV_ID)
    figure.legend(loc="outside lower center")
    figure.savefig(path, dpi=120)


def parse_arguments() -> argparse.Namespace:
    """Parse the options."""
    parser = argparse.ArgumentParser(
        description="Train DQN on CartPole with parallel actors and a sharded replay on Ray.", allow_abbrev=False
    )
    add = parser.add_argument
    add("--actors", type=at_least(1), default=2, help="number of actor processes (default: %(default)s)")
    add(
        "--shards",
        type=at_least(1),
        default=1,
        help="number of processes that store transitions (default: %(default)s)",
    )
    text = "maximum number of environment steps, summed over the actors (default: %(default)s)"
    add("--total-timesteps", type=at_least(1), default=SETTINGS.total_timesteps, help=text)
    text = "random seed; the order in which processes run still varies (default: %(default)s)"
    add("--seed", type=at_least(0), default=0, help=text)
    default = Path(__file__).resolve().parent / "runs" / "apex-cartpole.png"
    add(
        "--output",
        type=picture,
        default=str(default),
        help="file for the picture (default: in runs/, beside this script)",
    )
    return parser.parse_args()


def main() -> None:
    """Train in both ways, print the results and save the figure."""
    options = parse_arguments()
    settings = Settings(**{**vars(SETTINGS), "total_timesteps": options.total_timesteps})
    torch.set_num_threads(1)
    curves = {"one process": train_alone(settings, options.actors, options.seed)}
    ray.init(address="local", include_dashboard=False, logging_level="error")
    curves["Ray"] = train_on_ray(settings, options.actors, options.shards, options.seed)
    ray.shutdown()
    for name, curve in curves.items():
        steps = curve.evaluations[-1][0]
        print(f"{name}: {steps} steps in {curve.seconds:.0f} s, greedy return {curve.test_return:.1f} of 500")
    plot(curves, options.output)
    print(f"Learning curves: {options.output}")


if __name__ == "__main__":
    main()
