"""One run: an agent learns one task from one replay, with one seed."""

from dataclasses import asdict, dataclass, field
from typing import Any

import goal_mountain_car
import gymnasium
import numpy as np

from replaykit import Replay

from .learner import Adam, Floats, Network, learn, targets
from .measures import features_of, of_batch, of_replay, state_of
from .replays import REPLAYS, make_replay
from .settings import GOAL_TASKS, Protocol, Settings

FORMAT = 1  # of results: increased when the same configuration would give different results


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that a result depends on."""

    protocol: Protocol
    replay: str
    seed: int
    settings: Settings

    def configuration(self) -> dict[str, Any]:
        """The run as plain values, including the arguments of the replay."""
        return asdict(self) | {"numbers": asdict(REPLAYS[self.replay]), "format": FORMAT}


@dataclass
class Result:
    """The result of a run: a row for each training episode and for each snapshot."""

    episodes: list[dict[str, float]] = field(default_factory=list)
    snapshots: list[dict[str, float]] = field(default_factory=list)


def make_env(settings: Settings) -> Any:
    """The task, with the protocol's time limit."""
    options: dict[str, Any] = {"disable_env_checker": True, "max_episode_steps": settings.time_limit}
    if settings.env not in GOAL_TASKS:
        return gymnasium.make(settings.env, **options)
    return goal_mountain_car.GoalMountainCar(gymnasium.make(settings.env, **options))


class Agent:
    """Deep Q-learning from any replay, and its record."""

    def __init__(self, run: Run) -> None:
        self.settings = settings = run.settings
        replay_seed, network_seed, action_seed = np.random.SeedSequence(run.seed).spawn(3)
        self.first_seed = 1_000_000 * run.seed  # of training episodes; greedy episodes have other seeds
        self.env, self.test_env = make_env(settings), make_env(settings)
        self.replay: Replay = make_replay(run.replay, settings, self.env, replay_seed)
        self.obs, _ = self.env.reset(seed=self.first_seed)
        actions, size = int(self.env.action_space.n), features_of(self.obs, settings).shape[0]
        self.network = Network((size, *settings.hidden, actions), np.random.default_rng(network_seed))
        self.target = self.network.copy()
        self.optimizer = Adam(self.network, settings.learning_rate)
        # Drawn in advance, so that every replay has the same random steps and actions
        self.steps = settings.steps or (settings.episodes or 0) * settings.time_limit
        rng = np.random.default_rng(action_seed)
        self.luck, self.random_actions = rng.random(self.steps), rng.integers(actions, size=self.steps)
        self.step = self.updates = 0
        self.rewards: list[float] = []  # of the running episode, as the agent learns them ...
        self.values: list[float] = []  # ... and the value of the best action at each of its steps
        self.last_batch: tuple[Floats, Floats] | None = None  # states and TD errors
        self.result = Result()

    def train(self) -> Result:
        """Act, store and learn until the steps or the episodes of the run are done."""
        settings = self.settings
        length = settings.episodes or self.steps
        progress = 0
        while progress < length:
            done = self._act()
            if self.step >= settings.learning_starts and self.step % settings.train_every == 0:
                self._learn()
            if done:
                self._end_episode()
            before, progress = progress, len(self.result.episodes) if settings.episodes else self.step
            if progress * settings.snapshots // length > before * settings.snapshots // length:
                self._take_snapshot(progress * settings.snapshots // length)
        return self.result

    def _act(self) -> bool:
        """Take one environment step and store it according to the protocol. Returns whether the episode is over."""
        settings = self.settings
        values = self.network(features_of(self.obs, settings))
        explores = self.luck[self.step] < max(1.0 - self.step / settings.epsilon_steps, settings.epsilon_end)
        action = int(self.random_actions[self.step] if explores else values.argmax())
        next_obs, reward, terminated, truncated, _ = self.env.step(action)
        done = bool(terminated or truncated)
        reward = self._learned(reward, done)
        if settings.limit_terminates:
            terminated, truncated = done, False
        error = 0.0 if settings.refreshes_priorities else self._error(action, reward, next_obs, terminated)
        known = {} if settings.refreshes_priorities else {"td_error": error}
        self.replay.add(self.obs, action, reward, next_obs, terminated, truncated, insertion_error=error, **known)
        self.rewards.append(float(reward))
        self.values.append(float(values.max()))
        self.obs = next_obs
        self.step += 1
        return done

    def _learned(self, reward: Any, done: bool) -> float:
        """The reward used for learning: the task's, or the protocol's at an episode's end."""
        replaced = self.settings.done_reward if done else None
        return float(reward if replaced is None else replaced)

    def _error(self, action: int, reward: float, next_obs: Any, terminated: bool) -> float:
        """The TD error of the transition from the current observation."""
        value = self.network(features_of(self.obs, self.settings))[action]
        q_next = self.target(features_of(next_obs, self.settings)).max()
        return float(reward + self.settings.gamma * (1.0 - terminated) * q_next - value)

    def _learn(self) -> None:
        """Learn from one batch and update its priorities."""
        settings = self.settings
        batch = self.replay.sample(settings.batch_size)
        wanted = targets(self.network, self.target, batch, features_of(batch.next_obs, settings), settings.double)
        weights = batch.weights if settings.uses_weights else np.ones_like(batch.weights)
        features = features_of(batch.obs, settings)
        td_errors = learn(self.optimizer, features, batch.action, wanted, weights, settings.loss == "huber")
        if settings.refreshes_priorities:
            self.replay.update_priorities(batch.indices, td_errors)
        else:
            td_errors = batch.insertion_error
        self.last_batch = state_of(batch.obs), td_errors
        self.updates += 1
        if settings.target_every is not None and self.updates % settings.target_every == 0:
            self.target.approach(self.network, settings.target_rate)

    def _end_episode(self) -> None:
        """Record the training episode and begin the next one."""
        if self.settings.target_every is None:
            self.target.approach(self.network, self.settings.target_rate)
        batch = (np.zeros((1, 2)), np.array([np.nan])) if self.last_batch is None else self.last_batch
        row = {
            "step": float(self.step),
            "length": float(len(self.rewards)),
            "return": float(np.sum(self.rewards)),
            "discounted_return": discounted(self.rewards, self.settings.gamma),
            "first_value": self.values[0],
            "mean_value": float(np.mean(self.values)),
            **of_batch(*batch),
        }
        self.result.episodes.append(row)
        self.rewards, self.values = [], []
        self.obs, _ = self.env.reset()

    def _take_snapshot(self, number: int) -> None:
        """Play greedy episodes in a separate environment and measure batches."""
        settings, rows = self.settings, []
        for episode in range(settings.greedy_episodes):
            seed = self.first_seed + 500_000 + 1_000 * number + episode
            rows.append(self._play(seed))
        lengths, returns, discounted_returns, first_values = np.mean(rows, axis=0).tolist()
        self.result.snapshots.append(
            {
                "snapshot": float(number),
                "step": float(self.step),
                "episodes": float(len(self.result.episodes)),
                "greedy_length": lengths,
                "greedy_return": returns,
                "greedy_discounted_return": discounted_returns,
                "greedy_first_value": first_values,
                **of_replay(self.replay, self.network, self.target, settings),
            }
        )

    def _play(self, seed: int) -> tuple[float, float, float, float]:
        """Play a greedy episode. Returns its length, return and discounted return, and the value of its first state."""
        obs, _ = self.test_env.reset(seed=seed)
        first_value = float(self.network(features_of(obs, self.settings)).max())
        rewards, learned, done = [], [], False
        while not done:
            action = int(self.network(features_of(obs, self.settings)).argmax())
            obs, reward, terminated, truncated, _ = self.test_env.step(action)
            done = bool(terminated or truncated)
            rewards.append(float(reward))
            learned.append(self._learned(reward, done))
        return float(len(rewards)), sum(rewards), discounted(learned, self.settings.gamma), first_value


def discounted(rewards: list[float], gamma: float) -> float:
    """The discounted return."""
    return float(np.sum(np.array(rewards) * gamma ** np.arange(len(rewards))))


def train(run: Run) -> Result:
    """The result of a run. It is exactly reproducible, also beside other runs."""
    return Agent(run).train()
