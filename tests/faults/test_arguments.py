"""Arguments and values: which errors are raised, and what is stored unchanged."""

import inspect
import itertools
import pickle

import numpy as np
import pytest

from replaykit import (
    Batch,
    CombinedReplay,
    Field,
    FieldNameError,
    HindsightReplay,
    LatestBuffer,
    LinearSchedule,
    PrioritizedBuffer,
    ReplayBuffer,
    Spec,
)
from tests.faults.stacks import FLAT, STACKS, WAYS, WayIn, every_stack, every_way_in, full, refused
from tests.helpers import interrupted, sparse

every_buffer = pytest.mark.parametrize("make", [ReplayBuffer, PrioritizedBuffer, LatestBuffer])
TOO_LARGE = (10**15, 2**62, 2**70)
BATCH = [name for name in dir(Batch) if not name.startswith("_")]


# -- Sizes -------------------------------------------------------------------------------------------------------


@every_stack
def test_sampling_an_empty_buffer_is_refused(stack):
    """Sampling from an empty buffer raises an error that says so."""
    replay = stack.build()
    with refused(replay, ValueError, "the buffer is empty", "add a transition"):
        replay.sample(2)


@every_stack
def test_sampling_after_a_clear_is_refused(stack):
    """After `clear`, a buffer is empty, and sampling raises an error until a transition is added."""
    replay = full(stack)
    replay.clear()
    with refused(replay, ValueError, "the buffer is empty"):
        replay.sample(2)


@every_stack
def test_a_batch_size_below_one_is_refused(stack):
    """A batch size of 0 or less raises an error."""
    replay = full(stack)
    for batch_size in (0, -1):
        with refused(replay, ValueError, "batch_size", "at least 1", batch_size):
            replay.sample(batch_size)


@every_stack
def test_a_batch_size_that_is_no_int_is_refused(stack):
    """A batch size that is a float, a string or None raises an error."""
    replay = full(stack)
    for batch_size in (2.0, np.float32(2), float("nan"), "2", None):
        with refused(replay, TypeError, "batch_size", "an int", repr(batch_size)):
            replay.sample(batch_size)


@every_stack
def test_a_batch_size_that_is_a_bool_is_refused(stack):
    """A batch size of True raises an error. It does not count as 1."""
    replay = full(stack)
    for batch_size in (True, np.True_):
        with refused(replay, TypeError, "batch_size", "an int", "True"):
            replay.sample(batch_size)


@every_stack
def test_a_batch_size_beyond_memory_is_refused_before_anything_is_drawn(stack):
    """A batch that does not fit into memory raises an error that names its size, before a random number is used."""
    replay = full(stack)
    for batch_size in TOO_LARGE:
        with refused(replay, MemoryError, "batch_size", batch_size, "needs", "available"):
            replay.sample(batch_size)


@every_buffer
@pytest.mark.parametrize("capacity", [0, -3])
def test_a_capacity_below_one_is_refused(make, capacity):
    """A capacity of 0 or less raises an error."""
    with refused(None, ValueError, "capacity", "at least 1", capacity):
        make(capacity, FLAT)


@every_buffer
@pytest.mark.parametrize("capacity", [2.0, 1e6, "1000", True, None, np.array([3])])
def test_a_capacity_that_is_no_int_is_refused(make, capacity):
    """A capacity that is a float, a string, a bool, None or an array raises an error."""
    with refused(None, TypeError, "capacity", "an int", repr(capacity)):
        make(capacity, FLAT)


@every_buffer
@pytest.mark.parametrize("capacity", TOO_LARGE)
def test_a_capacity_beyond_memory_is_refused_and_names_the_bytes(make, capacity):
    """A capacity beyond memory raises an error with the needed and the available bytes. Nothing is allocated."""
    with refused(None, MemoryError, "capacity", "needs", "GiB", "available", "lower the capacity"):
        make(capacity, FLAT)


@every_stack
@pytest.mark.parametrize("capacity", [1, 3, 7])
def test_a_capacity_of_one_or_no_power_of_two_works(stack, capacity):
    """A buffer holds exactly its last transitions, also if its capacity is 1 or not a power of two."""
    replay = stack.build(capacity)
    replay.extend(**stack.steps((20,)))
    assert len(replay) == replay.capacity == capacity
    assert replay.stored().tolist() == list(range(20 - capacity, 20))
    assert set(replay.sample(4).indices) <= set(range(20 - capacity, 20))
    replay.check()


# -- Shapes ------------------------------------------------------------------------------------------------------


@every_way_in
def test_a_wrong_shape_is_refused_and_names_the_field(way_in):
    """A value of a wrong shape raises an error that names the field, the expected shape and the given shape."""
    replay, lead = way_in.full(), way_in.way.lead
    for field in ("obs", "next_obs", "pixels"):
        with refused(replay, ValueError, way_in.name_of(field), (*lead, 2 if field == "pixels" else 3), (*lead, 4)):
            way_in.call(replay, **{field: np.zeros((*lead, 4), np.uint8)})


@every_way_in
def test_a_broadcastable_shape_is_refused_and_names_the_field(way_in):
    """A scalar or an array of shape (1,) for a field of shape (3,) raises an error. It is not broadcast."""
    replay, lead = way_in.full(), way_in.way.lead
    for shape in ((1,), ()):
        with refused(replay, ValueError, way_in.name_of("obs"), (*lead, 3), (*lead, *shape)):
            way_in.call(replay, obs=np.zeros((*lead, *shape), np.float32))


@every_way_in
def test_a_column_for_a_vector_is_refused_and_names_the_field(way_in):
    """A field of shape (E, 1) instead of (E,), or of shape (1,) instead of a scalar, raises an error."""
    replay, lead = way_in.full(), way_in.way.lead
    for field in ("action", "reward", "terminated", "truncated"):
        with refused(replay, ValueError, field, lead, (*lead, 1)):
            way_in.call(replay, **{field: np.zeros((*lead, 1), np.bool_)})


@every_stack
@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("field", ["obs", "action", "reward", "next_obs", "terminated", "truncated", "pixels"])
def test_a_field_of_another_length_is_refused_and_named(stack, lanes, field):
    """If one field passed to `extend` has more steps than the others, the error names this field."""
    way_in = WayIn(stack, WAYS["extend"] if lanes == 1 else WAYS["extend to 2 lanes"])
    replay, lead = way_in.full(), way_in.way.lead
    longer = way_in.stack.steps((lead[0] + 1, *lead[1:]))[field]
    if isinstance(longer, dict):
        longer = longer["achieved_goal"]
    with refused(replay, ValueError, f"{way_in.name_of(field)} has shape", longer.shape, "expected", lead):
        way_in.call(replay, **{field: longer})


@every_stack
def test_a_single_step_in_extend_is_refused_with_the_remedy(stack):
    """`extend` of a single step without a leading axis raises an error that points to `add`."""
    replay = full(stack)
    with refused(replay, ValueError, "shape ()", "use add"):
        replay.extend(**stack.steps())


@every_stack
def test_a_stretch_in_add_is_refused_with_the_remedy(stack):
    """`add` of several steps raises an error that points to `extend` and `num_envs`."""
    replay = full(stack)
    with refused(replay, ValueError, stack.name_of("obs"), (5, 3), "use extend", "num_envs="):
        replay.add(**stack.steps((5,)))


# -- Names -------------------------------------------------------------------------------------------------------


@every_way_in
def test_a_missing_field_is_refused_and_named(way_in):
    """A missing field raises a KeyError with its name."""
    replay, values = way_in.full(), way_in.stack.steps(way_in.way.lead)
    del values["pixels"]
    with refused(replay, KeyError, "'pixels' is missing"):
        getattr(replay, way_in.way.verb)(**values, **way_in.way.options())


@every_way_in
def test_a_missing_core_field_is_refused_and_named(way_in):
    """If a required field such as `truncated` is missing, the error names it."""
    replay, values = way_in.full(), way_in.stack.steps(way_in.way.lead)
    del values["truncated"]
    with refused(replay, (KeyError, TypeError), "'truncated'"):
        getattr(replay, way_in.way.verb)(**values, **way_in.way.options())


@every_way_in
def test_an_unknown_field_is_refused_with_the_nearest_name(way_in):
    """A field that is not in the spec raises a KeyError that suggests the most similar name."""
    replay = way_in.full()
    with refused(replay, KeyError, "unknown field 'pixel'", "expected", "did you mean 'pixels'?"):
        way_in.call(replay, pixel=0)


@pytest.mark.parametrize("way", WAYS)
def test_an_unknown_key_of_an_observation_is_refused_with_the_nearest_name(way):
    """An unknown key of a nested observation raises a KeyError that suggests the most similar key."""
    way_in = WayIn(STACKS["hindsight"], WAYS[way])
    replay, values = way_in.full(), way_in.stack.steps(way_in.way.lead)
    values["obs"]["goal_achieved"] = values["obs"]["achieved_goal"]
    with refused(replay, KeyError, "obs has the unknown key 'goal_achieved'", "did you mean 'achieved_goal'?"):
        getattr(replay, way_in.way.verb)(**values, **way_in.way.options())


@pytest.mark.parametrize("way", WAYS)
def test_a_missing_key_of_an_observation_is_refused_and_named(way):
    """A missing key of a nested observation raises a KeyError with the key."""
    way_in = WayIn(STACKS["hindsight"], WAYS[way])
    replay, values = way_in.full(), way_in.stack.steps(way_in.way.lead)
    del values["next_obs"]["desired_goal"]
    with refused(replay, KeyError, "next_obs lacks the key 'desired_goal'", "expected", "got"):
        getattr(replay, way_in.way.verb)(**values, **way_in.way.options())


@every_way_in
def test_one_flag_called_done_is_refused_with_the_two_flags_that_are_meant(way_in):
    """`done=` raises an error that asks for `terminated` and `truncated`, even if these are passed as well."""
    replay, values = way_in.full(), way_in.stack.steps(way_in.way.lead)
    for instead in (False, True):
        values["done"] = values["terminated"]
        if instead:
            del values["terminated"], values["truncated"]
        with refused(replay, (KeyError, TypeError), "'done'", "terminated", "truncated"):
            getattr(replay, way_in.way.verb)(**values, **way_in.way.options())


@every_way_in
def test_a_misspelt_option_of_an_add_is_refused_with_the_nearest_name(way_in):
    """A misspelt option of `add`, such as `td_eror=`, raises an error. It is not stored as an extra field."""
    replay = way_in.full()
    with refused(replay, TypeError, "td_eror", "did you mean 'td_error'?"):
        way_in.call(replay, td_eror=1.0)


# -- Values ------------------------------------------------------------------------------------------------------


@every_way_in
def test_a_float_for_an_integer_field_is_refused(way_in):
    """A float for an integer field raises an error. It is not rounded down."""
    replay = way_in.full()
    for value in (2.7, 2.0):
        with refused(replay, TypeError, "action", "expected int64", "float64"):
            way_in.call(replay, action=way_in.repeated(value))


@every_way_in
def test_a_nan_for_an_integer_field_is_refused(way_in):
    """NaN for an integer field raises an error."""
    replay = way_in.full()
    with refused(replay, TypeError, "action", "expected int64", "float64"):
        way_in.call(replay, action=way_in.repeated(float("nan")))


@every_way_in
def test_an_integer_beyond_its_dtype_is_refused(way_in):
    """300 and -1 for a uint8 field raise an error. They do not wrap around."""
    replay = way_in.full()
    for value in (300, 256, -1):
        with refused(replay, OverflowError, "pixels", "uint8 values in [0, 255]", value):
            way_in.call(replay, pixels=way_in.repeated([value, 0]))


@every_way_in
def test_a_fraction_for_uint8_is_refused(way_in):
    """An image scaled to [0, 1] raises an error for a uint8 field. It is not stored as a black image."""
    replay = way_in.full()
    for value in (0.5, 0.0):
        with refused(replay, TypeError, "pixels", "expected uint8", "float64"):
            way_in.call(replay, pixels=way_in.repeated([value, 0.25]))


@every_way_in
def test_a_float_beyond_its_dtype_is_refused(way_in):
    """1e300 for a float32 field raises an error. It does not become infinity."""
    replay = way_in.full()
    for value in (1e300, -1e39):
        with refused(replay, OverflowError, way_in.name_of("obs"), "float32 values of at most 3.403e+38", value):
            way_in.call(replay, obs=way_in.repeated([0.0, value, 0.0]))


@every_way_in
def test_a_python_int_beyond_int64_is_refused(way_in):
    """A Python int that does not fit into int64 raises an error."""
    replay = way_in.full()
    for value in (1 << 63, 1 << 70, -(1 << 70)):
        with refused(replay, OverflowError, "action", value, "expected", "int64"):
            way_in.call(replay, action=way_in.repeated(value))


@every_way_in
def test_strings_are_refused(way_in):
    """A string raises an error, even if it contains a number."""
    replay = way_in.full()
    with refused(replay, TypeError, "reward", "expected float32", "<U3"):
        way_in.call(replay, reward=way_in.repeated("1.0"))


@every_way_in
def test_object_arrays_are_refused(way_in):
    """None and arrays of Python objects raise an error, even if the objects are numbers."""
    replay = way_in.full()
    for value in (None, np.array([1.0, 2.0, 3.0], object)):
        with refused(replay, (TypeError, ValueError), way_in.name_of("obs"), "expected"):
            way_in.call(replay, obs=way_in.repeated(value))


@every_stack
def test_ragged_lists_are_refused(stack):
    """Lists of different lengths raise an error that names the field."""
    replay = full(stack)
    with refused(replay, ValueError, stack.name_of("obs"), "cannot be read as an array"):
        replay.add(**stack.steps(obs=[[1.0], [1.0, 2.0], 3.0]))


@every_way_in
def test_a_flag_that_is_not_true_or_false_is_refused(way_in):
    """A flag that is 2, 0.5 or "no" raises an error."""
    replay = way_in.full()
    for field, value in itertools.product(("terminated", "truncated"), (2, 0.5, "no")):
        with refused(replay, (TypeError, OverflowError), field, "expected"):
            way_in.call(replay, **{field: way_in.repeated(value)})


@every_way_in
def test_a_reward_that_is_not_finite_is_refused(way_in):
    """A reward of NaN or infinity raises an error, because it would spoil every value learned from it."""
    replay = way_in.full()
    for value in (float("nan"), float("inf"), -float("inf"), np.float32("nan")):
        with refused(replay, ValueError, "reward", "finite", value):
            way_in.call(replay, reward=way_in.repeated(value))


@every_way_in
def test_a_reward_beyond_its_dtype_is_refused(way_in):
    """A finite reward that float32 cannot hold raises an error."""
    replay = way_in.full()
    for value in (1e300, -1e300):
        with refused(replay, OverflowError, "reward", "float32", value):
            way_in.call(replay, reward=way_in.repeated(value))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_float64_reward_that_is_not_finite_is_refused(value):
    """NaN and infinity also raise an error if the reward field is float64."""
    replay = ReplayBuffer(6, Spec(obs=Field(()), action=Field(()), reward=Field((), np.float64)))
    with refused(replay, ValueError, "reward", "finite", value):
        replay.add(0.0, 0.0, value, 0.0, False, False)
    with refused(replay, ValueError, "reward", "finite", value):
        replay.extend([0.0] * 2, [0.0] * 2, [0.0, value], [0.0] * 2, [False] * 2, [False] * 2)


@every_stack
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_the_values_of_lanes_that_a_mask_leaves_out_are_ignored(stack, value):
    """If a mask leaves a lane out, the values for this lane are neither checked nor stored."""
    replay = stack.build(num_envs=2)
    obs = np.array([[1.0, 2.0, 3.0], [value] * 3])
    indices = replay.add(**stack.steps((2,), reward=np.array([1.0, value]), obs=obs), mask=[True, False])
    assert indices.tolist() == [0, -1]
    assert replay.read([0], "reward").tolist() == [1.0]
    replay.check()


@every_way_in
def test_a_return_of_finite_rewards_may_overflow(way_in):
    """Finite rewards are stored, even if their n-step sum is too large for the dtype."""
    replay = way_in.full(n_step=3)
    way_in.call(replay, reward=way_in.repeated(np.float32(3e38)))
    replay.check()


@every_stack
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_observations_that_are_not_finite_are_stored_and_reported_by_check(stack, value):
    """NaN in an observation can be intended, so `add` stores it. `check` warns and names the field."""
    replay = full(stack)
    replay.add(**stack.steps(obs=np.array([0.0, value, 0.0], np.float32)))
    np.testing.assert_array_equal(replay.read(replay.newest, stack.name_of("obs"))[0], [0.0, value, 0.0])
    with pytest.warns(RuntimeWarning, match=stack.name_of("obs")):
        replay.check()


@every_way_in
def test_a_bad_initial_td_error_is_refused_by_every_buffer(way_in):
    """A TD error of NaN, infinity or text raises an error, even in buffers without priorities."""
    replay = way_in.full()
    for value in (float("nan"), float("inf"), "1"):
        options = way_in.way.options() | {"td_error": way_in.repeated(value)}
        with refused(replay, (ValueError, TypeError), "td_error", "expected"):
            getattr(replay, way_in.way.verb)(**way_in.stack.steps(way_in.way.lead), **options)


@every_way_in
def test_an_initial_td_error_of_another_shape_is_refused(way_in):
    """TD errors for more steps or lanes than were passed raise an error."""
    replay, options = way_in.full(), way_in.way.options() | {"td_error": np.ones((*way_in.way.lead, 3))}
    with refused(replay, ValueError, "td_error has shape", (*way_in.way.lead, 3), "expected", way_in.way.lead):
        getattr(replay, way_in.way.verb)(**way_in.stack.steps(way_in.way.lead), **options)


@every_stack
@pytest.mark.parametrize("mask", [[True], [True, True, True], [1, 0], [[True, False], [True, False]], "yes"])
def test_a_mask_of_another_shape_or_dtype_is_refused(stack, mask):
    """A mask that is not one boolean for each lane raises an error."""
    replay = stack.build(num_envs=2)
    with refused(replay, ValueError, "mask", "expected (2,)", "bool"):
        replay.add(**stack.steps((2,)), mask=mask)


# -- Layouts -----------------------------------------------------------------------------------------------------


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def strided(array):
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    wide[..., ::2] = array
    return wide[..., ::2]


def swapped(array):
    return array.astype(array.dtype.newbyteorder(">" if array.dtype.newbyteorder("=").isnative else "<"))


def stored_as(way_in, changed):
    """Assert that `changed` values are stored like the plain ones."""
    values = np.random.default_rng(0).normal(size=(*way_in.way.lead, 3)).astype(np.float32)
    batches = []
    for obs in (values, changed(values)):
        replay = way_in.full()
        way_in.call(replay, obs=obs, next_obs=obs)
        batches.append(replay.read(replay.stored(), way_in.name_of("obs")))
    np.testing.assert_array_equal(*batches)
    chosen = way_in.way.options().get("mask", np.ones(way_in.way.lead, np.bool_))
    for row in values[chosen].reshape(-1, 3):
        assert (batches[1] == row).all(axis=1).any()


@every_way_in
def test_a_read_only_array_is_stored_right(way_in):
    """A read-only array is stored correctly."""
    stored_as(way_in, read_only)


@every_way_in
def test_a_fortran_ordered_array_is_stored_right(way_in):
    """An array in Fortran order is stored correctly."""
    stored_as(way_in, np.asfortranarray)


@every_way_in
def test_a_strided_array_is_stored_right(way_in):
    """An array with gaps between its values in memory is stored correctly."""
    stored_as(way_in, strided)


@every_way_in
def test_a_reversed_array_is_stored_right(way_in):
    """An array with negative strides is stored correctly."""
    stored_as(way_in, lambda array: array[..., ::-1].copy()[..., ::-1])


@every_way_in
def test_a_byte_swapped_array_is_stored_right(way_in):
    """An array with another byte order is converted."""
    stored_as(way_in, swapped)


@every_way_in
def test_python_lists_are_stored_right(way_in):
    """Lists of numbers are stored like arrays."""
    stored_as(way_in, lambda array: array.tolist())


@every_way_in
def test_arrays_without_axes_are_stored_right(way_in):
    """0-d arrays and NumPy scalars are stored like Python numbers."""
    if way_in.way.lead:
        pytest.skip("a call with leading axes has no scalars")
    batches = []
    for kind in (float, np.float64, np.float32, np.array, lambda x: np.array(x, ">f8")):
        replay = way_in.full()
        flag, action = (kind(0), kind(1)) if kind is np.array else (np.bool_(0), np.int16(1))
        flag = np.array(bool(flag)) if kind is np.array else flag
        action = np.array(1) if kind is np.array else action
        way_in.call(replay, reward=kind(0.5), action=action, terminated=flag, truncated=flag)
        stored = replay.stored()
        batches.append([replay.read(stored, name).tolist() for name in ("reward", "action", "terminated")])
    assert all(batch == batches[0] for batch in batches)
    assert batches[0][0][-1] == 0.5


# -- How much ----------------------------------------------------------------------------------------------------


@every_stack
@pytest.mark.parametrize("lanes", [1, 2])
def test_of_more_rows_than_the_capacity_the_newest_are_kept(stack, lanes):
    """`extend` with more steps than the capacity has the same result as adding the steps one by one."""
    replay = stack.build(6, num_envs=lanes)
    lead = (50, lanes) if lanes > 1 else (50,)
    values = stack.steps(lead)
    indices = replay.extend(**values)
    assert indices.ravel().tolist() == list(range(50 * lanes))
    assert sorted(replay.stored().tolist()) == list(range(50 * lanes - 6, 50 * lanes))
    kept = replay.read(np.sort(replay.stored()), stack.name_of("obs"))
    obs = values["obs"] if stack.spec is FLAT else values["obs"]["achieved_goal"]
    np.testing.assert_array_equal(kept, obs.reshape(-1, 3)[-6:])
    replay.check()


@every_stack
@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("option", ["", "mask", "td_error"])
def test_zero_rows_change_nothing(stack, lanes, option):
    """`extend` with zero steps returns no indices and does not change the buffer."""
    lead = (0, lanes) if lanes > 1 else (0,)
    replay = WayIn(stack, WAYS["add" if lanes == 1 else "add to 2 lanes"]).full()
    before = pickle.dumps(replay)
    options = {"mask": {"mask": np.ones(lead, bool)}, "td_error": {"td_error": np.ones(lead)}}.get(option, {})
    assert replay.extend(**stack.steps(lead), **options).shape == lead
    assert pickle.dumps(replay) == before


# -- Aliasing ----------------------------------------------------------------------------------------------------


@every_way_in
def test_changing_an_array_after_it_was_added_changes_nothing(way_in):
    """A buffer copies the arrays that it is given, so you can change them after `add`."""
    replay = way_in.full()
    values = way_in.stack.steps(way_in.way.lead)
    values = {name: value if isinstance(value, dict) else np.array(value) for name, value in values.items()}
    getattr(replay, way_in.way.verb)(**values, **way_in.way.options())
    before = pickle.dumps(replay)
    for value in values.values():
        for array in value.values() if isinstance(value, dict) else [value]:
            array[...] = 1
    assert pickle.dumps(replay) == before


@every_way_in
def test_an_add_changes_no_array_that_it_is_given(way_in):
    """`add` does not change the arrays that it is given."""
    replay = way_in.full()
    values, kept = way_in.stack.steps(way_in.way.lead), way_in.stack.steps(way_in.way.lead)
    getattr(replay, way_in.way.verb)(**values, **way_in.way.options())
    np.testing.assert_equal(values, kept)


@every_stack
def test_changing_a_batch_in_place_changes_nothing(stack):
    """You can write into the arrays of a batch. This changes neither the buffer nor the next batch."""
    replay = full(stack)
    batch = replay.sample(8)
    before = pickle.dumps(replay)
    for name in batch:
        for array in batch[name].values() if isinstance(batch[name], dict) else [batch[name]]:
            array[...] = 0
    assert pickle.dumps(replay) == before


@every_stack
def test_two_batches_in_a_row_share_nothing(stack):
    """A second batch does not overwrite the first one."""
    replay = full(stack)
    one = replay.sample(8)
    kept = {name: np.copy(one[name]) for name in ("reward", "indices", "weights", "action", "pixels")}
    other = replay.sample(8)
    for name, array in kept.items():
        np.testing.assert_array_equal(one[name], array)
        assert not np.shares_memory(one[name], other[name])


@every_way_in
def test_a_refused_add_into_a_full_buffer_leaves_every_row_whole(way_in):
    """If `add` to a full buffer raises an error, the oldest transition is not overwritten."""
    replay = way_in.full()
    stored = replay.stored()
    before = replay.fetch(stored)
    for field, wrong in (("truncated", "no"), ("pixels", 0.5), ("obs", np.zeros(7))):
        with refused(replay, (TypeError, ValueError), way_in.name_of(field)):
            way_in.call(replay, **{field: way_in.repeated(wrong)})
    np.testing.assert_array_equal(replay.stored(), stored)
    if way_in.stack.spec is FLAT:  # hindsight draws goals anew
        np.testing.assert_equal(replay.fetch(stored), before)


@every_way_in
def test_after_a_refused_call_everything_goes_on_as_without_it(way_in):
    """After calls that raise errors, the next batches are identical to those of a buffer without these calls."""
    one, other = way_in.full(), way_in.full()
    for _ in range(3):
        with pytest.raises(TypeError):
            way_in.call(one, truncated=way_in.repeated("no"))
        with pytest.raises(IndexError):
            one.update_priorities([10**6], [1.0])
        with pytest.raises(TypeError):
            one.sample(2.0)
        batches = []
        for replay in (one, other):
            way_in.call(replay)
            batch = replay.sample(5)
            replay.update_priorities(batch.indices, np.arange(5.0))
            batches.append({name: batch[name] for name in batch})
        np.testing.assert_equal(*batches)


# -- Tensors -----------------------------------------------------------------------------------------------------


@every_way_in
def test_a_tensor_that_requires_grad_is_refused_with_the_remedy(way_in):
    """A tensor that requires a gradient raises an error that recommends `.detach().cpu()`."""
    torch = pytest.importorskip("torch")
    replay = way_in.full()
    with refused(replay, TypeError, way_in.name_of("obs"), "requires grad", ".detach().cpu()"):
        way_in.call(replay, obs=torch.ones((*way_in.way.lead, 3), requires_grad=True))


@every_way_in
def test_a_tensor_on_another_device_is_refused_with_the_remedy(way_in):
    """A tensor on a GPU raises an error that recommends `.detach().cpu()`."""
    torch = pytest.importorskip("torch")
    replay = way_in.full()
    device = "cuda" if torch.cuda.is_available() else "meta"  # a device that every machine has
    with refused(replay, TypeError, way_in.name_of("obs"), f"is on {device}", ".detach().cpu()"):
        way_in.call(replay, obs=torch.ones((*way_in.way.lead, 3), device=device))


@every_way_in
def test_a_tensor_on_the_cpu_is_stored_right(way_in):
    """A tensor on the CPU is stored like an array."""
    torch = pytest.importorskip("torch")
    stored_as(way_in, torch.from_numpy)


# -- Interrupts --------------------------------------------------------------------------------------------------


def rows(numbers):
    """Steps in which every field has the number of its row."""
    numbers = np.asarray(numbers)
    obs, none = np.repeat(numbers[..., None], 3, -1).astype(np.float32), np.zeros(numbers.shape, np.bool_)
    pixels = np.repeat(numbers[..., None], 2, -1).astype(np.uint8)
    return {"obs": obs, "action": numbers, "reward": numbers.astype(np.float32), "next_obs": obs} | {
        "terminated": none,
        "truncated": none,
        "pixels": pixels,
    }


def interrupt_everywhere(call):
    """Interrupt `call` of a full buffer at each of its lines. No row is torn, and the buffer still works."""
    at, interrupts = 0, True
    while interrupts:
        at += 1
        replay = CombinedReplay(PrioritizedBuffer(6, FLAT, seed=0))
        replay.extend(**rows(np.arange(10)))
        interrupts = interrupted(lambda replay=replay: call(replay), at)
        batch = replay.sample(20)
        for name in ("obs", "next_obs", "reward", "pixels"):
            assert (batch[name].reshape(20, -1) == batch.action[:, None]).all(), "a torn row"
        replay.check()
        replay.extend(**rows(np.arange(20, 28)))
        assert replay.read(replay.stored(), "action").tolist() == list(range(22, 28))
    assert at > 3, "nothing was interrupted"


def test_an_interrupted_add_tears_no_row():
    """After a KeyboardInterrupt at any line of `add`, all rows are complete and the buffer can be used."""
    interrupt_everywhere(lambda replay: replay.add(**rows(10)))


def test_an_interrupted_extend_tears_no_row():
    """After a KeyboardInterrupt at any line of `extend`, all rows are complete and the buffer can be used."""
    interrupt_everywhere(lambda replay: replay.extend(**rows(np.arange(10, 14)), td_error=np.ones(4)))


def test_an_interrupted_sample_tears_no_row():
    """After a KeyboardInterrupt at any line of `sample`, the buffer can be used."""
    interrupt_everywhere(lambda replay: replay.sample(5))


def test_an_interrupted_update_of_priorities_tears_no_row():
    """After a KeyboardInterrupt at any line of `update_priorities`, the buffer is consistent."""
    interrupt_everywhere(lambda replay: replay.update_priorities(np.arange(5, 9), np.ones(4)))


# -- Options -----------------------------------------------------------------------------------------------------


def cart_pole():
    return pytest.importorskip("gymnasium").make("CartPole-v1")


@pytest.mark.parametrize(
    ("make", "wrong", "meant"),
    [
        (lambda **o: ReplayBuffer(4, FLAT, **o), "sead", "seed"),
        (lambda **o: ReplayBuffer(4, FLAT, **o), "nstep", "n_step"),
        (lambda **o: ReplayBuffer(4, FLAT, **o), "n_envs", "num_envs"),
        (lambda **o: ReplayBuffer.from_env(cart_pole(), 4, **o), "gama", "gamma"),
        (lambda **o: PrioritizedBuffer(4, FLAT, **o), "aplha", "alpha"),
        (lambda **o: PrioritizedBuffer(4, FLAT, **o), "weight", "weights"),
        (lambda **o: LatestBuffer(4, FLAT, **o), "stacks", "stack"),
        (lambda **o: CombinedReplay(ReplayBuffer(4, FLAT), **o), "lastest", "latest"),
        (lambda **o: HindsightReplay(STACKS["hindsight"].build().inner, sparse, **o), "ration", "ratio"),
    ],
)
def test_a_misspelt_option_is_refused_with_the_nearest_name(make, wrong, meant):
    """A misspelt option of a constructor raises a TypeError that suggests the most similar option."""
    with refused(None, TypeError, f"'{wrong}'", f"'{meant}'"):
        make(**{wrong: 1})


def test_no_method_swallows_unknown_options():
    """A misspelt argument of a method raises a TypeError."""
    replay = full(STACKS["both wrappers"])
    for call in (
        lambda: replay.sample(batchsize=3),
        lambda: replay.sample(3, device="cpu"),
        lambda: replay.update_priorities([5], [1.0], priority=[1.0]),
        lambda: replay.update_priorities([5], td_error=[1.0]),
        lambda: replay.end_episode(lanes=[True]),
        lambda: replay.clear(all=True),
        lambda: replay.probability([5], size=2),
    ):
        with refused(replay, TypeError):
            call()


@every_buffer
def test_constructor_arguments_in_the_order_of_another_library_are_refused(make):
    """Constructor arguments in the order of another library raise an error that shows the expected order."""
    spaces = pytest.importorskip("gymnasium").spaces
    obs, action = spaces.Box(-1, 1, (3,)), spaces.Discrete(2)
    with refused(None, TypeError, "capacity", "spec", "Spec"):
        make(FLAT, 1000)  # the spec first
    with refused(None, TypeError, "spec", "Spec.from_spaces"):
        make(1000, obs, action)  # as Stable-Baselines3
    with refused(None, TypeError, "spec is a Box", "Spec.from_spaces"):
        make(1000, obs)
    with refused(None, TypeError, "spec is a dict", "expected a Spec"):
        make(1000, {"obs": {"shape": (3,)}, "act": {}})  # as cpprb
    with refused(None, TypeError):
        make(1000, FLAT, 8)  # the number of environments as in tianshou


@every_buffer
@pytest.mark.parametrize("seed", ["0", 1.5, -1, object(), np.array([[0.5]])])
def test_a_seed_of_the_wrong_kind_is_refused(make, seed):
    """A seed that is not an int, a SeedSequence or a Generator raises an error that lists these types."""
    with refused(None, (TypeError, ValueError), "seed is", "expected", "Generator"):
        make(4, FLAT, seed=seed)


@pytest.mark.parametrize("dtype", ["flaot32", object, "U3", "datetime64[s]", 3.5, None, [("x", int)]])
def test_a_dtype_of_the_wrong_kind_is_refused(dtype):
    """A dtype that cannot be stored as an array of numbers raises an error. None does not mean float64."""
    with refused(None, TypeError, "dtype", "expected"):
        Field((3,), dtype)


@pytest.mark.parametrize("shape", [(-1,), (2.5,), 2.5, (True,), "3", None, np.float32])
def test_a_shape_of_the_wrong_kind_is_refused(shape):
    """A shape with entries that are not non-negative ints raises an error."""
    with refused(None, (TypeError, ValueError), "shape"):
        Field(shape, np.float32)


@pytest.mark.parametrize(
    ("trees", "name"),
    [
        ({"obs": {"a.b": Field(()), "a": {"b": Field(())}}}, "obs.a.b"),
        ({"obs": {"a": {"b.c": Field(())}, "a.b": {"c": Field(())}}}, "obs.a.b.c"),
        ({"action": {"a": (Field(()),), "a.0": Field(())}}, "action.a.0"),
    ],
)
def test_names_of_a_spec_that_collide_are_refused(trees, name):
    """Two fields with the same dotted name raise an error with this name."""
    with refused(None, ValueError, name):
        Spec(**{"obs": Field(()), "action": Field(())} | trees)


@pytest.mark.parametrize("name", ["weights", "indices", "discount", "mask", "td_error", "self", *BATCH])
def test_an_extra_field_with_a_name_that_is_taken_is_refused(name):
    """An extra field with the name of a batch attribute or of an `add` argument raises an error."""
    with refused(None, (ValueError, TypeError), name):
        Spec(**{"obs": Field(()), "action": Field(()), name: Field(())})


SETTINGS = ("alpha", "eps", "weights", "draws", "n_step", "gamma", "stack", "capacity", "num_envs", "spec", "nbytes")


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("wrap", [lambda replay: replay, CombinedReplay], ids=["buffer", "wrapper"])
def test_setting_a_hyperparameter_that_cannot_change_is_refused(name, wrap):
    """Setting `alpha` or `n_step` of an existing buffer raises an error, also through a wrapper."""
    replay = wrap(PrioritizedBuffer(6, FLAT, seed=0))
    with refused(replay, AttributeError, name):
        setattr(replay, name, 2)


@pytest.mark.parametrize("name", ["n_steps", "bta", "aplha"])
@pytest.mark.parametrize("wrap", [lambda replay: replay, CombinedReplay], ids=["buffer", "wrapper"])
def test_setting_a_misspelt_hyperparameter_is_refused(name, wrap):
    """Setting a misspelt attribute, such as `buffer.bta = 1.0`, raises an error."""
    replay = wrap(PrioritizedBuffer(6, FLAT, seed=0))
    with refused(replay, AttributeError, name):
        setattr(replay, name, 1.0)


@pytest.mark.parametrize("beta", [1.1, -0.1, float("nan"), "0.4", True, [0.4]])
@pytest.mark.parametrize("wrap", [lambda replay: replay, CombinedReplay], ids=["buffer", "wrapper"])
def test_a_beta_that_is_set_later_is_checked_as_in_the_constructor(beta, wrap):
    """Setting an invalid `beta` raises an error, and the old value stays."""
    replay = wrap(PrioritizedBuffer(6, FLAT, beta=0.3, seed=0))
    with refused(replay, (TypeError, ValueError), "beta", "[0, 1]", repr(beta)):
        replay.beta = beta
    assert replay.beta == 0.3


@pytest.mark.parametrize(
    "beta", [lambda: 0.4, lambda step: 7.0, lambda step: "0.4", lambda step: float("nan"), LinearSchedule(0.4, 2.0, 9)]
)
@pytest.mark.parametrize("given", ["in the constructor", "later"])
def test_a_wrong_schedule_is_refused_when_it_is_given(beta, given):
    """A schedule is called once when you pass it, so an invalid one raises an error immediately."""
    replay = PrioritizedBuffer(6, FLAT, seed=0)
    with refused(replay, (TypeError, ValueError), "beta"):
        if given == "later":
            replay.beta = beta
        else:
            PrioritizedBuffer(6, FLAT, beta=beta)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ((0.0, 1.0, 0), "steps"),
        ((0.0, 1.0, 2.5), "steps"),
        ((float("nan"), 1.0, 5), "start"),
        ((0.0, "1", 5), "end"),
        ((0.0, float("inf"), 5), "end"),
    ],
)
def test_a_linear_schedule_checks_its_numbers(values, named):
    """A LinearSchedule needs a finite start and end, and a positive int of steps. Otherwise it raises an error."""
    with refused(None, (TypeError, ValueError), f"{named} is", "expected"):
        LinearSchedule(*values)


def test_no_public_method_takes_any_keyword_silently():
    """A method accepts arbitrary keywords only if they are field names or are passed on, and then it checks them."""
    for make in (ReplayBuffer, PrioritizedBuffer, LatestBuffer, CombinedReplay, HindsightReplay):
        for name, method in inspect.getmembers(make, callable):
            if name.startswith("_") or name in ("add", "extend", "from_env", "overwrite", "update_priorities"):
                continue
            kinds = {parameter.kind for parameter in inspect.signature(method).parameters.values()}
            assert inspect.Parameter.VAR_KEYWORD not in kinds, f"{make.__name__}.{name}"
    for replay in (ReplayBuffer(4, FLAT), CombinedReplay(PrioritizedBuffer(4, FLAT))):
        with pytest.raises(TypeError, match="unexpected keyword argument 'priority'"):
            replay.update_priorities([], priority=[])
        with pytest.raises(FieldNameError, match="unknown field 'rewards'; .* did you mean 'reward'"):
            replay.overwrite([], rewards=[])
