"""The kernel that writes frames, compared with lists of the observations of each episode."""

import numpy as np
import pytest

from replaykit import Field, Spec
from replaykit._kernels import frames as names
from replaykit._kernels import store
from replaykit.storage import LocalStorage
from tests.kernels.forms import both


class Pool:
    """The arrays of a ring's frames, and the expected stacks of each slot, in lists of bytes."""

    def __init__(self, kernels, num_envs, length, given, kept, size, is_zero=False, shares=True, room=1000):
        self.kernels, self.num_envs, self.capacity = kernels.frames, num_envs, num_envs * length
        self.given, self.kept, self.size, self.is_zero = given, kept, size, is_zero
        self.shape = np.array([num_envs, self.capacity, given, kept, size, is_zero, shares])
        self.written = np.zeros(num_envs, np.int64)
        self.table = np.zeros(self.capacity * 2 * kept, np.int32)
        self.pool, self.overflow = np.zeros(room * size, np.uint8), np.zeros(0, np.uint8)
        self.free = np.zeros(names.NUMBERS + room, np.int32)
        kernels.frames.add_free_frames(self.free, room)
        self.expected = {}
        self.stacks = [None] * num_envs

    def write(self, steps):
        """Write steps: (index, frames of obs, frames of next_obs, whether an episode begins)."""
        obs, next_obs = (np.array([step[k] for step in steps], np.uint8).reshape(-1) for k in (1, 2))
        indices, begins = np.array([step[0] for step in steps]), np.array([step[3] for step in steps])
        state = self.shape, self.written, self.table, self.pool, self.overflow, self.free
        done = 0
        while (done := self.kernels.write(done, obs, next_obs, indices, begins, *state)) < len(steps):
            assert self.free[names.COUNT] < 2 * self.given, "stopped while frames are free"
            more = len(self.overflow) // self.size + 3
            self.overflow = np.concatenate((self.overflow, np.zeros(more * self.size - self.overflow.size, np.uint8)))
            self.free = np.concatenate((self.free, np.zeros(3, np.int32)))
            self.kernels.add_free_frames(self.free, len(self.free) - names.NUMBERS)
            state = self.shape, self.written, self.table, self.pool, self.overflow, self.free
        for index, one, two, begin in steps:
            lane = index % self.num_envs
            one, two = ([bytes(frame) for frame in frames] for frames in (one, two))
            older = self.kept - self.given
            before = self.stacks[lane]
            if begin:
                before = [bytes(self.size) if self.is_zero else one[0]] * self.kept
            now = [*before[self.kept - older :], *one] if older else one
            then = [*now[self.kept - older :], *two] if older else two
            self.expected[index % self.capacity] = now + then
            self.stacks[lane] = now

    def check(self):
        """Check that every slot reads as it was written, and every frame is either free or used by a row."""
        rows = self.table.reshape(self.capacity, -1)
        memory = np.concatenate((self.pool, self.overflow)).reshape(-1, self.size)
        for slot, frames in self.expected.items():
            assert [bytes(memory[number]) for number in rows[slot]] == frames, slot
        idle = self.free[names.NUMBERS :][: self.free[names.COUNT]].tolist()
        used = set(rows[rows > 0].tolist())
        assert len(set(idle)) == len(idle)
        assert not set(idle) & used, "a frame in use counts as free"
        assert set(idle) | used == set(range(1, self.free[names.KNOWN])), "a frame is lost"
        assert not memory[0].any()
        return len(used)


def frame(number, size):
    """A frame that differs for each number; it is zeros for 0."""
    return ((np.arange(size) * 7 + 3) * number % 251).astype(np.uint8)


CASES = [  # lanes, slots of each, frames given and kept, bytes
    (1, 1, 1, 1, 5), (1, 6, 1, 1, 300), (3, 4, 1, 1, 256), (1, 6, 1, 4, 9), (3, 4, 1, 3, 513), (1, 5, 4, 4, 7),
    (2, 3, 3, 3, 260), (1, 2, 2, 2, 4), (2, 1, 1, 2, 3),
]  # fmt: skip


@both
@pytest.mark.parametrize(("num_envs", "length", "given", "kept", "size"), CASES)
def test_what_is_written_is_read_and_no_frame_is_lost(kernels, num_envs, length, given, kept, size):
    """All kinds of streams are read as written, through wrapping, growth and clears, and no frame is lost."""
    rng = np.random.default_rng(size)
    for trial in range(14):
        is_zero, shares, room = bool(trial % 2) and kept > given, trial % 3 > 0, 1000 if trial % 4 else 2 * given + 1
        pool = Pool(kernels, num_envs, length, given, kept, size, is_zero, shares, room)
        steps_of, newest = [0] * num_envs, [None] * num_envs
        for _ in range(rng.integers(1, 12)):
            steps = []
            for _ in range(rng.integers(0, 2 * num_envs)):
                lane = int(rng.integers(num_envs))
                jump = newest[lane] is None or rng.random() < 0.2
                obs = [frame(rng.integers(0, 6), size) for _ in range(given)] if jump else newest[lane]
                move = rng.choice(["still", "shifted", "new", "repeated"])
                new = [frame(rng.integers(0, 6), size) for _ in range(given)]
                next_obs = {"still": obs, "shifted": [*obs[1:], new[0]], "new": new, "repeated": [new[0]] * given}[move]
                begins = newest[lane] is None or rng.random() < 0.25
                steps.append((steps_of[lane] * num_envs + lane, obs, next_obs, begins))
                steps_of[lane] += 1
                newest[lane] = next_obs
            # At most as many of a lane as it has slots, as a storage writes them
            counts = np.bincount([step[0] % num_envs for step in steps], minlength=num_envs)
            parts = [steps] if (counts <= length).all() else [[step] for step in steps]
            for part in parts:
                if part:
                    pool.write(part)
                    pool.check()
            assert pool.written.tolist() == steps_of


@both
@pytest.mark.parametrize(("given", "kept"), [(1, 1), (1, 4), (4, 4)])
def test_a_stream_takes_one_frame_a_step(kernels, given, kept):
    """With sharing, a step takes one frame, and an episode one stack more. Without sharing, all are stored."""
    for shares in (True, False):
        pool = Pool(kernels, 1, 20, given, kept, 40, shares=shares)
        stream = [frame(number, 40) for number in range(1, 50)]
        steps = [(i, stream[i : i + given], stream[i + 1 : i + 1 + given], i in (0, 6)) for i in range(12)]
        pool.write(steps)
        # The step at which an episode begins goes on from the last frame here, so nothing is stored twice
        assert pool.check() == (12 + given if shares else 2 * given * 12)
        still = [(12 + i, stream[11 : 11 + given], stream[11 : 11 + given], False) for i in range(5)]
        used = pool.check()
        pool.write(still)
        if shares:
            assert pool.check() - used <= given


@both
def test_repeated_frames_of_one_observation_are_kept_once(kernels):
    """Repeated frames of a stack, as at the start of an episode, are stored once."""
    pool = Pool(kernels, 1, 4, 4, 4, 30)
    first, second = frame(1, 30), frame(2, 30)
    pool.write([(0, [first] * 4, [*[first] * 3, second], True)])
    assert pool.check() == 2
    pool.write([(1, [*[first] * 3, second], [second] * 4, False)])
    assert pool.check() == 2
    pool.write([(2, [first] * 4, [frame(3, 30)] * 4, True)])
    assert pool.check() == 4


@both
@pytest.mark.parametrize("room", [3, 6, 1000])
def test_frames_are_shared_wherever_they_are_kept(kernels, room):
    """Frames are shared in the reserved memory and in the overflow."""
    pool, stream = Pool(kernels, 1, 9, 1, 1, 40, room=room), [frame(number, 40) for number in range(1, 12)]
    for i in range(9):
        pool.write([(i, stream[i : i + 1], stream[i + 1 : i + 2], i == 0)])
    assert pool.check() == 10


@both
def test_a_frame_of_zeros_is_stored_as_any_other(kernels):
    """A frame of zeros is stored like any other. Number 0 stands for no frame."""
    pool, zeros = Pool(kernels, 1, 4, 1, 1, 8), np.zeros(8, np.uint8)
    pool.write([(0, [zeros], [zeros], True), (1, [zeros], [zeros], False)])
    assert pool.check() == 1
    assert pool.table[:4].all()


@both
def test_an_observation_shares_with_the_nearest_place_ahead(kernels):
    """A stack that does not change soon has as few frames as it has different neighbors."""
    pool = Pool(kernels, 1, 2, 4, 4, 20)
    still = [frame(number, 20) for number in (1, 2, 1, 3)]
    for i in range(4):
        pool.write([(i, still, still, i == 0)])
    assert pool.check() == 3


@both
def test_a_frame_that_differs_in_one_bit_is_not_shared(kernels):
    """A frame that differs in one bit is not shared, wherever that bit is."""
    for size in (1, 255, 256, 257, 600):
        one = frame(3, size)
        for place in {0, size - 1, size // 2}:
            pool, other = Pool(kernels, 1, 3, 1, 1, size), one.copy()
            other[place] = int(other[place]) ^ 1
            pool.write([(0, [one], [one], True), (1, [other], [one], False)])
            assert pool.check() == 3, (size, place)  # the third is `one` again, which no neighbor of its place has


@both
@pytest.mark.parametrize("num_envs", [1, 2])
def test_rows_that_were_not_published_are_taken_back(kernels, num_envs):
    """Writing a step again first frees the frames of unpublished rows of the lane."""
    pool = Pool(kernels, num_envs, 6, 1, 3, 20)
    pool.write([(i * num_envs, [frame(i + 1, 20)], [frame(i + 2, 20)], i == 0) for i in range(4)])
    pool.check()
    stacks = [frame(i, 20) for i in (1, 1, 2)]  # of obs of step 1
    state = {slot: frames for slot, frames in pool.expected.items() if slot < 2 * num_envs}
    pool.write([(i * num_envs, [frame(90 + i, 20)], [frame(91 + i, 20)], False) for i in (4, 5)])
    pool.stacks[0] = [bytes(one) for one in stacks]
    pool.expected = state
    pool.write([(2 * num_envs, [frame(60, 20)], [frame(61, 20)], False)])
    assert pool.written[0] == 3
    rows = pool.table.reshape(pool.capacity, -1)
    assert not rows[[3 * num_envs, 4 * num_envs, 5 * num_envs]].any(), "a stale row is left"
    pool.check()


@both
def test_new_frames_are_taken_lowest_first(kernels):
    """Free frames are used first, and then new ones with the lowest numbers. Number 0 is not used."""
    free = np.zeros(names.NUMBERS + 9, np.int32)
    kernels.frames.add_free_frames(free, 4)
    assert free[: names.NUMBERS + 3].tolist() == [3, 4, 3, 2, 1]
    free[names.COUNT] = 1  # 2 and 1 are in use
    kernels.frames.add_free_frames(free, 7)
    assert free[: names.NUMBERS + 4].tolist() == [4, 7, 6, 5, 4, 3]
    kernels.frames.add_free_frames(free, 7)
    assert free[: names.NUMBERS + 4].tolist() == [4, 7, 6, 5, 4, 3]


@both
def test_a_write_stops_where_no_frame_is_free(kernels):
    """The kernel returns the number of written steps and can continue from there."""
    pool = Pool(kernels, 1, 9, 1, 1, 6, room=6)  # five frames, and the frame of zeros
    obs, next_obs = (np.concatenate([frame(10 * k + i + 1, 6) for i in range(4)]).astype(np.uint8) for k in (1, 2))
    state = pool.shape, pool.written, pool.table, pool.pool, pool.overflow, pool.free
    indices, begins = np.arange(4), np.zeros(4, np.bool_)
    assert pool.kernels.write(0, obs, next_obs, indices, begins, *state) == 2
    assert pool.kernels.write(2, obs, next_obs, indices, begins, *state) == 2
    assert pool.written.tolist() == [2]


# -- Stored at once ------------------------------------------------------------------------------------------------


def arrays_of(kernels, num_envs):
    """The arrays of a storage and of its frames, with room for many frames."""
    storage = LocalStorage(3 * num_envs, Spec(Field((2, 3), np.uint8), action=Field(())), num_envs, stack=2)
    pool = Pool(kernels, num_envs, 3, 1, 2, 6)
    frames = [pool.shape, pool.written, pool.table, pool.pool, pool.overflow, pool.free]
    return [storage.header, storage.bytes, storage.tables], frames


def stretch(rng, num_envs, count):
    """The packed leaves of `count` entries, which are two float32 and the flags, and their frames."""
    leaves = rng.random((2, count), np.float32).tobytes() + (rng.random((2, count)) < 0.3).tobytes()
    return leaves, rng.integers(0, 3, (2, count * 6), np.uint8)


@both
@pytest.mark.parametrize("num_envs", [1, 2])
def test_stored_at_once_is_as_in_stages(kernels, num_envs):
    """Steps of all or some lanes give the same bits in every array, at once and in stages."""
    rng = np.random.default_rng(0)
    (one, frames), (two, other) = arrays_of(kernels, num_envs), arrays_of(kernels, num_envs)
    for turn in range(40):
        lanes = np.arange(num_envs)[: 1 + turn % num_envs]
        steps = int(rng.integers(1, 4)) if len(lanes) == num_envs else 0
        count = steps * num_envs or len(lanes)
        data, pair = stretch(rng, num_envs, count)
        indices, begins = np.full((2, count), -9), np.zeros(count, np.bool_)
        if not steps:
            indices[:] = one[0][store.LANES + store.CURSOR * num_envs :][lanes] * num_envs + lanes
        assert kernels.frames.store_at_once(data, steps, *one, indices[0], *pair, *frames)
        kernels.store.store(data, steps, store.RETIRE, *two, indices[1])
        kernels.store.begins_of(data, two[0], indices[1], begins)
        assert kernels.frames.write(0, *pair, indices[1], begins, *other) == count
        kernels.store.store(data, steps, store.PUBLISH, *two, indices[1])
        for left, right in zip((*one, *frames, indices[0]), (*two, *other, indices[1]), strict=True):
            assert left.tobytes() == right.tobytes()


@both
def test_nothing_is_stored_at_once_if_frames_may_run_out_or_a_reward_is_not_finite(kernels):
    """Nothing changes in these cases."""
    rng, (state, frames) = np.random.default_rng(0), arrays_of(kernels, 1)
    data, pair = stretch(rng, 1, 2)
    wrong, places = bytearray(data), 2 * state[0][store.REWARD]
    wrong[places : places + 8] = np.array([0.5, np.nan], np.float32).tobytes()
    before = [array.tobytes() for array in (*state, *frames)]
    assert not kernels.frames.store_at_once(bytes(wrong), 2, *state, np.zeros(2, int), *pair, *frames)
    assert [array.tobytes() for array in (*state, *frames)] == before
    frames[-1][names.COUNT] = 3  # and four are needed if none is shared
    before = [array.tobytes() for array in (*state, *frames)]
    assert not kernels.frames.store_at_once(data, 2, *state, np.zeros(2, int), *pair, *frames)
    assert [array.tobytes() for array in (*state, *frames)] == before
    frames[-1][names.COUNT] = 4
    assert kernels.frames.store_at_once(data, 2, *state, np.zeros(2, int), *pair, *frames)


# -- Chunks of rows that are saved ---------------------------------------------------------------------------------


def plain_codes(table, begin, indices, first, num_envs, capacity):
    """The expected result of `encode_rows`, in lists."""
    codes = []
    for index in indices.tolist():
        slot = index % capacity
        row, width = table[slot].tolist(), table.shape[1]
        before = []
        if slot - num_envs >= begin and index // num_envs > first[index % num_envs]:
            before = table[slot - num_envs].tolist()
        codes.append([])
        for j, number in enumerate(row):
            if number == 0:
                codes[-1].append(0)
            elif number in before:
                codes[-1].append(-1 - before.index(number))
            elif number in row[:j]:
                codes[-1].append(-1 - width - row.index(number))
            else:
                codes[-1].append(1)
    return codes


def plain_numbers(codes, indices, num_envs):
    """The expected results of `decode_rows`, in lists; None and -1 for invalid codes."""
    rows, count = {}, 0
    for index, given in zip(indices.tolist(), codes.tolist(), strict=True):
        row, width = [], len(given)
        for code in given:
            place = -1 - code
            if code in (0, 1):
                count += code
                row.append(count if code else 0)
            elif code < 0 and place >= width:
                if place - width >= len(row):
                    return None, -1
                row.append(row[place - width])
            elif code < 0 and index - num_envs in rows:
                row.append(rows[index - num_envs][place])
            else:
                return None, -1
        rows[index] = row
    return list(rows.values()), count


def random_rows(rng, num_envs, length, width):
    """A table, the stored indices of some slots in their order, the first of them, and the oldest step of each lane."""
    capacity = num_envs * length
    cursor = rng.integers(1, 3 * length, num_envs)
    first = np.maximum(cursor - rng.integers(0, length + 1, num_envs), 0)
    stored = {
        (s * num_envs + e) % capacity: s * num_envs + e for e in range(num_envs) for s in range(first[e], cursor[e])
    }
    begin, stop = sorted(rng.integers(0, capacity + 1, 2).tolist())
    indices = np.array([stored[slot] for slot in sorted(stored) if begin <= slot < stop], np.int64)
    return rng.integers(0, 5, (capacity, width)).astype(np.int32), begin, indices, first


@both
@pytest.mark.parametrize("seed", range(30))
def test_codes_say_where_frames_are_found(kernels, seed):
    """Codes refer to frames in the previous row or the same row. Decoded, equal frames are shared again."""
    rng = np.random.default_rng(seed)
    num_envs, length, width = (int(rng.integers(1, most)) for most in (4, 7, 6))
    table, begin, indices, first = random_rows(rng, num_envs, length, width)
    codes = np.empty((len(indices), width), np.int16)
    kernels.frames.encode_rows(table, begin, indices, first, num_envs, len(table), codes)
    assert codes.tolist() == plain_codes(table, begin, indices, first, num_envs, len(table))
    numbers = np.empty(codes.shape, np.int32)
    count = kernels.frames.decode_rows(codes, indices, num_envs, numbers)
    assert count == (codes == 1).sum()
    frames = np.append(0, table[indices % len(table)][codes == 1])
    assert (frames[numbers] == table[indices % len(table)]).all()


@both
@pytest.mark.parametrize("seed", range(60))
def test_wrong_codes_are_found(kernels, seed):
    """Codes that refer to no frame, a later frame, a missing row or a huge number are detected."""
    rng = np.random.default_rng(seed)
    num_envs, length, width = (int(rng.integers(1, most)) for most in (4, 7, 6))
    table, begin, indices, first = random_rows(rng, num_envs, length, width)
    codes = np.empty((len(indices), width), np.int16)
    kernels.frames.encode_rows(table, begin, indices, first, num_envs, len(table), codes)
    for _ in range(20):
        wrong = codes.copy()
        for _ in range(rng.integers(1, 4) if codes.size else 0):
            place = tuple(rng.integers(0, codes.shape))
            wrong[place] = rng.choice([0, 1, 2, 99, 32767, -32768, *range(-2 * width - 3, 0)])
        expected, count = plain_numbers(wrong, indices, num_envs)
        numbers = np.zeros(codes.shape, np.int32)
        assert kernels.frames.decode_rows(wrong, indices, num_envs, numbers) == count
        if expected is not None:
            assert numbers.tolist() == expected
