"""Last observations, tensors and extra fields are read correctly in every form, or raise an error."""

import functools
import warnings

import numpy as np
import pytest

from replaykit import Field, ReplayBuffer, Spec, record
from replaykit.field import FieldNameError
from tests.helpers import map_leaves, stored_indices, unchanged
from tests.walks import (
    BOX,
    MODES,
    NUMBER,
    SameStep,
    Walk,
    as_box,
    as_objects,
    assert_true,
    each,
    numbers,
    play,
    walks,
)

gymnasium = pytest.importorskip("gymnasium")
from gymnasium import spaces  # noqa: E402
from gymnasium.error import ResetNeeded  # noqa: E402
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorWrapper  # noqa: E402

# -- The last observations of SAME_STEP --------------------------------------------------------------------------

NESTED = spaces.Dict({"a": BOX, "b": spaces.Tuple((BOX, spaces.Box(-np.inf, np.inf, (), np.float32)))})
PAIR = spaces.Tuple((BOX, BOX))


def as_dict(rows):
    return {"b": (-rows, rows[..., 0].astype(np.float32)), "a": rows}  # not the order of the space


def as_pair(rows):
    return rows, -rows


FORMS = {
    "full array, no mask": lambda final, over: {"final_obs": final},
    "full array, mask": lambda final, over: {"final_obs": final, "_final_obs": over},
    "full array, old values elsewhere": lambda final, over: {
        "final_obs": map_leaves(lambda leaf: (leaf.T * over).T, final), "_final_obs": over
    },
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


@pytest.mark.parametrize(("space", "form"), [(BOX, as_box), (NESTED, as_dict), (PAIR, as_pair)])
@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("final", FORMS)
def test_last_observations_are_read_in_every_form(final, lanes, space, form):
    """They can be masked or not, one array or one per lane, under the current or the older key."""
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
    with unchanged(buffer, KeyError, r"next_obs is missing in lanes \[0\].*'final_obs.*SAME_STEP.*in a wrapper"):
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
    """The error names the field, and nothing is stored."""
    env = SameStep(2, info)
    buffer = ReplayBuffer.from_env(env, 100)
    env = record(env, buffer)
    env.reset()
    env.step(np.zeros(2, int))
    with unchanged(buffer, (ValueError, TypeError), match):
        env.step(np.zeros(2, int))


def test_flags_of_another_form_are_refused():
    """Flags of a vector environment must have the shape (E,)."""

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
    """An environment with tensors in place of all arrays except object arrays. Actions and reset masks are tensors."""

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
    """Tensors are stored like arrays, in every mode and for every value. The caller gets the tensors."""
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
    """Flags and rewards can be tensors without dimensions. A reused tensor is copied."""
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
    """Last observations and their masks can be one tensor of all lanes, or one tensor for each lane."""

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
    """The error names the field, and the buffer is unchanged."""
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
    """An action that cannot be read raises an error before the environment is stepped."""
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

TWO = Field((2,), np.float64)
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
    """Extra fields have any shape, and belong to the stored step, even if SAME_STEP has reset the lane."""
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
    """The info of a reset belongs to no step, so it can lack an extra field."""

    class Quiet(Walk):
        def reset(self, **options):
            return super().reset(**options)[0], {}

    env = SyncVectorEnv([lambda: Quiet(0), lambda: gymnasium.wrappers.TimeLimit(Quiet(1), 2)], autoreset_mode=mode)
    buffer = ReplayBuffer(500, Spec.from_env(env, number=NUMBER), num_envs=2)
    play(record(env, buffer, extras={"number": "number"}), 30, mode)
    assert_true(buffer)
    np.testing.assert_array_equal(buffer.read(stored_indices(buffer), "number"), numbers(buffer, "next_obs"))


def test_a_function_gets_what_the_agent_computed():
    """A function for an extra field is called once per step, after the environment's step."""
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
    """Each extra field must have a source, and each source must belong to an extra field."""
    env = Walk()
    with pytest.raises(error, match=match):
        record(env, ReplayBuffer(10, Spec.from_env(env, hint=NUMBER)), extras=extras)
    with pytest.raises(ValueError, match=r"extra fields \(\), and extras has \('hint',\)"):
        record(env, ReplayBuffer.from_env(env, 10), extras={"hint": "hint"})


class Changed(gymnasium.Wrapper):
    """An environment whose info is changed by a function from its third step on."""

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
    """If a lane's info lacks an extra field, its mask shows it, and an error is raised instead of storing 0."""
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
    """At an episode's end in SAME_STEP mode, the value comes from the last info, not from the next episode's."""

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
    """The error shows the leading axis that all fields have."""
    env = walks(1)
    buffer = ReplayBuffer(100, Spec.from_env(env, hint=NUMBER))
    env = record(env, buffer, extras={"hint": lambda step: np.zeros((1, 2))})
    env.reset()
    with unchanged(buffer, ValueError, r"hint has shape \(1, 2\); expected \(1,\)"):
        env.step(np.zeros(1, int))


@pytest.mark.parametrize("mode", MODES)
def test_a_function_that_raises_asks_for_a_reset(mode):
    """If a function for an extra field raises an error, all lanes must be reset, as after any error in a step."""
    env = walks(2, mode)
    buffer, values = ReplayBuffer(100, Spec.from_env(env, hint=NUMBER), num_envs=2), iter([np.zeros(2), None])
    env = record(env, buffer, extras={"hint": lambda step: next(values) / 1})
    env.reset()
    env.step(np.zeros(2, int))
    with unchanged(buffer, TypeError, "NoneType"):
        env.step(np.zeros(2, int))
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(2, int))


class Overwriting(gymnasium.Env):
    """Episodes of two steps, whose observations are one reused array, or new arrays."""

    observation_space, action_space = spaces.Box(-9, 9, (1,)), spaces.Discrete(2)

    def __init__(self, copies):
        self.obs, self.copies = np.zeros(1, np.float32), copies

    def reset(self, *, seed=None, options=None):
        self.obs[:] = 0.0
        return self.obs.copy() if self.copies else self.obs, {}

    def step(self, action):
        self.obs += 1.0
        return self.obs.copy() if self.copies else self.obs, 1.0, bool(self.obs[0] == 2.0), False, {}


@pytest.mark.parametrize("copies", [True, False])
def test_observations_that_a_reset_overwrites_are_warned_of(copies):
    """If resets overwrite the last observations, there is one warning after the third episode."""
    envs = [functools.partial(Overwriting, copies) for _ in range(2)]
    vector = gymnasium.vector.SyncVectorEnv(envs, autoreset_mode=AutoresetMode.SAME_STEP)
    buffer = ReplayBuffer.from_env(vector, 100)
    env = record(vector, buffer)
    env.reset()
    warned = []
    for number in range(10):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            env.step(np.zeros(2, np.int64))
        warned += [number for warning in found if "final_obs" in str(warning.message)]
    assert warned == ([] if copies else [5])
