"""Frames stored once: the same batches as when everything is stored, with a fraction of the memory."""

import pickle
import tracemalloc

import numpy as np
import pytest

from replaykit import CombinedReplay, Field, LatestBuffer, PrioritizedBuffer, ReplayBuffer, Spec
from replaykit.testing import assert_lawful, bits_of, values_of
from tests.helpers import FLAT, frame, interrupted, limit_memory, unchanged

FRAME = Spec(obs=Field((84, 84), np.uint8), action=Field((), np.int64))
STACKED = Spec(obs=Field((4, 84, 84), np.uint8), action=Field((), np.int64))


def test_stacks_keep_what_has_been_overwritten_since():
    """The stack of the oldest step contains overwritten frames of its episode, but none of other lanes or episodes."""
    buffer = ReplayBuffer(8, FRAME, num_envs=2, stack=4)
    for i in range(10):
        obs, next_obs = (np.stack([frame(i + d), frame(100 + i + d)]) for d in (0, 1))
        buffer.add(obs, [0, 0], [0.0, 0.0], next_obs, [i == 4, False], [False, False])
    (at_once,) = buffer.reduce(buffer.window(np.array([2 * 6])))["obs"]
    assert (at_once == np.stack([frame(i) for i in (5, 5, 5, 6)])).all()
    fields = buffer.reduce(buffer.window(np.array([2 * 6 + 1, 2 * 9 + 1])))
    assert (fields["obs"][0] == np.stack([frame(100 + i) for i in (3, 4, 5, 6)])).all()
    assert (fields["next_obs"][1] == np.stack([frame(100 + i) for i in (7, 8, 9, 10)])).all()


def test_only_frames_are_stacked():
    """In a dict, only fields with at least two axes are stacked."""
    obs = {"camera": Field((2, 3), np.uint8), "speed": Field((3,)), "on": Field((), np.bool_)}
    spec = Spec(obs=obs, action=Field(()))
    buffer = ReplayBuffer(9, spec, stack=3)
    for i in range(5):
        obs, next_obs = ({"camera": np.full((2, 3), i + d), "speed": [i] * 3, "on": True} for d in (0, 1))
        buffer.add(obs, 0.0, 0.0, next_obs, False, False)
    batch = assert_lawful(buffer, 4)
    assert batch.obs["camera"].shape == batch.next_obs["camera"].shape == (4, 3, 2, 3)
    assert batch.obs["speed"].shape == (4, 3)
    assert batch.obs["on"].shape == (4,)
    assert (batch.obs["camera"][:, -1, 0, 0] == batch.indices).all()
    assert buffer.stack == 3


@pytest.mark.parametrize("extra", [{}, {"big": Field((2000,), np.uint8)}])
def test_a_stack_begins_with_its_episode(extra):
    """A stack begins with its episode, also if other fields have their own columns."""
    buffer = ReplayBuffer(9, Spec(obs=Field((2, 3), np.uint8), action=Field(()), **extra), stack=3, padding="zero")
    for i in range(6):
        big = {name: np.full(2000, i) for name in extra}
        obs, next_obs = (np.full((2, 3), 1 + i + d, np.uint8) for d in (0, 1))
        buffer.add(obs, 0.0, 0.0, next_obs, i == 1, i == 3, **big)
    stacks = buffer.reduce(buffer.window(np.arange(6)))["obs"][:, :, 0, 0]
    assert stacks.tolist() == [[0, 0, 1], [0, 1, 2], [0, 0, 3], [0, 3, 4], [0, 0, 5], [0, 5, 6]]


def test_frames_in_any_layout_are_stored_by_their_values():
    """Frames in Fortran order, strided, reversed or read-only are stored correctly."""
    buffer, plain = ReplayBuffer(9, FRAME, seed=0), frame(3)
    read_only = plain.copy()
    read_only.flags.writeable = False
    for obs in (np.asfortranarray(plain), np.repeat(plain, 2, axis=0)[::2], plain[::-1].copy()[::-1], read_only):
        (index,) = buffer.add(obs, 0, 0.0, obs, False, False)
        assert (buffer.read([index], "obs")[0] == plain).all()


# -- Cost --------------------------------------------------------------------------------------------------------


def play(buffer, steps, episode, stacked):
    """Fill a buffer with steps like those of Atari games. Yields the expected values."""
    history = []
    for i in range(steps):
        if i % episode == 0:
            history = [frame(i)] * 4
        following = [*history[1:], frame(i + 1)]
        done = i % episode == episode - 1
        if stacked:
            buffer.add(np.stack(history), 0, 0.0, np.stack(following), False, done)
        else:
            buffer.add(history[-1], 0, 0.0, following[-1], False, done)
        history = following


@pytest.mark.parametrize("stacked", [False, True])
def test_memory_is_that_of_one_frame_a_step(stacked):
    """Memory is at most 1.1 frames per step in episodes of 1000 steps. `nbytes` reports it in advance."""

    def make(capacity):
        return ReplayBuffer(capacity, STACKED) if stacked else ReplayBuffer(capacity, FRAME, stack=4)

    play(make(20), 50, 9, stacked)  # kernels compile before memory is measured
    tracemalloc.start()
    buffer = make(2000)
    reported = buffer.nbytes
    assert reported <= 1.1 * 2000 * 84 * 84
    play(buffer, 4100, 1000, stacked)
    assert buffer.nbytes == reported
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert reported <= taken <= 1.02 * reported
    buffer.check()
    whole = PrioritizedBuffer(100_000, STACKED if stacked else FRAME, stack=1 if stacked else 4)
    assert whole.nbytes <= 1.1 * 100_000 * 84 * 84


def test_single_observations_are_kept_once():
    """Without stacks, an image or a long vector is also stored once per step, not twice."""
    for shape in ((84, 84), (2000,), (84, 84, 3)):
        spec = Spec(obs=Field(shape, np.uint8), action=Field(()))
        assert ReplayBuffer(1000, spec).nbytes <= 1.1 * 1000 * np.prod(shape)
        assert ReplayBuffer(1000, spec, share="none").nbytes >= 2 * 1000 * np.prod(shape)
    small = Spec(obs=Field((17,)), action=Field(()))
    assert ReplayBuffer(1000, small).nbytes == ReplayBuffer(1000, small, share="none").nbytes
    assert ReplayBuffer(1000, small, share="all").nbytes < ReplayBuffer(1000, small).nbytes


def test_obs_and_next_obs_are_views_of_one_block():
    """They are if stacks overlap in every row and n_step is 1; otherwise they are separate arrays."""
    single = ReplayBuffer(50, FRAME, stack=4, seed=0)
    play(single, 40, 9, stacked=False)
    batch = single.sample(6)
    assert np.shares_memory(batch.obs, batch.next_obs)
    assert batch.obs.base is batch.next_obs.base
    assert batch.obs.base.nbytes == 6 * 5 * 84 * 84
    again = single.sample(6)
    assert not np.shares_memory(batch.obs, again.obs)

    several = ReplayBuffer(50, FRAME, stack=4, n_step=3, seed=0)
    play(several, 40, 9, stacked=False)
    batch = several.sample(6)
    assert not np.may_share_memory(batch.obs, batch.next_obs)

    given_stacks = ReplayBuffer(50, STACKED, seed=0)
    play(given_stacks, 40, 9, stacked=True)
    assert given_stacks.sample(30).obs.base.nbytes == 30 * 5 * 84 * 84
    given_stacks.add(frame(7, (4, 84, 84)), 0, 0.0, frame(8, (4, 84, 84)), False, False)
    batch = CombinedReplay(given_stacks).sample(30)
    assert not np.may_share_memory(batch.obs, batch.next_obs)


def test_a_stream_that_shares_nothing_is_stored_all_the_same():
    """If no frames are shared, the memory grows as needed, and `nbytes` shows it."""
    buffer = ReplayBuffer(20, STACKED, seed=0)
    reported = buffer.nbytes
    for i in range(60):
        buffer.add(frame(2 * i, (4, 84, 84)), 0, 0.0, frame(2 * i + 1, (4, 84, 84)), False, False)
    assert reported < buffer.nbytes < 2 * 8 * 20 * 84 * 84 + reported
    grown = buffer.nbytes
    batch = assert_lawful(buffer, 30)
    for row, index in enumerate(batch.indices):
        assert (batch.obs[row] == frame(2 * index, (4, 84, 84))).all()
        assert (batch.next_obs[row] == frame(2 * index + 1, (4, 84, 84))).all()
    for i in range(200):
        buffer.add(frame(i, (4, 84, 84)), 0, 0.0, frame(3 * i, (4, 84, 84)), False, False)
    assert buffer.nbytes == grown
    buffer.clear()
    play(buffer, 50, 7, stacked=True)
    assert buffer.nbytes == grown
    assert_lawful(pickle.loads(pickle.dumps(buffer)), 30)


@pytest.mark.parametrize("share", ["large", "none"])
def test_no_frame_is_lost_over_many_episodes_and_clears(share):
    """Short episodes, `end_episode`, `clear` and interrupted writes free the frames that they no longer need."""
    buffer = PrioritizedBuffer(12, Spec(FRAME["obs"], FRAME["action"]), num_envs=3, stack=3, share=share, seed=0)
    reported = buffer.nbytes
    rng = np.random.default_rng(0)
    for i in range(300):
        obs, next_obs = (np.stack([frame(i + d + 7 * e) for e in range(3)]) for d in (0, 1))
        mask = rng.random(3) < 0.7
        buffer.add(obs, [0] * 3, [0.0] * 3, next_obs, rng.random(3) < 0.1, [False] * 3, mask=mask)
        if rng.random() < 0.05:
            buffer.end_episode(rng.random(3) < 0.5)
        if rng.random() < 0.02:
            buffer.clear()
        buffer.check()
    assert buffer.nbytes <= 1.6 * reported


# -- Invalid arguments -------------------------------------------------------------------------------------------


def test_more_than_the_machine_has_is_refused_before_anything_is_taken():
    """The error shows the needed and the available bytes, for every kind of storage."""
    tracemalloc.start()
    for options in ({"stack": 4}, {}, {"share": "none"}):
        with pytest.raises(MemoryError, match=r"capacity 1000000000 at \d+ bytes each needs \d+.\d GiB; .* GiB avail"):
            ReplayBuffer(10**9, FRAME, **options)
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()


def test_a_stream_that_outgrows_the_machine_is_refused_and_nothing_is_lost(monkeypatch):
    """If unshared frames need more memory than the machine has, adding raises an error. Nothing is lost."""
    buffer = ReplayBuffer(20, STACKED, num_envs=2, seed=0)
    for i in range(3):
        obs, next_obs = (np.stack([frame(8 * i + d + e, (4, 84, 84)) for e in (0, 3)]) for d in (0, 1))
        buffer.add(obs, [0, 0], [0.0, 0.0], next_obs, [False] * 2, [False] * 2)
    twin = pickle.loads(pickle.dumps(buffer))
    limit_memory(monkeypatch, 1000)
    many = [np.stack([np.stack([frame(9 * i + d + e, (4, 84, 84)) for e in (0, 3)]) for i in range(9)]) for d in (0, 1)]
    zeros = np.zeros((9, 2))
    with pytest.raises(
        MemoryError, match=r"obs: next_obs is not the obs of the next step.* needs .* MiB; .* available"
    ):
        buffer.extend(many[0], zeros.astype(int), zeros, many[1], zeros.astype(bool), zeros.astype(bool))
    buffer.check()
    assert buffer.nbytes == twin.nbytes
    assert bits_of(buffer.sample(20)) == bits_of(twin.sample(20))
    monkeypatch.undo()
    buffer.extend(many[0], zeros.astype(int), zeros, many[1], zeros.astype(bool), zeros.astype(bool))
    batch = assert_lawful(buffer, 30)
    for row, index in enumerate(batch.indices.tolist()):
        step, lane = divmod(index, 2)
        if step >= 3:
            assert (batch.obs[row] == frame(9 * (step - 3) + 3 * lane, (4, 84, 84))).all()


def test_an_add_that_outgrows_the_machine_is_refused_and_nothing_is_lost(monkeypatch):
    """An add that needs too much memory raises an error before the oldest step is retired."""
    buffer, number = ReplayBuffer(6, STACKED, seed=0), 0
    limit_memory(monkeypatch, 1000)
    while buffer._storage.arrays["frames.obs.free"][0] >= 2 * 4 * 2:
        buffer.add(frame(number, (4, 84, 84)), 0, 0.0, frame(number + 1, (4, 84, 84)), False, False)
        number += 2
    with unchanged(buffer, MemoryError, r"obs: next_obs is not the obs of the next step.* needs .* MiB; .* available"):
        buffer.add(frame(number, (4, 84, 84)), 0, 0.0, frame(number + 1, (4, 84, 84)), False, False)
    monkeypatch.undo()
    buffer.add(frame(number, (4, 84, 84)), 0, 0.0, frame(number + 1, (4, 84, 84)), False, False)
    assert_lawful(buffer, 9)
    assert (buffer.read(buffer.latest(1), "obs")[0] == frame(number, (4, 84, 84))).all()


def test_an_extend_longer_than_the_ring_is_refused_as_a_whole(monkeypatch):
    """The error is raised before the first part is written."""
    buffer = ReplayBuffer(6, STACKED, seed=0)
    play(buffer, 4, 9, stacked=True)
    twin = pickle.loads(pickle.dumps(buffer))
    limit_memory(monkeypatch, 6 * 4 * 84 * 84)
    many = np.stack([frame(i, (4, 84, 84)) for i in range(14)])
    zeros = np.zeros(14)
    with pytest.raises(MemoryError, match="room for 120 more frames needs .* MiB; "):
        buffer.extend(many, zeros.astype(int), zeros, many[::-1], zeros.astype(bool), zeros.astype(bool))
    assert bits_of(buffer.sample(20)) == bits_of(twin.sample(20))
    monkeypatch.undo()
    buffer.extend(many, zeros.astype(int), zeros, many[::-1], zeros.astype(bool), zeros.astype(bool))
    assert (assert_lawful(buffer, 20).indices >= 12).all()


def test_an_interrupt_while_the_memory_grows_loses_nothing():
    """After an interrupt at any line, the stored frames are intact, and the next add works."""
    at = 0
    while True:
        at += 1
        buffer = ReplayBuffer(8, STACKED, seed=0)
        play(buffer, 8, 9, stacked=True)
        twin = pickle.loads(pickle.dumps(buffer))
        many = np.stack([frame(50 + i, (4, 84, 84)) for i in range(7)])
        zeros = np.zeros(7)
        call = (many, zeros.astype(int), zeros, many[::-1], zeros.astype(bool), zeros.astype(bool))
        if not interrupted(lambda b=buffer, c=call: b.extend(*c), at, "frames.py"):
            break
        buffer.check()
        if buffer.newest == 7 and buffer.oldest == 0:
            assert bits_of(buffer.sample(9)) == bits_of(twin.sample(9))
        buffer.clear()
        buffer.extend(*call)
        buffer.extend(*call)
        buffer.check()
        for row, index in enumerate(buffer.sample(30).indices):
            assert index > 7, row
    assert at > 20


@pytest.mark.parametrize("make", [ReplayBuffer, PrioritizedBuffer, LatestBuffer])
def test_wrong_options_are_refused(make):
    """The error names the option, its value and the expected value."""
    with pytest.raises(
        ValueError, match=r"stack is 4, but obs has shape \(3,\); expected frames with at least two axes"
    ):
        make(10, FLAT, stack=4)
    with pytest.raises(ValueError, match=r"stack is 2, but obs.a has shape \(3,\), obs.b has shape \(\)"):
        make(10, Spec(obs={"a": Field((3,)), "b": Field(())}, action=Field(())), stack=2)
    for stack, error in ((0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match="stack is"):
            make(10, FRAME, stack=stack)
    with pytest.raises(ValueError, match="padding is 'edge'; expected one of 'reset', 'zero'"):
        make(10, FRAME, stack=4, padding="edge")
    with pytest.raises(ValueError, match="padding is array"):
        make(10, FRAME, stack=4, padding=np.zeros(2))
    with pytest.raises(ValueError, match="share is True; expected one of 'large', 'all', 'none'"):
        make(10, FRAME, share=True)


def test_a_frame_of_another_shape_is_refused():
    """A frame of another shape, or a stack in place of a frame, raises an error. Nothing changes."""
    buffer = ReplayBuffer(10, FRAME, stack=4, seed=0)
    play(buffer, 6, 9, stacked=False)
    for wrong in (frame(0, (84, 83)), frame(0, (4, 84, 84)), frame(0, (84, 84, 1)), frame(0)[None]):
        with unchanged(buffer, ValueError, r"obs has shape .*; expected \(84, 84\)"):
            buffer.add(wrong, 0, 0.0, frame(1), False, False)
        with unchanged(buffer, ValueError, r"next_obs has shape .*; expected \(84, 84\)"):
            buffer.add(frame(0), 0, 0.0, wrong, False, False)


def test_the_callers_arrays_are_copied_and_stay_as_they_are():
    """Later changes of the caller's arrays, or of a batch, do not change the buffer."""
    for spec, stack in ((FRAME, 3), (STACKED, 1), (FRAME, 1)):
        shape = spec["obs"].shape
        buffer = ReplayBuffer(10, spec, stack=stack, seed=0)
        given = np.asfortranarray(frame(1, shape))
        following = frame(2, (*shape, 2))[..., 0]
        following.flags.writeable = False
        buffer.add(given, 0, 0.0, following, False, False)
        expected = bits_of(pickle.loads(pickle.dumps(buffer)).sample(2))
        given[:] = 0
        batch = buffer.sample(2)
        assert bits_of(batch) == expected
        batch.obs[:] = 9
        batch.next_obs[:] = 9
        assert (buffer.sample(2).next_obs[:, -1] == (following if stack > 1 else following[-1])).all()


def test_large_fields_of_a_batch_are_aligned_in_one_piece_of_memory():
    """Large fields share one block of memory, because separate blocks would cause page faults in each batch."""
    spec = Spec(obs=Field((700,), np.int16), action=Field((300,), np.float64), noise=Field((1500,), np.uint8))
    buffer = ReplayBuffer(5, spec, share="none", seed=0)
    for number in range(7):
        values = {name: values_of(spec[name], number) for name in spec}
        buffer.add(**values)
    batch = buffer.sample(3)
    fields = [batch.obs, batch.action, batch.next_obs, batch.noise]
    assert len({id(field.base) for field in fields}) == 1
    assert all(field.flags.aligned and field.flags.c_contiguous for field in fields)
    for row, index in enumerate(batch.indices.tolist()):
        for name in ("obs", "action", "next_obs", "noise"):
            np.testing.assert_array_equal(batch[name][row], values_of(spec[name], index))
