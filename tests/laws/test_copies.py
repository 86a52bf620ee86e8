"""Copies and pickles contain only stored data, and continue bit for bit."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replaykit import (
    Buffer,
    CombinedReplay,
    Field,
    HindsightReplay,
    LatestBuffer,
    LinearSchedule,
    PrioritizedBuffer,
    ReplayBuffer,
    ReplayWrapper,
    Spec,
)
from replaykit.storage import Lock
from replaykit.testing import bits_of, build, configurations, values_of
from tests.helpers import (
    FLAT,
    GOAL_SPEC,
    filled,
    goal_episodes,
    prioritized,
    sparse,
    stacked_lanes,
    stretch,
    unchanged,
)
from tests.laws.third_party import ListedPriorities, ListStorage

COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda replay: pickle.loads(pickle.dumps(replay))}
copied = pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
OWN = {"storage": ListStorage, "distribution": ListedPriorities}
FRAME = Spec(obs=Field((84, 84), np.uint8), action=Field(()))


@given(
    configuration=configurations(),
    actions=st.lists(
        st.sampled_from(["add", "add", "add", "some", "error", "end", "update", "sample", "clear", "copy"]), max_size=25
    ),
    parts=st.sampled_from(
        [{}, {}, {"storage": ListStorage}, {"storage": ListStorage, "distribution": ListedPriorities}]
    ),
)
def test_a_copy_at_any_moment_goes_on_bit_for_bit(configuration, actions, parts):
    """A copy at any moment continues bit for bit, with any lanes, clears, and copies of copies."""
    replay, _ = build(configuration, **parts)
    replays, lanes = [replay, replay], replay.num_envs
    rng = np.random.default_rng(configuration.seed)
    size = 1 + sum(configuration.combined)
    for number, action in enumerate([*actions, "copy", "add", "sample", "some", "sample", "update", "sample"]):
        if action == "copy":
            one = copy.deepcopy(replays[0]) if replays[0] is replays[1] else replays[0]
            replays = [one, pickle.loads(pickle.dumps(replays[1]))]
            continue
        ends, flips = rng.random((2, lanes)) < 0.2, rng.random(lanes) < 0.6
        errors, seed = rng.normal(size=lanes), int(rng.integers(99))
        for which in replays[: 1 if replays[0] is replays[1] else 2]:
            values = {name: [values_of(which.spec[name], 3 * number + e) for e in range(lanes)] for name in which.spec}
            values["terminated"], values["truncated"] = ends
            given_values = {name: stacked_lanes(value, lanes) for name, value in values.items()}
            if action in ("add", "some", "error"):
                td_error = None if action != "error" else errors if lanes > 1 else errors[0]
                which.add(**given_values, mask=flips if action == "some" else None, td_error=td_error)
            elif action == "end":
                which.end_episode(flips)
            elif action == "clear":
                which.clear()
            elif action == "update" and len(which):
                chosen = np.random.default_rng(seed).choice(which.stored(), 4)
                which.update_priorities(chosen, np.arange(4.0))
        if action == "sample" and len(replays[0]):
            batches = [bits_of(which.sample(size)) for which in replays[: 1 if replays[0] is replays[1] else 2]]
            assert batches[0] == batches[-1]
    for which in replays:
        which.check()
    one, two = (pickle.dumps(pickle.loads(pickle.dumps(which))) for which in replays)
    assert one == two


MANY = 1_000_000
MAKES = {
    "uniform": lambda: ReplayBuffer(MANY, FLAT, seed=0),
    "prioritized": lambda: PrioritizedBuffer(MANY, FLAT, seed=0),
    "latest": lambda: LatestBuffer(MANY, FLAT, seed=0),
    "combined": lambda: CombinedReplay(PrioritizedBuffer(MANY, FLAT, n_step=3, seed=0)),
}


@pytest.mark.parametrize("name", MAKES)
def test_a_nearly_empty_buffer_pickles_to_a_few_kilobytes(name):
    """The size does not depend on the capacity, and the copy has the full capacity."""
    buffer = filled(MAKES[name](), 20)
    pickled = pickle.dumps(buffer)
    assert len(pickled) < 6000
    twin = pickle.loads(pickled)
    assert twin.nbytes == buffer.nbytes
    assert bits_of(twin.sample(8)) == bits_of(buffer.sample(8))


def test_a_cleared_buffer_pickles_to_a_few_kilobytes():
    """A cleared buffer pickles to a few kilobytes, even if it was full before."""
    for lanes in (1, 4):
        buffer = PrioritizedBuffer(20_000, FLAT, num_envs=lanes, seed=0)
        buffer.extend(**stretch(20_000 // lanes + 7, lanes))
        assert len(pickle.dumps(buffer)) > 500_000
        if lanes > 1:
            buffer.add(**{n: v[0] for n, v in stretch(1, lanes).items()}, mask=[True, False, True, True])
        buffer.clear()
        assert len(pickle.dumps(buffer)) < 6000
        twin = pickle.loads(pickle.dumps(buffer))
        for replay in (buffer, twin):
            replay.extend(**stretch(3, lanes))
        assert bits_of(buffer.sample(9)) == bits_of(twin.sample(9))


@pytest.mark.parametrize("stack", [1, 3])
def test_a_pickle_holds_each_stored_frame_once(stack):
    """A pickle has T + 1 frames for T steps, and none for a cleared buffer."""
    buffer = ReplayBuffer(60, FRAME, stack=stack, seed=0)
    frames = np.random.default_rng(0).integers(0, 255, (101, 84, 84), np.uint8)
    zeros, none = np.zeros(100), np.zeros(100, np.bool_)
    buffer.extend(frames[:20], zeros[:20], zeros[:20], frames[1:21], none[:20], none[:20])
    assert 21 * 84 * 84 < len(pickle.dumps(buffer)) < 22 * 84 * 84 + 6000
    buffer.extend(frames[:100], zeros, zeros, frames[1:], none, none)
    older = stack - 1  # of the stack of the oldest step
    assert (61 + older) * 84 * 84 < len(pickle.dumps(buffer)) < (62 + older) * 84 * 84 + 9000
    buffer.clear()
    assert len(pickle.dumps(buffer)) < 6000
    twin = pickle.loads(pickle.dumps(buffer))
    for replay in (buffer, twin):
        replay.extend(frames[:30], zeros[:30], zeros[:30], frames[1:31], none[:30], none[:30])
        replay.check()
    assert bits_of(buffer.sample(9)) == bits_of(twin.sample(9))


def test_a_copy_shares_nothing_with_its_original():
    """A copy shares no array, generator or lock with its original."""
    buffer = CombinedReplay(filled(PrioritizedBuffer(50, FLAT, seed=0), 30))
    twin = copy.deepcopy(buffer)
    storage, other = (replay.parts()["storage"] for replay in (buffer, twin))
    for name, array in storage.arrays.items():
        assert not np.shares_memory(array, other.arrays[name]), name
    assert twin.rng is not buffer.rng
    assert twin.lock is not buffer.lock
    assert twin.lock is other.lock is twin.inner.lock
    assert isinstance(pickle.loads(pickle.dumps(buffer.lock)), Lock)


@copied
def test_a_buffer_that_was_given_its_parts_takes_them_along(copied):
    """A copied `Buffer` has copies of its storage and its distribution, which belong together."""
    storage = ListStorage(8, FLAT)
    buffer = filled(Buffer(storage, ListedPriorities(storage), seed=0), 11)
    buffer.update_priorities([9, 10], [4.0, 5.0])
    twin = copied(buffer)
    assert twin.distribution.storage is twin.storage
    assert twin.storage is not storage
    assert bits_of(twin.sample(9)) == bits_of(buffer.sample(9))


@copied
def test_what_was_set_later_is_carried(copied):
    """A copy keeps attributes that were set later: beta, its schedule with the batch count, and the hindsight ratio."""
    buffer = prioritized([1.0, 2.0], beta=0.1)
    buffer.beta = LinearSchedule(0.4, 1.0, steps=10)
    buffer.sample(2)
    twin = copied(buffer)
    assert twin.beta == buffer.beta == LinearSchedule(0.4, 1.0, steps=10)(1)
    twin.sample(2)
    assert (twin.beta, buffer.beta) == tuple(LinearSchedule(0.4, 1.0, steps=10)(n) for n in (2, 1))
    buffer.beta = 0.7
    assert copied(CombinedReplay(buffer)).beta == 0.7

    goals = HindsightReplay(PrioritizedBuffer(9, GOAL_SPEC, seed=0), sparse, ratio=0.8)
    goal_episodes(goals, [5])
    goals.ratio = 0.0
    assert copied(goals).ratio == 0.0
    assert bits_of(copied(goals).sample(5)) == bits_of(goals.sample(5))
    stacked = CombinedReplay(goals)
    stacked.inner.ratio = 0.3
    assert copied(stacked).inner.ratio == 0.3


@copied
def test_counters_go_on(copied):
    """The counters of batches, stale updates and added transitions continue."""
    buffer = filled(PrioritizedBuffer(3, FLAT, seed=0), 5)
    buffer.sample(2)
    buffer.update_priorities([0, 4], [1.0, 1.0])
    assert copied(buffer).stats() == buffer.stats()
    assert buffer.stats()["stale_updates"] == buffer.stats()["batches"] == 1.0


def test_a_generator_that_was_given_is_copied_as_it_is_now():
    """The copy has the generator's current state. The original generator stays with the buffer."""
    rng = np.random.default_rng(5)
    buffer = filled(ReplayBuffer(9, FLAT, seed=rng), 9)
    buffer.sample(4)
    twin = copy.deepcopy(buffer)
    assert bits_of(twin.sample(4)) == bits_of(buffer.sample(4))
    assert rng.bit_generator.state == buffer.rng.bit_generator.state == twin.rng.bit_generator.state


@pytest.mark.parametrize("make", [lambda: PrioritizedBuffer(5, FLAT, seed=0), lambda: joined(0, 5)])
def test_adding_while_a_copy_is_made_does_not_change_it(make):
    """A copy shows the moment at which it begins, in the buffer, its storage and its distribution."""
    buffer = filled(make(), 7)
    before = copy.deepcopy(buffer)
    build_again, arguments, state, *moment = buffer.__reduce__()
    buffer.extend(**stretch(4))
    buffer.update_priorities(buffer.stored(), np.arange(5.0))
    twin = build_again(*copy.deepcopy(arguments))
    twin.__setstate__(state)
    assert pickle.dumps(copy.deepcopy(twin)) == pickle.dumps(before)
    twin.check()
    del moment
    assert bits_of(copy.deepcopy(buffer).sample(9)) == bits_of(buffer.sample(9))


def test_what_is_copied_together_stays_together():
    """A buffer, its parts and its wrapper that are copied together belong together, in any order."""
    buffer = filled(joined(0), 60)
    wrapper = CombinedReplay(buffer)
    for things in ([buffer.storage, buffer.distribution, wrapper, buffer], [buffer, wrapper, buffer.storage]):
        for twins in (copy.deepcopy(things), pickle.loads(pickle.dumps(things))):
            (twin,) = [thing for thing in twins if type(thing) is Buffer]
            (around,) = [thing for thing in twins if type(thing) is CombinedReplay]
            assert around.inner is twin
            assert any(thing is twin.storage for thing in twins)
            twin.check()


# -- Seeds ---------------------------------------------------------------------------------------------------------

STACKS = {
    "uniform": lambda seed: ReplayBuffer(50, FLAT, seed=seed),
    "without replacement": lambda seed: ReplayBuffer(50, FLAT, replace=False, seed=seed),
    "prioritized": lambda seed: PrioritizedBuffer(50, FLAT, n_step=3, seed=seed),
    "combined": lambda seed: CombinedReplay(PrioritizedBuffer(50, FLAT, seed=seed)),
    "joined": lambda seed: joined(seed),
}
every_stack = pytest.mark.parametrize("make", STACKS.values(), ids=STACKS)


def joined(seed, capacity=50):
    """A buffer with parts in plain Python."""
    storage = ListStorage(capacity, FLAT)
    return Buffer(storage, ListedPriorities(storage), seed=seed)


@every_stack
@copied
def test_copies_with_spawned_seeds_draw_differently_and_again_the_same(make, copied):
    """Copies with spawned seeds draw different batches, the same in every run. The original continues."""
    buffer = filled(make(0), 60)
    untouched = copied(buffer)

    def batches():
        found = []
        for seed in np.random.SeedSequence(7).spawn(4):
            twin = copied(buffer)
            twin.reseed(seed)
            found.append([bits_of(twin.sample(20)) for _ in range(2)])
        return found

    first, second = batches(), batches()
    assert first == second
    assert len({str(found) for found in first}) == 4
    assert bits_of(buffer.sample(20)) == bits_of(untouched.sample(20))


@every_stack
def test_a_new_seed_is_as_good_as_one_given_at_first(make):
    """After `reseed`, batches are those of a buffer that was built with this seed, also after a pickle."""
    one, other = filled(make(0), 60), filled(make(5), 60)
    one.sample(9)
    other.sample(9)
    one.reseed(5)
    other.reseed(np.random.SeedSequence(5))
    twin = pickle.loads(pickle.dumps(one))
    fresh = filled(make(5), 60)
    for _ in range(2):
        assert len({str(bits_of(which.sample(9))) for which in (one, other, twin, fresh)}) == 1


def test_any_kind_of_generator_is_given_another_seed():
    """`reseed` keeps the generator object and its kind. None takes a seed from the system."""
    rng = np.random.Generator(np.random.MT19937(3))
    buffer = filled(ReplayBuffer(50, FLAT, seed=rng), 60)
    buffer.reseed(8)
    other = filled(ReplayBuffer(50, FLAT, seed=np.random.Generator(np.random.MT19937(8))), 60)
    assert bits_of(buffer.sample(9)) == bits_of(other.sample(9))
    assert buffer.rng is rng
    drawn = []
    for _ in range(2):
        buffer.reseed()
        drawn.append(bits_of(buffer.sample(20)))
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize(
    ("seed", "error", "match"),
    [
        (-1, ValueError, "seed is -1; expected None, a non-negative int or a SeedSequence"),
        (1.5, TypeError, "seed is 1.5; expected None, a non-negative int or a SeedSequence"),
        ("a", TypeError, "seed is 'a'; expected"),
        (True, TypeError, "seed is True; expected"),
        (np.random.default_rng(0), TypeError, "seed is Generator.*expected"),
        ([1, 2], TypeError, r"seed is \[1, 2\]; expected"),
    ],
)
def test_a_wrong_seed_is_refused(seed, error, match):
    """An invalid seed raises an error, and the generator is unchanged."""
    buffer = CombinedReplay(filled(ReplayBuffer(50, FLAT, seed=0), 60))
    with unchanged(buffer, error, match):
        buffer.reseed(seed)


class Diary(ReplayWrapper):
    """A wrapper with arrays and lists in nested lists and dicts."""

    def __init__(self, inner):
        super().__init__(inner)
        self.notes, self.pages = {"rows": [np.zeros(2)]}, [[1], ([2], 3)]

    def state(self):
        return {"notes": self.notes, "pages": self.pages}

    def restore(self, state):
        self.notes, self.pages = state["notes"], state["pages"]


def test_a_copied_state_shares_no_container_with_its_original():
    """A copied state shares no container with its object, at any depth."""
    diary = Diary(filled(ReplayBuffer(9, FLAT), 3))
    moment = diary.copied_state()
    before = pickle.dumps(moment)
    diary.notes["rows"][0][:] = 7.0
    diary.notes["rows"].append(None)
    diary.pages[0].append(2)
    diary.pages[1][0].append(3)
    assert pickle.dumps(moment) == before
    assert pickle.dumps(diary.copied_state()) != before
