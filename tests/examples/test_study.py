"""The study: the probabilities of its samplers, the gradient of its learner, its runs, and its saved results."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gymnasium")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))  # as when its script is run

import study  # noqa: E402
from replay_study import analysis, figures, plan  # noqa: E402
from replay_study.learner import Adam, Network, learn, targets  # noqa: E402
from replay_study.measures import everything, of_batch, of_replay  # noqa: E402
from replay_study.replays import REPLAYS, make_replay, replays_for  # noqa: E402
from replay_study.run import Agent, Run, discounted, make_env, train  # noqa: E402
from replay_study.samplers import BlockReplay, DealtReplay, newest_share  # noqa: E402
from replay_study.settings import PROTOCOLS  # noqa: E402

from replaykit import Field, PrioritizedBuffer, ReplayBuffer, Spec  # noqa: E402
from replaykit.testing import assert_lawful  # noqa: E402

SPEC = Spec(obs=Field(()), action=Field(()))


def fill(buffer, steps, first=0):
    for step in range(first, first + steps):
        buffer.add(step, 0, 1.0, step + 1, step % 7 == 6, False)
    return buffer


# -- Samplers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [3, 20, 33])
@pytest.mark.parametrize("length", [1, 4, 16])
def test_runs_of_blocks_draw_each_transition_as_often(steps, length):
    """Over every possible start, each stored transition is equally often in a batch, also where the ring wraps."""

    class Starts(np.random.Generator):
        """A generator that returns a given start instead of a random one."""

        start = None

        def integers(self, high, size=None):
            assert high == len(replay)
            return np.full(size, self.start) if self.start is not None else super().integers(high, size=size)

    rng = Starts(np.random.PCG64(0))
    replay = BlockReplay(fill(ReplayBuffer(20, SPEC, seed=rng), steps), length)
    size, batch_size = len(replay), length
    counts = dict.fromkeys(replay.latest(size).tolist(), 0)
    for rng.start in range(size):
        draw = replay.draw(batch_size)
        assert np.isin(np.diff(draw.indices), (1, 1 - size)).all()
        for index in draw.indices.tolist():
            counts[index] += 1
    rng.start = None
    assert set(counts.values()) == {length}
    np.testing.assert_array_equal(draw.probabilities, replay.probability(draw.indices))
    assert replay.probability(replay.latest(size)).sum() == pytest.approx(1.0)
    assert_lawful(replay, 10)


def test_runs_of_blocks_are_independent_of_each_other_only():
    """A batch of 64 in runs of 8 has 8 starts. The last run is shorter if 8 does not divide the batch size."""
    replay = BlockReplay(fill(ReplayBuffer(1000, SPEC, seed=0), 1000), 8)
    steps = np.diff(replay.sample(60).indices)
    assert (np.delete(steps, np.arange(7, 59, 8)) % 1000 == 1).all()
    assert (steps[7::8] != 1).any()


def test_a_recency_window_is_the_newest_share():
    """A window of a quarter of 30 has the newest 8, each with probability 1/8. Others have probability 0."""
    replay = newest_share(fill(ReplayBuffer(30, SPEC, seed=0), 45), 0.25)
    probabilities = replay.probability(np.arange(15, 45))
    np.testing.assert_array_equal(probabilities, np.where(np.arange(15, 45) >= 37, 1 / 8, 0.0))
    drawn = np.unique(replay.sample(500).indices)
    np.testing.assert_array_equal(drawn, np.arange(37, 45))
    assert_lawful(replay, 10)


@pytest.mark.parametrize("steps", [4, 10, 23, 57])
def test_dealt_probabilities_are_those_of_prioritized_replay_in_another_order(steps):
    """Draws follow the stated probabilities, also after receivers have been overwritten."""
    inner = fill(PrioritizedBuffer(20, SPEC, seed=0, draws="iid"), steps)
    stored = inner.latest(len(inner))
    inner.update_priorities(stored, np.linspace(0.0, 3.0, stored.size) ** 2)
    replay = DealtReplay(inner, every=5)
    places = inner.probability(stored)

    expected = dict.fromkeys(stored.tolist(), 0.0)
    for index, probability in zip(stored, places, strict=True):  # by hand: who receives each place
        first, receivers, _ = replay._dealt()
        receiver = receivers[index - first] if index < first + receivers.size else index
        expected[int(receiver if receiver >= stored[0] else index)] += probability
    np.testing.assert_allclose(replay.probability(stored), list(expected.values()))
    assert replay.probability(stored).sum() == pytest.approx(1.0)

    counts = np.bincount(replay.sample(100_000).indices - stored[0], minlength=stored.size) / 100_000
    np.testing.assert_allclose(counts, list(expected.values()), atol=0.01)
    assert_lawful(replay, 10)
    if steps == 10:  # nothing overwritten, all dealt: the very same probabilities
        np.testing.assert_allclose(np.sort(replay.probability(stored)), np.sort(places))
        assert not np.allclose(replay.probability(stored), places)


def test_a_deal_is_kept_and_what_is_new_keeps_its_own_place():
    """Until the next deal, assignments do not change, and a new transition has its own priority, the largest."""
    inner = fill(PrioritizedBuffer(100, SPEC, seed=0), 20)
    inner.update_priorities(np.arange(20), np.arange(20.0))
    replay = DealtReplay(inner, every=20)
    before = replay.probability(np.arange(20)) / inner.probability([0])
    fill(inner, 3, first=20)
    np.testing.assert_allclose(replay.probability(np.arange(20)) / inner.probability([0]), before)
    np.testing.assert_allclose(replay.probability([20, 22]), inner.probability([20, 22]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda inner: BlockReplay(inner, 0), "length is 0; expected at least 1"),
        (lambda inner: newest_share(inner, 0.0), "share is 0.0; expected more than 0"),
        (lambda inner: newest_share(inner, 1.5), "share is 1.5; expected more than 0 and at most 1"),
    ],
)
def test_samplers_refuse_what_they_cannot_do(make, message):
    """An unsupported argument raises an error with its name and the expected value."""
    with pytest.raises(ValueError, match=message):
        make(ReplayBuffer(10, SPEC))


@pytest.mark.parametrize("make", [lambda inner: BlockReplay(inner, 4), DealtReplay])
def test_samplers_of_one_stream_refuse_lanes(make):
    """A sampler of consecutive steps needs a single environment."""
    with pytest.raises(ValueError, match="num_envs=2; expected 1"):
        make(ReplayBuffer(10, SPEC, num_envs=2))


# -- Learner -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("huber", [True, False])
@pytest.mark.parametrize("hidden", [(7,), (6, 5)])
def test_the_gradient_is_that_of_the_weighted_loss(huber, hidden):
    """It equals finite differences of the loss, computed separately in double precision."""
    rng = np.random.default_rng(0)
    network = Network((3, *hidden, 2), rng)
    features, action = rng.normal(size=(16, 3)).astype(np.float32), rng.integers(2, size=16)
    wanted = (2.0 * rng.normal(size=16)).astype(np.float32)
    weights = rng.uniform(0.1, 1.0, 16).astype(np.float32)

    def loss(parameters):
        start, value = 0, features.astype(np.float64)
        for layer, (rows, columns) in enumerate(zip(network.sizes[:-1], network.sizes[1:], strict=True)):
            value = value @ parameters[start : start + rows * columns].reshape(rows, columns)
            value = value + parameters[start + rows * columns : start + (rows + 1) * columns]
            start += (rows + 1) * columns
            value = value if layer == len(hidden) else value.clip(0.0)
        error = wanted - value[np.arange(16), action]
        small = np.abs(error) <= 1.0
        each = np.where(small, error**2 / 2.0, np.abs(error) - 0.5) if huber else error**2
        return (weights * each).mean()

    at = network.parameters.astype(np.float64)
    steps = 1e-6 * np.eye(at.size)
    differences = np.array([(loss(at + step) - loss(at - step)) / 2e-6 for step in steps])

    class Kept(Adam):
        def step(self, gradient):
            self.gradient = gradient.copy()

    optimizer = Kept(network, 1e-3)
    td_errors = learn(optimizer, features, action, wanted, weights, huber)
    np.testing.assert_allclose(optimizer.gradient, differences, atol=2e-5)
    np.testing.assert_allclose(td_errors, wanted - network(features)[np.arange(16), action], atol=1e-6)


def test_adam_steps_as_the_paper_has_it():
    """Adam's steps are those of algorithm 1 of Kingma and Ba, in double precision, on the same gradients."""
    rng = np.random.default_rng(0)
    network = Network((2, 3, 2), rng)
    optimizer = Adam(network, 0.01)
    expected, mean, square = network.parameters.astype(np.float64), 0.0, 0.0
    for step in range(1, 6):
        gradient = rng.normal(size=expected.size).astype(np.float32)
        optimizer.step(gradient)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient.astype(np.float64) ** 2
        expected -= 0.01 * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
    np.testing.assert_allclose(network.parameters, expected, atol=1e-6)


def test_a_double_target_rates_the_online_choice():
    """The online network chooses, and the target network evaluates. Without double, the target network does both."""
    rng = np.random.default_rng(0)
    network, target = Network((2, 4, 3), rng), Network((2, 4, 3), rng)
    features = rng.normal(size=(50, 2)).astype(np.float32)

    class Batch:
        reward, discount = np.ones(50, np.float32), np.where(np.arange(50) % 5, 0.5, 0.0).astype(np.float32)

    rated, chosen = target(features), network(features).argmax(1)
    double = 1.0 + Batch.discount * [row[choice] for row, choice in zip(rated, chosen, strict=True)]
    np.testing.assert_allclose(targets(network, target, Batch, features, True), double, rtol=1e-6)
    np.testing.assert_allclose(targets(network, target, Batch, features, False), 1.0 + Batch.discount * rated.max(1))
    assert (chosen != rated.argmax(1)).any()


class PlainLearner:
    """The learner in NumPy calls, without compilation. Both learners can start from the same network."""

    def __init__(self, network, learning_rate):
        self.sizes, self.learning_rate = network.sizes, learning_rate
        self.online, self.target = network.parameters.copy(), network.parameters.copy()
        self.mean, self.square = np.zeros_like(self.online), np.zeros_like(self.online)
        self.steps = 0

    def layers(self, vector):
        start = 0
        for rows, columns in zip(self.sizes[:-1], self.sizes[1:], strict=True):
            stop = start + rows * columns
            yield vector[start:stop].reshape(rows, columns), vector[stop : stop + columns]
            start = stop + columns

    def values(self, vector, features):
        """The input of each layer and the output of the last."""
        values = [features]
        for weights, biases in self.layers(vector):
            values.append(np.maximum(values[-1] @ weights + biases, 0.0))
        return [*values[:-1], values[-2] @ weights + biases]

    def step(self, features, action, reward, discount, next_features, weights):
        """One step of double Q-learning with the Huber loss, and one of the target network. Returns the TD errors."""
        rows = np.arange(len(action))
        best = self.values(self.online, next_features)[-1].argmax(1)
        wanted = reward + discount * self.values(self.target, next_features)[-1][rows, best]
        values = self.values(self.online, features)
        td_errors = wanted - values[-1][rows, action]
        slope = np.zeros_like(values[-1])
        slope[rows, action] = -weights * td_errors.clip(-1.0, 1.0) / np.float32(len(action))
        parts = []
        for layer, (inner, _) in reversed(list(enumerate(self.layers(self.online)))):
            parts = [(values[layer].T @ slope).ravel(), slope.sum(axis=0), *parts]
            slope = (slope @ inner.T) * (values[layer] > 0.0)
        gradient = np.concatenate(parts)
        self.steps += 1
        self.mean += 0.1 * (gradient - self.mean)
        self.square += 0.001 * (gradient**2 - self.square)
        rate = self.learning_rate * (1.0 - 0.999**self.steps) ** 0.5 / (1.0 - 0.9**self.steps)
        self.online -= np.float32(rate) * self.mean / (np.sqrt(self.square) + np.float32(1e-8))
        self.target += np.float32(0.02) * (self.online - self.target)
        return td_errors


@pytest.mark.parametrize("hidden", [(32,), (16, 16)])
def test_the_compiled_learner_is_the_plain_one(hidden):
    """TD errors and both networks match those of separate NumPy calls over a hundred updates."""
    rng = np.random.default_rng(0)
    network = Network((4, *hidden, 3), rng)
    target, optimizer, plain = network.copy(), Adam(network, 1e-3), PlainLearner(network, 1e-3)

    class Batch:
        reward, discount = rng.normal(size=64).astype(np.float32), np.full(64, 0.9, np.float32)

    for _ in range(100):
        features, next_features = rng.normal(size=(2, 64, 4)).astype(np.float32)
        action, weights = rng.integers(3, size=64), rng.uniform(0.1, 1.0, 64).astype(np.float32)
        wanted = targets(network, target, Batch, next_features, True)
        td_errors = learn(optimizer, features, action, wanted, weights, True)
        target.approach(network, 0.02)
        expected = plain.step(features, action, Batch.reward, Batch.discount, next_features, weights)
        np.testing.assert_allclose(td_errors, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(network.parameters, plain.online, atol=1e-4)
    np.testing.assert_allclose(target.parameters, plain.target, atol=1e-4)
    np.testing.assert_allclose(network(features[0]), plain.values(plain.online, features[0])[-1], atol=1e-4)
    assert np.abs(network.parameters - target.parameters).max() > 1e-3


# -- Runs ----------------------------------------------------------------------------------------------------


def tiny(protocol="sound", env="CartPole-v1", replay="uniform", seed=0, **changes):
    """The settings of a very short run."""
    short = {"hidden": (8,), "batch_size": 8, "learning_starts": 16, "snapshots": 2, "greedy_episodes": 1}
    short |= {"steps": 120, "episodes": None} if protocol == "sound" else {"episodes": 4}
    settings = replace(PROTOCOLS[protocol][env], **(short | changes))
    return Run(protocol=protocol, replay=replay, seed=seed, settings=settings)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_replay_of_every_task_trains(protocol):
    """Each run has a row for each episode and each snapshot. Every number is finite where it can be."""
    for env in PROTOCOLS[protocol]:
        limit = {"time_limit": 30}
        for name in replays_for(protocol, env):
            result = train(tiny(protocol, env, name, **limit))
            assert len(result.snapshots) == 2 and len(result.episodes) >= 2
            assert all(np.isfinite(list(row.values())).all() for row in result.snapshots[1:]), (env, name)
    assert ("hindsight" in replays_for(protocol, "MountainCar-v0")) and "hindsight" not in replays_for(
        protocol, "Acrobot-v1"
    )


def test_measuring_changes_nothing():
    """Training is the same, bit for bit, whether or not batches are measured and greedy episodes are played."""
    for name in ("uniform", "prioritized", "dealt"):
        measured, alone = train(tiny(replay=name)), train(tiny(replay=name, snapshots=0))
        assert measured.episodes == alone.episodes and not alone.snapshots


def test_all_replays_see_the_same_luck():
    """While nothing is learned, the runs of a seed are the same with every replay, and another seed differs."""
    runs = [train(tiny(replay=name, learning_starts=1_000)) for name in ("none", "uniform", "blocks-8")]
    returns = [[row["return"] for row in run.episodes] for run in runs]
    assert returns[0] == returns[1] == returns[2]
    assert train(tiny(seed=1, learning_starts=1_000)).episodes != runs[0].episodes


@pytest.mark.parametrize(("protocol", "terminated", "reward"), [("sound", False, -1.0), ("original", True, -10.0)])
def test_what_a_time_limit_is_depends_on_the_protocol(protocol, terminated, reward):
    """The sound protocol bootstraps at time limits. The original protocol treats them as the end of the task."""
    changes = {"time_limit": 20, "steps": 20} if protocol == "sound" else {"time_limit": 20, "episodes": 1}
    agent = Agent(tiny(protocol, "MountainCar-v0", **changes))
    agent.train()
    stored = everything(agent.replay)
    assert stored.terminated.tolist() == [False] * 19 + [terminated]
    assert stored.truncated.tolist() == [False] * 19 + [not terminated]
    assert stored.reward.tolist() == [-1.0] * 19 + [reward]
    assert stored.discount[-1] == (0.0 if terminated else np.float32(0.99))


def test_the_original_protocol_has_the_td_errors_of_insertion_for_good():
    """In the original protocol, priorities and statistics always use the TD errors from the time of insertion."""
    agent = Agent(tiny("original", replay="prioritized"))
    errors = []
    find = agent._error
    agent._error = lambda *step: errors.append(find(*step)) or errors[-1]
    agent.train()
    stored = everything(agent.replay)
    np.testing.assert_allclose(stored.insertion_error, errors, rtol=1e-6)
    scaled = (np.abs(errors) + 0.01) ** 0.6
    np.testing.assert_allclose(agent.replay.probability(stored.indices), scaled / scaled.sum())
    assert np.isin(agent.last_batch[1], stored.insertion_error).all()


def test_statistics_of_a_batch_are_those_of_the_original_study():
    """They match its formulas: absolute errors, and pairs of states with a correlation above 0.8."""
    rng = np.random.default_rng(0)
    states, errors = rng.normal(size=(64, 4)), rng.normal(size=64)
    found, sizes = of_batch(states, errors), np.abs(errors)
    correlations = np.abs(np.corrcoef(states))
    count = sum(correlations[i, j] > 0.8 for i in range(64) for j in range(i))
    assert found["correlation_count"] == count
    expected = [sizes.mean(), np.median(sizes), sizes.max(), sizes.std()]
    assert [found[f"td_{name}"] for name in ("mean", "median", "max", "std")] == pytest.approx(expected)


def test_measures_tell_what_the_samplers_do():
    """On a slow drift, runs raise the design effect only, windows change the age, and priorities the TD lift."""
    settings = replace(PROTOCOLS["sound"]["CartPole-v1"], capacity=2_000)
    env = make_env(settings)
    agent = Agent(tiny())
    found = {}
    for name in ("uniform", "blocks-8", "newest-16th", "none", "prioritized", "dealt"):
        replay = make_replay(name, settings, env, 0)
        walk = np.cumsum(np.random.default_rng(1).normal(size=(1_601, 4)), axis=0).astype(np.float32)
        rewards = np.where(np.arange(1_600) % 5, 0.0, 20.0)
        nothing = np.zeros(1_600, bool)
        indices = replay.extend(
            walk[:-1] / 40, nothing * 1, rewards, walk[1:] / 40, nothing, nothing, insertion_error=rewards
        )
        replay.update_priorities(indices, rewards + np.random.default_rng(2).normal(size=1_600) / 10)
        state = replay.rng.bit_generator.state
        found[name] = of_replay(replay, agent.network, agent.target, settings)
        assert replay.rng.bit_generator.state == state
    assert found["uniform"]["design_effect"] == pytest.approx(1.0, abs=0.25)
    assert found["blocks-8"]["design_effect"] == pytest.approx(8.0, rel=0.25)
    assert found["blocks-8"]["relative_age"] == pytest.approx(1.0, abs=0.05)
    assert found["newest-16th"]["relative_age"] == pytest.approx(1 / 16, rel=0.05)
    assert found["newest-16th"]["design_effect"] == pytest.approx(1.0, abs=0.25)
    assert found["none"]["design_effect"] == 0.0 and found["none"]["variance_share"] == pytest.approx(0.0, abs=1e-6)
    assert found["prioritized"]["td_lift"] > 3.0 and found["dealt"]["td_lift"] == pytest.approx(1.0, abs=0.4)
    assert found["dealt"]["perplexity_share"] == pytest.approx(found["prioritized"]["perplexity_share"])


def test_a_discounted_return():
    """The discounted return of 1, 2, 4 with discount 0.5 is 1 + 0.5 x 2 + 0.25 x 4."""
    assert discounted([1.0, 2.0, 4.0], 0.5) == 3.0


# -- Results that keep ---------------------------------------------------------------------------------------


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_interrupted_and_resumed_is_the_same_as_run_through(tmp_path, monkeypatch):
    """An interrupted and resumed study gives the same bytes as an uninterrupted one, and repeats no run."""
    runs = [tiny(replay=name, seed=seed) for seed in (0, 1) for name in ("uniform", "prioritized")]
    through, broken = plan.Store(tmp_path / "through"), plan.Store(tmp_path / "broken")
    seconds = {"CartPole-v1": 1.0}
    plan.execute(runs, through, 1, seconds)

    done = []

    def interrupted(run):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(run)
        return train(run)

    monkeypatch.setattr(plan, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        plan.execute(runs, broken, 1, seconds)
    assert done == runs[:2] and plan.missing(runs, broken) == runs[2:]
    monkeypatch.setattr(plan, "train", train)
    plan.execute(plan.missing(runs, broken), broken, 1, seconds)
    assert contents(tmp_path / "broken") == contents(tmp_path / "through")
    assert not plan.missing(runs, broken)


def test_processes_give_the_same_results(tmp_path):
    """The number of processes does not change the results."""
    runs = [tiny(replay=name) for name in ("dealt", "none", "uniform")]
    alone, beside = plan.Store(tmp_path / "alone"), plan.Store(tmp_path / "beside")
    plan.execute(runs, alone, 1, {"CartPole-v1": 1.0})
    plan.execute(runs, beside, 2, {"CartPole-v1": 1.0})
    assert contents(tmp_path / "alone") == contents(tmp_path / "beside")


def test_a_damaged_or_foreign_result_is_missing(tmp_path):
    """A damaged file, or one of another configuration, does not count as a result."""
    run, store = tiny(), plan.Store(tmp_path)
    store.write(run, train(run))
    text = store.path(run).read_text()
    assert store.read(run) == train(run)
    for damaged in ("", text[: len(text) // 2], "[]", text.replace('"seed": 0', '"seed": 1')):
        store.path(run).write_text(damaged)
        assert store.read(run) is None
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


@pytest.mark.parametrize("change", [{"learning_rate": 2e-3}, {"gamma": 0.98}, {"steps": 121}, {"loss": "squared"}])
def test_other_settings_are_other_results(tmp_path, change):
    """Results of different settings have different names, so they are never mixed."""
    run, store = tiny(), plan.Store(tmp_path)
    other = replace(run, settings=replace(run.settings, **change))
    store.write(run, train(run))
    assert store.path(run) != store.path(other) and store.read(other) is None


def test_the_plan_has_whole_seeds_first():
    """Runs are ordered by seed, so that an interrupted study can still be compared."""
    runs = plan.plan("sound", ["CartPole-v1", "MountainCar-v0"], 3, 0.5)
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    assert len(runs) == len(set(runs)) == 3 * (9 + 10)
    assert {run.settings.steps for run in runs} == {7_500, 15_000}
    assert plan.plan("original", ["Acrobot-v1"], 2, 0.1)[0].settings.episodes == 30
    fresh = plan.plan("sound", ["CartPole-v1", "MountainCar-v0"], 3, 0.5, first=100)
    assert [replace(run, seed=run.seed - 100) for run in fresh] == runs


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--protocol", "modern"], "invalid choice: 'modern'"),
        (["--envs", "CartPole-v1", "Pong-v5"], "invalid choice: 'Pong-v5'"),
        (["--seeds", "1"], "1 is too small; expected at least 2"),
        (["--seeds", "many"], "'many' is not an integer"),
        (["--length", "0"], "--length is 0; expected a positive number"),
        (["--length", "1.5"], "1.5 is not between 0 and 1"),
        (["--jobs", "0"], "0 is too small"),
        (["--output", __file__], "argument --output: "),
        (["--protocl", "sound"], "unrecognized arguments"),
    ],
)
def test_bad_options_are_refused_by_name(words, message, monkeypatch, capsys):
    """Invalid options raise an error with their name before anything is run."""
    monkeypatch.setattr(sys, "argv", ["study.py", *words])
    with pytest.raises(SystemExit, match="2"):
        study.parse_arguments()
    assert message in capsys.readouterr().err


# -- The whole ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_whole_study_ends_in_tables_figures_and_a_report(protocol, tmp_path, capsys):
    """A study of a few tiny runs writes all its files."""
    runs, envs = [], list(PROTOCOLS[protocol])[:: 2 if protocol == "sound" else 3]
    for seed in (0, 1):
        for env in envs:
            names = replays_for(protocol, env)
            runs += [tiny(protocol, env, name, seed, time_limit=12) for name in names]
    store = plan.Store(tmp_path / "results")
    plan.execute(runs, store, 1, dict.fromkeys(envs, 1.0))
    study.write_results(runs, store, tmp_path, tmp_path)
    report = (tmp_path / "report.txt").read_text()
    assert report in capsys.readouterr().out
    assert ("H over all tasks is" in report) == (protocol == "sound")
    assert ("flaws" in report) == (protocol == "original")
    rows = analysis.read_csv(tmp_path / "runs.csv.gz")
    assert len(rows) == len(runs)
    assert len(analysis.read_csv(tmp_path / "snapshots.csv.gz")) == 2 * len(runs)
    summary = json.loads((tmp_path / "summary.json").read_text())
    again = json.loads(json.dumps(analysis._without_nan(analysis.summarise(rows))))
    assert again["seeds"] == summary["seeds"] == 2 and again["tasks"].keys() == summary["tasks"].keys()
    pictures = {"returns", "values", "measures"} | ({"factors", "effects"} if protocol == "sound" else set())
    pages = {f"study-{protocol}-{name}" for name in pictures}
    assert {path.stem for path in tmp_path.glob("*.png")} == pictures | pages
    assert f"{len(runs)} runs." in (tmp_path / f"study-{protocol}-verdict.txt").read_text()


def test_every_replay_has_a_label_and_a_style():
    """Figures and tables can name every replay."""
    assert set(REPLAYS) == set(figures.STYLES)
    assert len({choice.label for choice in REPLAYS.values()}) == len(REPLAYS)
