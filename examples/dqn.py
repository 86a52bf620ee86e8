"""Deep Q-learning with any replay buffer. Read it from top to bottom.

The agent does not depend on the kind of buffer. Each batch has `weights` (1 without priorities) and `discount`
(gamma per step of the n-step window; 0 where the episode terminated, but not at a time limit). Each buffer
accepts `update_priorities`. The loss is therefore the same for every kind of replay.

Shapes in the comments: B batch, E parallel environments, D observation, A actions.

References
----------
Mnih et al. (2015), Human-level control through deep reinforcement learning.
van Hasselt et al. (2016), Deep reinforcement learning with double Q-learning.
"""

import copy
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from checkpoint import Checkpoint
from torch import Tensor, nn
from tqdm import tqdm

from replaykit import Replay, record
from replaykit.diagnostics import ReplayMonitor


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of training. The buffer has the settings of replay: capacity, gamma, n_step, alpha and beta."""

    total_timesteps: int = 40_000  # maximum number of environment steps, summed over parallel environments
    learning_starts: int = 1_000  # steps before the first update
    train_every: int = 4  # environment steps between two rounds of updates
    updates: int = 2  # batches per round
    batch_size: int = 64
    learning_rate: float = 1e-3
    max_grad_norm: float = 10.0
    hidden: int = 128  # units in each of the two hidden layers
    double: bool = True  # Double DQN: the online network chooses the next action, the target network evaluates it
    target_every: int = 1  # updates between two moves of the target network ...
    target_rate: float = 0.02  # ... and how far it moves towards the online one; 1 copies it
    epsilon_end: float = 0.04  # share of random actions after ...
    epsilon_steps: int = 6_400  # ... decreasing linearly from 1 over this many steps
    eval_every: int = 1_000  # steps between two greedy evaluations, which select the best weights
    eval_episodes: int = 100
    stop_at: float = float("inf")  # stop as soon as an evaluation has this mean return
    save_every: int = 5_000  # steps between two checkpoints, if there are any

    def batches_by(self, step: int) -> int:
        """Number of batches that are sampled in the first `step` steps."""
        return max(step - self.learning_starts, 0) // self.train_every * self.updates


@dataclass
class History:
    """The record of a training run: pairs of the environment step and a number."""

    returns: list[tuple[int, float]] = field(default_factory=list)  # of each training episode, including random actions
    evaluations: list[tuple[int, float]] = field(default_factory=list)  # mean return of greedy episodes
    losses: list[tuple[int, float]] = field(default_factory=list)  # mean weighted Huber loss of each round of updates
    betas: list[tuple[int, float]] = field(default_factory=list)  # exponent of the weights, if there is one
    steps: int = 0  # steps taken, ...
    saved: int = 0  # ... at the last checkpoint, ...
    best_step: int = 0  # ... and at the returned weights
    best_return: float = -float("inf")  # of these weights, in their evaluation
    batches: int = 0  # used for learning

    @property
    def evaluated(self) -> int:
        """Steps at the last evaluation."""
        return self.evaluations[-1][0] if self.evaluations else 0


class QNetwork(nn.Module):
    """The value of each action: two hidden layers of ReLU."""

    def __init__(self, observations: int, actions: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(observations, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, actions)
        )

    def forward(self, obs: Tensor) -> Tensor:
        """(..., D) -> (..., A)."""
        values: Tensor = self.layers(obs.float())
        return values

    @torch.no_grad()
    def greedy(self, obs: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """The best action for each observation: (..., D) -> (...)."""
        actions: npt.NDArray[np.int64] = self(torch.from_numpy(obs)).argmax(-1).numpy()
        return actions


def update(
    q_net: QNetwork,
    target_net: QNetwork,
    optimizer: torch.optim.Optimizer,
    buffer: Replay,
    settings: Settings,
    monitor: ReplayMonitor | None = None,
) -> float:
    """Learn from one batch and update its priorities. Returns the loss."""
    batch = buffer.sample(settings.batch_size).to_torch()  # obs and next_obs (B, D), everything else (B,)
    with torch.no_grad():
        next_values = target_net(batch.next_obs)  # (B, A)
        choice = q_net(batch.next_obs) if settings.double else next_values  # (B, A)
        q_next = next_values.gather(1, choice.argmax(1, keepdim=True)).squeeze(1)  # (B,)
        target = batch.reward + batch.discount * q_next  # (B,): correct for any n_step and every kind of episode end
    q = q_net(batch.obs).gather(1, batch.action.unsqueeze(1)).squeeze(1)  # (B,)
    loss = (batch.weights * F.smooth_l1_loss(q, target, reduction="none")).mean()

    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(q_net.parameters(), settings.max_grad_norm)
    optimizer.step()

    td_errors = (target - q).detach()  # (B,)
    buffer.update_priorities(batch.indices, td_errors)
    if monitor is not None:
        monitor.record(batch, td_errors)
    return float(loss.detach())


@torch.no_grad()
def move_target(target_net: QNetwork, q_net: QNetwork, rate: float) -> None:
    """Move the target network towards the online one; copy it if `rate` is 1."""
    for slow, fast in zip(target_net.parameters(), q_net.parameters(), strict=True):
        slow.lerp_(fast, rate)


def evaluate(q_net: QNetwork, env_id: str, episodes: int, seed: int) -> npt.NDArray[np.float64]:
    """The returns of greedy episodes, in separate environments; shape (episodes,).

    Each parallel environment plays one episode. Later episodes in the same environment do not count. If the
    first `episodes` episodes to finish counted instead, the result would be biased towards short episodes.
    """
    env = gymnasium.make_vec(env_id, num_envs=episodes)
    obs, _ = env.reset(seed=seed)
    returns, running = np.zeros(episodes), np.ones(episodes, np.bool_)
    while running.any():
        obs, reward, terminated, truncated, _ = env.step(q_net.greedy(obs))
        returns += reward * running
        running &= ~(terminated | truncated)
    env.close()
    return returns


def train(
    env: Any,
    buffer: Replay,
    settings: Settings,
    rng: np.random.Generator,
    *,
    env_id: str,
    seed: int,
    eval_seed: int,
    monitor: ReplayMonitor | None = None,
    checkpoint: Checkpoint | None = None,
) -> tuple[QNetwork, History]:
    """Train on `env`, a single or a vector environment. Returns the network with the best weights, and the history.

    Ctrl-C ends training early; the results so far are returned. With a `checkpoint`, everything is saved there every
    `save_every` steps, and training starts from the saved state.
    """
    torch.manual_seed(seed)  # for the initial weights only; exploration draws from `rng`
    is_vector = isinstance(env, gymnasium.vector.VectorEnv)
    num_envs = env.num_envs if is_vector else 1
    lanes = (num_envs,) if is_vector else ()  # shape of an action, a reward, a flag: (E,) or a scalar
    actions = int(env.single_action_space.n if is_vector else env.action_space.n)
    observations = env.observation_space.shape[-1]

    q_net = QNetwork(observations, actions, settings.hidden)
    target_net, best = copy.deepcopy(q_net), copy.deepcopy(q_net)
    optimizer = torch.optim.Adam(q_net.parameters(), lr=settings.learning_rate, fused=True)
    history, running_returns = History(), np.zeros(num_envs)

    parts = {"q_net": q_net, "target_net": target_net, "best": best, "optimizer": optimizer}
    if checkpoint is not None and checkpoint.exists():
        checkpoint.load(buffer, rng, history, parts)
    env = record(env, buffer)  # from here on, each step is stored
    bar = tqdm(total=settings.total_timesteps, initial=history.steps, unit="step")
    try:
        obs, _ = env.reset(seed=seed + history.steps)  # (D,) or (E, D)
        while history.steps < settings.total_timesteps:
            # Act: randomly with probability epsilon, else greedily
            epsilon = 1.0 - (1.0 - settings.epsilon_end) * min(history.steps / settings.epsilon_steps, 1.0)
            explore, random_action = rng.random(lanes) < epsilon, rng.integers(actions, size=lanes)
            action = np.where(explore, random_action, q_net.greedy(obs))
            obs, reward, terminated, truncated, _ = env.step(action)
            done = np.logical_or(terminated, truncated)
            if done.all() and not is_vector:  # a vector environment resets itself
                obs, _ = env.reset()
            history.steps += num_envs
            bar.update(num_envs)

            running_returns += reward
            for lane in np.flatnonzero(done):
                history.returns.append((history.steps, float(running_returns[lane])))
                running_returns[lane] = 0.0

            # Learn from all batches that are due, independent of the number of environments
            losses = []
            while history.batches < settings.batches_by(history.steps):
                losses.append(update(q_net, target_net, optimizer, buffer, settings, monitor))
                history.batches += 1
                if history.batches % settings.target_every == 0:
                    move_target(target_net, q_net, settings.target_rate)
            if losses:
                history.losses.append((history.steps, float(np.mean(losses))))

            # Evaluate without random actions. Training returns include them, and are therefore too low
            if history.steps >= min(history.evaluated + settings.eval_every, settings.total_timesteps):
                mean_return = float(evaluate(q_net, env_id, settings.eval_episodes, eval_seed).mean())
                history.evaluations.append((history.steps, mean_return))
                if mean_return > history.best_return:
                    history.best_return, history.best_step = mean_return, history.steps
                    best.load_state_dict(q_net.state_dict())
                if mean_return >= settings.stop_at:
                    break
            if history.steps % 200 < num_envs:
                show(bar, history, buffer)

            # Save. An environment cannot be saved in the middle of an episode. A single one therefore finishes its
            # episode, and the episodes of parallel ones are cut off. Then all are reset, as in a resumed run
            is_due = history.steps >= history.saved + settings.save_every
            if checkpoint is not None and is_due and (is_vector or done.all()):
                history.saved = history.steps
                checkpoint.save(buffer, rng, history, parts)
                obs, _ = env.reset(seed=seed + history.steps)
                running_returns[:] = 0.0
    except KeyboardInterrupt:
        bar.write("Interrupted: continuing with the best weights so far.")
    show(bar, history, buffer)
    bar.close()
    if not history.evaluations:  # interrupted before the first evaluation
        best, history.best_step = q_net, history.steps
    return best, history


def show(bar: Any, history: History, buffer: Replay) -> None:
    """Show the most important numbers beside the progress bar.

    return
        Mean of the last 20 training episodes. Random actions keep it well below the return of the greedy policy.
    eval
        Mean return of the last greedy evaluation. Training maximises this number.
    loss
        Weighted Huber loss, averaged over the last 50 rounds. It grows with the returns, because larger values have
        larger errors. If it explodes, learning diverges.
    beta
        Strength of the correction for prioritized draws. It increases to 1 during training.
    """
    beta = buffer.stats().get("beta")
    shown = {
        "return": np.mean([value for _, value in history.returns[-20:]]) if history.returns else None,
        "eval": history.evaluations[-1][1] if history.evaluations else None,
        "loss": np.mean([value for _, value in history.losses[-50:]]) if history.losses else None,
        "beta": beta,
    }
    if beta is not None:
        history.betas.append((history.steps, beta))
    bar.set_postfix({name: f"{value:.3g}" for name, value in shown.items() if value is not None}, refresh=False)
