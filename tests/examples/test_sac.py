"""The SAC example: its formulas and its log. A resumed run equals an uninterrupted one."""

import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("gymnasium")
pytest.importorskip("matplotlib")
tqdm = pytest.importorskip("tqdm")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.append(str(EXAMPLES))

import sac_pendulum  # noqa: E402
from checkpoint import Checkpoint  # noqa: E402
from sac_pendulum import METRICS, Actor, Agent, Settings, main, make_buffer, make_env, train  # noqa: E402

from replaykit import record  # noqa: E402

SETTINGS = Settings(
    total_timesteps=240,
    learning_starts=60,
    train_every=2,
    batch_size=8,
    hidden=8,
    capacity=150,
    eval_every=100,
    eval_episodes=2,
    log_every=30,
    save_every=80,
)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setattr(tqdm.tqdm, "monitor_interval", 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def a_batch(settings, steps=80):
    """A batch of random steps in the format of the example, and an agent for it."""
    env = make_env(settings.env, settings.num_envs)
    buffer = make_buffer(env, settings, np.random.SeedSequence(0))
    recorded = record(env, buffer)
    recorded.reset(seed=0)
    recorded.action_space.seed(0)
    for _ in range(steps):
        recorded.step(recorded.action_space.sample())
    env.close()
    buffer.update_priorities(buffer.stored(), priorities=np.linspace(0.1, 2.0, len(buffer)))  # weights differ
    torch.manual_seed(0)
    return Agent(3, 1, settings, CPU), next(buffer.batches(settings.batch_size, device=CPU, column=True))


# -- Formulas ------------------------------------------------------------------------------------------------


def test_densities_are_those_of_a_squashed_gaussian():
    """Densities equal the numerical derivative of the distribution function. Logarithms are summed over axes."""
    torch.manual_seed(0)
    actor, obs = Actor(4, 3, 16).double(), torch.randn(50, 4, dtype=torch.float64)
    mean, log_std = actor.net(obs).chunk(2, -1)
    gaussian = torch.distributions.Normal(mean, log_std.exp())
    action, log_prob = actor(obs)
    inside = action.clamp(-1.0 + 1e-5, 1.0 - 1e-5)
    distribution = [gaussian.cdf(torch.atanh(inside + shift)) for shift in (-1e-6, 1e-6)]
    density = (distribution[1] - distribution[0]) / 2e-6
    assert action.abs().max() < 1.0
    torch.testing.assert_close(log_prob, density.log().sum(-1, keepdim=True), rtol=1e-3, atol=1e-3)


def test_densities_are_finite_where_actions_touch_the_bound():
    actor = Actor(1, 1, 4)
    torch.nn.init.constant_(actor.net[-1].bias, 50.0)
    action, log_prob = actor(torch.zeros(3, 1))
    assert (action == 1.0).all()
    assert torch.isfinite(log_prob).all()


@pytest.mark.parametrize("n_step", [1, 3])
def test_td_errors_are_those_of_the_soft_target(n_step):
    """The TD error is the mean over both critics. The target has the window's rewards and the soft value after it."""
    agent, batch = a_batch(replace(SETTINGS, n_step=n_step))
    agent.log_temperature.data.fill_(0.3)
    assert (batch.length.max(), batch.discount.shape) == (n_step, (8, 1))
    state = torch.get_rng_state()
    with torch.no_grad():
        next_action, next_log_prob = agent.actor(batch.next_obs)
        values = [net(torch.cat((batch.next_obs, next_action), 1)) for net in agent.targets.nets]
        soft_value = torch.minimum(*values) - np.exp(0.3) * next_log_prob
        target = batch.reward + 0.99 ** batch.length.unsqueeze(1) * soft_value  # Pendulum never terminates
        errors = [target - net(torch.cat((batch.obs, batch.action), 1)) for net in agent.critics.nets]
    torch.set_rng_state(state)
    td_errors, numbers = agent.learn(batch)
    torch.testing.assert_close(td_errors, sum(error.abs() for error in errors).squeeze(1) / 2)
    loss = sum(0.5 * (batch.weights * error**2).mean() for error in errors)
    torch.testing.assert_close(numbers[METRICS.index("loss/critics")], loss)


@pytest.mark.parametrize(("log_std", "sign"), [(-4.0, 1.0), (0.0, -1.0)])
def test_the_temperature_drives_the_entropy_to_its_target(log_std, sign):
    """The temperature rises while actions are less random than the target, and falls while they are more random."""
    agent, batch = a_batch(SETTINGS)
    torch.nn.init.zeros_(agent.actor.net[-1].weight)
    agent.actor.net[-1].bias.data = torch.tensor([0.0, log_std])
    _, numbers = agent.learn(batch)
    assert sign * (agent.target_entropy - float(numbers[METRICS.index("policy/entropy")])) > 0.0
    assert sign * float(agent.log_temperature.detach()) > 0.0


def test_critics_learn_only_from_td_errors():
    """The actor's loss does not change the critics. Only the critics change the target critics."""
    agent, batch = a_batch(SETTINGS)
    for group in agent.optimizers["critics"].param_groups:
        group["lr"] = 0.0
    before = [value.clone() for value in (*agent.critics.parameters(), *agent.targets.parameters())]
    actor = agent.actor.net[0].weight.clone()
    agent.learn(batch)
    after = [*agent.critics.parameters(), *agent.targets.parameters()]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert not torch.equal(agent.actor.net[0].weight, actor)


def test_the_actor_climbs_the_soft_value():
    """With fixed critics and temperature, the actor improves the soft value of the lower critic."""
    agent, batch = a_batch(SETTINGS)
    agent.log_temperature.data.fill_(-5.0)
    for name in ("critics", "temperature"):
        agent.optimizers[name].param_groups[0]["lr"] = 0.0
    values = [float(agent.learn(batch)[1][METRICS.index("policy/q")]) for _ in range(100)]
    assert np.mean(values[-10:]) > np.mean(values[:10])


# -- Log and checkpoint --------------------------------------------------------------------------------------


def saved(path, settings, history):
    """The buffer, the agent and the generator of the last checkpoint in `path`."""
    env, rng = make_env(settings.env, settings.num_envs), np.random.default_rng()
    buffer, agent = make_buffer(env, settings, np.random.SeedSequence()), Agent(3, 1, settings, CPU)
    env.close()
    Checkpoint(path / "checkpoint", asdict(settings)).load(buffer, rng, history, {"agent": agent} | agent.optimizers)
    buffer.check()
    return buffer, agent, rng


def run(path, settings=SETTINGS):
    """Train with a checkpoint and a log in `path`. Returns the contents of the last checkpoint, and the next batch."""
    _, history = train(settings, 7, CPU, Checkpoint(path / "checkpoint", asdict(settings)), path / "log")
    buffer, agent, rng = saved(path, settings, history)
    batch = buffer.sample(8)
    moments = [value for optimizer in agent.optimizers.values() for value in optimizer.state_dict()["state"].values()]
    tensors = [*agent.state_dict().values(), *(entry for moment in moments for entry in moment.values())]
    arrays = [*(tensor.numpy() for tensor in tensors), torch.get_rng_state().numpy(), rng.random(3)]
    arrays += [batch.indices, batch.obs, batch.probabilities, buffer.stored()]
    return asdict(history), [array.tobytes() for array in arrays], buffer.stats()


def logged(path):
    """The steps and values of each tag, as TensorBoard reads them."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = event_accumulator.EventAccumulator(str(path)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.parametrize("num_envs", [1, 3])
def test_a_resumed_run_is_the_run_that_was_never_stopped(tmp_path, monkeypatch, num_envs):
    """Returns, losses, weights, optimizers, replay, generators and TensorBoard's curves are equal bit for bit."""
    pytest.importorskip("tensorboard")
    settings = replace(SETTINGS, num_envs=num_envs)
    expected = run(tmp_path / "whole", settings)
    learn = Agent.learn
    for stop in (20, 45):  # updates, after which the run is stopped in the middle of an episode
        left = [stop]

        def stopping(agent, batch, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return learn(agent, batch)

        monkeypatch.setattr(Agent, "learn", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "stopped", settings)
    monkeypatch.undo()
    assert run(tmp_path / "stopped", settings) == expected
    assert logged(tmp_path / "stopped" / "log") == logged(tmp_path / "whole" / "log")
    assert expected[0]["steps"] == settings.total_timesteps
    assert expected[0]["batches"] == settings.batches_by(settings.total_timesteps)
    assert expected[0]["losses"]


def test_other_episodes_begin_after_each_checkpoint(tmp_path):
    """After each checkpoint, environments are reset with a new seed, which ends the running episodes."""
    settings = replace(SETTINGS, capacity=300)
    _, history = train(settings, 7, CPU, Checkpoint(tmp_path / "checkpoint", asdict(settings)))
    buffer, _, _ = saved(tmp_path, settings, history)
    _, first, last = buffer.episode([0, 100, 239])
    assert (first.tolist(), last.tolist()) == ([0, 80, 160], [79, 159, 239])
    assert len(np.unique(buffer.read(first, "obs"), axis=0)) == 3


def test_returns_are_the_sums_of_each_episode(tmp_path):
    settings = replace(SETTINGS, total_timesteps=420, learning_starts=420, save_every=420, capacity=500)
    _, history = train(settings, 7, CPU, Checkpoint(tmp_path / "checkpoint", asdict(settings)))
    buffer, _, _ = saved(tmp_path, settings, history)
    steps, returns = zip(*history.returns, strict=True)
    assert steps == (200, 400)
    assert returns == pytest.approx(buffer.read(np.arange(400), "reward").reshape(2, 200).sum(1), rel=1e-5)


def test_tensorboard_finds_returns_losses_and_the_replay(tmp_path):
    pytest.importorskip("tensorboard")
    settings = replace(SETTINGS, total_timesteps=420)  # two episodes of 200 steps
    _, history = train(replace(settings, save_every=420), 0, CPU, log=tmp_path)
    curves = logged(tmp_path)
    replay = {"replay/size", "replay/beta", "replay/stale_updates", "replay/scaled_priority_max"}
    assert curves.keys() > replay | set(METRICS) | {"return/training", "return/evaluation"}
    assert [step for step, _ in curves["replay/size"]] == [*range(30, 420, 30), 420]
    assert curves["replay/size"][-1] == (420, 150.0)
    assert curves["replay/beta"][-1] == (420, 1.0)
    assert curves["return/training"][-1] == (420, np.float32(np.mean([value for _, value in history.returns])))


def test_a_new_run_takes_the_place_of_a_former_log(tmp_path):
    """TensorBoard shows the curves of the new run only."""
    pytest.importorskip("tensorboard")
    train(SETTINGS, 0, CPU, log=tmp_path)
    first = logged(tmp_path)
    train(SETTINGS, 1, CPU, log=tmp_path)
    second = logged(tmp_path)
    assert first != second
    assert [step for step, _ in second["loss/critics"]] == [step for step, _ in first["loss/critics"]]


# -- The script ----------------------------------------------------------------------------------------------


def script(monkeypatch, *options):
    monkeypatch.setattr(sac_pendulum, "TEST_EPISODES", 2)
    monkeypatch.setattr(sys, "argv", ["sac_pendulum.py", "--total-timesteps", "250", *map(str, options)])
    main()


def test_the_script_runs_without_tensorboard(tmp_path, monkeypatch, capsys):
    """Without TensorBoard, the script says so once and draws its picture. It overwrites no checkpoint by mistake."""
    monkeypatch.setattr(sac_pendulum, "find_spec", lambda name: None)
    options = ("--output", tmp_path / "curve.png", "--checkpoint", tmp_path / "saved")
    script(monkeypatch, *options, "--seeds", 3, 4)
    said = capsys.readouterr().out
    assert said.count("pip install tensorboard") == 1
    assert not (tmp_path / "curve").exists()
    assert (tmp_path / "curve.png").stat().st_size > 0
    with pytest.raises(SystemExit, match=r"seed4 has a checkpoint: continue from it with --resume"):
        script(monkeypatch, *options, "--seeds", 4)
    script(monkeypatch, *options, "--resume", "--seeds", 4)  # a run that has ended is only tested again
    assert next(line for line in said.splitlines() if "Seed 4" in line) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--env", "CartPole-v1"], "SAC needs a bounded Box with one axis"),
        (["--device", "nothing"], "argument --device: nothing: "),
        (["--resume"], "--resume needs --checkpoint DIRECTORY"),
    ],
)
def test_wrong_options_are_refused(monkeypatch, capsys, options, message):
    with pytest.raises(SystemExit):
        script(monkeypatch, *options)
    assert message in capsys.readouterr().err
