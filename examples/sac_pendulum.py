"""Swing up a pendulum with SAC: a complete training loop for continuous actions. Read it from top to bottom.

    python examples/sac_pendulum.py
    python examples/sac_pendulum.py --seeds 0 1 2 --n-step 1
    python examples/sac_pendulum.py --checkpoint runs/first --resume

A run takes about a minute on one core. It ends with 100 greedy episodes that were not used for training, played with
the final weights, and saves a picture of the learning curve. The loop uses these parts of replaykit: `record` stores
every step, `batches` returns tensors on the device and copies the next batches to a GPU in the background,
`update_priorities` accepts tensors, `stats` goes to TensorBoard, and `save` and `load` continue a killed run. On the
CPU, the returns, losses and weights of a resumed run are identical to those of an uninterrupted run.

The target of the critics is ``reward + discount * soft value`` for any `n_step`. With one step it is the target of the
papers. With more steps it differs in two ways, as in Stable-Baselines3. First, the entropy bonuses of the intermediate
states are left out: only the soft value of the last state contains one. Second, the intermediate actions come from
older policies, without a correction. Both effects grow with `n_step`.

Shapes in the comments: B batch, E parallel environments, D observation, A action.

References
----------
Haarnoja et al. (2018a), Soft actor-critic: off-policy maximum entropy deep reinforcement learning.
Haarnoja et al. (2018b), Soft actor-critic algorithms and applications: the temperature, section 5.
Schaul et al. (2016), Prioritized experience replay.
"""

import argparse
import copy
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from checkpoint import Checkpoint
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import RescaleAction
from matplotlib.figure import Figure
from options import at_least, picture
from torch import Tensor, nn
from tqdm import tqdm

from replaykit import Batch, LinearSchedule, PrioritizedBuffer, Replay, record

TEST_EPISODES = 100


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of a run except its seed."""

    env: str = "Pendulum-v1"
    num_envs: int = 1
    total_timesteps: int = 6_000  # environment steps, summed over parallel environments
    learning_starts: int = 1_000  # steps of random actions before the first update
    train_every: int = 1  # steps per update
    batch_size: int = 128
    hidden: int = 64  # units in each of the two hidden layers
    learning_rate: float = 1e-3
    target_rate: float = 0.01  # how far each update moves the target critics towards the critics
    capacity: int = 100_000
    gamma: float = 0.99
    n_step: int = 3
    alpha: float = 0.6  # strength of prioritization
    eval_every: int = 500
    eval_episodes: int = 20
    log_every: int = 200
    save_every: int = 2_000  # steps between checkpoints, at which new episodes begin

    def batches_by(self, step: int) -> int:
        """Batches that are due in the first `step` steps."""
        return max(step - self.learning_starts, 0) // self.train_every


@dataclass
class History:
    """The record of a training run: pairs of the environment step and a number."""

    steps: int = 0
    batches: int = 0
    returns: list[tuple[int, float]] = field(default_factory=list)  # of training episodes
    evaluations: list[tuple[int, float]] = field(default_factory=list)  # mean return of greedy episodes
    losses: list[tuple[int, float]] = field(default_factory=list)  # of the critics
    temperatures: list[tuple[int, float]] = field(default_factory=list)


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
        """Random actions and the logarithms of their probability densities: (..., D) -> (..., A), (..., 1)."""
        mean, log_std = self.net(obs).chunk(2, -1)
        normal = torch.distributions.Normal(mean, log_std.clamp(-5.0, 2.0).exp(), validate_args=False)
        u = normal.rsample()
        # Haarnoja et al. (2018a), appendix C, with log(1 - tanh(u)^2) in a form that is also exact for large u
        log_slope = 2.0 * (np.log(2.0) - u - F.softplus(-2.0 * u))
        return u.tanh(), (normal.log_prob(u) - log_slope).sum(-1, keepdim=True)  # type: ignore[no-untyped-call]

    def greedy(self, obs: Tensor) -> Tensor:
        """The action at the mean of the Gaussian: (..., D) -> (..., A)."""
        mean: Tensor = self.net(obs).chunk(2, -1)[0]
        return mean.tanh()


class Critics(nn.Module):
    """Two estimates of the soft value of an action."""

    def __init__(self, observations: int, actions: int, hidden: int) -> None:
        super().__init__()
        self.nets = nn.ModuleList(mlp(observations + actions, hidden, 1) for _ in range(2))

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """(B, D), (B, A) -> (2, B, 1)."""
        pair = torch.cat((obs, action), -1)
        return torch.stack([net(pair) for net in self.nets])


class Agent(nn.Module):
    """The networks, the temperature, and their optimizers."""

    def __init__(self, observations: int, actions: int, settings: Settings, device: torch.device) -> None:
        super().__init__()
        self.settings, self.device = settings, device
        self.actor = Actor(observations, actions, settings.hidden)
        self.critics = Critics(observations, actions, settings.hidden)
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.log_temperature = nn.Parameter(torch.zeros(()))
        self.target_entropy = -float(actions)  # Haarnoja et al. (2018b), appendix D, for actions in (-1, 1)
        self.to(device)
        learned = {
            "actor": self.actor.parameters(),
            "critics": self.critics.parameters(),
            "temperature": [self.log_temperature],
        }
        rate = settings.learning_rate
        self.optimizers = {name: torch.optim.Adam(of, lr=rate, fused=True) for name, of in learned.items()}

    @torch.no_grad()
    def act(self, obs: npt.NDArray[Any], greedy: bool = False) -> npt.NDArray[np.float32]:
        """An action for each observation: (E, D) -> (E, A)."""
        tensor = torch.as_tensor(obs, dtype=torch.float32, device=self.device)
        action: npt.NDArray[np.float32] = (self.actor.greedy(tensor) if greedy else self.actor(tensor)[0]).cpu().numpy()
        return action

    def learn(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Learn from one batch. Returns its TD errors (B,) and the numbers listed in `METRICS`."""
        temperature = self.log_temperature.detach().exp()

        # Critics: batch.discount is gamma per step of the window, and 0 if the episode terminated in it
        with torch.no_grad():
            next_action, next_log_prob = self.actor(batch.next_obs)
            soft_value = self.targets(batch.next_obs, next_action).amin(0) - temperature * next_log_prob  # (B, 1)
            target = batch.reward + batch.discount * soft_value
        td_errors = target - self.critics(batch.obs, batch.action)  # (2, B, 1)
        critic_loss = 0.5 * (batch.weights * td_errors.square()).mean((1, 2)).sum()
        self._step("critics", critic_loss)

        # Actor, unweighted: the best action in a state does not depend on how often the state is drawn
        action, log_prob = self.actor(batch.obs)
        q = self.critics(batch.obs, action).amin(0)  # (B, 1)
        actor_loss = (temperature * log_prob - q).mean()
        self._step("actor", actor_loss)

        # Temperature: increases while the entropy is below its target
        entropy = -log_prob.detach().mean()
        self._step("temperature", self.log_temperature.exp() * (entropy - self.target_entropy))

        with torch.no_grad():
            for slow, fast in zip(self.targets.parameters(), self.critics.parameters(), strict=True):
                slow.lerp_(fast, self.settings.target_rate)
        numbers = torch.stack([critic_loss, actor_loss, temperature, entropy, q.mean()]).detach()
        return td_errors.detach().abs().mean((0, 2)), numbers

    def _step(self, name: str, loss: Tensor) -> None:
        self.optimizers[name].zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizers[name].step()


METRICS = ("loss/critics", "loss/actor", "policy/temperature", "policy/entropy", "policy/q")
"""The numbers in TensorBoard, besides returns and the buffer's `stats`: means over the last `log_every` steps.

loss/critics
    Weighted squared TD errors. Grows while returns grow. If it explodes, learning diverges.
loss/actor
    The negative soft value of the actor's own actions. Decreases as the actor improves.
policy/temperature
    The value of one unit of entropy, in rewards. Decreases while actions are more random than the target.
policy/entropy
    The randomness of actions. The temperature keeps it near minus the number of action dimensions.
policy/q
    The value of the actor's actions according to the lower critic, with entropy bonuses. If it leaves the range of
    discounted returns, learning diverges.
"""


def make_env(env_id: str, num_envs: int) -> Any:
    """Parallel environments with actions in [-1, 1]."""
    env: Any = gymnasium.make_vec(
        env_id,
        num_envs=num_envs,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},  # no dummy steps for resets
        wrappers=[lambda env: RescaleAction(env, np.float32(-1.0), np.float32(1.0))],
    )
    return env


def make_buffer(env: Any, settings: Settings, seed: np.random.SeedSequence) -> Replay:
    """Prioritized replay of n-step windows."""
    batches = settings.batches_by(settings.total_timesteps)
    beta = LinearSchedule(0.4, 1.0, steps=max(batches, 1))  # counts batches, and reaches 1 at the last one
    shared: dict[str, Any] = {"n_step": settings.n_step, "gamma": settings.gamma, "seed": seed}
    return PrioritizedBuffer.from_env(env, settings.capacity, alpha=settings.alpha, beta=beta, **shared)


def evaluate(agent: Agent, episodes: int, seed: int) -> npt.NDArray[np.float64]:
    """The returns of the first greedy episode in each of `episodes` separate environments; shape (episodes,)."""
    env = make_env(agent.settings.env, episodes)
    obs, _ = env.reset(seed=seed)
    returns, running = np.zeros(episodes), np.ones(episodes, np.bool_)
    while running.any():
        obs, reward, terminated, truncated, _ = env.step(agent.act(obs, greedy=True))
        returns += reward * running
        running &= ~(terminated | truncated)
    env.close()
    return returns


def train(
    settings: Settings,
    seed: int,
    device: torch.device,
    checkpoint: Checkpoint | None = None,
    log: Path | None = None,
) -> tuple[Agent, History]:
    """Train an agent. With a `checkpoint`, continue from it. With a `log`, write the metrics to TensorBoard."""
    torch.manual_seed(seed)  # initial weights, and the actor's actions
    buffer_seed, random_seed = np.random.SeedSequence(seed).spawn(2)
    rng = np.random.default_rng(random_seed)  # random actions before learning starts
    env = make_env(settings.env, settings.num_envs)
    buffer = make_buffer(env, settings, buffer_seed)
    observations, actions = env.single_observation_space.shape[0], env.single_action_space.shape[0]
    agent, history = Agent(observations, actions, settings, device), History()

    parts: dict[str, Any] = {"agent": agent} | agent.optimizers
    if checkpoint is not None and checkpoint.exists():
        checkpoint.load(buffer, rng, history, parts)
    env = record(env, buffer)  # from here on, each step is stored
    bar = tqdm(total=settings.total_timesteps, initial=history.steps, unit="step", desc=f"seed {seed}")
    with bar, open_log(log, history.steps) as writer:
        while history.steps < settings.total_timesteps:
            # Continue from one checkpoint to the next. Running episodes and prefetched batches cannot be saved. Both
            # therefore start again here, whether or not the run was stopped
            obs, _ = env.reset(seed=1_000_000 * seed + history.steps)  # (E, D)
            running_returns, metrics = np.zeros(settings.num_envs), list[Tensor]()
            end = min(history.steps + settings.save_every, settings.total_timesteps)
            with buffer.batches(settings.batch_size, device=device, column=True) as batches:
                while history.steps < end:
                    # Act, randomly at first
                    is_random = history.steps < settings.learning_starts
                    action = rng.uniform(-1.0, 1.0, env.action_space.shape) if is_random else agent.act(obs)  # (E, A)
                    obs, reward, terminated, truncated, _ = env.step(action.astype(np.float32))
                    history.steps += settings.num_envs
                    bar.update(settings.num_envs)
                    running_returns += reward
                    for lane in np.flatnonzero(terminated | truncated):
                        history.returns.append((history.steps, float(running_returns[lane])))
                        running_returns[lane] = 0.0

                    # Learn from all batches that are due
                    while history.batches < settings.batches_by(history.steps):
                        batch = next(batches)  # obs (B, D), action (B, A), indices (B,); others (B, 1)
                        td_errors, numbers = agent.learn(batch)
                        buffer.update_priorities(batch.indices, td_errors)
                        metrics.append(numbers)
                        history.batches += 1

                    # Evaluate
                    if is_due(history.steps, settings.eval_every, settings):
                        returns = evaluate(agent, settings.eval_episodes, 1_000_000 * seed + 500_000)
                        history.evaluations.append((history.steps, float(returns.mean())))
                    if is_due(history.steps, settings.log_every, settings):
                        report(history, metrics, buffer, writer, bar)
            if writer is not None:
                writer.flush()  # before the checkpoint, so that no earlier event is lost
            if checkpoint is not None:
                checkpoint.save(buffer, rng, history, parts)
    env.close()
    return agent, history


def open_log(path: Path | None, step: int) -> Any:
    """A TensorBoard writer, or None without a path. Existing events of later steps or of an earlier run are hidden."""
    if path is None:
        return nullcontext()
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(path, purge_step=step + 1)


def is_due(step: int, every: int, settings: Settings) -> bool:
    """Whether an action with the period `every` is due at this step. It is always due at the end."""
    return step % every < settings.num_envs or step >= settings.total_timesteps


def report(history: History, metrics: list[Tensor], buffer: Replay, writer: Any, bar: Any) -> None:
    """Record the means of `metrics`, and clear `metrics`. Show the most important numbers beside the bar."""
    numbers = {}
    if history.returns:
        numbers["return/training"] = float(np.mean([value for _, value in history.returns[-10:]]))
    if history.evaluations:
        numbers["return/evaluation"] = history.evaluations[-1][1]
    if metrics:
        numbers |= dict(zip(METRICS, torch.stack(metrics).mean(0).tolist(), strict=True))
        history.losses.append((history.steps, numbers["loss/critics"]))
        history.temperatures.append((history.steps, numbers["policy/temperature"]))
        metrics.clear()
    bar.set_postfix({name.split("/")[1]: f"{value:.3g}" for name, value in numbers.items()}, refresh=False)
    if writer is not None:
        for name, value in (numbers | buffer.stats(prefix="replay/")).items():
            writer.add_scalar(name, value, history.steps)


def plot(histories: dict[int, History], tests: dict[int, Any], title: str, path: Path) -> None:
    """Plot the returns of all seeds, and below them the critics' loss and the temperature."""
    figure = Figure(figsize=(8, 6), layout="constrained")  # without pyplot: no window, no global state
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    right = bottom.twinx()
    for k, (seed, history) in enumerate(histories.items()):
        color = f"C{k}"
        if history.returns:
            top.plot(*np.array(history.returns).T, ".", color=color, alpha=0.3)
        if history.evaluations:
            label = f"seed {seed}: {tests[seed].mean():.0f}"
            top.plot(*np.array(history.evaluations).T, "o-", color=color, markersize=4, label=label)
        if history.losses:
            bottom.plot(*np.array(history.losses).T, color=color)
            right.plot(*np.array(history.temperatures).T, ":", color=color)
    top.set(title=f"{title}\ndots: training episodes; lines: greedy evaluations", ylabel="return of an episode")
    top.legend(title=f"mean of {TEST_EPISODES} new episodes", loc="lower right")
    bottom.set(xlabel="environment steps", ylabel="critics' loss (solid)")
    right.set(ylabel="temperature (dotted)", ylim=(0.0, None))
    figure.savefig(path, dpi=100)


def check_environment(env_id: str) -> None:
    """Raise ValueError for an environment that this agent does not support."""
    env = gymnasium.make(env_id)
    actions, observations = env.action_space, env.observation_space
    env.close()
    if not isinstance(actions, gymnasium.spaces.Box) or len(actions.shape) != 1 or not actions.is_bounded():
        raise ValueError(f"the action space is {actions}; SAC needs a bounded Box with one axis")
    if not isinstance(observations, gymnasium.spaces.Box) or len(observations.shape) != 1:
        raise ValueError(f"the observation space is {observations}; these networks need a Box with one axis")
    if env.spec is None or env.spec.max_episode_steps is None:
        raise ValueError("it has no time limit, so an evaluation might never end")


def device(text: str) -> torch.device:
    """An available device."""
    try:
        return torch.empty(0, device=text).device
    except (AssertionError, RuntimeError) as error:
        raise argparse.ArgumentTypeError(f"{text}: {str(error).splitlines()[0]}") from None


def parse_arguments() -> argparse.Namespace:
    """Parse the options and check them."""
    parser = argparse.ArgumentParser(description="Train SAC with prioritized replay.", allow_abbrev=False)
    add, default = parser.add_argument, Settings()
    add(
        "--env",
        default=default.env,
        help="id of a Gymnasium environment with continuous actions (default: %(default)s)",
    )
    add(
        "--n-step",
        type=at_least(1),
        default=default.n_step,
        help="number of rewards in an n-step target (default: %(default)s)",
    )
    add(
        "--num-envs",
        type=at_least(1),
        default=default.num_envs,
        help="number of parallel environments (default: %(default)s)",
    )
    add(
        "--total-timesteps",
        type=at_least(1),
        default=default.total_timesteps,
        help="number of environment steps of each run, summed over its environments (default: %(default)s)",
    )
    add("--seeds", type=at_least(0), nargs="+", default=[0], help="random seeds; one run for each seed (default: 0)")
    add(
        "--device", type=device, default="cpu", help="torch device of the networks, such as cuda (default: %(default)s)"
    )
    add("--log", type=Path, help="directory for the TensorBoard logs (default: beside the picture)")
    add("--checkpoint", type=Path, help="directory for the checkpoints (default: runs are not saved)")
    add(
        "--save-every",
        type=at_least(1),
        default=default.save_every,
        help="number of environment steps between two checkpoints (default: %(default)s)",
    )
    add("--resume", action="store_true", help="continue from the checkpoint in --checkpoint, if there is one")
    add("--output", type=Path, help="save the picture to this file (default: a file in runs/, beside this script)")
    options = parser.parse_args()
    if options.resume and options.checkpoint is None:
        parser.error("--resume needs --checkpoint DIRECTORY, the directory of the earlier run")
    try:
        check_environment(options.env)
    except (gymnasium.error.Error, ImportError, ValueError) as error:
        parser.error(f"--env {options.env}: {error}")
    seeds = "-".join(map(str, options.seeds))
    name = f"sac-{options.env.replace('/', '-').replace(':', '-')}-n{options.n_step}-envs{options.num_envs}-seed{seeds}"
    output = options.output or Path(__file__).resolve().parent / "runs" / f"{name}.png"
    try:
        options.output = picture(str(output))
    except argparse.ArgumentTypeError as error:
        parser.error(f"--output {error}")
    options.log = options.log or options.output.with_suffix("")
    return options


def find_checkpoint(options: argparse.Namespace, settings: Settings, seed: int) -> Checkpoint | None:
    """The checkpoint to save the run of a seed to and to resume it from."""
    if options.checkpoint is None:
        return None
    checkpoint = Checkpoint(options.checkpoint / f"seed{seed}", asdict(settings) | {"seed": seed})
    if checkpoint.exists() and not options.resume:
        raise SystemExit(
            f"{checkpoint.path} has a checkpoint: continue from it with --resume, or choose another directory"
        )
    return checkpoint


def main() -> None:
    """Train each seed, test it, and plot."""
    options = parse_arguments()
    torch.set_num_threads(1)  # networks this small are slower with more threads
    names = ("env", "n_step", "num_envs", "save_every")
    steps = options.total_timesteps + -options.total_timesteps % options.num_envs  # a multiple of their number
    settings = Settings(total_timesteps=steps, **{name: getattr(options, name) for name in names})
    checkpoints = {seed: find_checkpoint(options, settings, seed) for seed in options.seeds}
    histories, tests, is_logged = {}, {}, find_spec("tensorboard") is not None
    if not is_logged:
        print("Nothing is logged because TensorBoard is not installed: pip install tensorboard")
    for seed in options.seeds:
        log = options.log / f"seed{seed}" if is_logged else None
        agent, histories[seed] = train(settings, seed, options.device, checkpoints[seed], log)
        tests[seed] = evaluate(agent, TEST_EPISODES, 1_000_000 * seed + 900_000)
        print(
            f"Seed {seed}: greedy return over {TEST_EPISODES} new episodes after {histories[seed].steps} steps: "
            f"mean {tests[seed].mean():.1f}, standard deviation {tests[seed].std():.1f}, worst {tests[seed].min():.0f}."
        )
    title = f"SAC on {options.env}: --n-step {options.n_step} --num-envs {options.num_envs}"
    plot(histories, tests, title, options.output)
    print(f"Learning curve: {options.output}")
    if is_logged:
        print(f"To see the logged metrics: tensorboard --logdir {options.log}")


if __name__ == "__main__":
    main()
