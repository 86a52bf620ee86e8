"""Learn CartPole, Acrobot or MountainCar by DQN, from a replay buffer of your choice.

    python examples/dqn_cartpole.py
    python examples/dqn_cartpole.py --buffer uniform --n-step 3 --num-envs 8 --seed 1
    python examples/dqn_cartpole.py --env MountainCar-v0
    python examples/dqn_cartpole.py --resume

A run takes half a minute or less on an idle core, MountainCar up to two minutes. It ends with 100 new greedy episodes,
used neither for training nor for choosing the weights, and saves a picture of the learning curve. With --monitor it
also saves a picture of the health of the replay and prints warnings.

With --resume, everything is saved every 5,000 steps, beside the picture or in --checkpoint DIRECTORY. You can kill the
run at any moment and start it again with --resume. It continues from the last checkpoint. On the same machine, its
returns, losses and weights are identical to those of an uninterrupted run. An environment cannot be saved in the middle
of an episode. New episodes with a new seed therefore begin at each checkpoint, whether or not the run is stopped.
"""

import argparse
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from checkpoint import Checkpoint
from dqn import History, Settings, evaluate, train
from matplotlib.figure import Figure
from options import at_least, picture

from replaykit import CombinedReplay, LatestBuffer, LinearSchedule, PrioritizedBuffer, Replay, ReplayBuffer
from replaykit.diagnostics import ReplayMonitor

BUFFERS = ("latest", "uniform", "prioritized", "combined")
TEST_EPISODES = 100


@dataclass(frozen=True, kw_only=True)
class Task:
    """Settings that solve an environment, for the agent and the buffer."""

    settings: Settings = field(default_factory=Settings)
    capacity: int = 100_000
    gamma: float = 0.99
    alpha: float = 0.6  # strength of prioritization


# An evaluation that reaches `stop_at` ends training. With a target network that moves twice as fast, prioritized replay
# learned CartPole faster, but in some runs with combined replay values diverged
TASKS = {
    "CartPole-v1": Task(settings=Settings(stop_at=495.0)),
    "Acrobot-v1": Task(settings=Settings(total_timesteps=60_000, eval_every=2_000, epsilon_end=0.05, stop_at=-85.0)),
    "MountainCar-v0": Task(
        settings=Settings(
            total_timesteps=120_000,
            train_every=16,
            updates=8,
            batch_size=128,
            learning_rate=2e-3,
            target_every=300,
            target_rate=1.0,
            epsilon_end=0.07,
            epsilon_steps=18_000,
            eval_every=2_000,
            stop_at=-105.0,
        ),
        capacity=10_000,
        gamma=0.98,
        alpha=0.4,
    ),
}


def make_buffer(kind: str, env: Any, task: Task, n_step: int, seed: np.random.SeedSequence) -> Replay:
    """A buffer for the transitions of `env`. Only this function depends on the kind of buffer."""
    capacity = task.capacity
    shared: dict[str, Any] = {"n_step": n_step, "gamma": task.gamma, "seed": seed}
    if kind == "latest":
        return LatestBuffer.from_env(env, capacity, **shared)
    if kind == "uniform":
        return ReplayBuffer.from_env(env, capacity, **shared)
    if kind == "combined":
        return CombinedReplay(ReplayBuffer.from_env(env, capacity, **shared))
    # The schedule counts sampled batches. Beta reaches 1 with the last batch
    batches = task.settings.batches_by(task.settings.total_timesteps)
    beta = LinearSchedule(0.4, 1.0, steps=max(batches, 1))
    return PrioritizedBuffer.from_env(env, capacity, alpha=task.alpha, beta=beta, **shared)


def plot(history: History, test_returns: Any, threshold: float | None, title: str, path: Path) -> None:
    """Plot the returns, and below them the weighted Huber loss and beta, if there is one."""
    figure = Figure(figsize=(8, 6), layout="constrained")  # without pyplot: no window, no global state
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    if history.returns:
        steps, returns = np.array(history.returns).T
        top.plot(steps, returns, ".", color="tab:blue", alpha=0.25, label="training episodes")
        window = min(20, returns.size)
        smoothed = np.convolve(returns, np.full(window, 1.0 / window), "valid")
        top.plot(steps[window - 1 :], smoothed, color="tab:blue", label=f"training, mean of {window}")
    if history.evaluations:
        top.plot(*np.array(history.evaluations).T, "o-", color="tab:orange", label="greedy evaluations, mean")
    label = f"{TEST_EPISODES} new greedy episodes: {test_returns.mean():.1f}"
    top.plot(history.best_step, test_returns.mean(), "*", color="tab:green", markersize=15, label=label)
    if threshold is not None:
        top.axhline(threshold, color="0.4", linestyle="--", label=f"solved: {threshold:g}")
    top.set(title=title, ylabel="return of an episode")
    handles, labels = top.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")

    if history.losses:
        bottom.plot(*np.array(history.losses).T, color="tab:red", linewidth=0.5)
        bottom.set_yscale("log")
    else:
        bottom.text(0.5, 0.5, "no update yet", ha="center", va="center", transform=bottom.transAxes)
    bottom.set(xlabel="environment steps")
    bottom.set_ylabel("loss", color="tab:red")
    if history.betas:
        right = bottom.twinx()
        right.plot(*np.array(history.betas).T, color="tab:purple")
        right.set_ylim(0.0, 1.05)
        right.set_ylabel("beta", color="tab:purple")
    figure.savefig(path, dpi=120)


def parse_arguments() -> argparse.Namespace:
    """Parse the options and check them."""
    parser = argparse.ArgumentParser(description="Train DQN with a replay buffer of replaykit.", allow_abbrev=False)
    add = parser.add_argument
    known = f"{', '.join(TASKS)}, or the id of another Gymnasium environment with discrete actions"
    add("--env", default="CartPole-v1", help=f"{known} (default: %(default)s)")
    add("--buffer", choices=BUFFERS, default="prioritized", help="kind of replay buffer (default: %(default)s)")
    add("--n-step", type=at_least(1), default=1, help="number of rewards in an n-step target (default: %(default)s)")
    add("--num-envs", type=at_least(1), default=1, help="number of parallel environments (default: %(default)s)")
    text = "maximum number of environment steps, summed over the environments (default: depends on the environment)"
    add("--total-timesteps", type=at_least(1), help=text)
    add("--no-double", action="store_true", help="train plain DQN instead of Double DQN")
    add("--seed", type=at_least(0), default=0, help="random seed (default: %(default)s)")
    add("--monitor", action="store_true", help="monitor the replay: save a second picture and print warnings")
    add(
        "--checkpoint",
        type=Path,
        help="directory for the checkpoint (default: not saved; with --resume, beside the picture)",
    )
    add("--save-every", type=at_least(1), default=5_000, help="steps between two checkpoints (default: %(default)s)")
    add("--resume", action="store_true", help="continue from the checkpoint, if there is one")
    add("--output", type=Path, help="save the picture to this file (default: a file in runs/, beside this script)")
    options = parser.parse_args()
    try:
        check_environment(options.env)
    except (gymnasium.error.Error, ImportError, ValueError) as error:
        parser.error(f"--env {options.env}: {error}")
    run = f"{options.buffer}-n{options.n_step}-envs{options.num_envs}-seed{options.seed}"
    name = f"{options.env.replace('/', '-').replace(':', '-')}-{run}.png"
    output = options.output or Path(__file__).resolve().parent / "runs" / name
    try:
        options.output = picture(str(output))
    except argparse.ArgumentTypeError as error:
        parser.error(f"--output {error}")
    if options.resume and options.checkpoint is None:
        options.checkpoint = options.output.with_suffix(".checkpoint")
    return options


def check_environment(env_id: str) -> None:
    """Raise ValueError for an environment that this agent does not support."""
    env = gymnasium.make(env_id)
    actions, observations = env.action_space, env.observation_space
    env.close()
    if not isinstance(actions, gymnasium.spaces.Discrete) or actions.start != 0:
        raise ValueError(f"the action space is {actions}; DQN needs Discrete actions that start at 0")
    if not isinstance(observations, gymnasium.spaces.Box) or len(observations.shape) != 1:
        raise ValueError(f"the observation space is {observations}; this network needs a Box with one axis")
    if env.spec is None or env.spec.max_episode_steps is None:
        raise ValueError("it has no time limit, so an evaluation might never end")


def find_checkpoint(options: argparse.Namespace, settings: Settings) -> Checkpoint | None:
    """The checkpoint to save the run to and to resume it from."""
    if options.checkpoint is None:
        return None
    names = ("env", "buffer", "n_step", "num_envs", "seed")
    checkpoint = Checkpoint(options.checkpoint, {name: getattr(options, name) for name in names} | asdict(settings))
    if checkpoint.exists() and not options.resume:
        raise SystemExit(
            f"{checkpoint.path} has a checkpoint: continue from it with --resume, or choose another directory"
        )
    return checkpoint


def main() -> None:
    """Train, test and plot."""
    options = parse_arguments()
    torch.set_num_threads(1)  # networks this small are slower with more threads
    task = TASKS.get(options.env, Task())
    steps = options.total_timesteps or task.settings.total_timesteps
    steps += -steps % options.num_envs  # a multiple of the number of environments
    settings = replace(
        task.settings, double=not options.no_double, total_timesteps=steps, save_every=options.save_every
    )
    task = replace(task, settings=settings)

    # Training, the choice of the weights and the final test use different episodes and independent random streams
    first = 1_000_000 * options.seed
    train_seed, eval_seed, test_seed = first, first + 500_000, first + 900_000
    buffer_seed, agent_seed = np.random.SeedSequence(options.seed).spawn(2)

    if options.num_envs == 1:
        env: Any = gymnasium.make(options.env)
    else:
        env = gymnasium.make_vec(options.env, num_envs=options.num_envs)
    buffer = make_buffer(options.buffer, env, task, options.n_step, buffer_seed)
    checkpoint = find_checkpoint(options, settings)
    monitor = ReplayMonitor(buffer) if options.monitor else None
    rng = np.random.default_rng(agent_seed)
    seeds = {"seed": train_seed, "eval_seed": eval_seed}
    watching: dict[str, Any] = {"monitor": monitor, "checkpoint": checkpoint}
    q_net, history = train(env, buffer, settings, rng, env_id=options.env, **seeds, **watching)
    env.close()

    test_returns = evaluate(q_net, options.env, TEST_EPISODES, test_seed)
    print(f"Trained for {history.steps} steps (at most {settings.total_timesteps}) on {buffer!r}.")
    print(f"The tested weights are those after {history.best_step} steps.")
    print(
        f"Greedy return over {TEST_EPISODES} new episodes: "
        f"mean {test_returns.mean():.1f}, standard deviation {test_returns.std():.1f}, "
        f"worst {test_returns.min():.0f}, best {test_returns.max():.0f}."
    )
    title = f"DQN on {options.env}: --buffer {options.buffer} --n-step {options.n_step} --num-envs {options.num_envs}"
    threshold = gymnasium.spec(options.env).reward_threshold
    plot(history, test_returns, threshold, f"{title} --seed {options.seed}", options.output)
    print(f"Learning curve: {options.output}")
    if monitor is not None:
        path = options.output.with_stem(f"{options.output.stem}-replay")
        monitor.plot().savefig(path, dpi=120)
        print(f"Health of the replay: {path}")
        found = "no warnings" if monitor.history else f"no batch was examined; only one of {monitor.every} batches is"
        print("\n".join(f"  - {warning}" for warning in monitor.warnings() or [found]))


if __name__ == "__main__":
    main()
