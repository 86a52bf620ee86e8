"""Swing up a pendulum with SAC of Stable-Baselines3, using a replay buffer of your choice.

    python examples/sb3_pendulum.py
    python examples/sb3_pendulum.py --buffer uniform --n-steps 3 --seed 1
    python examples/sb3_pendulum.py --buffer sb3

A run takes one to three minutes. It ends with 20 greedy episodes and saves a picture of the learning curve. To use
a buffer of replaykit, two lines are needed, an import and an argument: see `make_model`. ``--buffer sb3`` is
Stable-Baselines3's own buffer.
"""

import argparse
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from matplotlib.figure import Figure
from options import at_least, picture
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from tqdm import tqdm

from replaykit import LinearSchedule
from replaykit.integrations.sb3 import PrioritizedSAC, SB3ReplayBuffer

BUFFERS = ("sb3", "uniform", "prioritized")
GAMMA, LEARNING_STARTS, TEST_EPISODES = 0.99, 500, 20


def make_model(kind: str, env: Any, total_timesteps: int, n_steps: int, seed: int) -> Any:
    """SAC with small networks. Only this function depends on the kind of buffer."""
    shared = {"learning_rate": 1e-3, "batch_size": 128, "policy_kwargs": {"net_arch": [64, 64]}, "gamma": GAMMA}
    shared |= {"buffer_size": total_timesteps, "learning_starts": LEARNING_STARTS, "seed": seed, "device": "cpu"}
    if kind == "sb3":
        return SAC("MlpPolicy", env, n_steps=n_steps, **shared)
    if kind == "uniform":
        options = {"n_steps": n_steps, "gamma": GAMMA}
        return SAC("MlpPolicy", env, replay_buffer_class=SB3ReplayBuffer, replay_buffer_kwargs=options, **shared)
    # The schedule counts sampled batches. Beta reaches 1 with the last batch
    beta = LinearSchedule(0.4, 1.0, steps=max(total_timesteps - LEARNING_STARTS, 1))
    return PrioritizedSAC("MlpPolicy", env, n_steps=n_steps, replay_buffer_kwargs={"beta": beta}, **shared)


class Progress(BaseCallback):  # type: ignore[misc]
    """A bar with the mean return of the last ten episodes."""

    def __init__(self, monitor: Any, total_timesteps: int) -> None:
        super().__init__()
        self.monitor, self.bar = monitor, tqdm(total=total_timesteps, unit="step")

    def _on_step(self) -> bool:
        self.bar.update(1)
        if self.locals["dones"][0]:
            self.bar.set_postfix_str(f"return {np.mean(self.monitor.get_episode_rewards()[-10:]):.0f}")
        return True

    def _on_training_end(self) -> None:
        self.bar.close()


def plot(monitor: Any, test_returns: Any, title: str, path: Path) -> None:
    """Plot the return of every episode, their running mean, and the mean of the final greedy episodes."""
    steps, returns = np.cumsum(monitor.get_episode_lengths()), np.array(monitor.get_episode_rewards())
    figure = Figure(figsize=(8, 5), layout="constrained")  # without pyplot: no window, no global state
    axes = figure.subplots()
    axes.plot(steps, returns, ".", color="tab:blue", alpha=0.4, label="training episodes")
    window = min(5, returns.size)
    smoothed = np.convolve(returns, np.full(window, 1.0 / window), "valid")
    axes.plot(steps[window - 1 :], smoothed, color="tab:blue", label=f"training, mean of {window}")
    label = f"{TEST_EPISODES} greedy episodes: {np.mean(test_returns):.0f}"
    axes.plot(steps[-1], np.mean(test_returns), "*", color="tab:green", markersize=15, label=label)
    axes.set(title=title, xlabel="environment steps", ylabel="return of an episode")
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    figure.savefig(path, dpi=120)


def parse_arguments() -> argparse.Namespace:
    """Parse the options."""
    parser = argparse.ArgumentParser(description="Train SAC of Stable-Baselines3 on Pendulum-v1.", allow_abbrev=False)
    add = parser.add_argument
    add("--buffer", choices=BUFFERS, default="prioritized", help="kind of replay buffer (default: %(default)s)")
    add("--n-steps", type=at_least(1), default=1, help="number of rewards in an n-step target (default: %(default)s)")
    add("--total-timesteps", type=at_least(200), default=5_000, help="environment steps (default: %(default)s)")
    add("--seed", type=at_least(0), default=0, help="random seed (default: %(default)s)")
    add("--output", type=picture, help="save the picture to this file (default: a file in runs/, beside this script)")
    options = parser.parse_args()
    if options.output is None:
        name = f"sb3-pendulum-{options.buffer}-n{options.n_steps}-seed{options.seed}.png"
        options.output = picture(str(Path(__file__).resolve().parent / "runs" / name))
    return options


def main() -> None:
    """Train, test and plot."""
    options = parse_arguments()
    torch.set_num_threads(1)  # the networks are small
    monitor = Monitor(gymnasium.make("Pendulum-v1"))
    model = make_model(options.buffer, monitor, options.total_timesteps, options.n_steps, options.seed)
    model.learn(options.total_timesteps, callback=Progress(monitor, options.total_timesteps))
    test_env = Monitor(gymnasium.make("Pendulum-v1"))
    test_env.reset(seed=options.seed + 1)
    test_returns, _ = evaluate_policy(model, test_env, TEST_EPISODES, return_episode_rewards=True)
    print(f"mean return of {TEST_EPISODES} greedy episodes: {np.mean(test_returns):.0f}")
    title = f"SAC on Pendulum-v1, {options.buffer} replay, n = {options.n_steps}, seed {options.seed}"
    plot(monitor, test_returns, title, options.output)
    print(f"learning curve: {options.output}")


if __name__ == "__main__":
    main()
