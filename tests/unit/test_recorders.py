"""A recorder owns its buffer, can be paused, reads extra fields, and refuses what it cannot record truly."""

import copy
import pickle
import threading

import numpy as np
import pytest

from replaykit import CombinedReplay, Field, HindsightReplay, ReplayBuffer, Spec, record
from replaykit.field import FieldNameError
from tests.helpers import map_leaves, stored_indices, unchanged

gymnasium = pytest.importorskip("gymnasium")
from gymnasium import spaces  # noqa: E402
from gymnasium.error import ResetNeeded  # noqa: E402
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper  # noqa: E402

BOX = spaces.Box(-np.inf, np.inf, (2,), np.float64)
MODES = list(AutoresetMode)


def fresh(value):
    """The observation that holds this number."""
    return np.array([value, -value], np.float64)


class Walk(gymnasium.Env):
    """Observations count on: 10,000 an environment, 100 an episode, 1 a step. Episode e has 3 + e steps, at most 6.

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
    """Reset, and step so many times; with DISABLED, or if alone, reset what has ended."""
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
    """The numbers of the stored observations, lane after lane."""
    return buffer.read(stored_indices(buffer), field)[:, 0].tolist()


def assert_true(buffer):
    """Every next observation is the one after the observation, and stored only once."""
    assert len(buffer) > 0
    obs = numbers(buffer)
    assert (np.array(numbers(buffer, "next_obs")) - obs == 1.0).all()
    assert len(set(obs)) == len(obs)


# -- One recorder a buffer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap_first", [lambda b: b, CombinedReplay])
@pytest.mark.parametrize("wrap_second", [lambda b: b, CombinedReplay])
@pytest.mark.parametrize("count", [None, 1, 2])
def test_a_new_recorder_takes_the_buffer_over(count, wrap_first, wrap_second):
    """The running episodes end. The former recorder raises before its environment is touched; it can come back."""
    first, second = [Walk(0), Walk(5)] if count is None else [walks(count), walks(count)]
    base = first if count is None else first.envs[0]
    buffer = ReplayBuffer.from_env(first, 100, n_step=3, gamma=1.0)
    former = record(first, wrap_first(buffer))
    play(former, 2)
    newer = record(second, wrap_second(buffer))
    calls, before = base.calls, len(buffer)
    for call in (lambda: former.step(no_op(former)), former.reset, former.paused().__enter__):
        with pytest.raises(RuntimeError, match="another recorder has taken over the buffer.*record\\(\\)"):
            call()
    assert (base.calls, len(buffer)) == (calls, before)
    play(newer, 2)
    number, *_ = buffer.episode(stored_indices(buffer)[:4])
    assert number[0] == number[1] != number[2] == number[3]
    assert buffer.window(stored_indices(buffer)[1:2]).length.tolist() == [1]
    again = record(first, buffer)
    play(again, 2)
    with pytest.raises(RuntimeError, match="another recorder"):
        newer.step(no_op(newer))


@pytest.mark.parametrize("end", ["record", "paused"])
def test_running_episodes_end_at_once(end):
    """When a buffer is taken over or a pause begins: what is added by hand then begins an episode."""
    env = Walk()
    buffer = ReplayBuffer.from_env(env, 100, n_step=3)
    recorder = record(env, buffer)
    play(recorder, 2)
    if end == "record":
        record(Walk(1), buffer)
    else:
        with recorder.paused():
            pass
    buffer.add(fresh(7.0), 0, 0.0, fresh(8.0), False, False)
    assert buffer.episode([1, 2])[0].tolist() == [0, 1]


def test_a_new_recorder_must_be_reset_first():
    """Also if its environment is in the middle of an episode."""
    env = Walk()
    buffer = ReplayBuffer.from_env(env, 100)
    play(record(env, buffer), 1)
    with pytest.raises(ResetNeeded):
        record(env, buffer).step(0)


def test_a_refused_record_takes_nothing_over():
    """The recorder of the buffer goes on."""
    env = Walk()
    buffer = ReplayBuffer.from_env(env, 100)
    env = record(env, buffer)
    play(env, 2)
    for wrong in (gymnasium.make("CartPole-v1"), walks(2), "CartPole-v1"):
        with pytest.raises((TypeError, ValueError), match="env"):
            record(wrong, buffer)
    env.step(0)
    assert buffer.episode([0, 2])[0].tolist() == [0, 0]


def test_a_buffer_is_recorded_once_by_an_environment():
    """Other wrappers in between, and around the buffer, change nothing. Two buffers both get every step."""
    env, spec = Walk(), {"achieved_goal": BOX, "desired_goal": BOX}
    one, other = ReplayBuffer.from_env(env, 100), ReplayBuffer.from_env(env, 100)
    inner = record(env, one)
    for outer in (inner, gymnasium.wrappers.TimeLimit(inner, 4)):
        for replay in (one, CombinedReplay(one), CombinedReplay(CombinedReplay(one))):
            with pytest.raises(ValueError, match="env is already recorded into this buffer"):
                record(outer, replay)
    both = record(gymnasium.wrappers.TimeLimit(inner, 4), other)
    play(both, 9)
    assert numbers(one) == numbers(other) != []
    with pytest.raises(ValueError, match="already recorded"):
        record(both, one)
    vector = walks(2)
    buffer = ReplayBuffer.from_env(vector, 100)
    with pytest.raises(ValueError, match="already recorded"):
        record(VectorWrapper(record(vector, buffer)), buffer)
    goals = gymnasium.wrappers.TransformObservation(
        env, lambda obs: {"achieved_goal": obs, "desired_goal": obs}, spaces.Dict(spec)
    )
    replay = HindsightReplay(ReplayBuffer.from_env(goals, 100), lambda a, d, info: np.zeros(len(a)))
    with pytest.raises(ValueError, match="already recorded"):
        record(record(goals, replay), replay.inner)


def test_copies_have_recorders_of_their_own():
    """A copied buffer is free; a copied recorder takes over the buffer that was copied with it, once it is reset."""
    env = Walk()
    buffer = ReplayBuffer.from_env(env, 100, n_step=3)
    env = record(env, buffer)
    play(env, 2)
    for copied in (copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))):
        play(record(Walk(7), copied(buffer)), 3)
        twin = copied(env)
        with pytest.raises(ResetNeeded):
            twin.step(0)
        play(twin, 2)
        assert len(twin.buffer) == len(buffer) + 2
        assert twin.buffer.window(np.array([len(buffer) - 1])).length.tolist() == [1]
        env.step(0)
    assert_true(buffer)


def test_a_recorder_and_its_environment_are_freed():
    """The buffer keeps neither alive."""
    import gc
    import weakref

    env = Walk()
    buffer = ReplayBuffer.from_env(env, 100)
    recorder = record(env, buffer)
    seen = weakref.ref(recorder)
    del recorder
    gc.collect()
    assert seen() is None


@pytest.mark.parametrize("call", ["step", "reset"])
def test_a_call_that_is_under_way_changes_nothing_after_the_takeover(call):
    """The buffer is taken over while another thread is inside `step` or `reset` of the former recorder."""
    inside, taken = threading.Event(), threading.Event()

    class Slow(Walk):
        def step(self, action):
            inside.set()
            assert taken.wait(60)
            return super().step(action)

        def reset(self, **options):
            if call == "reset" and self.episode:
                self.step(0)
            return super().reset(**options)

    buffer = ReplayBuffer.from_env(Walk(), 100, n_step=3)
    former, errors = record(Slow(), buffer), []
    former.reset()

    def run():
        try:
            getattr(former, call)(*[0] * (call == "step"))
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert inside.wait(60)
    newer = record(Walk(3), buffer)
    play(newer, 2)
    taken.set()
    thread.join()
    assert len(errors) == 1
    newer.step(0)
    assert numbers(buffer) == [30100.0, 30101.0, 30102.0]
    assert buffer.window(np.array([0])).length.tolist() == [3]


# -- Pauses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [None, *MODES])
def test_nothing_is_stored_in_a_pause(mode):
    """Neither joins the episode before a pause the one after it: the environment must be reset in all its lanes."""
    env = Walk() if mode is None else walks(2, mode)
    buffer = ReplayBuffer.from_env(env, 200, n_step=3)
    env = record(env, buffer)
    play(env, 5, mode)
    before = len(buffer)
    for leave in range(4):
        with env.paused() as same:
            assert same is env
            if leave:
                play(env, 10 + leave, mode)
            if leave == 2:
                env.reset()
        with pytest.raises(ResetNeeded, match="recording was paused.*reset\\(\\)"):
            env.step(no_op(env))
        if mode is not None:
            with pytest.raises(ResetNeeded, match="without a reset_mask"):
                env.reset(options={"reset_mask": np.array([True, False])})
    assert len(buffer) == before
    play(env, 8, mode)
    assert len(buffer) > before
    assert_true(buffer)
    for lane in range(buffer.num_envs):
        own = stored_indices(buffer)[stored_indices(buffer) % buffer.num_envs == lane]
        jumps = np.diff(buffer.read(own, "obs")[:, 0]) != 1
        assert (np.diff(buffer.episode(own)[0]) != 0).tolist() == jumps.tolist()


def test_pauses_can_be_nested_and_interrupted():
    """Only the outermost one ends the pause. An exception inside ends it, too."""
    env = Walk()
    buffer = ReplayBuffer.from_env(env, 100)
    env = record(env, buffer)
    with env.paused():  # before the first reset
        with env.paused():
            play(env, 3)
        play(env, 3)
    assert len(buffer) == 0
    with pytest.raises(ResetNeeded):
        env.step(0)
    env.reset()
    env.step(0)
    with pytest.raises(ZeroDivisionError), env.paused():
        play(env, 3 // (len(buffer) - 1))
    with pytest.raises(ResetNeeded):
        env.step(0)
    play(env, 2)
    assert len(buffer) == 3
    assert_true(buffer)


def test_a_pause_through_other_wrappers():
    """Gymnasium's way to an attribute of an inner wrapper."""
    env = Walk()
    buffer = ReplayBuffer.from_env(env, 100)
    env = gymnasium.wrappers.TimeLimit(record(env, buffer), 50)
    with env.get_wrapper_attr("paused")():
        play(env, 10)
    assert len(buffer) == 0


def test_a_takeover_in_a_pause_ends_the_evaluation():
    """The former recorder raises in its pause, and leaving it does not touch the buffer."""
    first = Walk()
    buffer = ReplayBuffer.from_env(first, 100)
    former = record(first, buffer)
    with former.paused():
        newer = record(Walk(1), buffer)
        newer.reset()
        newer.step(0)
        with pytest.raises(RuntimeError, match="another recorder"):
            former.reset()
    newer.step(0)
    assert buffer.episode([0, 1])[0].tolist() == [0, 0]


# -- The last observations of SAME_STEP --------------------------------------------------------------------------

NESTED = spaces.Dict({"a": BOX, "b": spaces.Tuple((BOX, spaces.Box(-np.inf, np.inf, (), np.float32)))})
PAIR = spaces.Tuple((BOX, BOX))


def as_box(rows):
    return rows


def as_dict(rows):
    return {"b": (-rows, rows[..., 0].astype(np.float32)), "a": rows}  # not the order of the space


def as_pair(rows):
    return rows, -rows


def each(values, over):
    """The observations of the lanes in `over`, in a list; None for the others."""
    return [map_leaves(lambda leaf, i=i: leaf[i], values) if over[i] else None for i in range(len(over))]


def as_objects(entries):
    array = np.full(len(entries), None, object)
    for i, entry in enumerate(entries):
        array[i] = entry
    return array


FORMS = {
    "full array, no mask": lambda final, over: {"final_obs": final},
    "full array, mask": lambda final, over: {"final_obs": final, "_final_obs": over},
    "objects, mask": lambda final, over: {"final_obs": as_objects(each(final, over)), "_final_obs": over},
    "objects, no mask": lambda final, over: {"final_obs": as_objects(each(final, over))},
    "a list, a list as mask": lambda final, over: {"final_obs": each(final, over), "_final_obs": over.tolist()},
    "older, objects": lambda final, over: {
        "final_observation": as_objects(each(final, over)), "_final_observation": over
    },
    "older, full, no mask": lambda final, over: {"final_observation": final},
    "a dict for each lane": lambda final, over: [{"final_obs": x} if x is not None else {} for x in each(final, over)],
    "None for a lane": lambda final, over: [{"final_obs": x} if x is not None else None for x in each(final, over)],
}  # fmt: skip


class SameStep(VectorEnv):
    """Lane i has episodes of 2 + i steps; `final` makes the info from all last observations and the lanes that end."""

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


@pytest.mark.parametrize(("space", "form"), [(BOX, as_box), (NESTED, as_dict), (PAIR, as_pair)])
@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("final", FORMS)
def test_last_observations_are_read_in_every_form(final, lanes, space, form):
    """With and without a mask, as one array and lane by lane, under the present and under the older key."""
    env = SameStep(lanes, FORMS[final], space, form)
    buffer = ReplayBuffer.from_env(env, 100)
    env = record(env, buffer)
    env.reset()
    for _ in range(12):
        env.step(np.zeros(lanes, int))
    assert len(buffer) == 12 * lanes
    stored = stored_indices(buffer)
    for leaf in [leaf.name for leaf in buffer.spec.leaves if leaf.name.startswith("obs")]:
        obs, next_obs = buffer.read(stored, leaf), buffer.read(stored, f"next_{leaf}")
        np.testing.assert_array_equal(np.abs(next_obs) - np.abs(obs), np.ones_like(obs))


@pytest.mark.parametrize("info", [
    lambda final, over: {},
    lambda final, over: {"final_info": {}},
    lambda final, over: [{}] * len(over),
    lambda final, over: {"final_obs": final, "_final_obs": np.zeros_like(over)},
    lambda final, over: {"final_obs": as_objects([None] * len(over)), "_final_obs": over},
    lambda final, over: {"final_obs": None},
])  # fmt: skip
@pytest.mark.parametrize("lanes", [1, 2])
def test_without_a_last_observation_nothing_is_stored(lanes, info):
    """The error names the key and the lanes, and the recorder asks for a reset."""
    env = SameStep(lanes, info)
    buffer = ReplayBuffer.from_env(env, 100)
    env = record(env, buffer)
    env.reset()
    env.step(np.zeros(lanes, int))
    with unchanged(buffer, KeyError, r"next_obs is missing in lanes \[0\].*'final_obs.*SAME_STEP.*another mode"):
        env.step(np.zeros(lanes, int))
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(lanes, int))
    env.reset()
    env.step(np.zeros(lanes, int))
    assert len(buffer) == 2 * lanes
    assert_true(buffer)


@pytest.mark.parametrize(("info", "match"), [
    (lambda final, over: {"final_obs": final[over]}, r"next_obs has shape \(1, 2\); expected \(2, 2\)"),
    (lambda final, over: {"final_obs": final[:, :1]}, r"next_obs has shape \(2, 1\); expected \(2, 2\)"),
    (lambda final, over: {"final_obs": [final[0, :1], None]}, r"next_obs has shape \(1,\); expected \(2,\)"),
    (lambda final, over: {"final_obs": [final[0]]}, r"'final_obs' of info has 1 entries; expected 2"),
    (lambda final, over: {"final_obs": final, "_final_obs": over[:1]}, r"_final_obs has shape \(1,\)"),
    (lambda final, over: {"final_obs": {"a": final}}, r"next_obs is missing in lanes \[0\]"),
    (lambda final, over: {"final_obs": final.astype(str)}, "next_obs has dtype"),
])  # fmt: skip
def test_last_observations_of_another_form_are_refused(info, match):
    """By an error of the field, before anything is stored."""
    env = SameStep(2, info)
    buffer = ReplayBuffer.from_env(env, 100)
    env = record(env, buffer)
    env.reset()
    env.step(np.zeros(2, int))
    with unchanged(buffer, (ValueError, TypeError), match):
        env.step(np.zeros(2, int))


def test_flags_of_another_form_are_refused():
    """Those of a vector environment have shape (E,)."""

    class Column(VectorWrapper):
        def step(self, actions):
            obs, rewards, terminated, truncated, info = self.env.step(actions)
            return obs, rewards, terminated[:, None], truncated, info

    for mode in MODES:
        env = Column(walks(2, mode))
        buffer = ReplayBuffer.from_env(env, 100)
        env = record(env, buffer)
        env.reset()
        with unchanged(buffer, ValueError, r"terminated has shape \(2, 1\); expected \(2,\)"):
            env.step(np.zeros(2, int))


# -- Torch tensors -----------------------------------------------------------------------------------------------


def tensor(value):
    torch = pytest.importorskip("torch")
    return torch.as_tensor(value)


class Tensors(VectorWrapper):
    """Everything but object arrays as tensors; takes tensors as actions, and as masks of a reset."""

    def reset(self, *, seed=None, options=None):
        options = {key: np.asarray(value) for key, value in (options or {}).items()}
        obs, info = self.env.reset(seed=seed, options=options)
        return map_leaves(tensor, obs), info

    def step(self, actions):
        obs, *rest, info = self.env.step(np.asarray(actions))
        info = {k: v if isinstance(v, dict) or v.dtype == object else tensor(v) for k, v in info.items()}
        if "final_obs" in info:
            info["final_obs"] = as_objects([x if x is None else tensor(x) for x in info["final_obs"]])
        return map_leaves(tensor, obs), *map(tensor, rest), info


class TensorsOfOne(gymnasium.Wrapper):
    """The same for a single environment."""

    def reset(self, **options):
        obs, info = self.env.reset(**options)
        return tensor(obs), info

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(int(action))
        return tensor(obs), tensor(reward), tensor(terminated), tensor(truncated), info


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_tensors_are_stored_like_arrays(mode, lanes):
    """Observations, rewards, flags, actions, extra fields and masks, in every mode; the caller gets the tensors."""
    torch = pytest.importorskip("torch")
    buffers = []
    for make in (lambda env: env, Tensors):
        env = make(walks(lanes, mode))
        spec = Spec.from_env(env, number=Field((), np.float64))
        buffer = ReplayBuffer(500, spec, num_envs=lanes)
        env = record(env, buffer, extras={"number": "number"})
        env.reset()
        for _ in range(40):
            actions = np.full(lanes, 2)
            result = env.step(tensor(actions) if make is Tensors else actions)
            done = result[2] | result[3]
            if mode == AutoresetMode.DISABLED and done.any():
                env.reset(options={"reset_mask": done})
        if make is Tensors:
            assert all(isinstance(value, torch.Tensor) for value in result[:4])
        buffers.append(buffer)
    assert_true(buffers[1])
    for leaf in buffers[0].spec.leaves:
        stored = stored_indices(buffers[0])
        np.testing.assert_array_equal(buffers[0].read(stored, leaf.name), buffers[1].read(stored, leaf.name))


def test_tensors_of_a_single_environment():
    """Flags and rewards are tensors without dimensions, and a reused tensor is copied."""
    torch = pytest.importorskip("torch")
    env = TensorsOfOne(Walk())
    buffer = ReplayBuffer.from_env(env, 100)
    env = record(env, buffer)
    env.reset()
    for _ in range(20):
        obs, *_, terminated, truncated, _ = env.step(torch.tensor(2))
        obs.zero_()  # as an environment may do that fills one tensor again and again
        if terminated or truncated:
            env.reset()[0].zero_()
    assert_true(buffer)
    assert set(buffer.read(stored_indices(buffer), "action").tolist()) == {2}


@pytest.mark.parametrize("form", ["final_obs full", "final_obs for each lane"])
def test_last_observations_may_be_tensors(form):
    """As one tensor of all lanes, as simulators give them, and one by one; the masks, too."""

    def final(values, over):
        values = tensor(values)
        values = values if form == "final_obs full" else list(values)
        return {"final_obs": values, "_final_obs": tensor(over)}

    env = SameStep(3, final)
    buffer = ReplayBuffer.from_env(env, 100)
    env = record(env, buffer)
    env.reset()
    for _ in range(12):
        env.step(np.zeros(3, int))
    assert_true(buffer)


@pytest.mark.parametrize("place", ["reset", "obs", "reward", "action", "final_obs", "extra"])
def test_tensors_that_require_grad_are_refused(place):
    """By the error of their field, which leaves the buffer as it was."""
    pytest.importorskip("torch")

    def graded(value, here):
        return tensor(np.asarray(value, np.float64)).requires_grad_() if here == place else value

    class Graded(VectorWrapper):
        def reset(self, **options):
            obs, info = self.env.reset(**options)
            return graded(obs, "reset"), info

        def step(self, actions):
            obs, rewards, terminated, truncated, info = self.env.step(np.asarray(actions.detach()))
            return graded(obs, "obs"), graded(rewards, "reward"), terminated, truncated, info

    env = Graded(SameStep(2, lambda final, over: {"final_obs": graded(final, "final_obs")}))
    buffer = ReplayBuffer(100, Spec.from_env(env, extra=Field()), num_envs=2)
    env = record(env, buffer, extras={"extra": lambda step: graded(np.zeros(2), "extra")})
    field = {"reset": "obs", "obs": "next_obs", "final_obs": "next_obs"}.get(place, place)

    def run():
        env.reset()
        for _ in range(3):
            env.step(graded(tensor(np.zeros(2, int)), "action"))

    with pytest.raises(TypeError, match=f"^{field} is a torch tensor that requires grad.*detach"):
        run()
    buffer.check()
    assert len(buffer) == (2 if place == "final_obs" else 0)


def test_wrong_actions_do_not_disturb_the_episode():
    """An action that cannot be read is refused before the environment is stepped."""
    torch = pytest.importorskip("torch")
    env = Walk()
    buffer = ReplayBuffer.from_env(env, 100)
    recorder = record(env, buffer)
    play(recorder, 2)
    calls = env.calls
    with pytest.raises(TypeError, match="action is a torch tensor that requires grad"):
        recorder.step(torch.zeros((), requires_grad=True))
    assert env.calls == calls
    recorder.step(1)
    assert buffer.episode([0, 2])[0].tolist() == [0, 0]


# -- Extra fields ------------------------------------------------------------------------------------------------

NUMBER, TWO = Field((), np.float64), Field((2,), np.float64)
EXTRA_FIELDS = {"number": NUMBER, "pair": TWO, "nested": {"a": NUMBER, "b": TWO}, "renamed": TWO, "function": NUMBER}


def all_extras(seen):
    def function(step):
        seen.append(step)
        return step.next_obs[..., 0] + np.asarray(step.action)

    return {"number": "number", "pair": "pair", "nested": "nested", "renamed": "list", "function": function}


def assert_extras_are_those_of_the_step(buffer, action):
    index = stored_indices(buffer)
    then = np.array(numbers(buffer, "next_obs"))
    np.testing.assert_array_equal(buffer.read(index, "number"), then)
    np.testing.assert_array_equal(buffer.read(index, "pair"), np.stack([then, np.ones_like(then)], 1))
    np.testing.assert_array_equal(buffer.read(index, "nested.a"), then)
    np.testing.assert_array_equal(buffer.read(index, "nested.b"), np.stack([then, 0 * then], 1))
    np.testing.assert_array_equal(buffer.read(index, "renamed"), np.stack([then, np.full_like(then, 2.0)], 1))
    np.testing.assert_array_equal(buffer.read(index, "function"), then + action)


@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("mode", [None, *MODES])
def test_extra_fields_come_from_info_and_from_functions(mode, lanes, kind):
    """Of any shape. They belong to the step that is stored, also where SAME_STEP has already reset the lane."""
    if mode is None and (lanes > 1 or kind is AsyncVectorEnv):
        pytest.skip("a single environment")
    env = Walk() if mode is None else walks(lanes, mode, kind)
    seen, buffer = [], ReplayBuffer(500, Spec.from_env(env, **EXTRA_FIELDS), num_envs=lanes)
    env = record(env, buffer, extras=all_extras(seen))
    play(env, 30, mode)
    assert_true(buffer)
    assert_extras_are_those_of_the_step(buffer, 0)
    step = seen[0]
    assert step._fields == ("obs", "action", "reward", "next_obs", "terminated", "truncated", "info")
    np.testing.assert_array_equal(np.ravel(step.obs)[0] + 1, np.ravel(step.next_obs)[0])
    called = len(seen)
    assert called == len(buffer) or lanes > 1  # not for a step that only resets
    with env.paused():
        play(env, 5, mode)
    assert len(seen) == called
    env.close()


@pytest.mark.parametrize("mode", MODES)
def test_the_info_of_a_reset_needs_no_extra_field(mode):
    """It belongs to no step, so a key may be missing there, however lanes are reset."""

    class Quiet(Walk):
        def reset(self, **options):
            return super().reset(**options)[0], {}

    env = SyncVectorEnv([lambda: Quiet(0), lambda: gymnasium.wrappers.TimeLimit(Quiet(1), 2)], autoreset_mode=mode)
    buffer = ReplayBuffer(500, Spec.from_env(env, number=NUMBER), num_envs=2)
    play(record(env, buffer, extras={"number": "number"}), 30, mode)
    assert_true(buffer)
    np.testing.assert_array_equal(buffer.read(stored_indices(buffer), "number"), numbers(buffer, "next_obs"))


def test_a_function_gets_what_the_agent_computed():
    """Such as the log-probability of the action: it is called after the environment's step, once for each step."""
    env = Walk()
    buffer = ReplayBuffer(100, Spec.from_env(env, log_prob=Field(())))
    agent = {}
    env = record(env, buffer, extras={"log_prob": lambda step: agent["log_prob"][int(step.action)]})
    env.reset()
    for action in (0, 2, 1):
        agent["log_prob"] = -np.arange(3.0) - action
        env.step(action)
    assert buffer.read([0, 1, 2], "log_prob").tolist() == [0.0, -4.0, -2.0]


@pytest.mark.parametrize(("extras", "error", "match"), [
    (None, ValueError, r"extra fields \('hint',\), and extras has \(\)"),
    ({}, ValueError, r"extra fields \('hint',\)"),
    ({"hint": "hint", "hnit": "hint"}, ValueError, r"extra fields \('hint',\), and extras has \('hint', 'hnit'\)"),
    ({"hint": 3}, TypeError, r"extras\['hint'\] is 3; expected a key of info or a function"),
    (["hint"], TypeError, r"extras is \['hint'\]; expected a dict"),
    ("hint", TypeError, "extras is 'hint'; expected a dict"),
    ([], TypeError, r"extras is \[\]; expected a dict"),
])  # fmt: skip
def test_extras_are_checked_when_record_is_called(extras, error, match):
    """Each extra field has a source, and nothing else has."""
    env = Walk()
    with pytest.raises(error, match=match):
        record(env, ReplayBuffer(10, Spec.from_env(env, hint=NUMBER)), extras=extras)
    with pytest.raises(ValueError, match=r"extra fields \(\), and extras has \('hint',\)"):
        record(env, ReplayBuffer.from_env(env, 10), extras={"hint": "hint"})


class Changed(gymnasium.Wrapper):
    """An environment whose info, from its third step on, is changed by a function."""

    def __init__(self, env, change):
        super().__init__(env)
        self.change, self.steps = change, 0

    def step(self, action):
        *rest, info = self.env.step(action)
        self.steps += 1
        if self.steps == 3:
            self.change(info)
        return (*rest, info)


@pytest.mark.parametrize(("change", "error", "match"), [
    (lambda info: info.pop("number"), KeyError, "number is missing: expected 'number' in info, which has .*'pair'"),
    (lambda info: info.update(number="x"), TypeError, "number has dtype"),
    (lambda info: info.update(number=[1.0]), ValueError, r"number has shape \(1,\); expected \(\)"),
    (lambda info: info["nested"].pop("a"), KeyError, "nested lacks the key 'a'"),
])  # fmt: skip
def test_a_wrong_extra_field_is_refused(change, error, match):
    """The buffer is unchanged, and the recorder asks for a reset."""
    env = Changed(Walk(), change)
    buffer = ReplayBuffer(100, Spec.from_env(env, number=NUMBER, nested=EXTRA_FIELDS["nested"]))
    env = record(env, buffer, extras={"number": "number", "nested": "nested"})
    play(env, 2)
    with unchanged(buffer, error, match):
        env.step(0)
    with pytest.raises(ResetNeeded):
        env.step(0)
    play(env, 2)
    assert_true(buffer)


@pytest.mark.parametrize(("change", "match"), [
    (lambda info: info.pop("number"), r"number is missing in lanes \[1\]: expected 'number' in info"),
    (lambda info: info["nested"].pop("a"), r"nested.a is missing in lanes \[1\]: expected 'nested' in info"),
    (lambda info: info.update(number="x"), None),
])  # fmt: skip
@pytest.mark.parametrize("mode", MODES)
def test_a_lane_without_its_extra_field_is_refused(mode, change, match):
    """Gymnasium fills the array of the lanes that have it with zeros; its mask tells the difference."""
    env = SyncVectorEnv([lambda: Walk(0), lambda: Changed(Walk(1), change)], autoreset_mode=mode)
    buffer = ReplayBuffer(100, Spec.from_env(env, number=NUMBER, nested=EXTRA_FIELDS["nested"]), num_envs=2)
    env = record(env, buffer, extras={"number": "number", "nested": "nested"})
    play(env, 2)
    error = FieldNameError if match else ValueError  # Gymnasium's own array refuses the string
    with unchanged(buffer, error, match or "could not convert"):
        env.step(np.zeros(2, int))
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(2, int))


def test_extra_fields_in_same_step_mode_need_the_last_info():
    """At an episode's end, `info` describes the next episode, so its value is not taken."""

    class NoFinalInfo(VectorWrapper):
        def step(self, actions):
            *rest, info = self.env.step(actions)
            info.pop("final_info", None)
            return (*rest, info)

    class Older(VectorWrapper):
        def step(self, actions):
            *rest, info = self.env.step(actions)
            if "final_info" in info:
                final = info["final_info"]["number"]
                has = info["final_info"]["_number"]
                info["final_info"] = as_objects([{"number": x} if h else None for x, h in zip(final, has, strict=True)])
            return (*rest, info)

    buffers = []
    for wrapper in (NoFinalInfo, Older):
        env = wrapper(walks(2, AutoresetMode.SAME_STEP))
        buffers.append(ReplayBuffer(100, Spec.from_env(env, number=NUMBER), num_envs=2))
        env = record(env, buffers[-1], extras={"number": "number"})
        env.reset()
        for _ in range(3):
            env.step(np.zeros(2, int))
        if wrapper is NoFinalInfo:
            with unchanged(buffers[-1], KeyError, r"number is missing in lanes \[0, 1\].*final_info"):
                env.step(np.zeros(2, int))
        else:
            play(env, 20)
            np.testing.assert_array_equal(
                buffers[-1].read(stored_indices(buffers[-1]), "number"), numbers(buffers[-1], "next_obs")
            )


def test_a_wrong_field_of_a_vector_of_one_environment_is_named():
    """With the leading axis that all fields have there."""
    env = walks(1)
    buffer = ReplayBuffer(100, Spec.from_env(env, hint=NUMBER))
    env = record(env, buffer, extras={"hint": lambda step: np.zeros((1, 2))})
    env.reset()
    with unchanged(buffer, ValueError, r"hint has shape \(1, 2\); expected \(1,\)"):
        env.step(np.zeros(1, int))


@pytest.mark.parametrize("mode", MODES)
def test_a_function_that_raises_asks_for_a_reset(mode):
    """As any error in a step does."""
    env = walks(2, mode)
    buffer, values = ReplayBuffer(100, Spec.from_env(env, hint=NUMBER), num_envs=2), iter([np.zeros(2), None])
    env = record(env, buffer, extras={"hint": lambda step: next(values) / 1})
    env.reset()
    env.step(np.zeros(2, int))
    with unchanged(buffer, TypeError, "NoneType"):
        env.step(np.zeros(2, int))
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(2, int))


# -- Other faults ------------------------------------------------------------------------------------------------


class OldGym(Walk):
    """The interface of OpenAI Gym: reset returns the observation, step four values."""

    old_reset = True

    def reset(self, **options):
        obs, info = super().reset(**options)
        return obs if self.old_reset else (obs, info)

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, terminated or truncated, info


def test_the_interface_of_openai_gym_is_refused():
    """The error names Gymnasium's five values, and how to convert the environment; no pair is unpacked by chance."""
    env = OldGym()
    buffer = ReplayBuffer.from_env(env, 100)
    recorder = record(env, buffer)
    with pytest.raises(
        ValueError, match=r"env.reset\(\) returned a ndarray; expected \(obs, info\).*GymV21Environment"
    ):
        recorder.reset()
    with pytest.raises(ResetNeeded):
        recorder.step(0)
    env.old_reset = False
    recorder.reset()
    with unchanged(buffer, ValueError, r"returned 4 values; .*\(obs, reward, terminated, truncated, info\).*GymV21"):
        recorder.step(0)
    with pytest.raises(ResetNeeded):
        recorder.step(0)
    with pytest.raises(TypeError, match="env is a object; expected a Gymnasium environment.*GymV21Environment"):
        record(object(), buffer)


@pytest.mark.parametrize("mode", MODES)
def test_after_an_error_all_lanes_must_be_reset(mode):
    """A lane may have ended in the step that raised, so none goes on with a part of the others reset."""

    class Failing(Walk):
        def step(self, action):
            if action == 2:
                raise OSError("no step today")
            return super().step(action)

    env = SyncVectorEnv([lambda: Walk(0), lambda: Failing(1)], autoreset_mode=mode)
    buffer = ReplayBuffer.from_env(env, 100, n_step=3)
    env = record(env, buffer)
    play(env, 3)
    with unchanged(buffer, OSError, "no step today"):
        env.step(np.array([0, 2]))
    for call in (
        lambda: env.step(np.zeros(2, int)),
        lambda: env.reset(options={"reset_mask": np.array([False, True])}),
    ):
        with pytest.raises(ResetNeeded):
            call()
    play(env, 3, mode)
    assert_true(buffer)


@pytest.mark.parametrize("mode", MODES)
def test_a_reset_of_some_lanes_leaves_the_others_alone(mode):
    """A lane that has ended, and is not reset by hand, is reset by the next step in NEXT_STEP mode."""
    env = walks(2, mode)
    buffer = ReplayBuffer.from_env(env, 200, n_step=3)
    env = record(env, buffer)
    env.reset()
    for step in range(40):
        *_, terminated, truncated, _ = env.step(np.zeros(2, int))
        done = terminated | truncated
        if done.any() and (mode == AutoresetMode.DISABLED or step % 3 == 0):
            env.reset(options={"reset_mask": done if mode == AutoresetMode.DISABLED else np.array([True, False])})
    assert_true(buffer)
    assert len(buffer) > 60


def test_a_lane_that_has_ended_waits_for_its_reset():
    """In DISABLED mode, also if the environment goes on to step it, as simulators do."""

    class GoesOn(SameStep):
        metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012

        def step(self, actions):
            self.count = self.count + 1
            over, none = self.count == 2 + np.arange(self.num_envs), np.zeros(self.num_envs, bool)
            return self._rows(), np.ones(self.num_envs), over, none, {}

    env = GoesOn(2, None)
    buffer = ReplayBuffer.from_env(env, 100)
    env = record(env, buffer)
    env.reset()
    for _ in range(6):
        env.step(np.zeros(2, int))
    assert numbers(buffer) == [0.0, 1.0, 10_000.0, 10_001.0, 10_002.0]


def test_a_time_limit_outside_ends_the_episode():
    """The recorder does not see its flag, but the reset that follows."""
    env = Walk()
    buffer = ReplayBuffer.from_env(env, 100, n_step=3)
    env = gymnasium.wrappers.TimeLimit(record(env, buffer), 2)
    play(env, 6)
    assert_true(buffer)
    assert buffer.window(np.arange(6)).length.tolist() == [2, 1] * 3


def test_a_recorder_can_be_closed_at_any_time():
    """Twice, too. What was recorded stays, and another recorder goes on."""
    env = walks(2)
    buffer = ReplayBuffer.from_env(env, 100, n_step=3)
    recorder = record(env, buffer)
    play(recorder, 2)
    recorder.close()
    recorder.close()
    play(record(walks(2), buffer), 2)
    assert len(buffer) == 8
    assert buffer.window(np.array([2, 3])).length.tolist() == [1, 1]
