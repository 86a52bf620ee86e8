"""The buffers for Stable-Baselines3 sample like its own buffers, and its algorithms learn the same from them."""

import copy
import io
import os
import pickle
import signal
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from replaykit import CombinedReplay, LatestBuffer, LinearSchedule, PrioritizedBuffer

sb3 = pytest.importorskip("stable_baselines3")
torch = pytest.importorskip("torch")

from stable_baselines3.common import buffers  # noqa: E402
from stable_baselines3.common.env_util import make_vec_env  # noqa: E402
from stable_baselines3.common.envs import BitFlippingEnv  # noqa: E402
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize  # noqa: E402
from stable_baselines3.her import GoalSelectionStrategy  # noqa: E402

from replaykit.integrations.sb3 import (  # noqa: E402
    PrioritizedDQN,
    PrioritizedSAC,
    PrioritizedTD3,
    SB3HindsightBuffer,
    SB3ReplayBuffer,
    save_replay_buffer,
    saving,
)
from replaykit.integrations.sb3.prioritized import WeightedLoss  # noqa: E402

BOX, ACTION = spaces.Box(-9.0, 9.0, (3,)), spaces.Box(-1.0, 1.0, (2,))


def tiny():
    """New options of a small model for each call, because models change `policy_kwargs`."""
    options = {"learning_starts": 20, "buffer_size": 200, "batch_size": 16, "seed": 0}
    return options | {"policy_kwargs": {"net_arch": [8]}}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def steps_of(observation_space, action_space, count, envs=1, ends=()):
    """Steps as `OffPolicyAlgorithm` stores them. `ends` maps the last steps of episodes to whether time ran out."""
    observation_space.seed(0)
    action_space.seed(0)

    def drawn(space):
        if isinstance(space, spaces.Dict):
            return {key: drawn(entry) for key, entry in space.spaces.items()}
        return np.array([space.sample() for _ in range(envs)])

    obs, rng = drawn(observation_space), np.random.default_rng(0)
    for step in range(count):
        next_obs, kind = drawn(observation_space), dict(ends).get(step)
        infos = [{"TimeLimit.truncated": kind == "timeout"} for _ in range(envs)]
        action = drawn(action_space)
        yield obs, next_obs, action, rng.normal(size=envs).astype(np.float32), np.full(envs, kind is not None), infos
        obs = next_obs if kind is None else drawn(observation_space)


ENDS = ((4, "goal"), (9, "timeout"), (16, "goal"))
SPACES = [
    (BOX, ACTION),
    (spaces.Box(-9.0, 9.0, (2, 3), np.float64), spaces.Box(-1.0, 1.0, (2, 2), np.float64)),
    (spaces.Box(0, 255, (3, 4, 4), np.uint8), spaces.Discrete(3)),
    (spaces.Box(0, 100, (2,), np.uint16), spaces.MultiDiscrete([2, 3])),
    (spaces.Discrete(5), spaces.MultiBinary(3)),
    (spaces.MultiDiscrete([2, 3, 4]), spaces.Discrete(2)),
    (spaces.MultiBinary((2, 2)), ACTION),
    (spaces.Dict({"b": spaces.Box(0, 255, (4, 4), np.uint8), "a": BOX, "c": spaces.Discrete(3)}), ACTION),
]


def assert_same(found, expected):
    """Check that samples have equal tensors of the same kinds. Discounts are compared where they matter."""
    assert type(found) is type(expected)
    for name in ("observations", "actions", "next_observations", "dones", "rewards"):
        one, other = getattr(found, name), getattr(expected, name)
        for key in one if isinstance(one, dict) else [...]:
            assert one[key].dtype == other[key].dtype, name
            assert one[key].shape == other[key].shape, name
            assert torch.allclose(one[key].double(), other[key].double(), rtol=1e-6, atol=1e-6), name
    assert (found.discounts is None) == (expected.discounts is None)
    if found.discounts is not None:
        found_factor, factor = ((1 - samples.dones) * samples.discounts for samples in (found, expected))
        assert torch.allclose(found_factor, factor)


@pytest.mark.parametrize(("observation_space", "action_space"), SPACES, ids=lambda space: type(space).__name__)
@pytest.mark.parametrize("count", [7, 30])
def test_samples_are_those_of_sb3(observation_space, action_space, count):
    """Every step gives the same tensors, before and after the oldest steps are overwritten."""
    kind = buffers.DictReplayBuffer if isinstance(observation_space, spaces.Dict) else buffers.ReplayBuffer
    ours, theirs = (cls(20, observation_space, action_space, device="cpu") for cls in (SB3ReplayBuffer, kind))
    for step in steps_of(observation_space, action_space, count, ends=ENDS):
        for buffer in (ours, theirs):
            buffer.add(*copy.deepcopy(step))
    for name in ("pos", "full", "buffer_size", "obs_shape", "action_dim"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.size() == theirs.size()
    places = np.arange(min(count, 20))
    assert_same(ours._get_samples(places), theirs._get_samples(places))
    drawn = ours.sample(16)
    assert drawn.dones.shape == drawn.rewards.shape == (16, 1)


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("count", [7, 19, 30])
def test_n_step_and_normalized_samples_are_those_of_sb3(n_steps, normalized, count):
    """Windows end with their episode or the newest step, and each reward is normalized before the sum."""
    options = {"n_steps": n_steps, "gamma": 0.9} if n_steps > 1 else {}
    kind = buffers.NStepReplayBuffer if n_steps > 1 else buffers.ReplayBuffer
    ours, theirs = (cls(20, BOX, ACTION, device="cpu", **options) for cls in (SB3ReplayBuffer, kind))
    for step in steps_of(BOX, ACTION, count, ends=ENDS):
        for buffer in (ours, theirs):
            buffer.add(*copy.deepcopy(step))
    env = None
    if normalized:
        env = VecNormalize(make_vec_env("Pendulum-v1"), clip_reward=0.5)
        env.observation_space, env.obs_rms.mean, env.obs_rms.var = BOX, np.array([1.0, 2.0, 3.0]), np.full(3, 4.0)
        env.ret_rms.var = np.array(2.0)
    places = np.arange(min(count, 20))
    assert_same(ours._get_samples(places, env), theirs._get_samples(places, env))
    rows = ours.sample(32, env)
    assert torch.isin(rows.rewards, ours._get_samples(places, env).rewards).all()


def test_environments_keep_to_themselves():
    """Steps of all environments are drawn, and no n-step window crosses environments."""
    buffer = SB3ReplayBuffer(100, BOX, ACTION, device="cpu", n_envs=3, n_steps=2, gamma=0.5)
    lanes = np.arange(3)
    for step in range(50):
        obs, next_obs = (np.tile(100.0 * lanes[:, None] + number, 3) for number in (step, step + 1))
        done = np.array([step % 5 == 4, step % 7 == 6, False])
        buffer.add(obs, next_obs, np.zeros((3, 2)), 1.0 + lanes, done, [{}] * 3)
    assert buffer.buffer_size == 33 and buffer.full and buffer.replay.num_envs == 3
    samples = buffer.sample(4000)
    lane, step = np.divmod(samples.observations[:, 0].numpy(), 100)
    assert set(step) == set(range(17, 50)) and set(lane) == {0, 1, 2}
    ends = np.select([lane == 0, lane == 1], [step % 5 == 4, step % 7 == 6]) | (step == 49)
    length = np.where(ends, 1, 2)
    np.testing.assert_array_equal(samples.next_observations[:, 0], samples.observations[:, 0].numpy() + length)
    np.testing.assert_allclose(samples.rewards[:, 0], (1 + lane) * np.where(ends, 1.0, 1.5))


def test_time_limits_do_not_stop_the_bootstrap():
    """`dones` is 1 only where an episode terminated, also if another environment reaches its time limit."""
    buffer = SB3ReplayBuffer(10, BOX, ACTION, device="cpu", n_envs=3)
    infos = [{"TimeLimit.truncated": True}, {"TimeLimit.truncated": False}, {}]
    zeros = np.zeros((3, 3), np.float32)
    buffer.add(zeros, zeros, np.zeros((3, 2)), np.array([0.0, 1.0, 2.0]), np.array([True, True, False]), infos)
    samples = buffer.sample(50)
    np.testing.assert_array_equal(samples.dones, samples.rewards == 1.0)
    assert buffer.replay.read(buffer.replay.stored(), "truncated").tolist() == [True, False, False]


@pytest.mark.parametrize("reopen", [None, pickle, "directory"])
def test_windows_do_not_cross_a_reset(reopen, tmp_path):
    """An `obs` that differs from the previous `next_obs` begins an episode, also after saving and loading."""
    buffer = SB3ReplayBuffer(50, BOX, ACTION, device="cpu", n_envs=2, n_steps=3, gamma=0.9)

    def add(step, jump=0.0):
        obs = np.full((2, 3), step, np.float64)
        obs[1] += jump
        obs[0, 0] = np.nan
        next_obs = obs + 1
        buffer.add(obs, next_obs, np.zeros((2, 2)), np.ones(2), np.zeros(2, bool), [{}] * 2)

    for step in range(4):
        add(step)
    if reopen is pickle:
        buffer = pickle.loads(pickle.dumps(buffer))
    elif reopen:
        buffer.save(tmp_path)
        buffer = SB3ReplayBuffer(50, BOX, ACTION, device="cpu", n_envs=2, n_steps=3, gamma=0.9)
        add(3, jump=0.5)  # the next step would follow from this one
        buffer.load(tmp_path)
    add(4, jump=0.5)
    add(5, jump=0.5)
    _, first, last = buffer.replay.episode(buffer.replay.stored())
    assert first[:6].tolist() == [0] * 6 and last[:6].tolist() == [10] * 6
    assert first[6:].tolist() == [1] * 4 + [9] * 2


@pytest.mark.parametrize("jump", [0.0, 0.5])
def test_a_reset_is_recognized_while_another_episode_ends(jump):
    """A reset is recognized, even if the episode of another environment ends in the same step."""
    buffer = SB3ReplayBuffer(50, BOX, ACTION, device="cpu", n_envs=2, n_steps=2, gamma=0.9)
    for step in range(6):
        obs = np.full((2, 3), step, np.float32)
        obs[1] += jump * (step >= 3)
        obs[0] += 10 * (step >= 3)
        buffer.add(obs, obs + 1, np.zeros((2, 2)), np.ones(2), np.array([step == 2, False]), [{}] * 2)
    first = buffer.replay.episode(buffer.replay.stored())[1]
    assert first.tolist() == [0] * 3 + [6] * 3 + [1] * 3 + [7 if jump else 1] * 3


def test_states_are_pickled_and_saved_exactly(tmp_path):
    """After pickling or saving, the same batches follow."""
    options = {"n_steps": 3, "gamma": 0.9, "buffer_class": PrioritizedBuffer}
    buffer = SB3ReplayBuffer(40, BOX, ACTION, "cpu", 2, **options)
    for step in steps_of(BOX, ACTION, 30, 2, ENDS):
        buffer.add(*step)
    buffer.sample(8)
    buffer.update_priorities(np.arange(8.0))
    buffer.save(tmp_path)
    twins = [pickle.loads(pickle.dumps(buffer)), copy.deepcopy(buffer)]
    twins.append(SB3ReplayBuffer(40, BOX, ACTION, "cpu", 2, **options))
    twins[-1].load(tmp_path)
    expected = buffer.sample(20)
    for twin in twins:
        assert_same(twin.sample(20), expected)
        np.testing.assert_array_equal(twin.batch.indices, buffer.batch.indices)
    buffer.reset()
    assert buffer.size() == 0 and not buffer.full


# -- Saving ------------------------------------------------------------------------------------------------------


def stored_in_pieces(model, path):
    """The bytes that `save_replay_buffer` of Stable-Baselines3 writes to a file, one piece for each write."""
    pieces = []

    class Noted(io.BytesIO):
        def write(self, data):
            pieces.append(bytes(data))
            return super().write(data)

    sb3.common.off_policy_algorithm.OffPolicyAlgorithm.save_replay_buffer(model, Noted())
    assert b"".join(pieces) == path.read_bytes()
    return pieces


@pytest.fixture
def model(tmp_path):
    """A prioritized model whose buffer is saved in ``replay.pkl``, and which has learned since."""
    made = PrioritizedDQN("MlpPolicy", "CartPole-v1", **tiny()).learn(30)
    made.save_replay_buffer(tmp_path / "replay")
    return made


def assert_continues(path, model, expected):
    """Check that the buffer in a file returns these batches in order."""
    model = copy.copy(model)
    model.load_replay_buffer(path)
    for samples in expected:
        assert_same(model.replay_buffer.sample(16), samples)


@pytest.mark.parametrize("kind", [OSError, KeyboardInterrupt])
def test_an_interrupted_save_leaves_the_former_file(kind, model, tmp_path, monkeypatch):
    """If any write fails, the previous file is intact, and no other file is left."""
    path = tmp_path / "replay.pkl"
    former, count = [copy.deepcopy(model.replay_buffer).sample(16)], len(stored_in_pieces(model, path))
    model.learn(10)

    class Failing(io.FileIO):
        left = 0

        def write(self, data):
            self.left -= 1
            if self.left < 0:
                super().write(data[: len(data) // 2])
                raise kind("no space left")
            return super().write(data)

    for writes in range(count + 1):
        monkeypatch.setattr(Failing, "left", writes)
        with monkeypatch.context() as patched:
            patched.setattr(saving, "open", lambda name, mode: io.BufferedWriter(Failing(name, "xb"), 1), raising=False)
            if writes < count:
                with pytest.raises(kind, match="no space left"):
                    model.save_replay_buffer(path)
                assert_continues(path, model, former)
            else:
                model.save_replay_buffer(path)
        assert os.listdir(tmp_path) == ["replay.pkl"]
    twin = copy.deepcopy(model.replay_buffer)
    assert_continues(path, model, [twin.sample(16), twin.sample(16)])


def test_a_killed_save_leaves_the_former_file(model, tmp_path):
    """If a save is killed, the previous file is intact. The next save deletes the unfinished file."""
    path = tmp_path / "replay.pkl"
    former = [copy.deepcopy(model.replay_buffer).sample(16)]
    program = """
import os, signal, sys
import stable_baselines3
from replaykit.integrations.sb3 import SB3ReplayBuffer, save_replay_buffer
class Killing:
    def __reduce__(self):
        os.kill(os.getpid(), signal.SIGKILL)
path = sys.argv[1]
model = stable_baselines3.DQN("MlpPolicy", "CartPole-v1", buffer_size=1000, replay_buffer_class=SB3ReplayBuffer)
model.replay_buffer = [bytes(1 << 20), Killing()]
save_replay_buffer(model, path)
"""
    result = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert result.returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 2
    assert_continues(path, model, former)
    save_replay_buffer(model, str(path))
    assert os.listdir(tmp_path) == ["replay.pkl"]


def test_a_damaged_file_is_refused(model, tmp_path):
    """A file that is cut or has a flipped bit raises an error or is exact. The model keeps its buffer."""
    data, buffer = (tmp_path / "replay.pkl").read_bytes(), model.replay_buffer
    expected = copy.deepcopy(buffer).sample(200)
    for stop in [*range(300), *range(300, len(data), 97), *range(len(data) - 100, len(data))]:
        with pytest.raises((pickle.UnpicklingError, EOFError), match=r"truncated|Ran out of input|exhausted"):
            model.load_replay_buffer(io.BytesIO(data[:stop]))
        assert model.replay_buffer is buffer
    rng, messages = np.random.default_rng(0), []
    places = [*range(200), *rng.integers(200, len(data) - 100, 300), *range(len(data) - 100, len(data))]
    for place in places:
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(rng.integers(8))
        try:
            model.load_replay_buffer(io.BytesIO(flipped))
        except Exception as error:
            messages.append(str(error))
        else:
            assert_same(model.replay_buffer.sample(200), expected)
        model.replay_buffer = buffer
    assert sum("damaged: its checksum is wrong; load an earlier one" in message for message in messages) > 250


def test_a_file_is_saved_as_stable_baselines3_names_it(tmp_path):
    """Suffix and folders are added. Links are kept, and open files are written directly."""
    options = {"replay_buffer_class": SB3ReplayBuffer} | tiny()
    model = sb3.DQN("MlpPolicy", "CartPole-v1", **options).learn(30)
    save_replay_buffer(model, tmp_path / "a" / "b" / "replay")
    save_replay_buffer(model, str(tmp_path / "a" / "replay.v2"))
    link, file = tmp_path / "link.pkl", io.BytesIO()
    link.symlink_to(tmp_path / "a" / "replay.v2")
    save_replay_buffer(model, link)
    save_replay_buffer(model, file)
    assert link.is_symlink()
    assert (tmp_path / "a" / "b" / "replay.pkl").read_bytes() == link.read_bytes() == file.getvalue()
    with pytest.raises(TypeError, match="model is a list; expected an OffPolicyAlgorithm, such as DQN"):
        save_replay_buffer([], tmp_path / "replay")
    (tmp_path / "a" / "folder.pkl").mkdir()
    with pytest.raises(OSError, match=r"folder\.pkl"):
        save_replay_buffer(model, tmp_path / "a" / "folder")
    assert sorted(os.listdir(tmp_path / "a")) == ["b", "folder.pkl", "replay.v2"]


@pytest.mark.parametrize(
    ("algorithm", "env", "options"),
    [
        (sb3.DQN, "CartPole-v1", {}),
        (sb3.SAC, "Pendulum-v1", {"n_steps": 3, "gamma": 0.99}),
        (sb3.TD3, "Pendulum-v1", {"buffer_class": LatestBuffer}),
        (sb3.DDPG, "Pendulum-v1", {"wrap": CombinedReplay, "seed": 1}),
    ],
)
def test_algorithms_learn_from_it(algorithm, env, options, tmp_path):
    """Algorithms learn with several normalized environments, and save and load as usual."""
    env = VecNormalize(make_vec_env(env, 2, seed=0))
    options = {"replay_buffer_class": SB3ReplayBuffer, "replay_buffer_kwargs": options} | tiny()
    model = algorithm("MlpPolicy", env, **options).learn(60)
    assert type(model.replay_buffer) is SB3ReplayBuffer
    assert model.replay_buffer.size() == model.num_timesteps // 2 and model.replay_buffer.replay.stats()["batches"] > 0
    file = io.BytesIO()
    model.save_replay_buffer(file)
    model.save(tmp_path / "model")
    file.seek(0)
    other = algorithm.load(tmp_path / "model", env=env)
    other.load_replay_buffer(file)
    assert_same(other.replay_buffer.sample(8), model.replay_buffer.sample(8))
    other.learn(20, reset_num_timesteps=False)


class SameDraws(SB3ReplayBuffer):
    """A distribution that draws the same positions and environments as the buffer of Stable-Baselines3."""

    def sample(self, batch_size, env=None):
        places = np.random.randint(0, self.buffer_size if self.full else self.pos, size=batch_size)  # noqa: NPY002
        lanes = np.random.randint(0, high=self.n_envs, size=batch_size)  # noqa: NPY002
        return self._samples_at(places, lanes, env)


@pytest.mark.parametrize(("algorithm", "env"), [(sb3.DQN, "CartPole-v1"), (sb3.SAC, "Pendulum-v1")])
def test_training_is_that_of_sb3_bit_for_bit(algorithm, env):
    """With the same draws, training gives the same bits as with the buffer of Stable-Baselines3."""

    def weights(**options):
        vector = VecNormalize(make_vec_env(env, 2, seed=0))
        model = algorithm("MlpPolicy", vector, **options, **tiny() | {"buffer_size": 100, "train_freq": 2}).learn(450)
        return torch.cat([parameter.detach().reshape(-1) for parameter in model.policy.parameters()])

    ours = weights(replay_buffer_class=SameDraws, replay_buffer_kwargs={"seed": 0})
    assert torch.equal(ours, weights())


def test_the_seed_of_the_model_seeds_the_buffer():
    """Models with the same seed learn the same. A seed of the buffer takes precedence."""

    def weights(**options):
        kwargs = {"replay_buffer_class": SB3ReplayBuffer, "replay_buffer_kwargs": options}
        model = sb3.DQN("MlpPolicy", "CartPole-v1", **kwargs, **tiny()).learn(40)
        return torch.cat([parameter.detach().reshape(-1) for parameter in model.q_net.parameters()])

    assert torch.equal(weights(), weights())
    assert not torch.equal(weights(seed=5), weights(seed=6))


# -- Hindsight ---------------------------------------------------------------------------------------------------


class Line(gymnasium.Env):
    """An environment on a line from a random place. Episodes have 6 steps, and info dicts have the place."""

    observation_space = spaces.Dict({name: spaces.Box(-1e4, 1e4, (1,)) for name in ("achieved_goal", "desired_goal")})
    action_space = ACTION
    seen: list

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.steps = float(self.np_random.integers(100) * 10), 0
        return self._obs(), {}

    def _obs(self):
        return {"achieved_goal": np.array([self.x], np.float32), "desired_goal": np.array([-1.0], np.float32)}

    def step(self, action):
        self.x, self.steps = self.x + 1, self.steps + 1
        return self._obs(), -7.0, False, self.steps == 6, {"x": self.x}

    def compute_reward(self, achieved_goal, desired_goal, infos):
        assert len(infos) == len(achieved_goal) and all(type(info) is dict for info in infos)
        if infos and infos[0]:
            assert [info["x"] for info in infos] == achieved_goal[:, 0].tolist()
        return (achieved_goal == desired_goal).all(axis=-1).astype(np.float32)


def lines(count=2):
    return make_vec_env(Line, count, seed=0)


def hindsight(env, steps=40, **options):
    """A buffer with steps of these environments."""
    buffer = SB3HindsightBuffer(400, env.observation_space, ACTION, env, "cpu", env.num_envs, seed=0, **options)
    obs = env.reset()
    for _ in range(steps):
        next_obs, reward, done, infos = env.step(np.zeros((env.num_envs, 2), np.float32))
        last = copy.deepcopy(next_obs)
        for lane in np.flatnonzero(done):
            for key in last:
                last[key][lane] = infos[lane]["terminal_observation"][key]
        buffer.add(obs, last, np.zeros((env.num_envs, 2), np.float32), reward, done, infos)
        obs = next_obs
    return buffer


@pytest.mark.parametrize("strategy", ["future", "final", "EPISODE", *GoalSelectionStrategy])
@pytest.mark.parametrize("copy_info_dict", [False, True])
def test_hindsight_goals_are_of_the_same_episode(strategy, copy_info_dict):
    """The share of relabelled rows is that of SB3. The environment computes rewards, with info dicts if asked."""
    env = lines()
    buffer = hindsight(env, goal_selection_strategy=strategy, n_sampled_goal=3, copy_info_dict=copy_info_dict)
    samples = buffer.sample(2000)
    x, goal = (samples.observations[key].numpy()[:, 0] for key in ("achieved_goal", "desired_goal"))
    np.testing.assert_array_equal(goal, samples.next_observations["desired_goal"][:, 0])
    chosen = goal >= 0
    assert 0.7 < chosen.mean() < 0.8  # 0.75
    np.testing.assert_array_equal(samples.rewards[:, 0], np.where(chosen, goal == x + 1, -7.0))
    name = getattr(strategy, "name", strategy).lower()
    place = x[chosen] % 10
    ahead = (goal - x)[chosen]
    assert ahead.max() <= 6
    if name == "future":
        assert ahead.min() == 1
    elif name == "episode":
        assert (ahead <= 0).any() and (ahead >= -place + 1).all()
    else:
        complete = np.isin(np.floor(x[chosen] / 10), np.floor(x[chosen & (x % 10 == 5)] / 10))
        assert (goal[chosen][complete] % 10 == 6).all()


def test_hindsight_needs_an_environment_after_unpickling():
    """The environment is not pickled, as in SB3. `set_env` sets it once."""
    env = lines()
    buffer = hindsight(env, n_steps=2, gamma=0.5, copy_info_dict=True)
    twin = pickle.loads(pickle.dumps(buffer))
    assert twin.env is None and buffer.env is env
    with pytest.raises(RuntimeError, match=r"no environment that computes rewards; call set_env"):
        twin.sample(50)
    twin.set_env(env)
    assert_same(twin.sample(50), buffer.sample(50))
    with pytest.raises(ValueError, match="env is already set"):
        twin.set_env(env)
    with pytest.raises(ValueError, match=r"copy_info_dict is True.*save_replay_buffer"):
        buffer.save("nowhere")
    assert buffer.sample(64).discounts is not None


def test_a_refused_step_leaves_the_info_dicts():
    """A step that raises an error does not change the info dicts, even if it would overwrite the oldest."""
    env = lines(1)
    buffer = hindsight(env, steps=400, n_sampled_goal=1000, copy_info_dict=True)
    obs, action = env.reset(), np.zeros((1, 2), np.float32)
    with pytest.raises(ValueError, match="reward contains nan"):
        buffer.add(obs, obs, action, np.array([np.nan]), np.array([False]), [{"x": np.nan}])
    buffer.sample(4000)  # `compute_reward` of `Line` compares the info dicts with the goals


def test_truncating_the_last_trajectory_ends_it():
    """A new episode begins with the next step, even if its observation follows from the previous one."""
    env = lines(1)
    buffer = hindsight(env, steps=8)
    replay = buffer.replay
    obs = {name: replay.read(replay.newest, f"next_obs.{name}") for name in ("achieved_goal", "desired_goal")}

    def number_after(obs):
        buffer.add(obs, obs, np.zeros((1, 2)), np.zeros(1), np.array([False]), [{}])
        return int(replay.episode(replay.newest)[0][0])

    first = int(replay.episode(replay.newest)[0][0])
    assert number_after(obs) == first
    buffer.truncate_last_trajectory()
    second = number_after(obs)
    assert second != first
    assert number_after(obs | {"achieved_goal": obs["achieved_goal"] + 1}) != second


@pytest.mark.parametrize("kind", [DummyVecEnv, SubprocVecEnv])
def test_algorithms_learn_with_hindsight(kind, tmp_path):
    """Algorithms learn with hindsight: environments in processes, normalized, prioritized, saved and loaded."""
    env = make_vec_env(lambda: BitFlippingEnv(4, continuous=False), 2, vec_env_cls=kind)
    env = VecNormalize(env, norm_obs=False)
    options = {"n_sampled_goal": 2, "n_steps": 2, "alpha": 0.5}
    model = PrioritizedDQN(
        "MultiInputPolicy", env, replay_buffer_class=SB3HindsightBuffer, replay_buffer_kwargs=options, **tiny()
    )
    model.learn(60)
    assert isinstance(model.replay_buffer, sb3.HerReplayBuffer)
    assert model.replay_buffer.replay.stats()["scaled_priority_max"] != 1.0
    model.save_replay_buffer(tmp_path / "replay.pkl")
    model.load_replay_buffer(tmp_path / "replay.pkl")
    model.learn(20)
    env.close()


# -- Prioritized algorithms --------------------------------------------------------------------------------------


def test_dqn_is_weighted_and_feeds_td_errors_back():
    """The gradient is that of the weighted Huber loss, and priorities are the TD errors before the update."""
    options = {"replay_buffer_kwargs": {"beta": 0.7, "eps": 0.0, "alpha": 1.0}} | tiny()
    model = PrioritizedDQN("MlpPolicy", "CartPole-v1", n_steps=3, gamma=0.9, max_grad_norm=1e9, **options).learn(60)
    assert (model.n_steps, model.replay_buffer.n_steps, model.replay_buffer.gamma) == (3, 3, 0.9)
    buffer, before = model.replay_buffer, copy.deepcopy(model.q_net)
    expected = copy.deepcopy(buffer)
    model.policy.optimizer.param_groups[0]["lr"] = 0.0
    model.lr_schedule = lambda _: 0.0
    model.train(gradient_steps=1, batch_size=16)

    samples = expected.sample(16)
    batch = expected.batch
    assert np.ptp(batch.weights) > 0.0
    with torch.no_grad():
        following = model.q_net_target(samples.next_observations).max(dim=1).values
        targets = samples.rewards[:, 0] + torch.from_numpy(batch.discount) * following
    values = before(samples.observations).gather(1, samples.actions)[:, 0]
    losses = torch.nn.functional.smooth_l1_loss(values, targets, reduction="none")
    (torch.from_numpy(batch.weights) * losses).mean().backward()
    for found, parameter in zip(model.q_net.parameters(), before.parameters(), strict=True):
        assert torch.allclose(found.grad, parameter.grad, rtol=1e-4, atol=1e-7)
    errors = (targets - values).abs().detach().numpy()
    priorities = buffer.replay.probability(batch.indices)
    np.testing.assert_allclose(priorities / priorities.sum(), errors / errors.sum(), rtol=1e-4)


@pytest.mark.parametrize(
    ("prioritized", "plain", "env"),
    [
        (PrioritizedDQN, sb3.DQN, "CartPole-v1"),
        (PrioritizedSAC, sb3.SAC, "Pendulum-v1"),
        (PrioritizedTD3, sb3.TD3, "Pendulum-v1"),
    ],
)
def test_without_priorities_nothing_changes(prioritized, plain, env, tmp_path):
    """With weights of 1 and alpha 0, the algorithm learns the same as SB3's from the same batches."""
    options = {"alpha": 0.0, "beta": 0.0, "buffer_class": PrioritizedBuffer}
    models = [
        algorithm("MlpPolicy", env, replay_buffer_class=SB3ReplayBuffer, replay_buffer_kwargs=options, **tiny()).learn(
            40
        )
        for algorithm in (prioritized, plain)
    ]
    for found, parameter in zip(*(model.policy.parameters() for model in models), strict=True):
        assert torch.allclose(found, parameter, rtol=1e-4, atol=1e-6)
    models[0].save(tmp_path / "model")
    loaded = prioritized.load(tmp_path / "model", env=models[0].get_env(), gamma=0.9, n_steps=2)
    buffer = loaded.replay_buffer
    assert type(buffer.replay) is PrioritizedBuffer and (buffer.gamma, buffer.n_steps) == (0.9, 2)


@pytest.mark.parametrize("algorithm", [PrioritizedSAC, PrioritizedTD3])
def test_critics_share_a_priority(algorithm):
    """With two critics, the mean of their absolute TD errors sets the priority."""
    beta = LinearSchedule(0.4, 1.0, 100)
    options = {"beta": beta, "eps": 0.0, "alpha": 1.0}
    model = algorithm("MlpPolicy", "Pendulum-v1", replay_buffer_kwargs=options, **tiny()).learn(40)
    buffer, batches, updates = model.replay_buffer, [], []
    update = buffer.update_priorities

    def noted(td_errors):
        updates.append(td_errors)
        batches.append(buffer.batch)
        return update(td_errors)

    buffer.update_priorities = noted
    model.train(gradient_steps=2, batch_size=16)
    assert [batch is batches[0] for batch in batches] == [True, True, False, False]
    assert all(errors.shape == (16,) and (errors >= 0).all() for errors in updates)
    assert not np.array_equal(updates[0], updates[1])
    assert 0.4 < buffer.replay.beta < 1.0


def test_td_errors_are_those_of_the_last_batch():
    """The mean of a batch's losses sets priorities. Losses of other shapes or reductions are unchanged."""
    buffer = SB3ReplayBuffer(4, BOX, ACTION, "cpu", buffer_class=PrioritizedBuffer, alpha=1.0, eps=0.0, seed=0)
    for step in steps_of(BOX, ACTION, 4):
        buffer.add(*step)
    mse, zeros = torch.nn.functional.mse_loss, torch.zeros(4, 1)

    def shares(*errors):
        samples = buffer.sample(4)
        assert sorted(buffer.batch.indices) == [0, 1, 2, 3]
        for error in errors:
            loss = mse(zeros, samples.rewards * 0 + torch.tensor(error)[:, None])
            assert type(loss) is torch.Tensor
        return buffer.replay.probability(buffer.batch.indices)

    with WeightedLoss(buffer) as weighted:
        np.testing.assert_allclose(shares([1.0, 2.0, 3.0, 2.0], [1.0, 2.0, -3.0, 2.0]), [0.125, 0.25, 0.375, 0.25])
        buffer.replay.update_priorities(np.arange(4), np.ones(4))
        np.testing.assert_allclose(shares([1.0, 1.0, 1.0, 2.0]), [0.2, 0.2, 0.2, 0.4])
        assert weighted.losses == 3
        targets = buffer.sample(4).rewards * 0 + 2
        assert mse(zeros, targets, reduction="sum") == 16 and mse(zeros[:, 0], targets[:, 0]) == 4
        assert mse(zeros, zeros + 2) == 4
        assert weighted.losses == 3
    assert type(buffer.sample(4).rewards) is torch.Tensor


def test_an_algorithm_without_such_a_loss_is_refused():
    """An algorithm without a suitable loss raises an error. Otherwise it would train without weights."""

    class Base(sb3.DQN):
        def train(self, gradient_steps, batch_size=100):
            self.replay_buffer.sample(batch_size)

    class Wrong(PrioritizedDQN.__mro__[1], Base):
        pass

    model = Wrong("MlpPolicy", "CartPole-v1", **tiny())
    with pytest.raises(RuntimeError, match=r"train of Wrong computed no loss that can be weighted; expected.*\(B, 1\)"):
        model.learn(30)


# -- Refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"optimize_memory_usage": True},
            ValueError,
            "expected False; leave it out: large observations are already stored",
        ),
        ({"handle_timeout_termination": False}, ValueError, "expected True; leave it out.*let the environment return"),
        ({"n_steps": 3}, ValueError, "gamma is missing; expected the gamma of the model; add it"),
        ({"n_steps": 0, "gamma": 0.9}, ValueError, "n_steps is 0; expected an int of at least 1"),
        ({"n_step": 3}, TypeError, "n_step is not an option of this buffer; use n_steps, as Stable-Baselines3 does"),
        ({"stack": 4}, ValueError, "stack is 4; expected 1.*VecFrameStack"),
        ({"alpah": 0.5, "buffer_class": PrioritizedBuffer}, TypeError, "did you mean 'alpha'"),
        ({"buffer_class": CombinedReplay}, TypeError, "expected ReplayBuffer, PrioritizedBuffer or Lat.*wrap="),
        ({"wrap": lambda buffer: None}, TypeError, "wrap returned a NoneType; expected the buffer or a wrapper"),
        ({"n_envs": 0}, ValueError, "n_envs is 0; expected an int of at least 1"),
        ({"observation_space": spaces.Tuple([BOX])}, TypeError, "observation_space is a Tuple space; expected Box"),
        ({"observation_space": spaces.Dict(a=spaces.Dict(b=BOX))}, TypeError, r"observation_space\['a'\] is a Dict sp"),
        ({"action_space": spaces.Dict(a=BOX)}, TypeError, "action_space is a Dict space; expected Box.*Flatten"),
        ({"observation_space": spaces.Text(3)}, TypeError, "observation_space is a Text space; expected Box"),
    ],
)
def test_what_cannot_be_honoured_is_refused(options, error, message):
    """An unsupported option raises an error with its name, what was expected, and the remedy."""
    arguments = {"buffer_size": 10, "observation_space": BOX, "action_space": ACTION} | options
    with pytest.raises(error, match=message):
        SB3ReplayBuffer(**arguments)


def test_other_refusals():
    """Invalid strategies, buffers, discounts, values and attributes raise an error."""
    env = lines(1)
    with pytest.raises(ValueError, match="goal_selection_strategy is 'best'; expected one of 'future'"):
        hindsight(env, goal_selection_strategy="best")
    with pytest.raises(ValueError, match="n_sampled_goal is -1"):
        hindsight(env, n_sampled_goal=-1)
    with pytest.raises(TypeError, match="n_sampled_goal is True; expected an int of at least 0"):
        hindsight(env, n_sampled_goal=True)
    assert not hindsight(env, n_sampled_goal=0).sample(50).rewards.ne(-7.0).any()
    with pytest.raises(TypeError, match="replay_buffer_class is ReplayBuffer; expected SB3ReplayBuffer"):
        PrioritizedDQN("MlpPolicy", "CartPole-v1", replay_buffer_class=buffers.ReplayBuffer)
    with pytest.raises(ValueError, match=r"replay_buffer_kwargs has gamma=0.9; expected 0.99, the value of the model"):
        PrioritizedDQN("MlpPolicy", "CartPole-v1", replay_buffer_kwargs={"gamma": 0.9, "n_steps": 2})
    with pytest.raises(ValueError, match=r"replay_buffer_kwargs has n_steps=2; expected 3"):
        PrioritizedDQN("MlpPolicy", "CartPole-v1", n_steps=3, replay_buffer_kwargs={"n_steps": 2})
    buffer = SB3ReplayBuffer(10, BOX, ACTION, device="cpu", n_steps=2, gamma=0.9)
    with pytest.raises(RuntimeError, match="no batch was sampled"):
        buffer.update_priorities([1.0])
    with pytest.raises(AttributeError, match=r"has no 'rewards', because .* replay.read\("):
        buffer.rewards  # noqa: B018
    zeros, action = np.zeros((1, 3)), np.zeros((1, 2))
    buffer.add(zeros, zeros, action, np.zeros(1), np.array([False]), [{}])
    for values, message in [
        ((zeros[:, :2], zeros, action, np.zeros(1)), "obs has shape"),
        ((zeros, zeros, action[:, :1], np.zeros(1)), "action has shape"),
        ((zeros, zeros, action, np.array([np.nan])), "reward contains nan"),
    ]:
        with pytest.raises(ValueError, match=message):
            buffer.add(*values, np.array([False]), [{}])
    assert buffer.size() == 1 and (buffer.replay.episode(buffer.replay.newest)[1] == 0).all()


def test_without_sb3_the_error_names_the_extra():
    """Without Stable-Baselines3, the error names the extra. `replaykit` itself never imports it."""
    program = """
import sys
sys.modules["stable_baselines3"] = None
import replaykit
try:
    import replaykit.integrations.sb3
except ImportError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install 'replaykit-rl[sb3]'" in result.stdout
