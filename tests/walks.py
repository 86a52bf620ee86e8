"""Environments in which every observation has a unique number, and the transitions that a recorder should store."""

import numpy as np
import pytest

from replaykit import Field
from tests.helpers import map_leaves, stored_indices

gymnasium = pytest.importorskip("gymnasium")
from gymnasium import spaces  # noqa: E402
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv  # noqa: E402

BOX = spaces.Box(-np.inf, np.inf, (2,), np.float64)
MODES = list(AutoresetMode)
NUMBER = Field((), np.float64)


def fresh(value):
    """The observation with this number."""
    return np.array([value, -value], np.float64)


class Walk(gymnasium.Env):
    """Observations have numbers: 10,000 per environment, 100 per episode, 1 per step. Episode e has 3 to 6 steps.

    `info` describes each observation: its number, with another sign at a reset, in several forms.
    """

    observation_space, action_space = BOX, spaces.Discrete(3)

    def __init__(self, name=0):
        self.name, self.episode, self.count, self.calls = name, 0, 0, 0

    @property
    def number(self):
        return 10_000.0 * self.name + 100.0 * self.episode + self.count

    def _info(self, sign):
        number = sign * self.number
        nested = {"a": number, "b": np.array([number, 0.0])}
        return {"number": number, "pair": np.array([number, 1.0]), "nested": nested, "list": [number, 2.0]}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.count, self.calls = self.episode + 1, 0, self.calls + 1
        return fresh(self.number), self._info(-1.0)

    def step(self, action):
        self.count, self.calls = self.count + 1, self.calls + 1
        over = self.count >= min(3 + self.episode, 6)
        return (
            fresh(self.number),
            float(action),
            over and self.episode % 2 == 0,
            over and self.episode % 2 == 1,
            {**self._info(1.0)},
        )


def walks(count, mode=AutoresetMode.NEXT_STEP, kind=SyncVectorEnv):
    return kind([lambda i=i: Walk(i) for i in range(count)], autoreset_mode=mode)


def no_op(env):
    return np.zeros(env.num_envs, np.int64) if isinstance(env, VectorEnv) else 0


def play(env, steps, mode=None):
    """Reset and take this many steps. With DISABLED, or in a single environment, reset episodes that have ended."""
    env.reset()
    for _ in range(steps):
        *_, terminated, truncated, _ = env.step(no_op(env))
        done = np.logical_or(np.asarray(terminated), np.asarray(truncated))
        if done.any() and mode == AutoresetMode.DISABLED:
            options = {"reset_mask": done}
            env.reset(options=options)
            assert list(options) == ["reset_mask"]  # Gymnasium would take it out
        elif done.any() and not isinstance(env, VectorEnv):
            env.reset()


def numbers(buffer, field="obs"):
    """The numbers of the stored observations, one lane after the other."""
    return buffer.read(stored_indices(buffer), field)[:, 0].tolist()


def assert_true(buffer):
    """Check that every next observation follows its observation, and that no transition is stored twice."""
    assert len(buffer) > 0
    obs = numbers(buffer)
    assert (np.array(numbers(buffer, "next_obs")) - obs == 1.0).all()
    assert len(set(obs)) == len(obs)


def as_box(rows):
    return rows


class SameStep(VectorEnv):
    """An environment in which lane i has episodes of 2 + i steps. `final` makes the info from the last observations."""

    single_action_space = spaces.Discrete(2)
    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(self, lanes, final, space=BOX, form=as_box):
        self.num_envs, self.final, self.form, self.resets = lanes, final, form, -1
        self.single_observation_space = space
        self.observation_space = gymnasium.vector.utils.batch_space(space, lanes)
        self.action_space = gymnasium.vector.utils.batch_space(self.single_action_space, lanes)

    def reset(self, *, seed=None, options=None):
        self.count, self.resets = np.zeros(self.num_envs), self.resets + 1
        self.begin = 10_000.0 * np.arange(self.num_envs) + 1000.0 * self.resets
        return self._rows(), {}

    def _rows(self):
        numbers = self.begin + self.count
        return self.form(np.stack([numbers, -numbers], axis=1))

    def step(self, actions):
        self.count = self.count + 1
        over, final = self.count >= 2 + np.arange(self.num_envs), self._rows()
        self.begin, self.count = np.where(over, self.begin + 100.0, self.begin), np.where(over, 0.0, self.count)
        none = np.zeros(self.num_envs, bool)
        return self._rows(), np.ones(self.num_envs), over, none, self.final(final, over) if over.any() else {}


def each(values, over):
    """A list of the observations of the lanes in `over`, with None for the others."""
    return [map_leaves(lambda leaf, i=i: leaf[i], values) if over[i] else None for i in range(len(over))]


def as_objects(entries):
    array = np.full(len(entries), None, object)
    for i, entry in enumerate(entries):
        array[i] = entry
    return array
