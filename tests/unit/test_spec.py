"""The fields of a transition, and the checks of values that are added."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from replaykit import Field, FieldNameError, ReplayBuffer, Spec
from tests.helpers import FLAT, step, unchanged


def one(dtype, shape=()):
    return ReplayBuffer(4, Spec(obs=Field(shape, dtype), action=Field((), np.int64)), seed=0)


def stored(buffer, value):
    """`value` as the obs that the buffer returns."""
    buffer.add(value, 0, 0.0, value, False, False)
    return buffer.sample(1).obs[0]


@pytest.mark.parametrize(
    ("dtype", "value", "error", "words"),
    [
        (np.int64, 2.7, TypeError, "obs has dtype float64; expected int64"),
        (np.int64, 2.0, TypeError, "round it"),
        (np.int64, np.nan, TypeError, "obs"),
        (np.uint8, 300, OverflowError, "obs contains 300; expected uint8 values in \\[0, 255\\]"),
        (np.uint8, -1, OverflowError, "obs contains -1"),
        (np.uint8, 0.5, TypeError, "obs"),
        (np.int8, np.int64(128), OverflowError, "128"),
        (np.int64, 2**63, OverflowError, "9223372036854775808"),
        (np.int64, 2**70, OverflowError, "obs contains 1180591620717411303424"),
        (np.float32, 1e300, OverflowError, "obs contains 1e\\+300; expected float32 values of at most 3.403e\\+38"),
        (np.float16, 70000, OverflowError, "obs"),
        (np.float32, 1j, TypeError, "complex128"),
        (np.float32, "1.0", TypeError, "obs"),
        (np.float32, None, TypeError, "object"),
        (np.float32, {"x": 1}, TypeError, "obs"),
        (np.bool_, 2, OverflowError, "obs contains 2"),
        (np.bool_, 1.0, TypeError, "obs"),
        (np.float32, np.float32([1.0]), ValueError, "obs has shape \\(1,\\); expected \\(\\)"),
        (np.float32, [[1.0], [1.0, 2.0]], ValueError, "obs"),
    ],
)
def test_values_that_do_not_fit_are_refused_by_name(dtype, value, error, words):
    """A value that its dtype cannot hold is refused, and the buffer is as before."""
    buffer = one(dtype)
    buffer.add(1, 0, 0.0, 0, False, False)
    with unchanged(buffer, error, words):
        buffer.add(value, 0, 0.0, 0, False, False)


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        (np.float32, 0.1, np.float32(0.1)),
        (np.float32, np.inf, np.float32(np.inf)),
        (np.float32, -np.inf, np.float32(-np.inf)),
        (np.float32, 3, np.float32(3)),
        (np.float32, True, np.float32(1)),
        (np.float64, np.float16(0.5), 0.5),
        (np.uint8, 255, np.uint8(255)),
        (np.int16, np.array(-7, ">i8"), np.int16(-7)),
        (np.uint64, 2**63, np.uint64(2**63)),
        (np.bool_, 1, np.True_),
        (np.complex64, 1 + 2j, np.complex64(1 + 2j)),
        (np.float16, 1e-9, np.float16(0)),
    ],
)
def test_values_that_fit_are_cast(dtype, value, expected):
    """Values are cast when they are added, if only precision is lost."""
    got = stored(one(dtype), value)
    assert got == expected
    assert got.dtype == dtype


def test_nan_observations_are_facts():
    """NaN can be stored in every floating-point field except the reward."""
    buffer = one(np.float32)
    buffer.add(np.nan, 0, 0.0, np.nan, False, False)
    batch = buffer.sample(1)
    assert np.isnan(batch.obs[0])
    assert np.isnan(batch.next_obs[0])


@pytest.mark.parametrize(
    "value",
    [
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(12.0).reshape(2, 6)[:, ::2],
        np.arange(6, dtype=">f8").reshape(2, 3),
        [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]],
        [np.arange(3.0), np.arange(3.0)],
    ],
)
def test_any_layout_is_stored_right(value):
    """Fortran-ordered, strided and byte-swapped arrays and lists are stored correctly."""
    np.testing.assert_array_equal(stored(one(np.float64, (2, 3)), value), np.asarray(value))


def test_read_only_input_is_accepted_and_nothing_is_aliased():
    """The caller's arrays are neither changed nor kept."""
    buffer = ReplayBuffer(4, FLAT, seed=0)
    obs = np.ones(3, np.float32)
    obs.flags.writeable = False
    buffer.add(**step(0, obs=obs))
    own = np.zeros(3, np.float32)
    buffer = ReplayBuffer(1, FLAT, seed=0)
    buffer.add(**step(0, obs=own))
    own[:] = 9.0
    first = buffer.sample(1)
    assert first.obs.tolist() == [[0.0, 0.0, 0.0]]
    first.obs[:] = 5.0
    assert buffer.sample(1).obs.tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"obs": np.zeros(4)}, "obs has shape \\(4,\\); expected \\(3,\\)"),
        ({"obs": 1.0}, "obs has shape \\(\\); expected \\(3,\\)"),
        ({"obs": np.zeros((1, 3))}, "reshape it"),
        ({"obs": np.zeros((5, 3))}, "use extend for several"),
        ({"reward": [1.0]}, "reward has shape \\(1,\\); expected \\(\\)"),
        ({"terminated": [False]}, "terminated"),
    ],
)
def test_shapes_are_never_broadcast(changes, words):
    """A value of another shape raises an error, even if it could be broadcast."""
    buffer = ReplayBuffer(4, FLAT, seed=0)
    with unchanged(buffer, ValueError, words):
        buffer.add(**step(0, **changes))


def test_a_column_for_a_vector_is_refused():
    """A value of shape (E, 1) in place of (E,) raises an error that names both shapes."""
    buffer = ReplayBuffer(8, Spec(obs=Field((3,)), action=Field(())), num_envs=4)
    zeros = np.zeros(4)
    with unchanged(buffer, ValueError, r"reward has shape \(4, 1\); expected \(4,\)"):
        buffer.add(np.zeros((4, 3)), zeros, zeros[:, None], np.zeros((4, 3)), zeros > 0, zeros > 0)


def test_fields_of_different_lengths_are_refused():
    """In `extend`, every field must have as many steps as the reward."""
    from tests.helpers import stretch

    buffer = ReplayBuffer(8, FLAT)
    with unchanged(buffer, ValueError, r"obs has shape \(4, 3\); expected \(5, 3\)"):
        buffer.extend(**stretch(5, obs=np.zeros((4, 3), np.float32)))


def test_unknown_and_missing_fields_are_named():
    """A misspelt field or option raises an error that suggests the right one."""
    buffer = ReplayBuffer(4, Spec(obs={"a": Field(())}, action=Field(()), log_prob=Field(())))
    obs = {"a": 1.0}
    ok = (obs, 0, 0.0, obs, False, False)
    with unchanged(buffer, KeyError, "did you mean 'log_prob'"):
        buffer.add(*ok, log_prop=0.0)
    with unchanged(buffer, TypeError, "did you mean 'td_error'"):
        buffer.add(*ok, log_prob=0.0, td_eror=1.0)
    with unchanged(buffer, FieldNameError, "field 'log_prob' is missing"):
        buffer.add(*ok)
    with unchanged(buffer, KeyError, "obs lacks the key 'a'"):
        buffer.add({}, 0, 0.0, obs, False, False, log_prob=0.0)
    with unchanged(buffer, KeyError, "next_obs has the unknown key 'b'"):
        buffer.add(obs, 0, 0.0, {"a": 1.0, "b": 2.0}, False, False, log_prob=0.0)
    with unchanged(buffer, TypeError, "obs is a float; expected a dict"):
        buffer.add(1.0, 0, 0.0, obs, False, False, log_prob=0.0)
    with pytest.raises(TypeError, match="sead"):
        ReplayBuffer(4, FLAT, sead=1)


def test_torch_tensors_with_grad_are_refused_with_the_remedy():
    """A tensor that requires grad raises an error. It is not detached silently."""
    torch = pytest.importorskip("torch")
    buffer = ReplayBuffer(4, FLAT)
    with unchanged(buffer, TypeError, r"obs is a torch tensor that requires grad.*\.detach\(\)\.cpu\(\)"):
        buffer.add(**step(0, obs=torch.ones(3, requires_grad=True)))
    for refused in (
        [torch.ones(1, requires_grad=True)] * 3,
        torch.ones(3, dtype=torch.bfloat16),
        torch.ones(3).to_sparse(),
    ):
        with unchanged(buffer, TypeError, "obs cannot be read as an array"):
            buffer.add(**step(0, obs=refused))
    with unchanged(buffer, TypeError, "obs is a masked array"):
        buffer.add(**step(0, obs=np.ma.masked_array(np.zeros(3), [True, False, False])))
    buffer.add(**step(0, obs=torch.ones(3), reward=torch.tensor(2.0)))
    assert buffer.sample(1).obs.tolist() == [[1.0, 1.0, 1.0]]


def test_spec_from_spaces_covers_dense_spaces_and_names_the_others():
    """Dict and Tuple can be nested to any depth. A space without a fixed shape and dtype raises an error."""
    spaces = pytest.importorskip("gymnasium").spaces
    space = spaces.Dict({
        "b": spaces.Tuple((spaces.Box(0, 255, (4, 4), np.uint8), spaces.Discrete(3, start=-1))),
        "a": spaces.Dict({"x": spaces.MultiBinary((2, 2)), "y": spaces.MultiDiscrete([2, 3])}),
    })  # fmt: skip
    spec = Spec.from_spaces(space, spaces.Discrete(2))
    buffer = ReplayBuffer(3, spec, seed=0)
    space.seed(0)
    obs = space.sample()
    buffer.add(obs, 1, 0.0, obs, False, False)
    got = buffer.sample(1).obs
    assert list(got) == list(space.spaces)
    np.testing.assert_array_equal(got["b"][0][0], obs["b"][0])
    assert got["b"][1][0] == obs["b"][1]
    np.testing.assert_array_equal(got["a"]["y"][0], obs["a"]["y"])
    for refused in (spaces.Text(3), spaces.Sequence(spaces.Discrete(2)), spaces.OneOf((spaces.Discrete(2),))):
        with pytest.raises(TypeError, match=f"obs.a is a {type(refused).__name__} space"):
            Spec.from_spaces(spaces.Dict({"a": refused}), spaces.Discrete(2))


def test_spec_from_env_is_of_a_single_environment():
    """A vector environment gives the spec of one of its environments."""
    gymnasium = pytest.importorskip("gymnasium")
    env = gymnasium.make("CartPole-v1")
    vector = gymnasium.make_vec("CartPole-v1", 2)
    assert Spec.from_env(env) == Spec.from_env(vector) == Spec(obs=Field((4,)), action=Field((), np.int64))
    with pytest.raises(TypeError, match="expected a Gymnasium environment"):
        Spec.from_env("CartPole-v1")
    with pytest.raises(ValueError, match="num_envs is 3; expected 2"):
        ReplayBuffer.from_env(vector, 10, num_envs=3)


def test_spec_from_example():
    """An example gives shapes and dtypes. Its next_obs and flags are ignored."""
    example = {"obs": {"x": np.zeros((2,), np.int8)}, "action": (1, 0.5), "reward": np.float64(1), "mu": [1, 2]}
    spec = Spec.from_example(example | {"next_obs": None, "terminated": False})
    expected = Spec(
        obs={"x": Field((2,), np.int8)},
        action=(Field((), np.int64), Field(())),
        reward=Field((), np.float64),
        mu=Field((2,), np.int64),
    )
    assert spec == expected
    with pytest.raises(KeyError, match="'action'"):
        Spec.from_example({"obs": 1})


def test_keys_with_dots_are_nested():
    """A plain dict of arrays can be an example. Dots in its keys separate nested fields."""
    row = {"obs.x": 1.0, "obs.parts.1": 2, "obs.parts.0": 1.0, "action": {"a.b": True}, "note.z": 3, "observation": 1}
    expected = Spec(
        obs={"x": Field(()), "parts": (Field(()), Field((), np.int64))},
        action={"a.b": Field((), np.bool_)},
        note={"z": Field((), np.int64)},
        observation=Field((), np.int64),
    )
    assert Spec.from_example(row) == expected
    for keys in (("obs", "obs.x"), ("obs.x.y", "obs.x")):
        with pytest.raises(KeyError, match=f"keys '{min(keys)}' and '{max(keys)}'"):
            Spec.from_example(dict.fromkeys(keys, 1.0) | {"action": 1})


def test_a_row_of_lerobot_is_an_example():
    """A row of a LeRobot data set can be an example, with names for observation and reward."""
    torch = pytest.importorskip("torch")
    row = {
        "observation.state": torch.zeros(6),
        "observation.images.top": torch.zeros((3, 4, 5), dtype=torch.uint8),
        "action": torch.zeros(6),
        "next.reward": torch.tensor(1.0),
        "next.done": torch.tensor(False),
        "next.success": torch.tensor(False),
        "next.observation.state": torch.zeros(6),
        "next.terminated": torch.tensor(False),
        "task": "stack the cups",
    }
    row |= dict.fromkeys(("timestamp", "frame_index", "episode_index", "index", "task_index"), torch.tensor(0))
    expected = Spec(
        obs={"state": Field((6,)), "images": {"top": Field((3, 4, 5), np.uint8)}},
        action=Field((6,)),
        next={"success": Field((), np.bool_)},
    )
    assert Spec.from_example(row) == expected
    single = Spec.from_example({"observation": np.zeros(2), "action": 0, "next.reward": np.float64(0.0)})
    assert single == Spec(Field((2,), np.float64), Field((), np.int64), reward=Field((), np.float64))


def test_bad_specs_are_refused():
    """Fields must be dense, and their names must not be used otherwise."""
    with pytest.raises(TypeError, match="object"):
        Field((), object)
    with pytest.raises(TypeError, match="U3"):
        Field((), "U3")
    with pytest.raises(ValueError, match="negative"):
        Field((-1,))
    for shape in (2.5, (2.5,), (True,), "3"):
        with pytest.raises(TypeError, match="Field shape contains"):
            Field(shape)
    with pytest.raises(TypeError, match="obs.a is 3; expected a Field"):
        Spec(obs={"a": 3}, action=Field(()))
    with pytest.raises(ValueError, match="extra field 'weights'"):
        Spec(obs=Field(()), action=Field(()), weights=Field(()))
    with pytest.raises(ValueError, match="reward"):
        Spec(obs=Field(()), action=Field(()), reward=Field((), np.float16))
    with pytest.raises(TypeError, match="spec is a dict"):
        ReplayBuffer(3, {"obs": Field(())})


@given(
    value=npst.arrays(
        npst.boolean_dtypes() | npst.integer_dtypes(endianness="=") | npst.unsigned_integer_dtypes(endianness="=")
        | npst.floating_dtypes(endianness="="),
        npst.array_shapes(max_dims=2, max_side=3),
    ),
    target=st.sampled_from(["?", "i1", "u1", "i4", "u8", "i8", "f2", "f4", "f8", "c8"]),
)  # fmt: skip
def test_what_is_stored_is_what_was_given_or_an_error(value, target):
    """A value is stored as NumPy casts it. If the cast changes it by more than rounding, it is an error."""
    buffer = one(np.dtype(target), value.shape)
    with np.errstate(all="ignore"):
        cast = value.astype(target)
    try:
        got = stored(buffer, value)
    except (TypeError, OverflowError):
        exact = cast.astype(np.longdouble if target != "c8" else np.clongdouble) == value
        overflowed = np.isinf(cast) & np.isfinite(value)
        kind = np.dtype(target).kind
        assert overflowed.any() or not exact.all() or (value.dtype.kind == "f" and kind in "biu")
        return
    np.testing.assert_array_equal(got, cast)
    assert not (np.isinf(cast) & np.isfinite(value)).any()
