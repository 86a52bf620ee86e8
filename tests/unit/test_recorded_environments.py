"""Environments of Gymnasium are recorded exactly: each stored row equals the entry of a diary in the environment."""

import copy

import numpy as np
import pytest

from replaykit import ReplayBuffer, record
from tests.helpers import leaves_of, stored_indices

gymnasium = pytest.importorskip("gymnasium")
from gymnasium import spaces  # noqa: E402
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv  # noqa: E402


class Diary(gymnasium.Wrapper):
    """Notes every step of one environment: a dict of the core fields, and the number of its episode."""

    def __init__(self, env):
        super().__init__(env)
        self.notes, self.episode, self.obs = [], 0, None

    def reset(self, **options):
        obs, info = self.env.reset(**options)
        self.obs, self.episode = copy.deepcopy(obs), self.episode + 1
        return obs, info

    def step(self, action):
        fields = {"obs": self.obs, "action": copy.deepcopy(action)}
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.obs = copy.deepcopy(obs)
        fields |= {"reward": reward, "next_obs": self.obs, "terminated": terminated, "truncated": truncated}
        self.notes.append((fields, self.episode))
        return obs, reward, terminated, truncated, info


def nested(env):
    """The environment with its observation in a dict with a tuple, whose keys are not in the space's order."""
    low, high = env.observation_space.low, env.observation_space.high
    first, rest = spaces.Box(low[:1], high[:1]), spaces.Box(low[1:], high[1:])
    space = spaces.Dict({"first": first, "others": spaces.Tuple((rest, first))})
    return gymnasium.wrappers.TransformObservation(env, lambda o: {"others": (o[1:], o[:1]), "first": o[:1]}, space)


def diary(name, lane=0):
    """A diary around an environment whose episodes have at most 23 steps."""
    make = nested if name.startswith("nested ") else lambda env: env
    versions = {int(i.rpartition("-v")[2]) for i in gymnasium.registry if i.startswith(f"{name.split()[-1]}-v")}
    return Diary(make(gymnasium.make(f"{name.split()[-1]}-v{max(versions)}", max_episode_steps=23 + lane)))


def assert_stored(buffer, diaries):
    """Every lane holds exactly the steps of its diary, in the same episodes."""
    indices = stored_indices(buffer)
    for lane, notes in enumerate(diaries):
        own = indices[indices % buffer.num_envs == lane]
        assert len(own) == len(notes) > 0
        columns = [dict(leaves_of(fields)) for fields, _ in notes]
        for path in columns[0]:
            stored, dtype = buffer.read(own, path), buffer.read(own[:1], path).dtype
            np.testing.assert_array_equal(stored, np.array([row[path] for row in columns]).astype(dtype), err_msg=path)
        number, *_ = buffer.episode(own)
        np.testing.assert_array_equal(np.diff(number) != 0, np.diff([episode for _, episode in notes]) != 0)


SINGLE = [
    "CartPole", "MountainCar", "MountainCarContinuous", "Acrobot", "Pendulum", "FrozenLake",
    "CliffWalking", "Taxi", "Blackjack", "nested CartPole", "nested Acrobot",
]  # fmt: skip
MODES = list(AutoresetMode)


@pytest.mark.parametrize("autoreset", [False, True])
@pytest.mark.parametrize("name", SINGLE)
def test_single_environments(name, autoreset):
    """Single environments are recorded until terminations and time limits, with resets during episodes."""
    inside = diary(name)
    env = gymnasium.wrappers.Autoreset(inside) if autoreset else inside
    buffer = ReplayBuffer.from_env(env, 1000, n_step=3)
    env = record(env, buffer)
    env.action_space.seed(0)
    env.reset(seed=0)
    for step in range(150):
        *_, terminated, truncated, _ = env.step(env.action_space.sample())
        if (not autoreset and (terminated or truncated)) or step % 37 == 36:
            env.reset()
    assert_stored(buffer, [inside.notes])
    env.close()


def played(envs, mode, steps, interrupt=29):
    """Step recorded environments with random actions. Reset them as the mode requires, and sometimes in episodes."""
    envs.action_space.seed(0)
    envs.reset(seed=0)
    for step in range(steps):
        *_, terminated, truncated, _ = envs.step(envs.action_space.sample())
        done = np.logical_or(terminated, truncated)
        if step % interrupt == interrupt - 1:
            envs.reset()
        elif mode == AutoresetMode.DISABLED and done.any():
            envs.reset(options={"reset_mask": done})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [name for name in SINGLE if name != "MountainCar"])
def test_vector_environments(name, mode):
    """Three lanes, whose episodes end at different times, are recorded in each autoreset mode."""
    inside = [diary(name, lane) for lane in range(3)]
    envs = SyncVectorEnv([lambda env=env: env for env in inside], autoreset_mode=mode)
    buffer = ReplayBuffer.from_env(envs, 3000, n_step=3)
    played(record(envs, buffer), mode, 100)
    assert_stored(buffer, [env.notes for env in inside])
    envs.close()


@pytest.mark.parametrize("shared_memory", [True, False])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["CartPole", "Blackjack", "nested CartPole"])
def test_environments_in_processes(name, mode, shared_memory):
    """Environments in other processes are recorded, also if NEXT_STEP resets a lane twice."""
    envs = AsyncVectorEnv(
        [lambda lane=lane: diary(name, lane) for lane in range(2)], autoreset_mode=mode, shared_memory=shared_memory
    )
    try:
        buffer = ReplayBuffer.from_env(envs, 3000, n_step=3)
        recorded = record(envs, buffer)
        played(recorded, mode, 80)
        if mode != AutoresetMode.DISABLED:
            while not any(np.logical_or(*recorded.step(recorded.action_space.sample())[2:4])):
                pass
            played(recorded, mode, 30)
        assert_stored(buffer, envs.get_attr("notes"))
    finally:
        envs.close()


@pytest.mark.parametrize("mode", MODES)
def test_a_vector_of_one_environment(mode):
    """The leading axis of a vector of one environment is removed, also in nested observations."""
    inside = diary("nested CartPole")
    envs = SyncVectorEnv([lambda: inside], autoreset_mode=mode)
    buffer = ReplayBuffer.from_env(envs, 1000)
    played(record(envs, buffer), mode, 100)
    assert_stored(buffer, [inside.notes])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shared_memory", [None, True, False])
def test_an_evaluation_leaves_no_trace(mode, shared_memory):
    """Steps in a pause are not stored, wherever the pause ends. Episodes before and after it are separate."""
    makers = [lambda lane=lane: diary("CartPole", lane) for lane in range(2)]
    if shared_memory is None:
        envs = SyncVectorEnv(makers, autoreset_mode=mode)
    else:
        envs = AsyncVectorEnv(makers, autoreset_mode=mode, shared_memory=shared_memory)
    buffer = ReplayBuffer.from_env(envs, 3000, n_step=3)
    env = record(envs, buffer)
    kept = [[], []]

    def keep(begins):
        for lane, notes in enumerate(envs.get_attr("notes")):
            kept[lane] += notes[begins[lane] :]

    for steps in range(10, 16):
        begins = [len(notes) for notes in envs.get_attr("notes")]
        played(env, mode, steps)
        keep(begins)
        with env.paused():
            before = len(buffer)
            played(env, mode, steps + 3)
            if mode != AutoresetMode.DISABLED:  # leave it right after an episode's end
                while not any(np.logical_or(*env.step(env.action_space.sample())[2:4])):
                    pass
            assert len(buffer) == before
        with pytest.raises(gymnasium.error.ResetNeeded):
            env.step(env.action_space.sample())
    assert_stored(buffer, kept)
    envs.close()
