"""record(env, buffer) stores exactly the true transitions, in all autoreset modes."""

import numpy as np
import pytest

from replaykit import CombinedReplay, Field, PrioritizedBuffer, ReplayBuffer, Spec, record
from replaykit.testing import assert_lawful, bits_of
from tests.helpers import lane_sizes, stored_indices

gymnasium = pytest.importorskip("gymnasium")
from gymnasium import spaces  # noqa: E402
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv  # noqa: E402


class Counting(gymnasium.Env):
    """Each observation is unique: seed * 10,000 + episode * 100 + step. Episode e has 2 + e % 3 steps."""

    action_space = spaces.Discrete(5)

    def __init__(self, name=0, nested=False, reuses=True):
        self.name, self.episode, self.count, self.nested, self.reuses = name, 0, 0, nested, reuses
        box = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.observation_space = spaces.Dict({"a": box, "b": spaces.Tuple((box,))}) if nested else box
        self.array = np.zeros(2)  # reused, as many environments do

    def _obs(self):
        if not self.reuses:
            self.array = np.zeros(2)
        self.array[:] = self.name * 10_000 + self.episode * 100 + self.count, self.name
        return {"b": (-self.array,), "a": self.array} if self.nested else self.array  # not the space's order

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.count = self.episode + 1, 0
        return self._obs(), {}

    def step(self, action):
        self.count += 1
        over = self.count >= 2 + self.episode % 3
        return self._obs(), float(action), bool(over and self.episode % 2), bool(over and not self.episode % 2), {}


def expected(name, episode, count):
    """The transition from this step to the next, as the environment defines it."""
    last = count + 1 >= 2 + episode % 3
    base = name * 10_000 + episode * 100 + count
    return base, base + 1, bool(last and episode % 2), bool(last and not episode % 2)


def stored(buffer):
    """Every stored transition as it was recorded, one lane after the other: obs, next_obs, terminated and truncated."""
    indices, columns = stored_indices(buffer), []
    for name in ("obs", "next_obs"):
        if isinstance(buffer.spec[name], dict):
            column = buffer.read(indices, f"{name}.a")
            np.testing.assert_array_equal(column, -buffer.read(indices, f"{name}.b.0"))
        else:
            column = buffer.read(indices, name)
        columns.append(column[:, 0].tolist())
    columns += [buffer.read(indices, name).tolist() for name in ("terminated", "truncated")]
    return list(zip(*columns, strict=True))


def truth(name, steps):
    """The first transitions of an environment in which every episode is played to its end."""
    rows, episode, count = [], 1, 0
    while len(rows) < steps:
        rows.append(expected(name, episode, count))
        episode, count = (episode + 1, 0) if rows[-1][2] or rows[-1][3] else (episode, count + 1)
    return rows


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("autoreset", [False, True])
def test_a_single_environment(nested, autoreset):
    """A single environment can be reset by hand, or by Autoreset, whose resetting steps are not stored."""
    env = Counting(3, nested)
    env = gymnasium.wrappers.Autoreset(env) if autoreset else env
    buffer = ReplayBuffer.from_env(env, 1000)
    env = record(env, buffer)
    env.reset()
    over = False
    for _ in range(40):
        if over and not autoreset:
            env.reset()
        *_, terminated, truncated, _ = env.step(1)
        over = terminated or truncated
    assert stored(buffer) == truth(3, len(buffer))
    assert len(buffer) == 40 if not autoreset else 25 < len(buffer) < 40
    numbers, *_ = buffer.episode(stored_indices(buffer))
    assert (np.diff(numbers) == [ended for row in truth(3, len(buffer))[:-1] for ended in [row[2] or row[3]]]).all()


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("vector", [SyncVectorEnv, AsyncVectorEnv])
def test_vector_environments_in_every_mode_store_the_same(vector, mode, nested):
    """The transitions are the same in every mode. The dummy steps of NEXT_STEP are not stored."""
    reuses = mode != AutoresetMode.SAME_STEP  # there Gymnasium itself hands out the array that the reset overwrote
    env = vector([lambda i=i: Counting(i, nested, reuses) for i in range(3)], autoreset_mode=mode)
    buffer = CombinedReplay(ReplayBuffer.from_env(env, 3000, n_step=3))
    env = record(env, buffer)
    env.reset()
    for _ in range(30):
        *_, terminated, truncated, _ = env.step(np.array([1, 2, 3]))
        done = terminated | truncated
        if mode == AutoresetMode.DISABLED and done.any():
            options = {"reset_mask": done}
            env.reset(options=options)
            assert options == {"reset_mask": done}
    lengths = lane_sizes(buffer)
    assert stored(buffer) == [row for i in range(3) for row in truth(i, lengths[i])]
    assert min(lengths) >= (20 if mode == AutoresetMode.NEXT_STEP else 30)
    assert (buffer.sample(50).length <= 3).all()
    env.close()


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_vector_of_one_environment(mode):
    """The leading axis of a vector of one environment is removed."""
    env = SyncVectorEnv([lambda: Counting(2, reuses=mode != AutoresetMode.SAME_STEP)], autoreset_mode=mode)
    buffer = ReplayBuffer.from_env(env, 100)
    env = record(env, buffer)
    env.reset()
    for _ in range(20):
        *_, terminated, truncated, _ = env.step(np.array([1]))
        if mode == AutoresetMode.DISABLED and (terminated | truncated)[0]:
            env.reset(options={"reset_mask": terminated | truncated})
    assert stored(buffer) == truth(2, len(buffer))


def test_the_mode_is_that_of_the_environment_and_not_of_its_class():
    """The mode is that of the environment. The shared metadata of its class may have another mode."""
    one = SyncVectorEnv([lambda: Counting(0, reuses=False)] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    SyncVectorEnv([lambda: Counting(0)] * 2, autoreset_mode=AutoresetMode.NEXT_STEP)
    buffer = ReplayBuffer.from_env(one, 100)
    env = record(one, buffer)
    env.reset()
    for _ in range(10):
        env.step(np.array([1, 1]))
    assert len(buffer) == 20


def test_a_reset_in_the_middle_ends_the_episode():
    """A reset during an episode ends it. Windows do not cross the reset, and flags do not change."""
    env = Counting(0)
    buffer = ReplayBuffer.from_env(env, 100, n_step=5)
    env = record(env, buffer)
    for _ in range(4):
        env.reset()
        env.step(0)
    assert buffer.sample(4).length.tolist() == [1] * 4
    assert not buffer.sample(4).truncated.any()
    vector = SyncVectorEnv([lambda i=i: Counting(i) for i in range(2)], autoreset_mode=AutoresetMode.DISABLED)
    buffer = ReplayBuffer.from_env(vector, 100, n_step=5)
    env = record(vector, buffer)
    env.reset()
    env.step(np.array([0, 0]))
    env.reset(options={"reset_mask": np.array([True, False])})
    env.step(np.array([0, 0]))
    assert buffer.reduce(buffer.window(np.array([0, 2, 1, 3])))["length"].tolist() == [1, 1, 2, 1]


def test_a_real_environment_is_recorded_step_by_step():
    """CartPole's transitions are recorded exactly, to the end of its episodes."""
    env = gymnasium.make("CartPole-v1")
    buffer = ReplayBuffer.from_env(env, 500)
    env = record(env, buffer)
    env.action_space.seed(0)
    rows, over = [], True
    for i in range(200):
        if over:
            obs, _ = env.reset(seed=i)
        action = env.action_space.sample()
        next_obs, reward, terminated, truncated, _ = env.step(action)
        rows.append((obs, action, reward, next_obs, terminated, truncated))
        obs, over = next_obs, terminated or truncated
    fields = buffer.reduce(buffer.window(np.arange(200)))
    for name, column in zip(
        ("obs", "action", "reward", "next_obs", "terminated", "truncated"), zip(*rows, strict=True), strict=True
    ):
        np.testing.assert_array_equal(fields[name], np.array(column))


def test_mistakes_are_named():
    """Wrong types, numbers of environments and fields, and steps without a reset raise an error."""
    env = Counting(0)
    buffer = ReplayBuffer.from_env(env, 10)
    with pytest.raises(TypeError, match="buffer is a list"):
        record(env, [])
    with pytest.raises(TypeError, match="env is a str"):
        record("CartPole-v1", buffer)
    vector = SyncVectorEnv([lambda: Counting(0)] * 2)
    with pytest.raises(ValueError, match="env has 2 environments; expected 1"):
        record(vector, buffer)
    with pytest.raises(ValueError, match="expected that of the buffer"):
        record(gymnasium.make("CartPole-v1"), buffer)
    extra = ReplayBuffer(10, Spec.from_env(env, hint=Field(())))
    with pytest.raises(ValueError, match="extra fields \\('hint',\\)"):
        record(env, extra)
    recorded = record(env, buffer)
    with pytest.raises(gymnasium.error.ResetNeeded):
        recorded.step(0)
    recorded.reset()
    while not any(recorded.step(0)[2:4]):
        pass
    with pytest.raises(gymnasium.error.ResetNeeded):
        recorded.step(0)
    recorded = record(vector, ReplayBuffer.from_env(vector, 10))
    with pytest.raises(gymnasium.error.ResetNeeded):
        recorded.step(np.array([0, 0]))
    del vector.autoreset_mode
    vector.metadata = {}
    with pytest.raises(ValueError, match="does not report its autoreset mode"):
        record(vector, ReplayBuffer.from_env(vector, 10))


def test_after_a_step_that_raised_nothing_false_is_stored():
    """After an error in a step, the episode ends, and the environment must be reset."""

    class Failing(Counting):
        def step(self, action):
            obs, reward, *rest = super().step(action)
            return (obs, "no number" if action == 4 else reward, *rest)

    env = Failing(0)
    buffer = ReplayBuffer.from_env(env, 100, n_step=4)
    recorded = record(env, buffer)
    recorded.reset()
    recorded.step(1)
    with pytest.raises(TypeError, match="reward"):
        recorded.step(4)
    with pytest.raises(gymnasium.error.ResetNeeded):
        recorded.step(1)
    recorded.reset()
    recorded.step(1)
    assert [row[:2] for row in stored(buffer)] == [(100.0, 101.0), (200.0, 201.0)]
    assert buffer.sample(9).length.max() == 1

    vector = SyncVectorEnv([lambda: Counting(0)] * 2)
    buffer = ReplayBuffer.from_env(vector, 100, n_step=4)
    recorded = record(vector, buffer)
    recorded.reset()
    recorded.step(np.array([1, 1]))
    with pytest.raises(TypeError, match="action"):
        recorded.step(np.array([0.5, 1.0]))
    with pytest.raises(gymnasium.error.ResetNeeded):
        recorded.step(np.array([1, 1]))
    recorded.reset()
    recorded.step(np.array([1, 1]))
    assert len(buffer) == 4
    assert buffer.sample(9).length.max() == 1


def test_an_action_array_that_the_environment_changes_is_stored_as_it_was():
    """Actions are copied before the step."""

    class Clipping(gymnasium.Env):
        observation_space = spaces.Box(-1, 1, (1,))
        action_space = spaces.Box(-1, 1, (1,))

        def reset(self, *, seed=None, options=None):
            return np.zeros(1, np.float32), {}

        def step(self, action):
            action[:] = 0.0
            return np.zeros(1, np.float32), 0.0, False, False, {}

    env = Clipping()
    buffer = ReplayBuffer.from_env(env, 10)
    env = record(env, buffer)
    env.reset()
    env.step(np.ones(1, np.float32))
    assert buffer.sample(1).action.tolist() == [[1.0]]


class Lists(gymnasium.Env):
    """An environment with lists where its space has tuples, which Gymnasium accepts. `parts` may differ."""

    action_space = spaces.Tuple((spaces.Discrete(3), spaces.Box(0.0, 1.0, (2,))))

    def __init__(self, parts):
        self.parts, self.count = parts, 0
        boxes = tuple(spaces.Box(-np.inf, np.inf, part.shape) for part in parts)
        self.observation_space = spaces.Dict({"a": spaces.Tuple(boxes)})

    def _obs(self):
        for part in self.parts:
            part[...] = self.count
        return {"a": self.parts}

    def reset(self, *, seed=None, options=None):
        return self._obs(), {}

    def step(self, action):
        assert type(action) is list
        self.count += 1
        return self._obs(), 0.0, False, False, {}


@pytest.mark.parametrize("shapes", [((2,), (2,)), ((2,), (3,))])
def test_a_list_in_place_of_a_tuple_is_recorded_as_add_stores_it(shapes):
    """A list in place of a tuple is copied and stored as `add` does, even if the environment reuses it."""
    env = Lists([np.zeros(shape, np.float32) for shape in shapes])
    buffer = ReplayBuffer.from_env(env, 10)
    env = record(env, buffer)
    env.reset()
    for number in range(3):
        env.step([number, np.ones(2, np.float32)])
    for i in (0, 1):
        assert buffer.read([0, 1, 2], f"obs.a.{i}")[:, 0].tolist() == [0, 1, 2]
        assert buffer.read([0, 1, 2], f"next_obs.a.{i}")[:, 0].tolist() == [1, 2, 3]
    assert buffer.read([0, 1, 2], "action.0").tolist() == [0, 1, 2]


def test_after_a_reset_that_raised_nothing_false_is_stored():
    """After an error in a reset, the environment must be reset again before it is stepped."""

    class Failing(Counting):
        fails = False

        def reset(self, *, seed=None, options=None):
            result = super().reset(seed=seed)
            if self.fails:
                raise RuntimeError("no reset today")
            return result

    env = Failing(0)
    buffer = ReplayBuffer.from_env(env, 100, n_step=4)
    recorded = record(env, buffer)
    recorded.reset()
    recorded.step(1)
    env.fails = True
    with pytest.raises(RuntimeError, match="no reset today"):
        recorded.reset()
    env.fails = False
    with pytest.raises(gymnasium.error.ResetNeeded):
        recorded.step(1)
    recorded.reset()
    recorded.step(1)
    assert [row[:2] for row in stored(buffer)] == [(100.0, 101.0), (300.0, 301.0)]
    assert buffer.sample(9).length.max() == 1


class Pictures(gymnasium.Env):
    """An environment with unique observations, and episodes of 1 to 9 steps."""

    observation_space = gymnasium.spaces.Box(0, 255, (36, 36), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self):
        self.count, self.left = 0, 0

    def _look(self):
        self.count += 1
        return (np.arange(36 * 36).reshape(36, 36) * self.count % 251).astype(np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 1 + self.count * 7 % 9
        return self._look(), {}

    def step(self, action):
        self.left -= 1
        return self._look(), float(self.count), self.left == 0 and self.count % 2 == 0, self.left == 0, {}


@pytest.mark.parametrize("padding", ["reset", "zero"])
@pytest.mark.parametrize("n_step", [1, 3])
def test_stacks_are_those_of_gymnasium(padding, n_step):
    """Single frames that the buffer stacks give the same batches as stacks of FrameStackObservation."""
    stacked_env = gymnasium.wrappers.FrameStackObservation(Pictures(), 4, padding_type=padding)
    batches = []
    for env, options in (
        (Pictures(), {"stack": 4, "padding": padding}),
        (stacked_env, {}),
        (stacked_env, {"share": "none"}),
    ):
        env.unwrapped.count = 0
        buffer = PrioritizedBuffer.from_env(env, 40, n_step=n_step, seed=0, **options)
        env = record(env, buffer)
        env.reset(seed=0)
        for step in range(150):
            *_, terminated, truncated, _ = env.step(0)
            if terminated or truncated or step == 77:
                env.reset()
        batches.append([bits_of(assert_lawful(buffer, 33)) for _ in range(3)])
    assert batches[0] == batches[1] == batches[2]
