"""DQN in one file, in the style of CleanRL: options, networks, and one training loop to read from top to bottom.

    python examples/cleanrl/dqn.py
    python examples/cleanrl/dqn.py --per --n-step 1 --seed 1
    python examples/cleanrl/dqn.py --env-id Acrobot-v1 --num-envs 4 --log-dir runs/acrobot

The loop does not handle details of the replay buffer. `record` stores each step of the environments, with the true last
observation of an episode. ``batch.discount`` is ``gamma ** length`` for a window of `length` steps, or 0 if the
episode terminated. A time limit does not set it to 0. The same loop learns from uniform and from prioritized replay.

Shapes in the comments: E parallel environments, D observation, A number of actions, B batch.

References
----------
Mnih et al. (2015), Human-level control through deep reinforcement learning.
Schaul et al. (2016), Prioritized experience replay.
"""

import argparse
import copy
import time
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from math import inf
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from torch import Tensor, nn

from replaykit import LinearSchedule, PrioritizedBuffer, ReplayBuffer, record


def option(default: Any, text: str, least: float = -inf, most: float = inf) -> Any:
    """A field of `Args`, with its description and its range."""
    return field(default=default, metadata={"text": text, "least": least, "most": most})


@dataclass(kw_only=True)
class Args:
    """The options on the command line. Steps count all parallel environments together."""

    env_id: str = option("CartPole-v1", "id of a Gymnasium environment with discrete actions and flat observations")
    seed: int = option(0, "random seed of weights, exploration, replay and environments", 0)
    total_timesteps: int = option(50_000, "environment steps, summed over the environments", 1)
    num_envs: int = option(1, "number of parallel environments", 1)
    learning_rate: float = option(1e-3, "initial learning rate of Adam", 0)
    anneal_lr: bool = option(True, "lower the learning rate linearly to 0")
    gamma: float = option(0.99, "discount factor per step", 0, 1)
    batch_size: int = option(128, "transitions in each batch", 1)
    buffer_size: int = option(10_000, "capacity of the buffer in transitions", 1)
    learning_starts: int = option(1_000, "environment steps before the first update", 1)
    train_frequency: int = option(5, "environment steps per update", 1)
    target_network_frequency: int = option(1, "number of updates between two changes of the target network", 1)
    tau: float = option(0.03, "share of the Q-network in each change of the target network; 1 copies it", 0, 1)
    start_e: float = option(1.0, "initial probability of a random action", 0, 1)
    end_e: float = option(0.02, "final probability of a random action", 0, 1)
    exploration_fraction: float = option(0.25, "share of the run until end-e is reached", 0, 1)
    n_step: int = option(5, "number of rewards in an n-step target", 1)
    per: bool = option(False, "use prioritized instead of uniform replay")
    per_alpha: float = option(0.6, "exponent of the priorities", 0)
    per_beta: float = option(0.4, "initial exponent of the importance weights; it rises to 1 over the run", 0, 1)
    device: str = option("cpu", "torch device of the networks, such as cuda")
    log_dir: str = option("", "directory for TensorBoard logs; if empty, nothing is logged")
    log_every: int = option(5_000, "environment steps between two lines of progress", 1)


class QNetwork(nn.Sequential):
    """The value of each action: (..., D) -> (..., A)."""

    def __init__(self, observations: int, actions: int) -> None:
        hidden = (nn.Linear(observations, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU())
        super().__init__(*hidden, nn.Linear(84, actions))


def make_envs(args: Args) -> Any:
    """Parallel environments. An environment resets in the same step that ends its episode."""
    envs: Any = gymnasium.make_vec(
        args.env_id,
        num_envs=args.num_envs,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
    )
    observations, actions = envs.single_observation_space, envs.single_action_space
    if not isinstance(observations, spaces.Box) or len(observations.shape) != 1:
        raise ValueError(f"the observations are {observations}; expected a Box with one axis")
    if not isinstance(actions, spaces.Discrete) or actions.start != 0:
        raise ValueError(f"the actions are {actions}; expected Discrete(n), starting at 0")
    return envs


def train(args: Args) -> tuple[QNetwork, list[tuple[int, float]]]:
    """Train a network. Returns the network, and the step and the return of each episode."""
    torch.manual_seed(args.seed)  # initial weights
    exploration_seed, buffer_seed = np.random.SeedSequence(args.seed).spawn(2)
    rng = np.random.default_rng(exploration_seed)
    device = torch.device(args.device)

    # Environments and replay. `record` stores every step from here on
    envs = make_envs(args)
    total_updates = max(args.total_timesteps - args.learning_starts, 0) // args.train_frequency
    options: dict[str, Any] = {"n_step": args.n_step, "gamma": args.gamma, "seed": buffer_seed}
    buffer: ReplayBuffer | PrioritizedBuffer
    if args.per:
        beta = LinearSchedule(args.per_beta, 1.0, steps=max(total_updates, 1))
        buffer = PrioritizedBuffer.from_env(envs, args.buffer_size, alpha=args.per_alpha, beta=beta, **options)
    else:
        buffer = ReplayBuffer.from_env(envs, args.buffer_size, **options)
    envs = record(envs, buffer)

    # Networks
    actions = int(envs.single_action_space.n)
    q_network = QNetwork(envs.single_observation_space.shape[0], actions).to(device)
    target_network = copy.deepcopy(q_network).requires_grad_(False)
    optimizer = torch.optim.Adam(q_network.parameters(), lr=args.learning_rate, fused=True)

    step = updates = 0
    returns, running_returns = list[tuple[int, float]](), np.zeros(args.num_envs)
    metrics: dict[str, Tensor] = {}
    writer, start = open_writer(args), time.perf_counter()
    obs, _ = envs.reset(seed=args.seed)  # (E, D)
    while step < args.total_timesteps:
        # Act: at random with probability epsilon, else greedily
        fallen = min(step / max(args.exploration_fraction * args.total_timesteps, 1.0), 1.0)
        epsilon = args.start_e + fallen * (args.end_e - args.start_e)
        with torch.no_grad():
            values = q_network(torch.as_tensor(obs, dtype=torch.float32, device=device))  # (E, A)
        is_random, random_action = rng.random(args.num_envs) < epsilon, rng.integers(actions, size=args.num_envs)
        action = np.where(is_random, random_action, values.argmax(1).cpu().numpy())  # (E,)
        obs, reward, terminated, truncated, _ = envs.step(action)
        step += args.num_envs
        running_returns += reward
        for lane in np.flatnonzero(terminated | truncated):
            returns.append((step, float(running_returns[lane])))
            running_returns[lane] = 0.0

        # Learn: make all updates that are due, independent of the number of environments
        while updates < min((step - args.learning_starts) // args.train_frequency, total_updates):
            # obs and next_obs (B, D), everything else (B,)
            batch = buffer.sample(args.batch_size).to_torch(device, dtype=torch.float32)
            with torch.no_grad():
                target = batch.reward + batch.discount * target_network(batch.next_obs).amax(1)  # (B,)
            q = q_network(batch.obs).gather(1, batch.action.unsqueeze(1)).squeeze(1)  # (B,)
            td_errors = target - q
            loss = (batch.weights * td_errors.square()).mean()
            if args.anneal_lr:
                optimizer.param_groups[0]["lr"] = args.learning_rate * (1.0 - updates / total_updates)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            buffer.update_priorities(batch.indices, td_errors)  # does nothing with uniform replay
            metrics = {"loss/q": loss.detach(), "value/q": q.detach().mean()}
            updates += 1

            if updates % args.target_network_frequency == 0:
                with torch.no_grad():
                    for slow, fast in zip(target_network.parameters(), q_network.parameters(), strict=True):
                        slow.lerp_(fast, args.tau)

        # Report
        if step % args.log_every < args.num_envs or step >= args.total_timesteps:
            numbers = {name: float(value) for name, value in metrics.items()} | {"epsilon": epsilon}
            report(args, step, start, returns, numbers | buffer.stats(prefix="replay/"), writer)
    if writer is not None:
        writer.close()
    envs.close()
    return q_network, returns


def open_writer(args: Args) -> Any:
    """A TensorBoard writer for `args.log_dir`, or None."""
    if not args.log_dir:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(args.log_dir)


def report(
    args: Args, step: int, start: float, returns: list[tuple[int, float]], numbers: dict[str, float], writer: Any
) -> None:
    """Print one line of progress, and log everything.

    return
        Mean return of the last 20 training episodes, including random actions.
    loss/q
        Squared TD errors of one batch, weighted. It grows with the values; if it explodes, learning diverges.
    value/q
        Mean value of the actions in one batch. It stays below 1 / (1 - gamma) if no reward is larger than 1.
    """
    rate = step / (time.perf_counter() - start)
    numbers = numbers | {"steps_per_second": rate}
    if returns:
        numbers["return"] = float(np.mean([value for _, value in returns[-20:]]))
    shown = "  ".join(f"{name} {numbers[name]:.3g}" for name in ("return", "loss/q", "value/q") if name in numbers)
    left = max(args.total_timesteps - step, 0) / rate
    print(f"{step:,} of {args.total_timesteps:,} steps  {shown}  {rate:,.0f} steps/s, {left:.0f} s left", flush=True)
    if writer is not None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)


def parse_args() -> Args:
    """Parse and check the options."""
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description="Train a DQN agent.", allow_abbrev=False, formatter_class=formatter)
    for entry in fields(Args):
        flag, default = "--" + entry.name.replace("_", "-"), entry.default
        kind: Any = {"action": argparse.BooleanOptionalAction} if isinstance(default, bool) else {"type": type(default)}
        parser.add_argument(flag, default=default, help=entry.metadata["text"], **kind)
    args = Args(**vars(parser.parse_args()))
    for entry in fields(Args):
        value, least, most = getattr(args, entry.name), entry.metadata["least"], entry.metadata["most"]
        if not isinstance(value, str) and not least <= value <= most:
            limits = f"at least {least}" if most == inf else f"{least} to {most}"
            parser.error(f"argument --{entry.name.replace('_', '-')}: {value}; expected {limits}")
    if args.log_dir and find_spec("tensorboard") is None:
        parser.error("argument --log-dir: TensorBoard is not installed: pip install tensorboard")
    try:
        torch.empty(0, device=args.device)
        make_envs(args).close()
    except (AssertionError, RuntimeError) as error:
        parser.error(f"argument --device: {args.device}: {str(error).splitlines()[0]}")
    except (gymnasium.error.Error, ImportError, ValueError) as error:
        parser.error(f"argument --env-id: {args.env_id}: {error}")
    return args


if __name__ == "__main__":
    torch.set_num_threads(1)  # networks this small are slower with several threads
    train(parse_args())
