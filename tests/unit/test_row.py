"""The packed row: every way to add gives the same bytes, or the same error, as checking each field separately."""

import functools
import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replaykit import Buffer, Field, FieldNameError, PrioritizedBuffer, ReplayBuffer, Spec
from replaykit.distributions import Uniform
from replaykit.spec import CORE
from replaykit.storage import LocalStorage, Storage
from replaykit.testing import values_of
from replaykit.trees import map_tree
from tests.helpers import FLAT, step
from tests.laws.third_party import ListStorage

DEEP = Spec(
    obs={"pair": (Field((2,)), Field((), np.uint8)), "x": {"y": Field((1, 3), np.float64)}},
    action=(Field((2,), np.float16), Field((), np.bool_)),
    reward=Field((), np.float64),
    cost=Field((), np.int16),
    info={"z": Field((), np.float16)},
)
NUMBERS = [
    0,
    1,
    -1,
    2,
    127,
    128,
    -129,
    32767,
    32768,
    2**31,
    2**53 + 1,
    2**63,
    -(2**63),
    2**64,
    10**400,
    0.0,
    -0.0,
    0.1,
    2.7,
    65504.0,
    65519.9,
    65520.0,
    3.5e38,
    1e300,
    1e-300,
    np.nan,
    np.inf,
    -np.inf,
    True,
    False,
    None,
    "1",
    b"1",
    1j,
    [1.0],
    [[1]],
    np.float16(0.1),
    np.float32(0.1),
    np.float64(0.1),
    np.float32(np.nan),
    np.longdouble(0.1),
    np.int8(3),
    np.uint64(2**63),
    np.int64(-5),
    np.bool_(True),
    np.array(1.5),
    np.array([1.5]),
    np.array(1, ">i4"),
    np.array([1], object),
    np.complex64(1),
]


def outcome(function, *arguments, **options):
    """The result of a function, or the error that it raises."""
    try:
        return function(*arguments, **options)
    except Exception as error:
        return type(error), str(error)


def naive(storage, values, extras, lead, mask=None):
    """The bytes when each field is checked separately."""
    return bytes_in(storage.row.join(Storage.encode(storage, values, extras, lead, mask)))


def bytes_in(block):
    """The bytes of a block, including those of leaves in columns."""
    if isinstance(block, bytes):
        return block
    data, *groups = block
    return data + b"".join(value.tobytes() for group in groups for value in group)


def written(storage, encode, *arguments):
    """The bytes of a way to add. Rewards are checked when they are written."""
    block = encode(*arguments)
    storage.write(block, 1)
    return bytes_in(block)


def blocks(storage, fields):
    """The bytes of one step of every lane for each way to add, the naive one first."""
    values, lead = tuple(fields[name] for name in CORE), storage.lanes
    extras = {name: value for name, value in fields.items() if name not in CORE}
    mask = np.ones(lead, np.bool_)
    return {
        "naive": outcome(naive, storage, values, extras, lead),
        "masked": outcome(naive, storage, values, extras, lead, mask),
        "step": outcome(written, storage, storage.encode_step, *values, extras),
        "steps": outcome(written, storage, storage.encode, values, extras, lead)
        if lead and not storage.columns
        else outcome(naive, storage, values, extras, lead),
    }


def added(buffer, fields, **options):
    """The bits of a buffer after an add, or the error that it raised."""
    found = outcome(buffer.add, **fields, **options)
    return found if isinstance(found, tuple) else pickle.dumps(buffer)


def the_only(outcomes):
    """The common outcome of all ways to add."""
    first = next(iter(outcomes.values()))
    for name, found in outcomes.items():
        assert found == first, name
    return first


@functools.cache
def ways(spec, lanes, share):
    """A storage, and buffers that get the same steps in different ways."""
    storages = [LocalStorage(3, spec, lanes, share=share) for _ in range(4)]
    buffers = [Buffer(storage, Uniform(storage), seed=0) for storage in (*storages[1:], ListStorage(3, spec, lanes))]
    return storages[0], buffers


def by_every_way(spec, fields, lanes=1, share="large"):
    """The outcomes of adding some fields in every way. Observations are in columns if `share` is "all"."""
    storage, (plain, masked, with_error, own) = ways(spec, lanes, share)
    block = the_only(blocks(storage, fields))
    after = the_only({
        "add": added(plain, fields),
        "masked": added(masked, fields, mask=np.ones(lanes, np.bool_)),
        "td_error": added(with_error, fields, td_error=np.zeros(lanes) if lanes > 1 else 0.0),
    })  # fmt: skip
    elsewhere = added(own, fields)
    if isinstance(block, tuple):
        assert block == after == elsewhere
    else:
        assert isinstance(after, bytes) and isinstance(elsewhere, bytes)
    return block


# -- Usual values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("spec", [DEEP, FLAT], ids=["deep", "flat"])
def test_a_row_has_every_leaf_at_its_place(spec, lanes):
    """Each leaf is at its position in the record, and nowhere else."""
    storage = LocalStorage(4, spec, lanes)
    values = [{name: values_of(spec[name], number + 3) for name in spec} for number in range(lanes)]
    fields = {name: stacked([one[name] for one in values]) if lanes > 1 else values[0][name] for name in spec}
    block = by_every_way(spec, fields, lanes)
    row, at = storage.row, 0
    assert sorted(row.packed) == list(range(len(spec.leaves)))
    assert row.packed[-2:] == [storage.positions["terminated"], storage.positions["truncated"]]
    assert row.nbytes % 8 == 0 and row.nbytes > row.end
    flat = [spec.flatten(tuple(one[name] for name in CORE), {n: one[n] for n in spec.extra}) for one in values]
    for i in row.packed:
        leaf = spec.leaves[i]
        expected = b"".join(np.asarray(one[i], leaf.dtype).tobytes() for one in flat)
        assert block[at : at + len(expected)] == expected, leaf.name
        at += len(expected)
    assert at == len(block)
    storage.write(block, 1)
    for lane in range(lanes):
        for i, leaf in enumerate(spec.leaves):
            start = row.place[i]
            assert (
                storage.rows[lane, start : start + leaf.field.nbytes].tobytes() == np.asarray(flat[lane][i]).tobytes()
            )


def stacked(values):
    """Values of lanes, stacked in their nested structure."""
    if isinstance(values[0], dict):
        return {key: stacked([value[key] for value in values]) for key in values[0]}
    if isinstance(values[0], tuple):
        return tuple(stacked(list(entries)) for entries in zip(*values, strict=True))
    return np.stack(values)


def test_usual_values_are_not_checked_one_after_another(monkeypatch):
    """Usual values take the fast path. Otherwise the tests below would compare one path with itself."""
    used = []
    monkeypatch.setattr(Storage, "encode", lambda *arguments: used.append(arguments))
    for spec, lanes, share in itertools.product((DEEP, FLAT), (1, 3), ("large", "all")):
        storage = LocalStorage(4, spec, lanes, share=share)
        values = {name: values_of(spec[name], 3) for name in spec}
        if lanes > 1:
            values = {name: stacked([value] * lanes) for name, value in values.items()}
        extras = {name: values.pop(name) for name in spec.extra}
        block = bytes_in(storage.encode_step(*values.values(), extras))
        assert len(block) == lanes * sum(leaf.field.nbytes for leaf in spec.leaves)
        with_axis = [map_tree(lambda leaf, _path: np.asarray(leaf)[None], value) for value in values.values()]
        more = map_tree(lambda leaf, _path: np.asarray(leaf)[None], extras)
        if lanes == 1:
            assert len(bytes_in(storage.encode_step(*with_axis, more))) == len(block)
        if share == "large":
            assert len(storage.encode(tuple(with_axis), more, (1, *storage.lanes))) == len(block)
    storage = LocalStorage(4, FLAT)
    for reward in (1.5, np.float64(1.5), np.float32(1.5), 1):  # as environments give them
        values = step(0, reward=reward, obs=np.zeros(3), action=np.int64(1), terminated=np.bool_(False))
        storage.encode_step(*values.values(), {})
    assert not used


# -- Unusual and invalid values ------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "c8"])
def test_any_scalar_is_stored_or_refused_alike(dtype):
    """All ways agree on any scalar, for fields of any dtype, with one lane and two."""
    spec = Spec(obs=Field((2,)), action=Field((), dtype))
    obs = np.ones(2, np.float32)
    stored = 0
    for value in NUMBERS:
        fields = {
            "obs": obs, "action": value, "reward": 1.0, "next_obs": obs, "terminated": False, "truncated": True
        }  # fmt: skip
        stored += isinstance(by_every_way(spec, fields), bytes)
    assert stored > 5
    for value in NUMBERS:
        lanes = {"obs": [obs, obs], "action": [value, value], "reward": [1.0, 2.0], "next_obs": [obs, obs],
                 "terminated": [False, True], "truncated": [False, False]}  # fmt: skip
        by_every_way(spec, lanes, 2)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", ["?", "u1", "i8", "f2", "f4", "c8"])
def test_any_number_in_columns_is_stored_or_refused_alike(dtype):
    """All ways agree on observations of a single number in a column, with one lane and two."""
    spec = Spec(obs=Field((), dtype), action=Field(()))
    for value in NUMBERS:
        fields = {"obs": value, "action": 0.5, "reward": 1.0, "next_obs": 1, "terminated": False, "truncated": True}
        by_every_way(spec, fields, share="all")
        by_every_way(spec, {name: [value, value] for name, value in fields.items()}, 2, share="all")


@pytest.mark.parametrize("lanes", [1, 3])
def test_observations_in_columns_are_not_copied_until_they_are_written(lanes):
    """An observation in a column is not copied early, if it has the shape and dtype of the spec."""
    spec = Spec(obs=Field((40, 40), np.uint8), action=Field(()))
    storage, lead = LocalStorage(4, spec, lanes), (lanes,) if lanes > 1 else ()
    obs, next_obs = np.ones((2, *lead, 40, 40), np.uint8)
    zeros, none = (np.zeros(lead, np.float32), np.zeros(lead, np.bool_)) if lead else (0.0, False)
    _, (one, two) = storage.encode_step(obs, zeros, zeros, next_obs, none, none, {})
    assert one is obs
    assert two is next_obs


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("share", ["large", "all"])
@pytest.mark.parametrize("name", ["reward", "terminated", "truncated"])
def test_any_reward_and_flag_is_stored_or_refused_alike(name, share):
    """All ways agree on any reward and flag."""
    obs = np.ones(3, np.float32)
    for reward in ("f4", "f8"):
        spec = Spec(obs=Field((3,)), action=Field(()), reward=Field((), reward))
        for value in NUMBERS:
            fields = {
                "obs": obs, "action": 0.5, "reward": 1.0, "next_obs": obs, "terminated": False, "truncated": False
            }  # fmt: skip
            by_every_way(spec, fields | {name: value}, share=share)


def spoilt(tree, draw):
    """A tree in which one value may be replaced by a wrong one."""
    choice = draw(st.integers(0, 9))
    if choice == 0:
        return draw(st.sampled_from([None, {}, (), 1.0, np.zeros((2, 3)), {"pair": 1}, (1, 2)]))
    if isinstance(tree, dict):
        entries = {key: spoilt(entry, draw) for key, entry in tree.items()}
        if choice == 1:
            entries.pop(draw(st.sampled_from(sorted(entries))))
        if choice == 3:
            return dict(reversed(entries.items()))
        return entries | {"surplus": 1.0} if choice == 2 else entries
    if isinstance(tree, tuple):
        entries = [spoilt(entry, draw) for entry in tree]
        return {1: entries, 2: tuple(entries[1:]), 3: (*entries, 1.0)}.get(choice, tuple(entries))
    changes = {
        1: lambda a: a.astype(np.float64), 2: lambda a: a[None], 3: lambda a: a.astype(a.dtype.newbyteorder()),
        4: lambda a: np.asfortranarray(a)[..., ::-1] if a.ndim else a, 5: lambda a: a.tolist(),
    }  # fmt: skip
    array = np.asarray(tree)
    return changes.get(choice, lambda a: a[()])(array)


@given(
    data=st.data(), number=st.integers(0, 99), lanes=st.sampled_from([1, 3]), share=st.sampled_from(["large", "all"])
)
def test_any_tree_is_stored_or_refused_alike(data, number, lanes, share):
    """All ways agree on missing and additional keys, other structures and other memory layouts."""
    values = {name: values_of(DEEP[name], number) for name in DEEP}
    if lanes > 1:
        values = {name: stacked([value] * lanes) for name, value in values.items()}
    fields = {name: spoilt(value, data.draw) for name, value in values.items()}
    by_every_way(DEEP, fields, lanes, share)


WRONG = {
    "obs": np.zeros(4, np.float32), "action": 1.5, "reward": "much", "next_obs": np.zeros((3, 1), np.float32),
    "terminated": 2, "truncated": "no",
}  # fmt: skip


@pytest.mark.parametrize("share", ["large", "all"])
@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("first", CORE)
def test_of_two_wrong_fields_the_first_is_named(first, lanes, share):
    """Of two invalid fields, every way names the first one in the order of the spec."""
    for second in CORE[CORE.index(first) :]:
        for changes in ({first: WRONG[first], second: WRONG[second]}, {second: WRONG[second], first: WRONG[first]}):
            fields = step(3, **changes)
            if lanes > 1:
                fields = {name: [value, value] for name, value in fields.items()}
            error, message = by_every_way(FLAT, fields, lanes, share)
            assert issubclass(error, (ValueError, TypeError, OverflowError))
            assert message.startswith(f"{first} "), (first, second, message)


def test_wrong_names_are_refused_before_wrong_values():
    """Every way reports missing and unknown fields before invalid values."""
    fields = {name: values_of(DEEP[name], 1) for name in DEEP}
    for wrong, match in (({}, "cost"), ({"cost": 1, "surplus": 2}, "surplus"), ({"cots": 1}, "cots")):
        given_fields = {name: value for name, value in fields.items() if name != "cost"} | wrong | {"reward": "much"}
        error, message = by_every_way(DEEP, given_fields)
        assert error is FieldNameError
        assert match in message
    buffer = ReplayBuffer(4, DEEP)
    lead = {name: map_tree(lambda leaf, _path: np.asarray(leaf)[None], value) for name, value in fields.items()}
    del lead["cost"]
    for options in ({}, {"mask": [True]}, {"td_error": [1.0]}):
        with pytest.raises(FieldNameError, match="cost"):
            buffer.extend(**lead, **options)


# -- Steps ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("spec", [DEEP, FLAT], ids=["deep", "flat"])
def test_stretches_are_stored_as_steps_and_masks_are(spec, lanes):
    """`extend` gives the result of `add`: at once, in parts, with a full mask, and with TD errors."""
    rng = np.random.default_rng(0)
    steps = [
        [{name: values_of(spec[name], int(rng.integers(99))) for name in spec} for _ in range(lanes)] for _ in range(9)
    ]
    for row in steps:
        for one in row:
            one["terminated"], one["truncated"] = rng.random(2) < 0.2

    def grid(part):
        rows = [{n: stacked([one[n] for one in row]) if lanes > 1 else row[0][n] for n in spec} for row in part]
        return {name: stacked([row[name] for row in rows]) for name in spec}

    mask, errors = np.ones(lanes, np.bool_), np.zeros((9, lanes) if lanes > 1 else 9)
    made = {name: ReplayBuffer(5 * lanes, spec, num_envs=lanes, seed=0) for name in ("extend", "masked", "errors")}
    made |= {name: ReplayBuffer(5 * lanes, spec, num_envs=lanes, seed=0) for name in ("parts", "add")}
    made["extend"].extend(**grid(steps))
    made["masked"].extend(**grid(steps), mask=mask)
    made["errors"].extend(**grid(steps), td_error=errors)
    made["parts"].extend(**grid(steps[:4]))
    made["parts"].extend(**grid(steps[4:]))
    for row in steps:
        made["add"].add(**{n: stacked([one[n] for one in row]) if lanes > 1 else row[0][n] for n in spec})
    the_only({name: pickle.dumps(buffer) for name, buffer in made.items()})


def test_a_stretch_larger_than_a_block_is_encoded_in_parts():
    """Steps of more than a million bytes give the same result in one call and in two."""
    spec = Spec(obs=Field((100,)), action=Field(()))
    rng = np.random.default_rng(0)
    obs, zeros, none = rng.random((2000, 100), np.float32), np.zeros(2000, np.float32), np.zeros(2000, np.bool_)
    one, two = (PrioritizedBuffer(1500, spec, seed=0) for _ in range(2))
    one.extend(obs, zeros, zeros, obs, none, none)
    for half in (slice(0, 1000), slice(1000, 2000)):
        two.extend(obs[half], zeros[half], zeros[half], obs[half], none[half], none[half])
    assert pickle.dumps(one) == pickle.dumps(two)


# -- Bits ----------------------------------------------------------------------------------------------------------

PATTERNS = {
    np.float16: (np.uint16, [0x7E01, 0xFE55, 0x7C01, 0x8000, 0x0001]),
    np.float32: (np.uint32, [0x7FC12345, 0xFFC00001, 0x7F800001, 0x80000000, 0x00000001]),
    np.float64: (np.uint64, [0x7FF8000000012345, 0xFFF8000000000001, 0x7FF0000000000001, 1 << 63, 1]),
}


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("dtype", PATTERNS)
def test_the_bits_of_nans_and_negative_zeros_are_kept(dtype):
    """It holds for scalars and arrays in the field's dtype, for every way to add."""
    unsigned, patterns = PATTERNS[dtype]
    spec = Spec(obs=Field((5,), dtype), action=Field((), dtype))
    array = np.array(patterns, unsigned).view(dtype)
    for pattern, value in zip(patterns, array, strict=True):
        for given_value in (value, np.asarray(value)):
            fields = {"obs": array, "action": given_value, "reward": -0.0, "next_obs": array, "terminated": False,
                      "truncated": False}  # fmt: skip
            by_every_way(spec, fields)
            buffer = ReplayBuffer(4, spec)
            buffer.add(**fields)
            assert buffer.read([0], "action").view(unsigned).tolist() == [pattern]
            assert buffer.read([0], "obs").view(unsigned).tolist() == [patterns]
            assert np.signbit(buffer.read([0], "reward")[0])


@pytest.mark.parametrize("name", ["obs", "action", "reward", "next_obs"])
def test_values_of_another_byte_order_or_layout_are_stored_right(name):
    """One field at a time, among others in native order."""
    spec = Spec(obs=Field((3,)), action=Field((), np.int16), reward=Field((), np.float64))
    fields = {
        "obs": np.arange(6, dtype=np.float32).reshape(2, 3), "action": np.array([1, 2], np.int16),
        "reward": np.array([0.5, 1.5]), "next_obs": np.ones((2, 3), np.float32),
        "terminated": np.array([True, False]), "truncated": np.array([False, False]),
    }  # fmt: skip
    value = fields[name]
    others = [value.astype(value.dtype.newbyteorder()), value.tolist(), np.repeat(value, 2, axis=0)[::2]]
    expected = by_every_way(spec, fields, 2)
    for other in others:
        assert by_every_way(spec, fields | {name: other}, 2) == expected
