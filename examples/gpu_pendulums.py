"""Swing up many pendulums that are simulated on the learner's device, without copying transitions to the CPU.

    python examples/gpu_pendulums.py
    python examples/gpu_pendulums.py --num-envs 256 --total-timesteps 100000
    python examples/gpu_pendulums.py --device cuda --num-envs 4096 --total-timesteps 4000000

The pendulums are a few lines of torch with the equations of Gymnasium's Pendulum-v1. The buffer keeps transitions and
priorities on the same device. The agent is that of sac_pendulum.py. On the CPU, a run with 64 pendulums takes two
minutes. It ends with 100 greedy episodes in Gymnasium's own pendulum, and saves a picture of the learning curve.

Shapes in the comments: E pendulums, B batch.
"""

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from options import at_least, picture
from sac_pendulum import Agent, Settings, evaluate
from torch import Tensor
from tqdm import tqdm

from replaykit import Field, LinearSchedule, PrioritizedBuffer, Spec

EPISODE = 200
SPEC = Spec(obs=Field((3,)), action=Field((1,)))
TEST_EPISODES = 100


class Pendulums:
    """Many pendulums with episodes of 200 steps, which end at different times. Actions are torques in [-1, 1]."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.angle, self.speed = torch.empty(2, count, device=device)
        self.steps = torch.arange(count, device=device) % EPISODE  # so that episodes end at different times
        self._reset(torch.ones(count, dtype=torch.bool, device=device))

    def _reset(self, mask: Tensor) -> None:
        """Begin a new episode for each pendulum in the mask."""
        self.angle = torch.where(mask, torch.empty_like(self.angle).uniform_(-math.pi, math.pi), self.angle)
        self.speed = torch.where(mask, torch.empty_like(self.speed).uniform_(-1.0, 1.0), self.speed)

    def observe(self) -> Tensor:
        """Cosine and sine of the angle, which is 0 at the top, and the speed: (E, 3)."""
        return torch.stack((self.angle.cos(), self.angle.sin(), self.speed), 1)

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The rewards (E,), the next observations (E, 3) before any reset, and which episodes were cut off (E,)."""
        torque = 2.0 * action[:, 0]
        angle = (self.angle + math.pi) % (2.0 * math.pi) - math.pi
        reward = -(angle.square() + 0.1 * self.speed.square() + 0.001 * torque.square())
        self.speed = (self.speed + (15.0 * self.angle.sin() + 3.0 * torque) * 0.05).clamp(-8.0, 8.0)
        self.angle = self.angle + self.speed * 0.05
        self.steps = self.steps + 1
        next_obs, truncated = self.observe(), self.steps >= EPISODE
        self._reset(truncated)
        self.steps = torch.where(truncated, 0, self.steps)
        return reward, next_obs, truncated


def train(settings: Settings, updates: int, seed: int, device: torch.device) -> tuple[Agent, list[tuple[int, float]]]:
    """Train an agent, with `updates` updates after each step of all pendulums. Returns it and its learning curve."""
    torch.manual_seed(seed)
    lanes = settings.num_envs
    rounds = -(-settings.total_timesteps // lanes)
    pendulums, agent = Pendulums(lanes, device), Agent(3, 1, settings, device)
    shared: dict[str, Any] = {"n_step": settings.n_step, "gamma": settings.gamma, "seed": seed, "device": device}
    beta = LinearSchedule(0.4, 1.0, steps=rounds * updates)
    buffer = PrioritizedBuffer(settings.capacity, SPEC, num_envs=lanes, alpha=settings.alpha, beta=beta, **shared)
    obs, never, curve = pendulums.observe(), torch.zeros(lanes, dtype=torch.bool, device=device), []
    for number in tqdm(range(1, rounds + 1), unit="round", desc=f"{lanes} pendulums on {device}"):
        if number * lanes <= settings.learning_starts:
            action = torch.rand(lanes, 1, device=device) * 2.0 - 1.0
        else:
            with torch.no_grad():
                action, _ = agent.actor(obs)
        reward, next_obs, truncated = pendulums.step(action)
        buffer.add(obs, action, reward, next_obs, never, truncated)
        obs = pendulums.observe()
        for _ in range(updates if number * lanes > settings.learning_starts else 0):
            batch = buffer.sample(settings.batch_size).to_torch(column=True)  # (B,) becomes (B, 1); no copy
            td_errors, _ = agent.learn(batch)
            buffer.update_priorities(batch.indices, td_errors)
        if number % max(settings.eval_every // lanes, 1) == 0 or number == rounds:
            curve.append((number * lanes, float(evaluate(agent, settings.eval_episodes, seed + 1_000).mean())))
    buffer.check()  # also raises errors that only the device detected
    return agent, curve


def parse_arguments() -> argparse.Namespace:
    """Parse the options."""
    parser = argparse.ArgumentParser(description="SAC on pendulums that are simulated on a device.", allow_abbrev=False)
    add = parser.add_argument
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", default=default_device, help="device of pendulums, buffer and networks (default: %(default)s)")
    add("--num-envs", type=at_least(1), default=64, help="number of pendulums (default: %(default)s)")
    add("--total-timesteps", type=at_least(1), default=30_000, help="steps of all pendulums (default: %(default)s)")
    add(
        "--updates", type=at_least(1), default=8, help="updates after each step of all pendulums (default: %(default)s)"
    )
    add("--seed", type=at_least(0), default=0, help="random seed (default: %(default)s)")
    default = Path(__file__).resolve().parent / "runs" / "gpu-pendulums.png"
    add("--output", type=picture, default=str(default), help="picture (default: in runs/, beside this script)")
    return parser.parse_args()


def main() -> None:
    """Train, evaluate, and save the figure."""
    options = parse_arguments()
    torch.set_num_threads(1)
    settings = Settings(
        num_envs=options.num_envs, total_timesteps=options.total_timesteps, eval_every=6_000, learning_starts=3_000
    )
    begin = time.perf_counter()
    agent, curve = train(settings, options.updates, options.seed, torch.device(options.device))
    seconds = time.perf_counter() - begin
    mean = float(evaluate(agent, TEST_EPISODES, options.seed + 2_000).mean())
    print(f"{options.total_timesteps} steps in {seconds:.0f} s; mean return of {TEST_EPISODES} episodes: {mean:.0f}")
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*curve, strict=True), "o-")
    axes.set(xlabel="environment steps", ylabel="mean return of greedy episodes", title=f"{options.num_envs} pendulums")
    figure.savefig(options.output, dpi=120)
    print(f"Learning curve: {options.output}")


if __name__ == "__main__":
    main()
