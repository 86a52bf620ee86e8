"""The study: its samplers' probabilities, its learner's gradient, its statistics, and that results keep."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gymnasium")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))  # as when its script is run

from replay_study.learner import Adam, Network, learn, targets  # noqa: E402
from replay_study.samplers import BlockReplay, DealtReplay, RecentReplay  # noqa: E402

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
    """Over every possible start, each stored transition is equally often in a batch, at the seam too."""
    replay = BlockReplay(fill(ReplayBuffer(20, SPEC, seed=0), steps), length)
    size, batch_size = len(replay), length

    class Starts:
        def __init__(self, start):
            self.start = start

        def integers(self, high, size):
            assert high == len(replay)
            return np.full(size, self.start)

    counts = dict.fromkeys(replay.latest(size).tolist(), 0)
    for start in range(size):
        replay._storage.rng, kept = Starts(start), replay._storage.rng
        draw = replay.draw(batch_size)
        replay._storage.rng = kept
        assert np.isin(np.diff(draw.indices), (1, 1 - size)).all()
        for index in draw.indices.tolist():
            counts[index] += 1
    assert set(counts.values()) == {length}
    np.testing.assert_array_equal(draw.probabilities, replay.probability(draw.indices))
    assert replay.probability(replay.latest(size)).sum() == pytest.approx(1.0)
    assert_lawful(replay, 10)


def test_runs_of_blocks_are_independent_of_each_other_only():
    """A batch of 64 in runs of 8 has 8 starts; the last run is shorter where 8 does not divide the batch."""
    replay = BlockReplay(fill(ReplayBuffer(1000, SPEC, seed=0), 1000), 8)
    steps = np.diff(replay.sample(60).indices)
    assert (np.delete(steps, np.arange(7, 59, 8)) % 1000 == 1).all()
    assert (steps[7::8] != 1).any()


def test_a_recency_window_is_the_newest_share():
    """A quarter of 30 is the newest 8, each an eighth; nothing else has a probability."""
    replay = RecentReplay(fill(ReplayBuffer(30, SPEC, seed=0), 45), 0.25)
    probabilities = replay.probability(np.arange(15, 45))
    np.testing.assert_array_equal(probabilities, np.where(np.arange(15, 45) >= 37, 1 / 8, 0.0))
    drawn = np.unique(replay.sample(500).indices)
    np.testing.assert_array_equal(drawn, np.arange(37, 45))
    assert_lawful(replay, 10)


@pytest.mark.parametrize("steps", [4, 10, 23, 57])
def test_dealt_probabilities_are_those_of_prioritized_replay_in_another_order(steps):
    """What is drawn in a place is what the place's probability says, also once receivers have been overwritten."""
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
    """Between two deals nothing changes hands, and a transition that came since has its own, largest, priority."""
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
        (lambda inner: RecentReplay(inner, 0.0), "share is 0.0; expected more than 0"),
        (lambda inner: RecentReplay(inner, 1.5), "share is 1.5; expected more than 0 and at most 1"),
    ],
)
def test_samplers_refuse_what_they_cannot_do(make, message):
    """With an error that names the argument and what was expected."""
    with pytest.raises(ValueError, match=message):
        make(ReplayBuffer(10, SPEC))


@pytest.mark.parametrize("make", [lambda inner: BlockReplay(inner, 4), DealtReplay])
def test_samplers_of_one_stream_refuse_lanes(make):
    """Consecutive steps are of one environment."""
    with pytest.raises(ValueError, match="num_envs=2; expected 1"):
        make(ReplayBuffer(10, SPEC, num_envs=2))


# -- Learner -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("huber", [True, False])
@pytest.mark.parametrize("hidden", [(7,), (6, 5)])
def test_the_gradient_is_that_of_the_weighted_loss(huber, hidden):
    """Against differences of the loss, written anew in double precision."""
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


def test_adam_steps_as_torch_does():
    """The same parameters after a few steps on the same gradients."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    network = Network((2, 3, 2), rng)
    twin = torch.tensor(network.parameters.copy(), requires_grad=True)
    ours, theirs = Adam(network, 0.01), torch.optim.Adam([twin], lr=0.01)
    for _ in range(5):
        gradient = rng.normal(size=network.parameters.size).astype(np.float32)
        ours.step(gradient)
        twin.grad = torch.tensor(gradient)
        theirs.step()
    np.testing.assert_allclose(network.parameters, twin.detach().numpy(), atol=1e-5)


def test_a_double_target_rates_the_online_choice():
    """The online network chooses, the target network rates; without double the target network does both."""
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
