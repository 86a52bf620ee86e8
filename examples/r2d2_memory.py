"""Solve a task that needs memory with R2D2, a recurrent DQN on sequences. Read it from top to bottom.

    python examples/r2d2_memory.py
    python examples/r2d2_memory.py --agent feedforward
    python examples/r2d2_memory.py --agent r2d2 zero-state feedforward --seeds 0 1 2

A sign at the entrance of a corridor shows which way to turn at its far end, 20 to 40 steps later. The agent sees the
sign only once, so without memory it can only guess. A run takes about a minute on one core. It ends with 1,000 greedy
episodes that were not used for training, and saves a picture of the learning curves.

The agent learns from rows of 20 consecutive steps, which are shorter than the corridor. No row with the turn contains
the sign, so the agent's memory must come from the state at the start of the row. Three parts of replaykit are used for
this:

- An extra field, `state`, stores the agent's recurrent state before each step.
- `SequenceReplay` returns rows of consecutive steps, so ``batch.state[:, 0]`` is the state at the start of a row.
- ``batch.loss_mask`` excludes the burn-in, the first steps of a row. The stored state was computed with older weights.
  The burn-in only brings it up to date.

The rest is Double DQN, with the same target for every `n_step`. These parts of R2D2 are left out: actors in parallel
processes, the dueling head, the last action and reward as network inputs, and the rescaling of values, which are
between 0 and 1 here.

Shapes in the comments: B batch, T steps of a row, n n-step, E parallel environments, D observation, A actions, H units.

References
----------
Kapturowski et al. (2019), Recurrent experience replay in distributed reinforcement learning.
Bakker (2002), Reinforcement learning with long short-term memory: the T-maze.
van Hasselt et al. (2016), Deep reinforcement learning with double Q-learning.
Tallec and Ollivier (2018), Can recurrent neural networks warp time?
"""

import argparse
import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from matplotlib.figure import Figure
from options import at_least, picture
from torch import Tensor, nn
from tqdm import tqdm

from replaykit import Batch, Field, LinearSchedule, PrioritizedBuffer, SequenceReplay, Spec, record

AGENTS = {"r2d2": "tab:blue", "zero-state": "tab:orange", "feedforward": "tab:red"}
"""Agents, and their colors in the picture.

r2d2
    Begins each row with the stored state, and learns from the steps after the burn-in.
zero-state
    The same network, but each row begins with a state of zeros, and all of its steps count in the loss.
feedforward
    A layer without memory instead of the LSTM.
"""
TEST_EPISODES = 1_000
Observation: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of a run except its seed."""

    agent: str = "r2d2"
    corridor: tuple[int, int] = (20, 40)  # steps from the sign to the junction, at least and at most
    num_envs: int = 16
    total_timesteps: int = 60_000  # environment steps, summed over parallel environments
    learning_starts: int = 5_000  # steps before the first update
    train_every: int = 32  # steps per update
    batch_size: int = 32  # rows
    length: int = 20  # steps of a row
    burn_in: int = 5  # first steps of a row, which only bring the recurrent state up to date
    stride: int = 10  # steps between the starts of successive rows
    hidden: int = 32  # units of each layer
    learning_rate: float = 1e-3
    max_grad_norm: float = 10.0
    target_rate: float = 0.02  # how far each update moves the target network towards the online one
    epsilon_end: float = 0.1  # share of random actions after ...
    epsilon_steps: int = 20_000  # ... decreasing linearly from 1 over this many steps
    capacity: int = 20_000  # small, because the states of older steps no longer match the network
    gamma: float = 0.99
    n_step: int = 3
    alpha: float = 0.6  # strength of prioritization
    eval_every: int = 2_000
    eval_episodes: int = 200

    @property
    def updates(self) -> int:
        """The number of batches in the whole run."""
        return max(self.total_timesteps - self.learning_starts, 0) // self.train_every


@dataclass
class History:
    """The record of a training run: pairs of the environment step and a number."""

    successes: list[tuple[int, float]] = field(default_factory=list)  # share of greedy episodes with the right turn
    losses: list[tuple[int, float]] = field(default_factory=list)  # mean since the last evaluation


class TMaze(gymnasium.Env[Observation, np.int64]):
    """A corridor from a sign to a junction. Every action moves the agent one step forward.

    An observation is (sign, junction, noise). The sign is -1 (left) or 1 (right) on the first step, then 0. The
    junction is 1 on the last step, and 0 before. Only the last action counts: 0 turns left, 1 turns right. The reward
    is 1 for the turn that the sign showed, and 0 otherwise.
    """

    def __init__(self, shortest: int, longest: int) -> None:
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (3,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)
        self.shortest, self.longest = shortest, longest

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self.way, self.place = int(self.np_random.integers(2)), 0
        self.junction = int(self.np_random.integers(self.shortest, self.longest, endpoint=True))
        return self._observe(), {}

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        terminated = self.place == self.junction
        self.place += 1
        return self._observe(), float(terminated and action == self.way), terminated, False, {}

    def _observe(self) -> Observation:
        sign = 2 * self.way - 1 if self.place == 0 else 0
        return np.array([sign, self.place == self.junction, self.np_random.uniform(-1.0, 1.0)], np.float32)


class QNetwork(nn.Module):
    """The values of actions after a sequence of observations."""

    def __init__(self, observations: int, actions: int, hidden: int, is_recurrent: bool) -> None:
        super().__init__()
        self.encoder = nn.Linear(observations, hidden)
        self.memory = nn.LSTM(hidden, hidden, batch_first=True) if is_recurrent else nn.Linear(hidden, hidden)
        self.head = nn.Linear(hidden, actions)
        if isinstance(self.memory, nn.LSTM):
            # Bias of the forget gate for memories of about exp(4) = 55 steps: Tallec and Ollivier (2018), section 2
            nn.init.constant_(self.memory.get_parameter("bias_hh_l0")[hidden : 2 * hidden], 4.0)

    def forward(self, obs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Values at each step, and the state after the last: (B, T, D), (B, 2, H) -> (B, T, A), (B, 2, H)."""
        features = F.relu(self.encoder(obs))  # (B, T, H)
        if isinstance(self.memory, nn.LSTM):
            features, both = self.memory(features, tuple(part[None].contiguous() for part in state.unbind(1)))
            state = torch.cat(both).transpose(0, 1)
        else:
            features = F.relu(self.memory(features))
        return self.head(features), state


class Actor:
    """Acts greedily in E parallel environments and keeps the recurrent state of each."""

    def __init__(self, net: QNetwork, num_envs: int, hidden: int) -> None:
        self.net = net
        self.state = torch.zeros(num_envs, 2, hidden)  # the state before the current observation
        self.next_state = self.state  # the state after it

    @torch.no_grad()
    def act(self, obs: Observation) -> npt.NDArray[np.int64]:
        """The best action for each observation: (E, D) -> (E,)."""
        values, self.next_state = self.net(torch.from_numpy(obs)[:, None], self.state)  # (E, 1, A), (E, 2, H)
        action: npt.NDArray[np.int64] = values[:, 0].argmax(1).numpy()
        return action

    def go_on(self, done: npt.NDArray[np.bool_]) -> None:
        """Advance to the states after the step, and reset them where an episode has ended."""
        self.state = self.next_state.masked_fill(torch.from_numpy(done)[:, None, None], 0.0)


def with_next_obs(batch: Batch, n_step: int) -> tuple[Tensor, Tensor]:
    """Observations of rows and of n steps after them, (B, T + n, D), and the position of each `next_obs`, (B, T)."""
    places = torch.arange(batch.mask.shape[1]) + batch.length  # (B, T): windows are shorter at an episode's end
    obs = F.pad(batch.obs, (0, 0, 0, n_step))  # (B, T + n, D)
    rows, steps = batch.mask.nonzero(as_tuple=True)
    obs[rows, places[rows, steps]] = batch.next_obs[rows, steps]
    return obs, places


def unroll(net: QNetwork, obs: Tensor, state: Tensor, begins: Tensor, burn_in: int) -> Tensor:
    """Values at each step of rows: (B, T, D), (B, 2, H), (B,) -> (B, T, A).

    No gradient flows back into the burn-in. A row that `begins` an episode has no burn-in: its initial state is known.
    """
    parts = []
    if burn_in > 0:
        values, state = net(obs[:, :burn_in], state)
        parts.append(values)
        state = torch.where(begins[:, None, None], state, state.detach())
    parts.append(net(obs[:, burn_in:], state)[0])
    return torch.cat(parts, 1)


def td_errors_of(batch: Batch, q_net: QNetwork, target_net: QNetwork, settings: Settings) -> Tensor:
    """The target minus the value of each action taken: (B, T)."""
    obs, places = with_next_obs(batch, settings.n_step)  # (B, T + n, D), (B, T)
    state = batch.state[:, 0]  # (B, 2, H)
    if settings.agent == "zero-state":
        state = torch.zeros_like(state)
    start = state, batch.is_first[:, 0], settings.burn_in  # both networks start from there
    values = unroll(q_net, obs, *start)  # (B, T + n, A)
    with torch.no_grad():
        choice = values.argmax(-1, keepdim=True)  # (B, T + n, 1): the online network chooses ...
        next_values = unroll(target_net, obs, *start).gather(-1, choice).squeeze(-1)  # ... the target net evaluates
        target: Tensor = batch.reward + batch.discount * next_values.gather(1, places)  # (B, T)
    q = values[:, : settings.length].gather(-1, batch.action.unsqueeze(-1)).squeeze(-1)  # (B, T)
    return target - q


class Learner:
    """The online and the target network, and their update."""

    def __init__(self, settings: Settings, observations: int, actions: int) -> None:
        self.settings = settings
        self.q_net = QNetwork(observations, actions, settings.hidden, settings.agent != "feedforward")
        self.target_net = copy.deepcopy(self.q_net)
        self.optimizer = torch.optim.Adam(self.q_net.parameters(), lr=settings.learning_rate, fused=True)

    def learn(self, batch: Batch) -> tuple[Tensor, float]:
        """Learn from one batch of rows. Returns its TD errors (B, T) and the loss."""
        td_errors = td_errors_of(batch, self.q_net, self.target_net, self.settings)
        squares = td_errors.square() * batch.loss_mask  # (B, T): without padding and burn-in
        loss = (batch.weights.unsqueeze(1) * squares).sum() / batch.loss_mask.sum().clamp(min=1)

        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.q_net.parameters(), self.settings.max_grad_norm)
        self.optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(self.target_net.parameters(), self.q_net.parameters(), strict=True):
                slow.lerp_(fast, self.settings.target_rate)
        return td_errors.detach(), float(loss.detach())


def make_env(settings: Settings, num_envs: int) -> Any:
    """Parallel mazes without dummy steps for resets."""
    return SyncVectorEnv([lambda: TMaze(*settings.corridor)] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)


def make_replay(env: Any, settings: Settings, seed: np.random.SeedSequence) -> SequenceReplay:
    """Prioritized replay of rows of transitions. Each transition has the recurrent state before it."""
    spec = Spec.from_env(env, state=Field((2, settings.hidden)))
    beta = LinearSchedule(0.4, 1.0, steps=max(settings.updates, 1))  # counts batches, and reaches 1 at the last one
    shared: dict[str, Any] = {"n_step": settings.n_step, "gamma": settings.gamma, "seed": seed}
    priorities: dict[str, Any] = {"alpha": settings.alpha, "beta": beta}
    buffer = PrioritizedBuffer(settings.capacity, spec, num_envs=env.num_envs, **priorities, **shared)
    return SequenceReplay(buffer, settings.length, burn_in=settings.burn_in, stride=settings.stride)


def evaluate(net: QNetwork, settings: Settings, episodes: int, seed: int) -> float:
    """The share of greedy episodes with the right turn, one episode in each of `episodes` environments."""
    env, actor = make_env(settings, episodes), Actor(net, episodes, settings.hidden)
    obs, _ = env.reset(seed=seed)
    returns, running = np.zeros(episodes), np.ones(episodes, np.bool_)
    while running.any():
        obs, reward, terminated, truncated, _ = env.step(actor.act(obs))
        actor.go_on(terminated | truncated)
        returns += reward * running
        running &= ~(terminated | truncated)
    env.close()
    return float(returns.mean())


def train(settings: Settings, seed: int) -> tuple[QNetwork, History]:
    """Train an agent. Returns its network and the history."""
    torch.manual_seed(seed)  # for the initial weights only
    buffer_seed, random_seed = np.random.SeedSequence(seed).spawn(2)
    rng = np.random.default_rng(random_seed)  # random actions
    env = make_env(settings, settings.num_envs)
    replay = make_replay(env, settings, buffer_seed)
    actions = int(env.single_action_space.n)
    learner, history = Learner(settings, env.single_observation_space.shape[0], actions), History()
    actor = Actor(learner.q_net, settings.num_envs, settings.hidden)

    env = record(env, replay, extras={"state": lambda _: actor.state.numpy()})  # the state before the step
    obs, _ = env.reset(seed=1_000_000 * seed)  # (E, D)
    steps, losses = 0, list[float]()
    with tqdm(total=settings.total_timesteps, unit="step", desc=f"{settings.agent}, seed {seed}") as bar:
        while steps < settings.total_timesteps:
            # Act: randomly with probability epsilon, else greedily. The network sees every observation to remember it
            epsilon = 1.0 - (1.0 - settings.epsilon_end) * min(steps / settings.epsilon_steps, 1.0)
            explore = rng.random(settings.num_envs) < epsilon
            action = np.where(explore, rng.integers(actions, size=settings.num_envs), actor.act(obs))  # (E,)
            obs, _, terminated, truncated, _ = env.step(action)
            actor.go_on(terminated | truncated)
            steps += settings.num_envs
            bar.update(settings.num_envs)

            # Learn
            if steps > settings.learning_starts and steps % settings.train_every < settings.num_envs:
                batch = replay.sample(settings.batch_size).to_torch()  # obs (B, T, D), state (B, T, 2, H), weights (B,)
                td_errors, loss = learner.learn(batch)
                replay.update_priorities(batch.indices, td_errors, mask=batch.loss_mask)
                losses.append(loss)

            # Evaluate
            if steps % settings.eval_every < settings.num_envs or steps >= settings.total_timesteps:
                success = evaluate(learner.q_net, settings, settings.eval_episodes, 1_000_000 * seed + 500_000)
                history.successes.append((steps, success))
                shown = {"success": f"{success:.2f}"}
                if losses:
                    history.losses.append((steps, float(np.mean(losses))))
                    shown["loss"] = f"{history.losses[-1][1]:.2g}"
                    losses.clear()
                bar.set_postfix(shown, refresh=False)
    env.close()
    return learner.q_net, history


def plot(histories: dict[tuple[str, int], History], tests: dict[tuple[str, int], float], path: Path) -> None:
    """Plot the share of episodes with the right turn, and below it the loss: a line for each seed."""
    figure = Figure(figsize=(8, 6), layout="constrained")  # without pyplot: no window, no global state
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for agent in dict.fromkeys(agent for agent, _ in histories):
        found = ", ".join(f"{test:.3f}" for (of, _), test in tests.items() if of == agent)
        top.plot([], [], color=AGENTS[agent], label=f"{agent}: {found}")
    for (agent, _), history in histories.items():
        top.plot(*np.array(history.successes).T, color=AGENTS[agent], alpha=0.8)
        if history.losses:
            bottom.plot(*np.array(history.losses).T, color=AGENTS[agent], alpha=0.8)
    top.axhline(0.5, color="0.4", linestyle="--", linewidth=1.0, label="guessing")
    top.set(ylabel="share of greedy episodes with the right turn", ylim=(0.3, 1.03))
    top.set_title("A T-maze: the sign at its entrance shows the way to turn, 20 to 40 steps later")
    bottom.set(xlabel="environment steps", ylabel="loss", ylim=(0.0, None))
    title = f"share in {TEST_EPISODES:,} new episodes, for each seed"
    figure.legend(*top.get_legend_handles_labels(), title=title, loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=100)


def parse_arguments() -> argparse.Namespace:
    """Parse the options and check them before training."""
    parser = argparse.ArgumentParser(description="Train R2D2 agents on a task that needs memory.", allow_abbrev=False)
    add, default = parser.add_argument, Settings()
    add(
        "--agent",
        choices=AGENTS,
        nargs="+",
        default=[default.agent],
        help=f"agents to train (default: {default.agent})",
    )
    add("--seeds", type=at_least(0), nargs="+", default=[0], help="random seeds; one run for each seed (default: 0)")
    add(
        "--total-timesteps",
        type=at_least(1),
        default=default.total_timesteps,
        help="number of environment steps of each run (default: %(default)s)",
    )
    add(
        "--n-step",
        type=at_least(1),
        default=default.n_step,
        help="number of rewards in an n-step target (default: %(default)s)",
    )
    add("--length", type=at_least(2), default=default.length, help="steps of each sequence (default: %(default)s)")
    add(
        "--burn-in",
        type=at_least(0),
        default=default.burn_in,
        help="steps at the start of each sequence without a loss (default: %(default)s)",
    )
    add("--output", type=Path, help="save the picture to this file (default: a file in runs/, beside this script)")
    options = parser.parse_args()
    if options.burn_in >= options.length:
        parser.error(f"--burn-in is {options.burn_in}; expected less than --length {options.length}")
    name = f"r2d2-{'-'.join(options.agent)}-seed{'-'.join(map(str, options.seeds))}.png"
    try:
        options.output = picture(str(options.output or Path(__file__).resolve().parent / "runs" / name))
    except argparse.ArgumentTypeError as error:
        parser.error(f"--output {error}")
    return options


def settings_of(agent: str, options: argparse.Namespace) -> Settings:
    """The settings of a run. Rows overlap by half, as in R2D2."""
    names = ("total_timesteps", "n_step", "length", "burn_in")
    settings = Settings(agent=agent, stride=options.length // 2, **{name: getattr(options, name) for name in names})
    return settings if agent == "r2d2" else replace(settings, burn_in=0)  # no stored state is used


def main() -> None:
    """Train each agent with each seed, test it, and plot."""
    options = parse_arguments()
    torch.set_num_threads(1)  # networks this small are slower with more threads
    histories, tests = {}, {}
    for agent in options.agent:
        settings = settings_of(agent, options)
        for seed in options.seeds:
            q_net, histories[agent, seed] = train(settings, seed)
            tests[agent, seed] = evaluate(q_net, settings, TEST_EPISODES, 1_000_000 * seed + 900_000)
            found = f"the right turn in {tests[agent, seed]:.1%} of {TEST_EPISODES:,} new greedy episodes"
            print(f"{agent}, seed {seed}: {found}")
    plot(histories, tests, options.output)
    print(f"Learning curves: {options.output}")


if __name__ == "__main__":
    main()
