"""The index in each slot, changes since a moment, and large arrays in chunks, compared with lists and loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replaykit import chunks as module
from replaykit.chunks import CopiedChunks, LiveChunks, Slots, pieces


class Ring:
    """The index in each slot, and when each row was last written, in dicts."""

    def __init__(self, num_envs, length):
        self.num_envs, self.length, self.capacity = num_envs, length, num_envs * length
        self.first, self.cursor = [0] * num_envs, [0] * num_envs
        self.content = {}
        self.written = np.zeros(self.capacity, np.int64)
        self.clock = 0

    def act(self, action, lane, count):
        """Add `count` steps to a lane, clear everything, or end the episode of a lane."""
        self.clock += 1
        if action == "clear":
            self.first, self.content = list(self.cursor), {}
        elif action == "end" and self.cursor[lane]:
            self.written[((self.cursor[lane] - 1) * self.num_envs + lane) % self.capacity] = self.clock
        elif action == "add":
            for _ in range(count):
                index = self.cursor[lane] * self.num_envs + lane
                self.content[index % self.capacity] = index
                self.written[index % self.capacity] = self.clock
                self.cursor[lane] += 1
                self.first[lane] = max(self.first[lane], self.cursor[lane] - self.length)

    def slots(self):
        return Slots(np.array([self.first, self.cursor], np.int64), self.capacity)


actions = st.tuples(st.sampled_from(["add"] * 8 + ["end", "clear"]), st.integers(0, 3), st.integers(1, 9))
rings = st.tuples(st.integers(1, 4), st.integers(1, 7), st.lists(actions, max_size=12), st.booleans())


def ring_of(num_envs, length, moves, in_step):
    ring = Ring(num_envs, length)
    apply(ring, moves, in_step)
    return ring


def apply(ring, moves, in_step):
    for action, lane, count in moves:
        for chosen in range(ring.num_envs) if in_step else [lane % ring.num_envs]:
            ring.act(action, chosen, count)


@given(rings, st.integers(0, 30), st.integers(0, 30))
def test_slots_say_which_index_they_hold(ring, one, other):
    """The index in each slot is known, with any lengths of lanes, after wrapping and after `clear`."""
    ring = ring_of(*ring)
    slots = ring.slots()
    begin, stop = sorted((min(one, ring.capacity), min(other, ring.capacity)))
    expected = [ring.content.get(slot, -1) for slot in range(begin, stop)]
    assert slots.by_slot(begin, stop).tolist() == expected
    chosen = np.arange(ring.capacity)[slots.select(begin, stop)].tolist()
    assert chosen == [slot for slot in range(begin, stop) if slot in ring.content]
    assert slots.all().tolist() == [ring.content[slot] for slot in sorted(ring.content)]
    assert len(slots) == len(ring.content)


def test_a_stretch_of_slots_is_selected_as_a_slice():
    """Consecutive slots are selected as a slice, so they are copied in one piece."""
    for first, cursor, expected in [
        (0, 5, slice(2, 5)),
        (3, 9, slice(3, 7)),
        (4, 14, slice(2, 7)),
        (0, 0, slice(2, 2)),
    ]:
        assert Slots(np.array([[first], [cursor]]), 10).select(2, 7) == expected
    assert Slots(np.array([[8], [13]]), 10).select(0, 10).tolist() == [0, 1, 2, 8, 9]


@given(rings, st.lists(actions, max_size=6))
def test_rows_that_changed_are_never_taken_for_unchanged(ring, moves):
    """A chunk counts as unchanged only if its slots hold the same indices, and none of their rows was written."""
    ring, in_step = ring_of(*ring), ring[3]
    former, clock, content = ring.slots(), ring.clock, dict(ring.content)
    apply(ring, moves, in_step)
    now = ring.slots()
    for begin in range(ring.capacity):
        for stop in range(begin + 1, ring.capacity + 1):
            if now.is_unchanged(former, begin, stop):
                for slot in range(begin, stop):
                    assert ring.content.get(slot) == content.get(slot)
                    assert ring.written[slot] <= clock or slot not in content


@given(rings, st.integers(0, 9))
def test_chunks_that_were_not_touched_count_as_unchanged(ring, count):
    """Chunks without a written row are unchanged, except the newest row of a lane, whose episode may end later."""
    ring = ring_of(*ring)
    former = ring.slots()
    before = dict(ring.content)
    for _ in range(count):
        ring.act("add", 0, 1)
    newest = {((cursor - 1) * ring.num_envs + e) % ring.capacity for e, cursor in enumerate(former.bounds[1])}
    for slot in range(ring.capacity):
        if ring.content.get(slot) == before.get(slot) and slot not in newest:
            assert ring.slots().is_unchanged(former, slot, slot + 1)


def test_slots_that_were_overwritten_count_as_changed():
    """Overwritten slots count as changed, in groups. With another capacity, all slots count as changed."""
    bounds = np.array([[0], [5000]])
    former, now = Slots(bounds, 5000), Slots(bounds, 5000)
    assert now.is_unchanged(former, 0, 4990)
    former.overwrite(np.array([2500, 2501]))
    assert now.is_unchanged(former, 0, 2000)
    assert now.is_unchanged(former, 3072, 4990)
    assert not now.is_unchanged(former, 2000, 2600)
    assert not now.is_unchanged(former, 2300, 2400)
    assert not Slots(bounds, 6000).is_unchanged(former, 0, 10)


def test_a_moment_does_not_follow_the_bounds():
    """A moment copies the bounds, so it does not change with them."""
    bounds = np.array([[0], [3]])
    slots = Slots(bounds, 4)
    bounds[1] = 4
    assert len(slots) == 3


@given(rings, st.integers(1, 40))
def test_chunks_have_all_rows_in_the_order_of_their_slots(ring, chunk_bytes):
    """Chunks have all rows in the order of their slots, for any number of rows per chunk. Copies do not change."""
    ring = ring_of(*ring)
    array = np.arange(3 * ring.capacity, dtype=np.int32).reshape(ring.capacity, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_BYTES", chunk_bytes)
        chunks = LiveChunks.of_array(array, ring.slots())
    assert chunks.span == max(chunk_bytes // 12, 1)
    assert chunks.nbytes == 12 * len(ring.content)
    expected = {index: array[slot].tolist() for slot, index in sorted(ring.content.items())}
    found = {int(i): row.tolist() for indices, rows in pieces(chunks) for i, row in zip(indices, rows, strict=True)}
    assert list(found.items()) == list(expected.items())
    for k in range(len(chunks)):
        begin, stop = chunks.range(k)
        assert chunks.is_empty(k) == (not any(slot in ring.content for slot in range(begin, stop)))
    copied = chunks.copy()
    array[:] = 0
    found = {int(i): row.tolist() for indices, rows in pieces(copied) for i, row in zip(indices, rows, strict=True)}
    assert list(found.items()) == list(expected.items())


def test_an_empty_chunk_has_no_rows():
    """Reading the rows of an empty chunk raises an error."""
    chunks = LiveChunks.of_array(np.zeros((4, 1)), Slots(np.array([[0], [0]]), 4)).copy()
    assert isinstance(chunks, CopiedChunks)
    with pytest.raises(IndexError, match="chunk 0 is empty"):
        chunks[0]


def test_a_chunk_has_at_least_the_shortest_span():
    """A chunk has a minimum number of rows, even if a row is larger than a chunk, or has no bytes."""
    slots = Slots(np.array([[0], [4]]), 4)
    assert LiveChunks(slots, 1 << 40, lambda begin, stop: np.zeros(0), shortest=3).span == 3
    assert LiveChunks(slots, 0, lambda begin, stop: np.zeros(0)).span == module.CHUNK_BYTES
