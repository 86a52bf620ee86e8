"""The R2D2 example: stored states, targets at each kind of end, and the steps that are learned from."""

import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
gymnasium = pytest.importorskip("gymnasium")
pytest.importorskip("matplotlib")
tqdm = pytest.importorskip("tqdm")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.append(str(EXAMPLES))

import r2d2_memory  # noqa: E402
from r2d2_memory import (  # noqa: E402  # noqa: E402
    AGENTS,
    Actor,
    Learner,
    Settings,
    TMaze,
    main,
    make_env,
    make_replay,
    td_errors_of,
    train,
    unroll,
    with_next_obs,
)

from replaykit import record  # noqa: E402

SETTINGS = Settings(
    corridor=(2, 9),
    num_envs=3,
    total_timesteps=240,
    learning_starts=60,
    train_every=6,
    batch_size=6,
    length=6,
    burn_in=2,
    stride=3,
    hidden=5,
    capacity=180,
    eval_every=100,
    eval_episodes=2,
)


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setattr(tqdm.tqdm, "monitor_interval", 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Played:
    """A replay filled by an untrained network, and the values that the network computed, by index."""

    def __init__(self, settings, steps=90):
        torch.manual_seed(0)
        self.settings, self.learner = settings, Learner(settings, 3, 2)
        for parameter in self.learner.q_net.parameters():
            parameter.data.mul_(2.0)  # so that values differ more from step to step
        self.learner.target_net.load_state_dict(self.learner.q_net.state_dict())
        env = make_env(settings, settings.num_envs)
        self.replay = make_replay(env, settings, np.random.SeedSequence(0))
        actor = Actor(self.learner.q_net, settings.num_envs, settings.hidden)
        env = record(env, self.replay, extras={"state": lambda _: actor.state.numpy()})
        obs, _ = env.reset(seed=0)
        values, next_values = [], []
        with torch.no_grad():
            for _ in range(steps):
                values.append(actor.net(torch.from_numpy(obs)[:, None], actor.state)[0][:, 0])
                obs, _, terminated, truncated, _ = env.step(actor.act(obs))
                next_obs = torch.from_numpy(self.replay.read(self.replay.newest, "next_obs"))  # the last, not a reset's
                next_values.append(actor.net(next_obs[:, None], actor.next_state)[0][:, 0])
                actor.go_on(terminated | truncated)
        env.close()
        self.values, self.next_values = torch.cat(values), torch.cat(next_values)

    def batches(self, count=20):
        return [self.replay.sample(self.settings.batch_size).to_torch() for _ in range(count)]

    def td_errors(self, batch):
        return td_errors_of(batch, self.learner.q_net, self.learner.target_net, self.settings)


@pytest.fixture
def _time_limit(monkeypatch):
    """Mazes in which corridors of five steps or more are cut off after five."""

    def limited(shortest, longest):
        return gymnasium.wrappers.TimeLimit(TMaze(shortest, longest), 5)

    monkeypatch.setattr(r2d2_memory, "TMaze", limited)


# -- The task ------------------------------------------------------------------------------------------------


def test_only_the_sign_at_the_entrance_shows_the_way():
    env = TMaze(2, 4)
    lengths, ways = set(), set()
    for seed in range(60):
        obs, _ = env.reset(seed=seed)
        sign, steps, terminated = float(obs[0]), 0, False
        while not terminated:
            assert (obs[0] != 0, bool(obs[1])) == (steps == 0, steps == env.junction)
            obs, reward, terminated, truncated, _ = env.step(np.int64(seed % 2))
            steps += 1
            assert not truncated
            assert terminated or reward == 0.0
        assert reward == (sign == 2 * (seed % 2) - 1)
        lengths.add(steps)
        ways.add(sign)
    assert lengths == {3, 4, 5}
    assert ways == {-1.0, 1.0}


def test_no_row_of_the_defaults_has_both_the_sign_and_the_turn():
    settings = Settings()
    assert settings.length <= settings.corridor[0]


# -- Rows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("burn_in", [0, 2])
@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.usefixtures("_time_limit")
def test_rows_repeat_the_values_that_acting_computed(n_step, burn_in):
    """Values match at each step of a row when it starts from the stored state, anywhere in an episode."""
    played = Played(replace(SETTINGS, n_step=n_step, burn_in=burn_in))
    begins = []
    for batch in played.batches():
        obs, _ = with_next_obs(batch, n_step)
        values = unroll(played.learner.q_net, obs, batch.state[:, 0], batch.is_first[:, 0], burn_in)
        torch.testing.assert_close(
            values[:, : SETTINGS.length][batch.mask], played.values[batch.step_indices[batch.mask]]
        )
        begins.append(batch.is_first[:, 0])
    assert torch.cat(begins).any() and not torch.cat(begins).all()


@pytest.mark.parametrize("n_step", [1, 3, 8])
@pytest.mark.usefixtures("_time_limit")
def test_targets_bootstrap_from_the_memory_of_the_whole_window(n_step):
    """Targets bootstrap at time limits and in running episodes, and never after termination."""
    played = Played(replace(SETTINGS, n_step=n_step))
    ends = set()
    for batch in played.batches():
        steps, lengths = batch.step_indices[batch.mask], batch.length[batch.mask]
        last = steps + (lengths - 1) * SETTINGS.num_envs
        terminated, truncated = (
            torch.from_numpy(played.replay.read(last, name)) for name in ("terminated", "truncated")
        )
        bootstrap = torch.where(terminated, 0.0, 0.99**lengths * played.next_values[last].amax(1))
        q = played.values[steps].gather(1, batch.action[batch.mask, None]).squeeze(1)
        torch.testing.assert_close(
            played.td_errors(batch)[batch.mask].detach(), batch.reward[batch.mask] + bootstrap - q
        )
        ends.update(zip(terminated.tolist(), truncated.tolist(), (lengths < n_step).tolist(), strict=True))
    assert {(True, False), (False, True), (False, False)} <= {end[:2] for end in ends}
    assert (n_step == 1) != ((False, False, True) in ends)  # of a running episode, the newest step


def test_the_online_network_chooses_and_the_target_network_rates():
    played = Played(replace(SETTINGS, n_step=1))
    with torch.no_grad():
        played.learner.target_net.head.weight.mul_(-1.0)
        played.learner.target_net.head.bias.mul_(-1.0)
    differ = False
    for batch in played.batches():
        steps = batch.step_indices[batch.mask]
        q = played.values[steps].gather(1, batch.action[batch.mask, None]).squeeze(1)
        rated = batch.reward[batch.mask] - batch.discount[batch.mask] * played.next_values[steps].amax(1)
        torch.testing.assert_close(played.td_errors(batch)[batch.mask].detach(), rated - q)
        differ = differ or bool(batch.discount.any())
    assert differ


def test_the_zero_state_agent_ignores_what_is_stored():
    played = Played(replace(SETTINGS, agent="zero-state", burn_in=0))
    batch = played.batches(1)[0]
    before = played.td_errors(batch).detach()
    batch.state.fill_(7.0)
    torch.testing.assert_close(played.td_errors(batch).detach(), before)
    played.settings = replace(played.settings, agent="r2d2")
    assert not torch.allclose(played.td_errors(batch).detach(), before)


def test_training_stores_the_state_before_each_step(monkeypatch):
    """The stored state is 0 at an episode's first step, and then the network's state after the previous step."""
    batches, learn = [], Learner.learn

    def learning(learner, batch):
        batches.append(batch)
        return learn(learner, batch)

    monkeypatch.setattr(Learner, "learn", learning)
    q_net, _ = train(replace(SETTINGS, learning_rate=0.0), 0)
    for batch in batches:
        assert not batch.state[batch.is_first].any()
        before, after = batch.mask[:, 1:], batch.state[:, 1:]
        with torch.no_grad():
            _, made = q_net(batch.obs[:, :-1][before].unsqueeze(1), batch.state[:, :-1][before])
        torch.testing.assert_close(after[before], made)
    assert batches


# -- Learning ------------------------------------------------------------------------------------------------


def learned(played, batch):
    """The weights of a new agent after it has learned from one batch."""
    learner = Learner(played.settings, 3, 2)
    learner.q_net.load_state_dict(played.learner.q_net.state_dict())
    learner.target_net.load_state_dict(played.learner.target_net.state_dict())
    td_errors, loss = learner.learn(batch)
    return td_errors, loss, [parameter.detach() for parameter in learner.q_net.parameters()]


def test_the_burn_in_and_the_padding_are_not_learned_from():
    """Wrong rewards in the burn-in and the padding change no loss, no weight and no priority."""
    played = Played(SETTINGS)
    for batch in played.batches(5):
        assert (batch.mask & ~batch.loss_mask).any()
        td_errors, loss, weights = learned(played, batch)
        batch.reward[~batch.loss_mask] += 100.0
        other_errors, other_loss, other_weights = learned(played, batch)
        assert other_loss == loss
        assert all(torch.equal(one, other) for one, other in zip(weights, other_weights, strict=True))
        assert (other_errors - td_errors)[~batch.loss_mask].min() > 99.0
        priorities = []
        for errors in (td_errors, other_errors):
            played.replay.update_priorities(batch.indices, errors, mask=batch.loss_mask)
            priorities.append(played.replay.probability(batch.indices))
        np.testing.assert_array_equal(*priorities)


def test_no_gradient_flows_into_the_burn_in():
    """Later steps send no gradient into the burn-in. A row that begins its episode has no burn-in."""
    played = Played(SETTINGS)
    for batch in played.batches(5):
        batch.obs.requires_grad_()
        (played.td_errors(batch) * batch.loss_mask)[:, SETTINGS.burn_in :].square().sum().backward()
        reached = batch.obs.grad[:, : SETTINGS.burn_in].abs().amax((1, 2)) > 0.0
        is_learned = batch.mask[:, SETTINGS.burn_in]  # in a row that is long enough
        assert torch.equal(reached[is_learned], batch.is_first[is_learned, 0])


def test_weights_correct_each_row():
    played = Played(SETTINGS)
    batch = played.batches(1)[0]
    batch.weights[:] = torch.linspace(0.1, 1.0, SETTINGS.batch_size)
    td_errors, loss, _ = learned(played, batch)
    rows = [float((errors[mask] ** 2).sum()) for errors, mask in zip(td_errors, batch.loss_mask, strict=True)]
    expected = np.dot(batch.weights.numpy(), rows) / float(batch.loss_mask.sum())
    assert loss == pytest.approx(expected, rel=1e-5)


# -- Whole runs ----------------------------------------------------------------------------------------------


def run(settings, seed):
    q_net, history = train(settings, seed)
    return asdict(history), [value.numpy().tobytes() for value in q_net.state_dict().values()]


@pytest.mark.parametrize("agent", AGENTS)
def test_the_same_seed_gives_the_same_run(agent):
    settings = replace(SETTINGS, agent=agent)
    expected = run(settings, 1)
    assert expected[0]["losses"] and expected[0]["successes"]
    assert run(settings, 1) == expected
    assert run(settings, 2) != expected


def test_a_run_ends_with_a_test_and_a_picture(tmp_path, monkeypatch, capsys):
    path = tmp_path / "curves.png"
    options = ["--agent", "r2d2", "feedforward", "--seeds", "3", "--total-timesteps", "640", "--output", str(path)]
    monkeypatch.setattr(sys, "argv", ["r2d2_memory.py", *options])
    monkeypatch.setattr(r2d2_memory, "TEST_EPISODES", 10)
    main()
    assert path.stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "r2d2, seed 3: the right turn in" in printed
    assert "feedforward, seed 3: the right turn in" in printed


@pytest.mark.parametrize(
    ("options", "message"), [(["--burn-in", "20"], "less than --length"), (["--output", "curves.txt"], "ends in .png")]
)
def test_options_are_checked_before_training(monkeypatch, capsys, options, message):
    monkeypatch.setattr(sys, "argv", ["r2d2_memory.py", *options])
    with pytest.raises(SystemExit):
        main()
    assert message in capsys.readouterr().err
