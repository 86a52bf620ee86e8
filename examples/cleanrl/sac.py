"""SAC in one file, in the style of CleanRL: options, networks, and one training loop to read from top to bottom.

    python examples/cleanrl/sac.py
    python examples/cleanrl/sac.py --per --n-step 1 --seed 1
    python examples/cleanrl/sac.py --num-envs 4 --log-dir runs/pendulum

The loop does not handle details of the replay buffer. `record` stores each step of the environments, with the true last
observation of an episode. ``batch.discount`` is ``gamma ** length`` for a window of `length` steps, or 0 if the
episode terminated. A time limit does not set it to 0. The same loop learns from uniform and from prioritized replay.

Shapes in the comments: E parallel environments, D observation, A action, B batch.

References
----------
Haarnoja et al. (2018a), Soft actor-critic: off-policy maximum entropy deep reinforcement learning.
Haarnoja et al. (2018b), Soft actor-critic algorithms and applications: the temperature, section 5.
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
import torch.nn.functional as F  # noqa: N812
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import RescaleAction
from torch import Tensor, nn

from replaykit import LinearSchedule, PrioritizedBuffer, ReplayBuffer, record


def option(default: Any, text: str, least: float = -inf, most: float = inf) -> Any:
    """A field of `Args`, with its description and its range."""
    return field(default=default, metadata={"text": text, "least": least, "most": most})


@dataclass(kw_only=True)
class Args:
    """The options on the command line. Steps count all parallel environments together; actions are in [-1, 1]."""

    env_id: str = option("Pendulum-v1", "id of a Gymnasium environment with continuous actions and flat observations")
    seed: int = option(0, "random seed of weights, exploration, replay and environments", 0)
    total_timesteps: int = option(8_000, "environment steps, summed over the environments", 1)
    num_envs: int = option(1, "number of parallel environments", 1)
    learning_rate: float = option(1e-3, "learning rate of Adam, for the actor, the critics and the temperature", 0)
    gamma: float = option(0.99, "discount factor per step", 0, 1)
    batch_size: int = option(128, "transitions in each batch", 1)
    buffer_size: int = option(100_000, "capacity of the buffer in transitions", 1)
    learning_starts: int = option(500, "environment steps with random actions before the first update", 1)
    train_frequency: int = option(1, "environment steps per update", 1)
    hidden: int = option(64, "units in each of the two hidden layers", 1)
    policy_frequency: int = option(1, "critic updates per update of the actor and the temperature", 1)
    tau: float = option(0.01, "share of the critics in each change of the target critics", 0, 1)
    temperature: float = option(1.0, "weight of the entropy against the reward; with autotune, its initial value", 1e-8)
    autotune: bool = option(True, "learn the temperature during the run")
    n_step: int = option(3, "number of rewards in an n-step target", 1)
    per: bool = option(False, "use prioritized instead of uniform replay")
    per_alpha: float = option(0.6, "exponent of the priorities", 0)
    per_beta: float = option(0.4, "initial exponent of the importance weights; it rises to 1 over the run", 0, 1)
    device: str = option("cpu", "torch device of the networks, such as cuda")
    log_dir: str = option("", "directory for TensorBoard logs; if empty, nothing is logged")
    log_every: int = option(1_000, "environment steps between two lines of progress", 1)


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Two hidden layers of ReLU."""
    layers = (nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
    return nn.Sequential(*layers)


class Actor(nn.Module):
    """A Gaussian for each observation, squashed by tanh to actions in (-1, 1)."""

    def __init__(self, observations: int, actions: int, hidden: int) -> None:
        super().__init__()
        self.net = mlp(observations, hidden, 2 * actions)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Random actions, and the logarithms of their probability densities: (..., D) -> (..., A), (..., 1)."""
        mean, log_std = self.net(obs).chunk(2, -1)
        normal = torch.distributions.Normal(mean, log_std.clamp(-5.0, 2.0).exp(), validate_args=False)
        u = normal.rsample()
        # Haarnoja et al. (2018a), appendix C, with log(1 - tanh(u)^2) in a form that is also exact for large u
        log_slope = 2.0 * (np.log(2.0) - u - F.softplus(-2.0 * u))
        return u.tanh(), (normal.log_prob(u) - log_slope).sum(-1, keepdim=True)  # type: ignore[no-untyped-call]


class Critics(nn.Module):
    """Two estimates of the value of an action: (B, D), (B, A) -> (2, B, 1)."""

    def __init__(self, observations: int, actions: int, hidden: int) -> None:
        super().__init__()
        self.nets = nn.ModuleList(mlp(observations + actions, hidden, 1) for _ in range(2))

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        pair = torch.cat((obs, action), -1)
        return torch.stack([net(pair) for net in self.nets])


def rescaled(env: Any) -> Any:
    """`env` with actions in [-1, 1]."""
    actions = env.action_space
    if not isinstance(actions, spaces.Box) or len(actions.shape) != 1 or not actions.is_bounded():
        raise ValueError(f"the actions are {actions}; expected a bounded Box with one axis")
    return RescaleAction(env, np.float32(-1.0), np.float32(1.0))


def make_envs(args: Args) -> Any:
    """Parallel environments. An environment resets in the same step that ends its episode."""
    envs: Any = gymnasium.make_vec(
        args.env_id,
        num_envs=args.num_envs,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
        wrappers=[rescaled],
    )
    observations = envs.single_observation_space
    if not isinstance(observations, spaces.Box) or len(observations.shape) != 1:
        raise ValueError(f"the observations are {observations}; expected a Box with one axis")
    return envs


def train(args: Args) -> tuple[Actor, Critics, list[tuple[int, float]]]:
    """Train an agent. Returns its networks, and the step and the return of each episode."""
    torch.manual_seed(args.seed)  # initial weights, and the actor's actions
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
    sizes = envs.single_observation_space.shape[0], envs.single_action_space.shape[0], args.hidden
    actor, critics = Actor(*sizes).to(device), Critics(*sizes).to(device)
    target_critics = copy.deepcopy(critics).requires_grad_(False)
    log_temperature = nn.Parameter(torch.tensor(args.temperature, device=device).log())
    target_entropy = -float(sizes[1])  # Haarnoja et al. (2018b), appendix D, for actions in (-1, 1)
    actor_optimizer = torch.optim.Adam(actor.parameters(), lr=args.learning_rate, fused=True)
    critic_optimizer = torch.optim.Adam(critics.parameters(), lr=args.learning_rate, fused=True)
    temperature_optimizer = torch.optim.Adam([log_temperature], lr=args.learning_rate, fused=True)

    step = updates = 0
    returns, running_returns = list[tuple[int, float]](), np.zeros(args.num_envs)
    metrics: dict[str, Tensor] = {}
    writer, start = open_writer(args), time.perf_counter()
    obs, _ = envs.reset(seed=args.seed)  # (E, D)
    while step < args.total_timesteps:
        # Act: at random at first, then with the actor
        if step < args.learning_starts:
            action = rng.uniform(-1.0, 1.0, envs.action_space.shape)  # (E, A)
        else:
            with torch.no_grad():
                action = actor(torch.as_tensor(obs, dtype=torch.float32, device=device))[0].cpu().numpy()  # (E, A)
        obs, reward, terminated, truncated, _ = envs.step(action.astype(np.float32))
        step += args.num_envs
        running_returns += reward
        for lane in np.flatnonzero(terminated | truncated):
            returns.append((step, float(running_returns[lane])))
            running_returns[lane] = 0.0

        # Learn: make all updates that are due, independent of the number of environments
        while updates < min((step - args.learning_starts) // args.train_frequency, total_updates):
            # obs and next_obs (B, D), action (B, A), indices (B,); reward, discount and weights (B, 1)
            batch = buffer.sample(args.batch_size).to_torch(device, dtype=torch.float32, column=True)
            temperature = log_temperature.detach().exp()

            # Critics: the target is the lower of two values, plus the entropy bonus
            with torch.no_grad():
                next_action, next_log_prob = actor(batch.next_obs)  # (B, A), (B, 1)
                soft_value = target_critics(batch.next_obs, next_action).amin(0) - temperature * next_log_prob  # (B, 1)
                target = batch.reward + batch.discount * soft_value
            q = critics(batch.obs, batch.action)  # (2, B, 1)
            td_errors = target - q
            critic_loss = (batch.weights * td_errors.square()).mean((1, 2)).sum()
            critic_optimizer.zero_grad()
            critic_loss.backward()
            critic_optimizer.step()
            buffer.update_priorities(batch.indices, td_errors.abs().mean((0, 2)))  # does nothing with uniform replay
            metrics |= {"loss/critics": critic_loss.detach(), "value/q": q.detach().mean()}
            updates += 1

            if updates % args.policy_frequency == 0:
                # Actor
                own_action, log_prob = actor(batch.obs)  # (B, A), (B, 1)
                actor_loss = (temperature * log_prob - critics(batch.obs, own_action).amin(0)).mean()
                actor_optimizer.zero_grad()
                actor_loss.backward()
                actor_optimizer.step()
                metrics |= {"loss/actor": actor_loss.detach(), "policy/temperature": temperature}

                # Temperature: it rises while the entropy is below its target
                if args.autotune:
                    entropy = -log_prob.detach().mean()
                    temperature_optimizer.zero_grad()
                    (log_temperature.exp() * (entropy - target_entropy)).backward()
                    temperature_optimizer.step()

            # Target critics
            with torch.no_grad():
                for slow, fast in zip(target_critics.parameters(), critics.parameters(), strict=True):
                    slow.lerp_(fast, args.tau)

        # Report
        if step % args.log_every < args.num_envs or step >= args.total_timesteps:
            numbers = {name: float(value) for name, value in metrics.items()}
            report(args, step, start, returns, numbers | buffer.stats(prefix="replay/"), writer)
    if writer is not None:
        writer.close()
    envs.close()
    return actor, critics, returns


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
        Mean return of the last 20 training episodes.
    loss/critics
        Squared TD errors of one batch, weighted. It grows with the values; if it explodes, learning diverges.
    loss/actor
        The negative soft value of the actor's actions. It falls as the actor improves.
    policy/temperature
        The reward for one unit of entropy. It falls while actions are more random than the target entropy requires.
    value/q
        Mean soft value of the actions in one batch. If it leaves the range of discounted returns with entropy
        bonuses, learning diverges.
    """
    rate = step / (time.perf_counter() - start)
    numbers = numbers | {"steps_per_second": rate}
    if returns:
        numbers["return"] = float(np.mean([value for _, value in returns[-20:]]))
    shown = "  ".join(
        f"{name} {numbers[name]:.3g}" for name in ("return", "loss/critics", "value/q") if name in numbers
    )
    left = max(args.total_timesteps - step, 0) / rate
    print(f"{step:,} of {args.total_timesteps:,} steps  {shown}  {rate:,.0f} steps/s, {left:.0f} s left", flush=True)
    if writer is not None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)


def parse_args() -> Args:
    """Parse and check the options."""
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description="Train an SAC agent.", allow_abbrev=False, formatter_class=formatter)
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
