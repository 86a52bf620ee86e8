"""What is stored at once is what is stored after every check, bit for bit; and what is refused is refused alike."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replaykit import Field, ReplayBuffer, Spec
from replaykit.testing import values_of

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


def outcome(buffer, fields):
    """The bits of a buffer after an add, or the error that it raised."""
    try:
        buffer.add(**fields)
    except Exception as error:
        return type(error), str(error)
    return pickle.dumps(buffer)


def both_ways(spec, fields, lanes=1):
    """What adding some fields comes to, packed at once, and after every check; or made to fit one by one between."""
    fast, between, slow = (ReplayBuffer(3, spec, num_envs=lanes, seed=0) for _ in range(3))
    between._storage.pack_row = lambda *_: None
    between._storage.pack_block = None
    by_every_check = outcome(slow, fields | {"mask": np.ones(lanes, np.bool_)})
    assert outcome(between, fields) == by_every_check
    return outcome(fast, fields), by_every_check


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "c8", "g"])
def test_any_scalar_is_stored_or_refused_alike(dtype):
    """Whatever is given for a field of any dtype."""
    spec = Spec(obs=Field((2,)), action=Field((), dtype))
    obs = np.ones(2, np.float32)
    stored = 0
    for value in NUMBERS:
        fast, slow = both_ways(spec, {"obs": obs, "action": value, "reward": 1.0, "next_obs": obs,
                                      "terminated": False, "truncated": True})  # fmt: skip
        assert fast == slow, value
        stored += isinstance(fast, bytes)
    assert stored > 5


@pytest.mark.filterwarnings("ignore")
def test_any_reward_and_flag_is_stored_or_refused_alike():
    """The fields that every transition has."""
    obs = np.ones(3, np.float32)
    for reward in ("f4", "f8"):
        spec = Spec(obs=Field((3,)), action=Field(()), reward=Field((), reward))
        for name in ("reward", "terminated", "truncated"):
            for value in NUMBERS:
                fields = {"obs": obs, "action": 0.5, "reward": 1.0, "next_obs": obs, "terminated": False,
                          "truncated": False}  # fmt: skip
                fast, slow = both_ways(spec, fields | {name: value})
                assert fast == slow, (name, value)


def spoilt(tree, draw):
    """A tree with, perhaps, something else in one place."""
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


@given(data=st.data(), number=st.integers(0, 99), lanes=st.sampled_from([1, 3]))
def test_any_tree_is_stored_or_refused_alike(data, number, lanes):
    """Keys that lack, keys too many, other structures, other layouts in memory; single steps and steps of lanes."""
    values = {name: values_of(DEEP[name], number) for name in DEEP}
    if lanes > 1:
        from replaykit.trees import map_tree

        values = map_tree(lambda leaf, _path: np.stack([leaf, leaf, leaf]), values)
    fields = {name: spoilt(value, data.draw) for name, value in values.items()}
    fast, slow = both_ways(DEEP, fields, lanes)
    assert fast == slow


def test_the_usual_step_is_packed():
    """Otherwise the tests above compare one way with itself."""
    for spec in (DEEP, Spec(obs=Field((4,)), action=Field((), np.int64))):
        storage = ReplayBuffer(3, spec)._storage
        values = {name: values_of(spec[name], 1) for name in spec}
        core = [values.pop(name) for name in ("obs", "action", "reward", "next_obs", "terminated", "truncated")]
        row = storage.pack_row(*core, values)
        assert row is not None and len(row) == storage.ring.rows.itemsize
        from replaykit.trees import map_tree

        def twice(tree):
            return map_tree(lambda array, _path: np.stack([array, array]), tree)

        data = storage.pack_block((2,), *(twice(tree) for tree in core), twice(values))
        assert data is not None and len(data) == 2 * sum(leaf.field.nbytes for leaf in spec.leaves)


@pytest.mark.parametrize("name", ["obs", "action", "reward", "next_obs"])
def test_byte_swapped_steps_of_lanes_are_stored_right(name):
    """One field at a time, among others in native order."""
    spec = Spec(obs=Field((3,)), action=Field((), np.int16), reward=Field((), np.float64))
    fields = {
        "obs": np.arange(6, dtype=np.float32).reshape(2, 3), "action": np.array([1, 2], np.int16),
        "reward": np.array([0.5, 1.5]), "next_obs": np.ones((2, 3), np.float32),
        "terminated": np.array([True, False]), "truncated": np.array([False, False]),
    }  # fmt: skip
    swapped = fields | {name: fields[name].astype(fields[name].dtype.newbyteorder())}
    outcomes = {outcome(ReplayBuffer(4, spec, num_envs=2, seed=0), given) for given in (fields, swapped)}
    assert len(outcomes) == 1


@pytest.mark.parametrize("lanes", [1, 3])
def test_blocks_past_the_seam_are_stored_as_single_steps_are(lanes):
    """Every field of every width, and which steps end an episode, by truncation alone."""
    spec = Spec(obs=Field((3,), np.uint8), action=Field((), np.int16), reward=Field((), np.float64), z=Field((5,)))
    lead = (7, lanes) if lanes > 1 else (7,)
    rng = np.random.default_rng(0)
    buffers = [ReplayBuffer(10 * lanes, spec, num_envs=lanes, seed=0) for _ in range(2)]
    for _ in range(5):
        fields = {
            "obs": rng.integers(0, 255, (*lead, 3), dtype=np.uint8), "action": rng.integers(0, 99, lead, np.int16),
            "reward": rng.random(lead), "next_obs": rng.integers(0, 255, (*lead, 3), dtype=np.uint8),
            "terminated": np.zeros(lead, np.bool_), "truncated": rng.random(lead) < 0.3,
            "z": rng.random((*lead, 5), np.float32),
        }  # fmt: skip
        buffers[0].extend(**fields)
        buffers[1].extend(**fields, mask=np.ones(lanes, np.bool_))  # by every check
        assert (buffers[0]._storage.ring.rows == buffers[1]._storage.ring.rows).all()
        assert (buffers[0]._storage.ring.ended == buffers[1]._storage.ring.ended).all()
        assert pickle.dumps(buffers[0]) == pickle.dumps(buffers[1])
