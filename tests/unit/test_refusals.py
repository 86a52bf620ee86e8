"""Errors name the argument, what was expected and what was given. Nothing changes."""

import re
import warnings

import numpy as np
import pytest

from replaykit import (
    CombinedReplay,
    Field,
    FieldNameError,
    HindsightReplay,
    LatestBuffer,
    LinearSchedule,
    PrioritizedBuffer,
    ReplayBuffer,
    Spec,
    SumTree,
)
from replaykit.diagnostics import ReplayMonitor
from tests.helpers import FLAT, GOAL_SPEC, every_buffer, filled, sparse, step, stretch, unchanged

NAN, INF = float("nan"), float("inf")


def refused(error, *words):
    """A context in which an error is raised whose message has all of the words, in this order."""
    return pytest.raises(error, match="(?s)" + ".*".join(map(re.escape, words)))


# -- Rewards -----------------------------------------------------------------------------------------------------

WRONG_REWARDS = [
    (NAN, ValueError, "nan"),
    (INF, ValueError, "inf"),
    (-INF, ValueError, "-inf"),
    (np.float32(NAN), ValueError, "nan"),
    (np.float64(INF), ValueError, "inf"),
    (np.array(NAN), ValueError, "nan"),
    (np.array(-INF, np.float32), ValueError, "-inf"),
    (1e39, OverflowError, "1e+39"),
    (np.float64(-1e39), OverflowError, "-1e+39"),
]


@every_buffer
@pytest.mark.parametrize(("reward", "error", "got"), WRONG_REWARDS)
@pytest.mark.parametrize("options", [{}, {"td_error": 1.0}, {"mask": np.array([True])}], ids=["plain", "error", "mask"])
def test_a_reward_that_is_no_finite_number_of_the_dtype_is_refused(make, reward, error, got, options):
    """`add` of one step raises an error, with and without a leading axis."""
    buffer = filled(make(10, FLAT, seed=0), 15)
    for one in (step(1), {name: np.asarray(value)[None] for name, value in step(1).items()}):
        given = np.asarray(reward)[None] if isinstance(one["action"], np.ndarray) else reward
        with unchanged(buffer, error, rf"reward contains {re.escape(got)}; expected .*float32"):
            buffer.add(**one | {"reward": given}, **options)


@every_buffer
@pytest.mark.parametrize("dtype", [np.float32, np.float64, object])
@pytest.mark.parametrize("place", [0, 1, 5, 11])
def test_one_reward_of_many_that_is_not_finite_is_refused(make, dtype, place):
    """`add` of several lanes and `extend` raise an error, in any memory layout."""
    buffer = make(12, FLAT, num_envs=3, seed=0)
    buffer.extend(**stretch(5, lanes=3))
    for value in (NAN, INF, -INF):
        many = stretch(4, lanes=3)
        many["reward"] = many["reward"].astype(np.float64 if dtype is object else dtype)
        many["reward"].reshape(-1)[place] = value
        if dtype is object:
            many["reward"] = many["reward"].tolist()
        with unchanged(buffer, ValueError, f"reward contains {value}; expected finite"):
            buffer.extend(**many)
        if dtype is not object:
            many["reward"] = np.asfortranarray(many["reward"])
            with unchanged(buffer, ValueError, f"reward contains {value}; expected finite"):
                buffer.extend(**many)
        one = {name: leaf[place // 3] for name, leaf in many.items()}
        with unchanged(buffer, ValueError, f"reward contains {value}; expected finite"):
            buffer.add(**one)


def test_rewards_that_a_mask_leaves_out_are_ignored():
    """The reward of a masked lane is ignored, even NaN."""
    buffer = ReplayBuffer(8, FLAT, num_envs=2)
    one = {name: leaf[0] for name, leaf in stretch(1, lanes=2).items()}
    one["reward"] = np.array([1.0, NAN])
    assert buffer.add(**one, mask=[True, False]).tolist() == [0, -1]
    with unchanged(buffer, ValueError, "reward contains nan"):
        buffer.add(**one, mask=[False, True])


@pytest.mark.filterwarnings("ignore:overflow")  # without compilation, NumPy says so
def test_the_largest_rewards_are_stored_and_their_sum_may_overflow():
    """Only a reward that cannot be stored raises an error."""
    buffer = ReplayBuffer(4, FLAT, n_step=2, gamma=1.0)
    largest = np.finfo(np.float32).max
    for reward in (float(largest), largest, np.float64(largest), -float(largest)):
        buffer.add(**step(0, reward=reward))
    assert buffer.read([0, 1, 2, 3], "reward").tolist() == [largest] * 3 + [-largest]
    assert np.isinf(buffer.sample(50).reward).any()


def test_nan_in_observations_is_stored_and_reported():
    """NaN in observations is stored. `check` warns with the field and the index, and the monitor counts it."""
    buffer = ReplayBuffer(8, FLAT, seed=0)
    filled(buffer, 4)
    buffer.add(**step(0, obs=np.array([0.0, NAN, 0.0], np.float32)))
    with pytest.warns(RuntimeWarning, match=r"obs .*NaN.* index 4"):
        buffer.check()
    buffer = filled(ReplayBuffer(8, FLAT), 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        buffer.check()


# -- Hyperparameters ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["alpha", "eps", "weights", "draws", "n_step", "gamma", "capacity", "num_envs", "stack", "spec"]
)
def test_what_cannot_be_set_later_says_so(name):
    """Setting a fixed attribute raises an error, also in the distribution, and the attribute is unchanged."""
    buffer = filled(PrioritizedBuffer(10, FLAT), 5)
    for target in (buffer, CombinedReplay(buffer)) if name not in ("alpha", "eps", "weights", "draws") else (buffer,):
        before = getattr(target, name)
        with refused(AttributeError, name, "cannot be set", "build"):
            setattr(target, name, before)
        assert getattr(target, name) == before


@pytest.mark.parametrize("name", ["alpha", "eps", "draws", "weights"])
def test_the_distribution_of_a_buffer_is_as_fixed_as_the_buffer(name):
    """A hyperparameter cannot be set later, because values derived from it would not change."""
    buffer = filled(PrioritizedBuffer(10, FLAT), 5)
    with refused(AttributeError, name):
        setattr(buffer.distribution, name, 0.5)
    with refused(AttributeError, "replace"):
        ReplayBuffer(10, FLAT).distribution.replace = False


def test_a_misspelt_attribute_is_refused_with_the_nearest_name():
    """Setting a misspelt attribute raises an error. Otherwise it would have no effect."""
    with refused(AttributeError, "bata", "did you mean 'beta'"):
        PrioritizedBuffer(10, FLAT).bata = 0.5
    with refused(AttributeError, "Ratio", "did you mean 'ratio'"):
        HindsightReplay(ReplayBuffer(10, GOAL_SPEC), sparse).Ratio = 0.5
    with refused(AttributeError, "latest_cuont", "latest_count"):
        CombinedReplay(ReplayBuffer(10, FLAT)).latest_cuont = 2


SCHEDULES = [
    (LinearSchedule(0.4, 1.5, 10), ValueError, "1.5"),
    (LinearSchedule(-0.1, 1.0, 10), ValueError, "-0.1"),
    (lambda batches: 0.4 + batches / 5000, ValueError, "2.4"),
    (lambda batches: 3.0, ValueError, "3.0"),
    (lambda batches: NAN, ValueError, "nan"),
    (lambda batches: "0.4", TypeError, "'0.4'"),
    (lambda batches: None, TypeError, "None"),
    (lambda: 0.4, TypeError, "number of batches"),
    (2, ValueError, "2"),
    (NAN, ValueError, "nan"),
    ("0.4", TypeError, "'0.4'"),
    (True, TypeError, "True"),
]


@pytest.mark.parametrize(("beta", "error", "got"), SCHEDULES)
def test_a_beta_or_schedule_out_of_its_range_is_refused_when_it_is_given(beta, error, got):
    """The constructor and the assignment raise the error. The assignment then changes nothing."""
    with refused(error, "beta", got):
        PrioritizedBuffer(10, FLAT, beta=beta)
    buffer = PrioritizedBuffer(10, FLAT, beta=0.25)
    with refused(error, "beta", got):
        buffer.beta = beta
    assert buffer.beta == 0.25


def test_a_schedule_that_ends_is_taken():
    """A schedule that fails for late steps is checked only for the steps that it covers."""
    betas = np.linspace(0.4, 1.0, 50).tolist()
    assert PrioritizedBuffer(10, FLAT, beta=lambda batches: betas[batches]).beta == 0.4


@pytest.mark.parametrize(
    ("start", "end", "steps", "name"), [("a", 1.0, 9, "start"), (0.0, NAN, 9, "end"), (0, 1, 0, "steps")]
)
def test_a_linear_schedule_of_no_numbers_is_refused(start, end, steps, name):
    """An invalid schedule raises an error when it is created."""
    with refused((TypeError, ValueError), name, "expected"):
        LinearSchedule(start, end, steps)


@pytest.mark.parametrize("ratio", [1.1, -0.1, NAN, "0.5", True, None])
def test_a_ratio_is_checked_when_it_is_set(ratio):
    """Setting an invalid ratio raises the error of the constructor."""
    replay = HindsightReplay(ReplayBuffer(10, GOAL_SPEC), sparse)
    with refused((TypeError, ValueError), "ratio", "expected"):
        replay.ratio = ratio
    assert replay.ratio == 0.8


# -- Batch sizes -------------------------------------------------------------------------------------------------


@every_buffer
@pytest.mark.parametrize("batch_size", [10**10, 10**13, 10**25])
def test_a_batch_larger_than_memory_is_refused_before_anything_is_drawn(make, batch_size):
    """`sample` and `draw` raise an error with the needed bytes."""
    buffer = filled(make(10, FLAT, seed=0), 12)
    for verb in (buffer.sample, buffer.draw):
        with unchanged(buffer, MemoryError, r"batch_size \d+ .*needs .*GiB"):
            verb(batch_size)
    buffer.sample(3)


@pytest.mark.parametrize("options", [{}, {"stack": 4}, {"share": "none"}])
def test_the_bytes_of_a_batch_decide_whether_it_is_larger_than_memory(options, monkeypatch):
    """The size in bytes counts: a few large images are as much as many numbers."""
    from replaykit.storage import memory_limit

    buffer = ReplayBuffer(10, Spec(obs=Field((2048, 2048), np.uint8), action=Field(())), seed=0, **options)
    image = np.ones((2048, 2048), np.uint8)
    buffer.add(image, 0.0, 0.0, image, False, False)
    monkeypatch.setattr(memory_limit, "_available_bytes", lambda: 50 << 20)
    for replay in (buffer, CombinedReplay(buffer)):
        state = buffer.rng.bit_generator.state
        with refused(MemoryError, "batch_size 40", "needs", "fewer"):
            replay.sample(40)
        assert buffer.rng.bit_generator.state == state
        assert len(replay.sample(1)) == 1


def test_a_window_that_is_longer_than_a_lane_takes_no_memory(monkeypatch):
    """The estimated size of a batch does not count steps beyond a lane's length."""
    from replaykit.storage import memory_limit

    buffer = filled(ReplayBuffer(10, FLAT, n_step=10**6), 5)
    monkeypatch.setattr(memory_limit, "_available_bytes", lambda: 50 << 20)
    assert len(buffer.sample(70_000)) == 70_000


# -- Constructors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", ["0", 1.5, -1, True, NAN, object(), [1, 2], np.random.RandomState(0)])
def test_a_seed_of_another_kind_is_refused(seed):
    """A RandomState raises an error, because other code could share and reseed it."""
    with refused((TypeError, ValueError), "seed", "expected None, a non-negative int, a SeedSequence or a Generator"):
        ReplayBuffer(10, FLAT, seed=seed)


@pytest.mark.parametrize("seed", [None, 0, np.int64(7), 2**80, np.random.SeedSequence(1), np.random.default_rng(1)])
def test_every_documented_seed_is_taken(seed):
    """All kinds from None to generators are accepted."""
    assert len(ReplayBuffer(10, FLAT, seed=seed)) == 0


@pytest.mark.parametrize("dtype", ["float33", None, object, "U5", "M8[s]", np.void, str, [("a", int)], 3])
def test_a_dtype_that_cannot_be_stored_is_refused(dtype):
    """None is not a valid dtype, although NumPy reads it as float64."""
    with refused(TypeError, "Field dtype is", "expected"):
        Field((3,), dtype)


@pytest.mark.parametrize("capacity", ["10", 1.5, 0, -1, True, None, NAN, [5], 1e6])
def test_a_capacity_of_another_kind_is_refused(capacity):
    """A float capacity raises an error, even a whole one."""
    with refused((TypeError, ValueError), "capacity is", "expected an int of at least 1"):
        ReplayBuffer(capacity, FLAT)


@pytest.mark.parametrize("capacity", [2**34, 2**62, 10**30])
def test_a_sum_tree_larger_than_memory_is_refused(capacity, monkeypatch):
    """The error names the needed bytes, as for a buffer."""
    from replaykit.storage import memory_limit

    monkeypatch.setattr(memory_limit, "_available_bytes", lambda: 2**36)
    with refused(MemoryError, f"capacity {capacity}", "needs", "GiB", "lower the capacity"):
        SumTree(capacity)


def test_counts_of_the_latest_may_be_larger_than_any_int64():
    """A huge count returns all stored transitions."""
    buffer = ReplayBuffer(8, FLAT, num_envs=2)
    one = {name: leaf[0] for name, leaf in stretch(1, lanes=2).items()}
    for mask in ([True, True], [True, False]):
        buffer.add(**one, mask=mask)
        assert buffer.latest(10**30).tolist() == buffer.latest(8).tolist()


def test_names_that_collide_in_a_spec_are_refused():
    """Each path must name one leaf, and an extra field must not have the name of a method of a batch."""
    with refused(ValueError, "obs.a.b"):
        Spec(obs={"a.b": Field(), "a": {"b": Field()}}, action=Field())
    with refused(ValueError, "action.1.0"):
        Spec(obs=Field(), action={"1": (Field(),), "1.0": Field()})
    for name in ("of", "keys", "to_torch", "discount", "next_obs", "mask", "td_error", "_x", "1x", "class"):
        with refused(ValueError, repr(name)):
            Spec(obs=Field(), action=Field(), **{name: Field()})
    assert Spec(obs={"a.b": Field(), "a": Field()}, action=Field()).leaves[0].name == "obs.a.b"


def test_spaces_in_place_of_fields_are_pointed_to_from_spaces():
    """A space in place of a field raises an error that points to `Spec.from_spaces`."""
    spaces = pytest.importorskip("gymnasium").spaces
    box, discrete = spaces.Box(-1, 1, (3,)), spaces.Discrete(2)
    with refused(TypeError, "obs", "expected a Field", "Spec.from_spaces"):
        Spec(box, discrete)
    for wrong in (box, discrete):
        with refused(TypeError, "spec", "expected a Spec", "Spec.from_spaces"):
            ReplayBuffer(10, wrong)


MISSPELT = [
    (lambda: ReplayBuffer(10, FLAT, nstep=3), "nstep", "n_step"),
    (lambda: PrioritizedBuffer(10, FLAT, aplha=0.5), "aplha", "alpha"),
    (lambda: PrioritizedBuffer(10, FLAT, Gamma=0.5), "Gamma", "gamma"),
    (lambda: LatestBuffer(10, FLAT, n_envs=2), "n_envs", "num_envs"),
    (lambda: CombinedReplay(ReplayBuffer(10, FLAT), lastest=2), "lastest", "latest"),
    (lambda: HindsightReplay(ReplayBuffer(10, GOAL_SPEC), sparse, startegy="final"), "startegy", "strategy"),
]


@pytest.mark.parametrize(("build", "name", "nearest"), MISSPELT)
def test_a_misspelt_option_is_refused_with_the_nearest_name(build, name, nearest):
    """A misspelt option raises an error with the most similar name. It is never ignored."""
    with refused(TypeError, name, f"did you mean {nearest!r}"):
        build()


def test_a_misspelt_option_of_from_env_is_refused_with_the_nearest_name():
    """A misspelt option of `from_env` raises the error of the constructor."""
    env = pytest.importorskip("gymnasium").make("CartPole-v1")
    with refused(TypeError, "sede", "did you mean 'seed'"):
        ReplayBuffer.from_env(env, 10, sede=3)
    with refused(TypeError, "env", "expected a Gymnasium environment"):
        ReplayBuffer.from_env(10, env)


FOREIGN = {
    "spec first": lambda: ReplayBuffer(FLAT, 10),
    "Stable-Baselines3": lambda: ReplayBuffer(10, "observation_space", "action_space", "cpu"),
    "Stable-Baselines3 by name": lambda: ReplayBuffer(buffer_size=10, observation_space=1, action_space=2),
    "cpprb": lambda: ReplayBuffer(32, {"obs": {"shape": 3}, "act": {"shape": 1}}),
    "Tianshou": lambda: PrioritizedBuffer(100, 10, 0.6, 0.4),
    "RLlib": lambda: ReplayBuffer(capacity=10, storage_unit="timesteps"),
    "nothing": lambda: ReplayBuffer(),
}


@pytest.mark.parametrize("build", FOREIGN.values(), ids=FOREIGN)
def test_a_constructor_in_another_order_is_refused_with_ours(build):
    """Arguments in another library's order raise an error that shows replaykit's order."""
    with refused(TypeError, "(capacity, spec"):
        build()


@pytest.mark.parametrize("value", ["text", [[1.0], [1.0, 2.0]], None])
def test_an_example_that_is_no_array_is_refused_by_the_name_of_its_field(value):
    """The error names the field, also for lists of different lengths."""
    for name, example in (
        ("obs.x", {"obs": {"x": value}, "action": 1}),
        ("hint", {"obs": 1, "action": 1, "hint": value}),
    ):
        with refused((TypeError, ValueError), name):
            Spec.from_example(example)


# -- Fields ------------------------------------------------------------------------------------------------------


@every_buffer
def test_done_is_refused_and_distinguished(make):
    """`done` raises an error, because it does not show whether an episode terminated or was truncated."""
    buffer = filled(make(10, FLAT, seed=0), 3)
    one = {name: value for name, value in step(1).items() if name not in ("terminated", "truncated")}
    many = {name: value for name, value in stretch(4).items() if name not in ("terminated", "truncated")}
    for call in (
        lambda: buffer.add(**one, done=True),
        lambda: buffer.add(*one.values(), done=True),
        lambda: buffer.add(*one.values(), False, False, done=True),
        lambda: buffer.extend(**many, done=np.zeros(4, bool)),
    ):
        with unchanged(buffer, FieldNameError, "(?s)done.*terminated.*truncated"):
            call()
    for call in (lambda: buffer.add(*one.values(), True), lambda: buffer.add(**one, terminated=True)):
        with unchanged(buffer, FieldNameError, "truncated.* is missing"):
            call()


LEAVES = ["obs", "action", "reward", "next_obs", "terminated", "truncated"]


@every_buffer
@pytest.mark.parametrize("wrong", LEAVES)
@pytest.mark.parametrize("lanes", [1, 3])
def test_extend_blames_the_field_of_another_length(make, wrong, lanes):
    """The error names the field whose length differs, even if it is the reward."""
    buffer = make(30, FLAT, num_envs=lanes, seed=0)
    for length in (3, 5, 1, 0):
        many = stretch(4, lanes=lanes)
        many[wrong] = stretch(length, lanes=lanes)[wrong]
        with unchanged(buffer, ValueError, rf"^{wrong} has shape \({length},.*expected \(4,"):
            buffer.extend(**many)
    many = stretch(4, lanes=lanes)
    many[wrong] = many[wrong][0]
    with unchanged(buffer, ValueError, f"^{wrong} has shape"):
        buffer.extend(**many)


@pytest.mark.parametrize("option", ["mask", "td_error", "writer"])
def test_extend_blames_a_reward_of_another_length_also_with_options(option):
    """The error does not blame the mask, which has the length of the other fields, or the first field."""
    buffer = ReplayBuffer(30, FLAT, num_envs=1 if option != "writer" else 2, seed=0)
    into = buffer.writer(0) if option == "writer" else buffer
    options = {"mask": {"mask": [True, False, True, True]}, "td_error": {"td_error": [1.0] * 4}}.get(option, {})
    for length in (3, 5, 1):
        with unchanged(buffer, ValueError, rf"^reward has shape \({length},\); expected \(4,"):
            into.extend(**stretch(4) | {"reward": stretch(length)["reward"]}, **options)
    if option == "mask":
        with unchanged(buffer, ValueError, r"^mask has shape \(3,\)"):
            into.extend(**stretch(4), mask=[True] * 3)


@every_buffer
@pytest.mark.parametrize("lanes", [1, 2])
def test_extend_names_the_field_whose_rows_have_several_lengths(make, lanes):
    """If rows of a field have different lengths, the error names the field. NumPy's error would not."""
    buffer = make(30, FLAT, num_envs=lanes, seed=0)
    for wrong in LEAVES:
        many = stretch(3, lanes=lanes)
        rows = many[wrong].tolist()
        many[wrong] = [rows[0], [rows[1]], rows[2]]
        with unchanged(buffer, ValueError, f"^{wrong} cannot be read as an array"):
            buffer.extend(**many)


@every_buffer
@pytest.mark.parametrize("wrong", LEAVES)
def test_add_blames_the_field_that_lacks_the_axis_of_the_others(make, wrong):
    """With one lane all values may have a leading axis, or none. The one that differs is wrong."""
    buffer = make(30, FLAT, seed=0)
    for one, other in ((stretch(1), step(0)), (step(0), stretch(1))):
        for options in ({}, {"td_error": 1.0}):
            with unchanged(buffer, ValueError, f"^{wrong} has shape"):
                buffer.add(**one | {wrong: other[wrong]}, **options)


@every_buffer
@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, 10**50])
def test_an_int_of_too_many_digits_is_the_same_error_in_a_list(make, value):
    """A huge int raises the same error alone and in a list, of which NumPy makes an object array."""
    buffer, lanes = filled(make(10, FLAT, seed=0), 3), make(10, FLAT, num_envs=2, seed=0)
    for name in ("reward", "action"):
        message = f"^{name} contains {value}; expected .* of at most 64 bits"
        with unchanged(buffer, OverflowError, message):
            buffer.add(**step(1, **{name: value}))
        with unchanged(buffer, OverflowError, message):
            buffer.extend(**stretch(3) | {name: [1, value, 2]})
        with unchanged(lanes, OverflowError, message):
            lanes.add(**{key: leaf[0] for key, leaf in stretch(1, lanes=2).items()} | {name: [1, value]})
    with unchanged(buffer, TypeError, "^reward has dtype object.*numeric dtype"):
        buffer.extend(**stretch(2) | {"reward": np.array([1, 2], object)})


def test_the_monitor_reports_nan_in_observations():
    """The monitor reports the share of states with NaN, and a warning."""
    buffer = ReplayBuffer(8, FLAT, seed=0)
    for number in range(4):
        buffer.add(**step(0, obs=np.array([0.0, NAN if number == 2 else 1.0, number], np.float32)))
    monitor = ReplayMonitor(buffer, every=1)
    monitor.record(buffer.sample(64))
    assert 0.1 < monitor.stats()["state_nonfinite_share"] < 0.4
    assert any("NaN" in warning for warning in monitor.warnings())


@pytest.mark.parametrize("shape", [(3,), (), (100,), (20, 20)])
@pytest.mark.parametrize("name", ["obs", "next_obs"])
@pytest.mark.parametrize("value", [NAN, INF])
def test_the_monitor_reports_one_number_that_is_not_finite(shape, name, value):
    """One number that is not finite is reported, also in a last observation, and in any pixel of an image."""
    buffer = ReplayBuffer(8, Spec(obs={"x": Field(shape)}, action=Field(())), seed=0)
    wrong = np.ones(shape, np.float32)
    wrong[(-1,) * len(shape)] = value
    for number in range(4):
        fields = {each: {"x": np.ones(shape)} for each in ("obs", "next_obs")}
        if number == 2:
            fields[name] = {"x": wrong}
        buffer.add(**fields, action=0.0, reward=0.0, terminated=number == 2, truncated=False)
    monitor = ReplayMonitor(buffer, every=1)
    monitor.record(buffer.sample(64))
    assert 0.1 < monitor.stats()["state_nonfinite_share"] < 0.4
    assert any("NaN" in warning for warning in monitor.warnings())


@every_buffer
def test_a_ragged_reward_is_named_by_every_way_in(make):
    """The error names the reward, for every way to add. NumPy's error would not."""
    buffer = filled(make(10, FLAT, seed=0), 3)
    for options in ({}, {"mask": [True]}, {"td_error": 1.0}):
        with unchanged(buffer, (TypeError, ValueError), "^reward "):
            buffer.add(**step(1, reward=[[1.0], [1.0, 2.0]]), **options)


def test_done_is_refused_by_a_writer_as_by_its_buffer():
    """The error messages are the same."""
    buffer = ReplayBuffer(8, FLAT, num_envs=2)
    one = {name: value for name, value in step(1).items() if name not in ("terminated", "truncated")}
    for call in (buffer.writer(0).add, filled(ReplayBuffer(8, FLAT), 1).add):
        with refused(FieldNameError, "done", "terminated", "truncated"):
            call(**one, done=True)
