"""Rewards of shape (k,), compared with sums of each of the k numbers, and invalid rewards."""

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode

from replaykit import (
    CombinedReplay,
    Field,
    HindsightReplay,
    LargeBatchReplay,
    LatestBuffer,
    MixedReplay,
    PrioritizedBuffer,
    RecentReplay,
    ReplayBuffer,
    SequenceReplay,
    Spec,
    load,
    record,
)
from replaykit.io import from_npz, to_npz
from replaykit.testing import assert_lawful, bits_of
from tests.helpers import unchanged

K, N, GAMMA = 3, 3, 0.5


OBS = Field((2,))


def spec_of(dtype="float32", obs=OBS, k=K):
    return Spec(obs=obs, action=Field(()), reward=Field((k,), dtype))


def steps(count, lanes=1, k=K, obs=(2,)):
    """Steps in which all reward numbers differ. Every fifth step ends an episode."""
    lead = (count, lanes) if lanes > 1 else (count,)
    rewards = np.random.default_rng(0).normal(size=(*lead, k))
    ends = (np.arange(count) % 5 == 4).reshape(count, *(1,) * (len(lead) - 1)).repeat(lanes, axis=-1).reshape(lead)
    zeros = np.zeros((*lead, *obs))
    return zeros, np.zeros(lead), rewards, zeros, ends, np.zeros(lead, bool)


def assert_returns(replay, indices, found):
    """Each number of the return is the discounted sum of that number over the steps of the window."""
    stored, stride = set(replay.stored().tolist()), replay.successor
    dtype = replay.spec["reward"].dtype
    for row, index in enumerate(indices.tolist()):
        window = [index]
        while len(window) < N and not replay.read(window[-1:], "terminated")[0] and window[-1] + stride in stored:
            window.append(window[-1] + stride)
        rewards = replay.read(window, "reward").astype(np.float64)
        expected = [sum(GAMMA**j * float(r) for j, r in enumerate(rewards[:, c])) for c in range(rewards.shape[1])]
        np.testing.assert_allclose(found[row], np.array(expected, dtype), rtol=1e-6)
    assert found.dtype == dtype


def by_size(batch):
    return np.abs(batch.reward).sum(axis=1) + 0.1


WITH = {
    "uniform": lambda *a, **o: ReplayBuffer(*a, **o),
    "prioritized": lambda *a, **o: PrioritizedBuffer(*a, **o),
    "rank": lambda *a, **o: PrioritizedBuffer(*a, variant="rank", **o),
    "latest": lambda *a, **o: LatestBuffer(*a, **o),
    "combined": lambda *a, **o: CombinedReplay(PrioritizedBuffer(*a, **o), 3),
    "recent": lambda *a, **o: RecentReplay(ReplayBuffer(*a, **o), newest=9),
    "large": lambda *a, **o: LargeBatchReplay(ReplayBuffer(*a, **o), 3, priority_fn=by_size),
    "mixed": lambda *a, **o: MixedReplay(
        {"one": ReplayBuffer(*a, **o | {"seed": 7}), "two": PrioritizedBuffer(*a, **o | {"seed": 8})},
        shares={"one": 0.0, "two": 1.0}, add_to="two",
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("kind", WITH)
def test_rewards_are_summed_one_by_one(kind, lanes, dtype):
    """In every kind of replay, each number is summed separately. Other fields are those of a scalar reward."""
    replay = WITH[kind](30, spec_of(dtype), num_envs=lanes, n_step=N, gamma=GAMMA, seed=0)
    replay.extend(*steps(17, lanes))
    replay.add(*(values[0] for values in steps(1, lanes)))
    batch = assert_lawful(replay, 24)
    assert batch.reward.shape == (24, K)
    assert_returns(replay, batch.indices, batch.reward)
    for name in ("discount", "length", "terminated", "truncated"):
        assert batch[name].shape == (24,)
    assert replay.fetch(batch.indices)["reward"].tobytes() == batch.reward.tobytes()


@pytest.mark.parametrize("lanes", [1, 3])
def test_the_first_of_several_rewards_is_that_of_a_scalar_bit_for_bit(lanes):
    """Each of k numbers, and all other fields, are those of a buffer with a scalar reward."""
    given = steps(40, lanes)
    several = ReplayBuffer(60, spec_of(), num_envs=lanes, n_step=N, gamma=GAMMA, seed=0)
    several.extend(*given)
    batches = [several.sample(32)]
    for c in range(K):
        one = ReplayBuffer(60, Spec(obs=Field((2,)), action=Field(())), num_envs=lanes, n_step=N, gamma=GAMMA, seed=0)
        one.extend(*given[:2], given[2][..., c], *given[3:])
        batches.append(one.sample(32))
        assert batches[-1].reward.tobytes() == batches[0].reward[:, c].tobytes()
        others = [{name: bits for name, bits in bits_of(batch).items() if name != "reward"} for batch in batches]
        assert others[-1] == others[0]


def test_sequences_have_them_at_each_step():
    """Sequences have rewards of shape (B, T, k), with zeros past the end."""
    replay = SequenceReplay(ReplayBuffer(30, spec_of(), n_step=N, gamma=GAMMA, seed=0), 4)
    replay.extend(*steps(23))
    batch = assert_lawful(replay, 9)
    assert batch.reward.shape == (9, 4, K)
    assert_returns(replay, batch.step_indices[batch.mask], batch.reward[batch.mask])
    assert not batch.reward[~batch.mask].any()


def test_with_stacks_of_frames_and_a_mask():
    """They work with stacks of frames, masks, single steps, lists, and batches of one."""
    options = {"num_envs": 2, "n_step": N, "gamma": GAMMA, "stack": 2, "seed": 0}
    replay = PrioritizedBuffer(20, spec_of(obs=Field((5, 4), "uint8")), **options)
    frames, actions, rewards, _, ends, no = steps(20, 2, obs=(5, 4))
    frames = frames.astype(np.uint8)
    for t in range(20):
        mask = [True, t % 3 > 0]
        reward = [rewards[t, 0].tolist(), [np.nan] * K if t % 3 == 0 else rewards[t, 1].tolist()]
        replay.add(frames[t], actions[t], reward, frames[t], ends[t], no[t], mask=mask, td_error=[1.0, 2.0])
    batch = assert_lawful(replay, 16)
    assert_returns(replay, batch.indices, batch.reward)


@pytest.mark.parametrize("k", [1, 2, 300])
def test_any_number_of_them(k):
    """A reward can have any number of entries, also with a leading axis of length 1."""
    replay = ReplayBuffer(10, spec_of(k=k), n_step=N, gamma=GAMMA, seed=0)
    for t in range(12):
        one = [values[t] for values in steps(12, k=k)]
        replay.add(*(one if t % 2 else [np.asarray(value)[None] for value in one]))
    batch = assert_lawful(replay, 20)
    assert_returns(replay, batch.indices, batch.reward)


def test_integers_and_overwriting():
    """Integers are converted as for a scalar, and overwritten rewards are summed."""
    replay = ReplayBuffer(10, spec_of(), n_step=N, gamma=GAMMA, seed=0)
    for t in range(6):
        replay.add([0, 0], 0, np.array([t, 2 * t, 3 * t]), [0, 0], False, False)
    assert replay.overwrite([2, 3], reward=[[7.0, 8.0, 9.0], [1.0, 1.0, 1.0]]) == 2
    assert replay.fetch(np.array([2]))["reward"].tolist() == [[7 + 0.5 + 1, 8 + 0.5 + 2, 9 + 0.5 + 3]]
    with unchanged(replay, ValueError, "reward contains inf; expected finite"):
        replay.overwrite([2], reward=[[1.0, np.inf, 0.0]])
    with unchanged(replay, ValueError, r"reward has shape \(1,\); expected \(1, 3\)"):
        replay.overwrite([2], reward=[1.0])


def test_saving_and_files_of_arrays(tmp_path):
    """A checkpoint continues bit for bit, and a file of arrays is read with its spec."""
    replay = PrioritizedBuffer(30, spec_of("float64"), n_step=N, gamma=GAMMA, seed=0)
    replay.extend(*steps(23))
    replay.save(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.spec == replay.spec
    assert bits_of(again.sample(9)) == bits_of(replay.sample(9))
    with pytest.raises(ValueError, match="reward"):
        PrioritizedBuffer(30, spec_of("float64", k=2), n_step=N, gamma=GAMMA).load(tmp_path / "saved")
    to_npz(replay, tmp_path / "steps.npz")
    back = from_npz(tmp_path / "steps.npz")
    assert back.spec["reward"] == Field((K,), "float64")
    np.testing.assert_array_equal(back.read(back.stored(), "reward"), replay.read(replay.stored(), "reward"))


def test_a_spec_of_an_example_has_its_shape():
    """An example gives the shape of the reward, and the repr shows it."""
    spec = Spec.from_example({"obs": 0.0, "action": 0, "reward": np.zeros(2)})
    assert repr(spec) == "Spec(obs=Field((), float32), action=Field((), int64), reward=Field((2,), float64))"
    assert Spec.from_example({"obs": 0.0, "action": 0, "reward": 1.0})["reward"] == Field(())


@pytest.mark.parametrize("field", [Field((2, 2)), Field((0,)), Field((2,), "int64"), Field((2,), step="last"), 3])
def test_other_fields_of_a_reward_are_refused(field):
    """A reward must have at most one axis, which is not empty, and be float32 or float64."""
    with pytest.raises(ValueError, match=r"reward is .*; expected Field\(\(\), 'float32'\).*the shape \(k,\)"):
        Spec(obs=Field(()), action=Field(()), reward=field)


def test_wrong_rewards_are_refused():
    """An invalid reward raises an error with its name and the expected shape. Nothing changes."""
    replay = ReplayBuffer(20, spec_of(), num_envs=2, seed=0)
    given = [list(values) for values in zip(*steps(8, 2), strict=True)]
    replay.extend(*steps(4, 2))
    for reward, error, match in (
        ([1.0, 2.0], ValueError, r"reward has shape \(2,\); expected \(2, 3\)"),
        (np.zeros((2, 2)), ValueError, r"reward has shape \(2, 2\); expected \(2, 3\)"),
        (np.zeros((2, 3, 1)), ValueError, r"reward has shape \(2, 3, 1\); expected \(2, 3\)"),
        ([[0.0, 0.0, 0.0], [0.0, 0.0, np.nan]], ValueError, "reward contains nan; expected finite"),
        (np.full((2, 3), 1e300), OverflowError, r"reward contains 1e\+300"),
    ):
        with unchanged(replay, error, match):
            replay.add(*given[0][:2], reward, *given[0][3:])
    values = steps(3, 2)
    with unchanged(replay, ValueError, r"reward has shape \(3, 2\); expected \(3, 2, 3\)"):
        replay.extend(*values[:2], values[2][..., 0], *values[3:])
    single = ReplayBuffer(20, spec_of(), seed=0)
    with unchanged(single, ValueError, r"reward has shape \(\); expected \(3,\)"):
        single.add([0, 0], 0, 1.0, [0, 0], False, False)
    values[2][1, 1, 2] = np.inf
    with unchanged(replay, ValueError, "reward contains inf; expected finite"):
        replay.extend(*values)


def test_as_tensors():
    """With columns, only scalar rewards get a second axis. TorchRL gets the k rewards unchanged."""
    pytest.importorskip("torch")
    replay = ReplayBuffer(20, spec_of(), n_step=N, seed=0)
    replay.extend(*steps(20))
    tensors = replay.sample(6).to_torch(column=True)
    assert tuple(tensors.reward.shape) == (6, K)
    assert tuple(tensors.discount.shape) == (6, 1)
    pytest.importorskip("tensordict")
    assert tuple(replay.sample(6).to_tensordict()["next", "reward"].shape) == (6, K)


class Team(gymnasium.vector.VectorEnv):
    """Two copies of a game with three agents. The reward of agent k in lane e is 100 t + 10 e + k."""

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012
    num_envs = 2
    single_observation_space, single_action_space = Box(-1, 1, (2,)), Discrete(2)
    observation_space, action_space = Box(-1, 1, (2, 2)), gymnasium.spaces.MultiDiscrete([2, 2])

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return np.zeros((2, 2), np.float32), {}

    def step(self, actions):
        self.time += 1
        rewards = 100.0 * self.time + 10.0 * np.arange(2)[:, None] + np.arange(3)
        ends = np.full(2, self.time % 4 == 3)
        return np.zeros((2, 2), np.float32), rewards, ends, np.zeros(2, bool), {}


def test_a_vector_environment_is_recorded():
    """A vector environment with rewards of shape (E, k) can be recorded."""
    replay = ReplayBuffer(20, Spec.from_env(Team(), reward=Field((3,))), num_envs=2, n_step=1, seed=0)
    env = record(Team(), replay)
    env.reset()
    for _ in range(7):
        env.step(np.zeros(2, int))
    times = np.array([1, 2, 3, 5, 6, 7])  # the fourth step of each only resets
    expected = 100.0 * times[:, None, None] + 10.0 * np.arange(2)[:, None] + np.arange(3)
    np.testing.assert_array_equal(replay.read(np.arange(12), "reward"), expected.reshape(12, 3))
    scalar = record(Team(), ReplayBuffer(20, Spec.from_env(Team()), num_envs=2))
    scalar.reset()
    with pytest.raises(ValueError, match=r"reward has shape \(2, 3\); expected \(2,\)"):
        scalar.step(np.zeros(2, int))


GOALS = Spec(
    obs={"achieved_goal": Field((1,)), "desired_goal": Field((1,))}, action=Field(()), reward=Field((2,), "float64")
)


def distances(achieved_goal, desired_goal, info):
    return np.concatenate([achieved_goal - desired_goal, 2.0 * (achieved_goal == desired_goal)], axis=1)


def walk(reward_fn=distances, **options):
    """Steps along a line to a goal at 99."""
    replay = ReplayBuffer(20, GOALS, n_step=2, gamma=GAMMA, seed=0)
    replay = HindsightReplay(replay, reward_fn, strategy="final", ratio=1.0, **options)
    for x in range(6):
        obs, next_obs = ({"achieved_goal": [y], "desired_goal": [99.0]} for y in (x, x + 1))
        replay.add(obs, 0, [x - 98.0, 0.0], next_obs, False, x == 5)
    return replay


def test_hindsight_gives_several_rewards():
    """`reward_fn` returns shape (M, k). A shortened window sums only its remaining steps."""
    assert_lawful(walk(), 9)
    fields = walk().fetch(np.arange(6))
    np.testing.assert_array_equal(fields["reward"][:, 0], [-5 - 2, -4 - 1.5, -3 - 1, -2 - 0.5, -1, 0])
    np.testing.assert_array_equal(fields["reward"][:, 1], [0, 0, 0, 0, 0 + 1, 2])

    def at_four(achieved_goal, desired_goal, info):
        return achieved_goal[:, 0] == 4

    fields = walk(terminated_fn=at_four).fetch(np.arange(6))
    np.testing.assert_array_equal(fields["reward"][:, 0], [-5 - 2, -4 - 1.5, -3 - 1, -2, -1, 0])
    np.testing.assert_array_equal(fields["length"], [2, 2, 2, 1, 2, 1])


@pytest.mark.parametrize(
    ("reward_fn", "match"),
    [
        (lambda a, d, i: a[:, 0], r"returned shape \((\d+),\); expected \(\1, 2\), 2 numbers for each row"),
        (lambda a, d, i: np.zeros((len(a), 3)), r"returned shape \((\d+), 3\); expected \(\1, 2\)"),
        (lambda a, d, i: np.where(a > 3, np.nan, np.ones(2)), "returned nan; expected finite float64"),
    ],
)
def test_wrong_rewards_of_hindsight_are_refused(reward_fn, match):
    """An invalid shape or number raises an error, and the next batch is the same as without it."""
    replay = walk(reward_fn)
    state = replay.rng.bit_generator.state
    with pytest.raises(ValueError, match=match):
        replay.sample(20)
    assert replay.rng.bit_generator.state == state
