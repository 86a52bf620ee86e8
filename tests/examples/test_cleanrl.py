"""The single-file agents in the style of CleanRL: targets, seeds, options, and reported numbers."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
gymnasium = pytest.importorskip("gymnasium")

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples"))

from cleanrl import dqn, sac, td3  # noqa: E402

AGENTS = pytest.mark.parametrize("agent", [dqn, td3, sac], ids=["dqn", "td3", "sac"])
CONTINUOUS = pytest.mark.parametrize("agent", [td3, sac], ids=["td3", "sac"])


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def reported(monkeypatch):
    """The reported numbers, as a list of pairs of the step and the numbers, instead of printed lines."""
    seen = []

    def report(args, step, start, returns, numbers, writer):
        seen.append((step, numbers))

    for agent in (dqn, td3, sac):
        monkeypatch.setattr(agent, "report", report)
    return seen


def short(agent, **options):
    """The arguments of a run of a few hundred steps."""
    defaults = {"total_timesteps": 420, "learning_starts": 220, "train_frequency": 8, "batch_size": 8, "log_every": 100}
    defaults |= {} if agent is dqn else {"hidden": 16}
    return agent.Args(**(defaults | options))


def run(args, agent):
    """The returns of a run, and all weights of its networks as bytes."""
    *networks, returns = agent.train(args)
    return returns, [value.numpy().tobytes() for network in networks for value in network.state_dict().values()]


# -- Training ------------------------------------------------------------------------------------------------


@AGENTS
@pytest.mark.parametrize(("per", "num_envs"), [(False, 1), (True, 3)], ids=["uniform", "prioritized"])
def test_the_same_seed_gives_the_same_run(agent, per, num_envs, reported):
    """The same seed gives the same returns and weights, bit for bit. Another seed gives others."""
    args = short(agent, per=per, num_envs=num_envs, total_timesteps=420 if num_envs == 1 else 640)
    returns, weights = run(args, agent)
    assert (returns, weights) == run(args, agent)
    other_returns, other_weights = run(replace(args, seed=1), agent)
    assert returns
    assert returns != other_returns
    assert weights != other_weights


@AGENTS
@pytest.mark.parametrize(("num_envs", "steps"), [(1, 420), (3, 420), (4, 417)])
def test_the_number_of_updates_depends_on_the_steps_only(agent, num_envs, steps, reported):
    """The number of updates is the same for any number of parallel environments."""
    agent.train(short(agent, num_envs=num_envs, total_timesteps=steps))
    assert reported[-1][1]["replay/batches"] == (steps - 220) // 8


@AGENTS
def test_returns_are_the_sums_of_each_episode(agent, reported):
    """Each return is the sum of an episode's rewards, with the step at which the episode ended."""
    register("Counting-v0", terminates=False, steps=7, is_discrete=agent is dqn)
    *_, returns = agent.train(short(agent, env_id="Counting-v0", num_envs=2, total_timesteps=43))
    assert returns == [(14, 7.0), (14, 7.0), (28, 7.0), (28, 7.0), (42, 7.0), (42, 7.0)]


class Ones(gymnasium.Env):
    """Random observations, and rewards of 1. An episode terminates after a fixed number of steps, or never."""

    observation_space = gymnasium.spaces.Box(0.0, 1.0, (1,))

    def __init__(self, terminates, steps, is_discrete):
        self.terminates, self.steps = terminates, steps
        self.action_space = gymnasium.spaces.Discrete(2) if is_discrete else gymnasium.spaces.Box(-3.0, 1.0, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.step_count = 0
        return self.np_random.random(1, np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.step_count += 1
        terminated = self.terminates and self.step_count == self.steps
        return self.np_random.random(1, np.float32), 1.0, terminated, False, {}


def register(name, terminates, steps, is_discrete):
    """Make the environment known to Gymnasium, with a time limit of `steps` if it does not terminate."""
    gymnasium.registry.pop(name, None)
    options = {"terminates": terminates, "steps": steps, "is_discrete": is_discrete}
    limit = None if terminates else steps
    gymnasium.register(name, Ones, max_episode_steps=limit, kwargs=options, disable_env_checker=True)


@AGENTS
@pytest.mark.parametrize(("per", "n_step"), [(False, 1), (True, 3)], ids=["uniform", "prioritized"])
@pytest.mark.parametrize(("terminates", "value"), [(True, 1.0), (False, 2.0)], ids=["terminated", "truncated"])
def test_only_a_terminated_episode_has_no_value_after_its_end(agent, per, n_step, terminates, value, reported):
    """A step of reward 1 at gamma = 0.5: worth 1 if the episode terminates, and 1 / (1 - 0.5) at a time limit."""
    register("OneStep-v0", terminates, steps=1, is_discrete=agent is dqn)
    options = {"total_timesteps": 200, "learning_starts": 50, "train_frequency": 1, "tau": 0.5, "gamma": 0.5}
    options |= {"env_id": "OneStep-v0", "learning_rate": 1e-2, "batch_size": 16, "per": per, "n_step": n_step}
    if agent is sac:
        options |= {"autotune": False, "temperature": 1e-8}
    *_, network, _ = agent.train(short(agent, **options))
    obs, action = torch.full((1, 1), 0.5), torch.zeros(1, 1)
    learned = network(obs) if agent is dqn else network(obs, action)
    assert learned.detach().mean() == pytest.approx(value, abs=0.1)


@CONTINUOUS
def test_actions_are_scaled_to_the_bounds_of_the_environment(agent, reported, monkeypatch):
    """Actions are in [-1, 1] in the buffer, and in the environment's bounds, here [-3, 1]."""
    played, step = [], Ones.step
    monkeypatch.setattr(Ones, "step", lambda env, action: played.append(float(action[0])) or step(env, action))
    register("Wide-v0", terminates=True, steps=5, is_discrete=False)
    agent.train(short(agent, env_id="Wide-v0"))
    assert min(played[:200]) < -2.9
    assert max(played[:200]) > 0.9
    assert len(played) == 420


@AGENTS
def test_priorities_and_weights_are_used(agent, reported):
    """TD errors become priorities in the buffer, and beta is 1 in the last batch."""
    agent.train(short(agent, per=True))
    step, numbers = reported[-1]
    assert step == 420
    assert numbers["replay/beta"] == 1.0
    assert numbers["replay/scaled_priority_mean"] < numbers["replay/scaled_priority_max"]


@AGENTS
def test_weights_scale_the_loss(agent, reported, monkeypatch):
    """With weights of 0, the critics learn nothing."""
    sample = agent.ReplayBuffer.sample

    def without_weights(buffer, size):
        batch = sample(buffer, size)
        batch.weights[:] = 0.0
        return batch

    monkeypatch.setattr(agent.ReplayBuffer, "sample", without_weights)
    agent.train(short(agent))
    assert reported[-1][1]["loss/q" if agent is dqn else "loss/critics"] == 0.0


# -- The scripts ---------------------------------------------------------------------------------------------


def parsed(agent, monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", [f"{agent.__name__}.py", *options])
    return agent.parse_args()


@AGENTS
def test_options_are_those_of_the_dataclass(agent, monkeypatch):
    args = parsed(agent, monkeypatch, "--per", "--total-timesteps", "77", "--learning-rate", "0.5", "--seed", "3")
    assert args == agent.Args(per=True, total_timesteps=77, learning_rate=0.5, seed=3)
    assert parsed(agent, monkeypatch) == agent.Args()


@AGENTS
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gamma", "1.5"], "argument --gamma: 1.5; expected 0 to 1"),
        (["--learning-rate", "nan"], "argument --learning-rate: nan; expected at least 0"),
        (["--num-envs", "0"], "argument --num-envs: 0; expected at least 1"),
        (["--total-timesteps", "1e3"], "argument --total-timesteps: invalid int value: '1e3'"),
        (["--learning", "1"], "unrecognized arguments: --learning 1"),
        (["--device", "nothing"], "argument --device: nothing: "),
        (["--env-id", "CartPoll-v1"], "argument --env-id: CartPoll-v1: "),
        (["--env-id", "FrozenLake-v1"], "argument --env-id: FrozenLake-v1: the "),
    ],
)
def test_wrong_options_are_refused(agent, options, message, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="2"):
        parsed(agent, monkeypatch, *options)
    assert message in capsys.readouterr().err


def test_environments_of_other_actions_are_refused(monkeypatch, capsys):
    for agent, env_id, expected in (
        (dqn, "Pendulum-v1", "expected Discrete(n), starting at 0"),
        (td3, "CartPole-v1", "expected a bounded Box with one axis"),
        (sac, "CartPole-v1", "expected a bounded Box with one axis"),
    ):
        with pytest.raises(SystemExit):
            parsed(agent, monkeypatch, "--env-id", env_id)
        assert expected in capsys.readouterr().err


@AGENTS
def test_tensorboard_is_needed_for_a_log_only(agent, monkeypatch, capsys):
    monkeypatch.setattr(agent, "find_spec", lambda name: None)
    assert not parsed(agent, monkeypatch).log_dir
    with pytest.raises(SystemExit):
        parsed(agent, monkeypatch, "--log-dir", "runs")
    assert "pip install tensorboard" in capsys.readouterr().err


@AGENTS
def test_progress_is_printed_and_logged(agent, tmp_path, capsys):
    """Progress is printed every `log_every` steps and at the end. TensorBoard also gets the buffer's stats."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    agent.train(short(agent, log_dir=str(tmp_path), per=True))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" of ")[0] for line in lines] == ["100", "200", "300", "400", "420"]
    assert "return " in lines[-1]
    events = event_accumulator.EventAccumulator(str(tmp_path)).Reload()
    tags = set(events.Tags()["scalars"])
    loss = "loss/q" if agent is dqn else "loss/critics"
    assert tags >= {"return", loss, "value/q", "steps_per_second", "replay/size", "replay/beta"}
    assert [event.step for event in events.Scalars("replay/size")] == [100, 200, 300, 400, 420]
