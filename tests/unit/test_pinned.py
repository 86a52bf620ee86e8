"""Buffers whose transitions stay in the CPU's memory, while a device draws and reads them."""

import copy
from collections import deque

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from replaykit import Field, PrioritizedBuffer, ReplayBuffer, Spec
from replaykit.on_device.registered import as_seen_by

from .test_on_device import DEVICE, SPEC, numbers, stretch

NUMBERED = Spec(obs=Field((), np.int64), action=Field((8,), np.int64))


def there(indices):
    """Indices on the device."""
    return torch.from_numpy(indices).to(DEVICE)


def assert_same(expected, got):
    """Two trees of arrays are equal bit for bit."""
    for name, value in expected.items():
        if isinstance(value, dict):
            assert_same(value, got[name])
        else:
            np.testing.assert_array_equal(got[name], value, strict=True, err_msg=name)


@given(
    lanes=st.integers(1, 3),
    n_step=st.integers(1, 3),
    capacity=st.integers(3, 40),
    stretches=st.lists(st.sampled_from([1, 2, 9, 300, 2000]), min_size=1, max_size=5),
    does=st.lists(st.sampled_from(["nothing", "mask", "clear", "end"]), min_size=5, max_size=5),
)
def test_transitions_and_priorities_are_those_of_the_cpu(lanes, n_step, capacity, stretches, does):
    """Transitions and priorities are those of the CPU, also after more steps than spare slots and with masks."""
    options = {"num_envs": lanes, "n_step": n_step, "gamma": 0.9, "seed": 0}
    cpu = PrioritizedBuffer(capacity, SPEC, **options)
    pinned = PrioritizedBuffer(capacity, SPEC, device=DEVICE, pin_memory=True, **options)
    assert (pinned.capacity, len(pinned)) == (cpu.capacity, 0)
    for k, (count, what) in enumerate(zip(stretches, does, strict=False)):
        data = stretch(count, lanes, seed=k)
        mask = np.random.default_rng(k).random(data["reward"].shape) < 0.5 if what == "mask" else None
        expected, got = (buffer.extend(**data, mask=mask) for buffer in (cpu, pinned))
        np.testing.assert_array_equal(got, expected, strict=True)
        for buffer in (cpu, pinned):
            if what == "clear":
                buffer.clear()
            if what == "end":
                buffer.end_episode()
        stored = cpu.stored()
        np.testing.assert_array_equal(pinned.stored(), stored)
        assert_same(cpu.fetch(stored), numbers(pinned.fetch(there(stored))))
        for expected, got in zip(cpu.episode(stored), pinned.episode(there(stored)), strict=True):
            np.testing.assert_array_equal(numbers(got), expected)
        np.testing.assert_array_equal(numbers(pinned.latest(5)), cpu.latest(5))
        for buffer in (cpu, pinned):
            buffer.update_priorities(stored, stored % 7.0)
        shares = cpu.probability(stored), numbers(pinned.probability(there(stored)))
        np.testing.assert_allclose(*shares, rtol=1e-12)
    pinned.check()


class Queue:
    """The operations that a device has not executed yet, with their events."""

    def __init__(self):
        self.waiting, self.done, self.waits = deque(), 0, 0

    def run(self, count):
        for _ in range(min(count, len(self.waiting))):
            self.waiting.popleft()()
            self.done += 1

    def event(self):
        return Event(self)


class Event:
    def __init__(self, queue):
        self.queue = queue

    def record(self):
        self.place = self.queue.done + len(self.queue.waiting)

    def synchronize(self):
        self.queue.waits += self.place > self.queue.done
        self.queue.run(self.place - self.queue.done)


def torn_rows(lanes, guarded, seed=0):
    """The number of rows that a slow device reads wrongly while the CPU writes, of all rows, and the CPU's waits.

    The device draws from the bounds that it has, and reads the rows later, just before it must or at random.
    """
    rng, queue, found = np.random.default_rng(seed), Queue(), []
    buffer = ReplayBuffer(3000, NUMBERED, num_envs=lanes, device="cpu", pin_memory=True, seed=seed)
    storage = buffer.storage
    storage.guard.new_event = queue.event
    if not guarded:
        storage.guard.wait_for = lambda stop: None
    step = 0

    def read(indices):
        rows = storage.data[indices % storage.row_slots]
        obs, actions = (storage.rows.column(rows, storage.rows.positions[name]) for name in ("obs", "action"))
        found.append(int(((obs != indices) | (actions != indices[:, None]).any(1)).sum()))

    longest = 6 * 3000 // lanes
    for _ in range(400):
        count = int(rng.choice([1, 5, 30, 400])) * 3 // (lanes + 2) + 1 if rng.random() < 0.99 else longest
        number = np.arange(step * lanes, (step + count) * lanes).reshape((count, lanes) if lanes > 1 else count)
        step += count
        flags = np.zeros(number.shape, np.bool_)
        actions = np.repeat(number[..., None], 8, axis=-1)
        buffer.extend(number, actions, flags.astype(np.float32), number, flags, flags)
        storage.refresh()
        for _ in range(rng.integers(4)):
            indices, _ = storage.nth_stored(buffer.rng.random(64))
            queue.waiting.append(lambda indices=indices: read(indices))
        queue.run(int(rng.integers(3)) if rng.random() < 0.5 else 0)
    queue.run(len(queue.waiting))
    return sum(found), len(found) * 64, queue.waits


@pytest.mark.parametrize("lanes", [1, 3, 2048])
def test_the_cpu_never_overwrites_a_row_that_a_queued_operation_reads(lanes):
    torn, count, waits = torn_rows(lanes, guarded=True)
    assert torn == 0
    assert count > 10_000
    assert waits > 0  # so that the guard was needed


def test_without_the_guard_rows_would_be_torn():
    """Without the guard, rows are read wrongly, so the test above can fail."""
    torn, _, _ = torn_rows(1, guarded=False)
    assert torn > 100


@pytest.mark.skipif(DEVICE != "cuda", reason="only a GPU lags behind the CPU")
def test_no_row_is_torn_on_a_gpu_under_load():
    """No row is torn if slow operations keep the queue full, so that reads run long after they are queued."""
    buffer = ReplayBuffer(3000, NUMBERED, device=DEVICE, pin_memory=True, seed=0)
    flags, large, wrong = np.zeros(50, np.bool_), torch.rand(4096, 4096, device=DEVICE), []
    for k in range(2000):
        number = np.arange(50 * k, 50 * (k + 1))
        buffer.extend(number, np.repeat(number[:, None], 8, axis=1), flags.astype(np.float32), number, flags, flags)
        if k % 10 == 0:
            large = (large @ large).clamp(-1.0, 1.0)
        batch = buffer.sample(256)
        wrong.append((batch.obs != batch.indices) | (batch.action != batch.indices[:, None]).any(1))
    assert not torch.stack(wrong).any()


def test_few_steps_ask_for_a_look_at_the_guard(monkeypatch):
    """Most adds do not check the guard, so they take as long as on the CPU."""
    buffer, looks = ReplayBuffer(3000, NUMBERED, device=DEVICE, pin_memory=True), []
    prepare = buffer.storage._prepare
    monkeypatch.setattr(buffer.storage, "_prepare", lambda steps: looks.append(steps) or prepare(steps))
    for step in range(5000):
        buffer.add(step, np.full(8, step), 0.0, step, False, False)
    assert len(looks) == pytest.approx(5000 / 256, abs=2)


def test_a_device_sees_new_steps_without_a_call_of_the_buffer():
    """A graph of the user sees new steps, because the bounds on the device are at most 256 steps old."""
    buffer = ReplayBuffer(3000, NUMBERED, device=DEVICE, pin_memory=True)
    for step in range(1000):
        buffer.add(step, np.full(8, step), 0.0, step, False, False)
        assert step - 256 <= int(buffer.storage._device_bounds[1]) <= step + 1


def test_memory_is_shared_with_the_device_and_counted():
    array = np.arange(12.0).reshape(3, 4)
    tensor = as_seen_by(torch.device(DEVICE), array)
    array[1, 2] = 99.0
    assert tensor.device.type == DEVICE
    assert float(tensor[1, 2]) == 99.0
    buffer = ReplayBuffer(3000, NUMBERED, device=DEVICE, pin_memory=True)
    assert buffer.nbytes > 3000 * (8 + 8 + 64)


def test_a_checkpoint_of_more_transitions_keeps_the_newest(tmp_path):
    """After a load of a larger checkpoint, the newest transitions are kept, and the spare slots are free."""
    source = ReplayBuffer(4000, NUMBERED, seed=0)
    pinned = ReplayBuffer(1000, NUMBERED, device=DEVICE, pin_memory=True, seed=0)
    flags = np.zeros(4000, np.bool_)
    number = np.arange(4000)
    fields = (np.repeat(number[:, None], 8, axis=1), flags.astype(np.float32), number, flags, flags)
    source.extend(number, *fields)
    source.save(tmp_path)
    pinned.load(tmp_path)
    np.testing.assert_array_equal(pinned.stored(), np.arange(3000, 4000))
    assert pinned.read(pinned.stored(), "obs").tolist() == list(range(3000, 4000))
    pinned.extend(number, *fields)
    np.testing.assert_array_equal(pinned.stored(), np.arange(7000, 8000))
    pinned.check()


def test_a_copy_is_independent():
    pinned = PrioritizedBuffer(20, SPEC, device=DEVICE, pin_memory=True, seed=0)
    pinned.extend(**stretch(30, 1))
    twin = copy.deepcopy(pinned)
    np.testing.assert_array_equal(numbers(pinned.sample(9).indices), numbers(twin.sample(9).indices))
    stored = there(pinned.stored())
    assert_same(numbers(pinned.fetch(stored)), numbers(twin.fetch(stored)))
    pinned.extend(**stretch(5, 1))
    assert (int(twin.newest[0]), int(pinned.newest[0])) == (29, 34)
    twin.check()


def test_a_refused_stretch_that_is_longer_than_the_slots_to_spare_loses_nothing():
    """Invalid rewards raise an error before old steps are retired to make room, so nothing is lost."""
    buffer = ReplayBuffer(1500, NUMBERED, device=DEVICE, pin_memory=True)
    number, flags = np.arange(1500), np.zeros(1500, np.bool_)
    fields = [number, np.repeat(number[:, None], 8, axis=1), flags.astype(np.float32), number, flags, flags]
    buffer.extend(*fields)
    fields[2][1400] = np.nan
    with pytest.raises(ValueError, match="reward contains nan"):
        buffer.extend(*fields)
    np.testing.assert_array_equal(buffer.stored(), number)
    assert buffer.read(number, "obs").tolist() == number.tolist()
    buffer.check()


def test_pinned_memory_needs_a_device():
    with pytest.raises(ValueError, match="pin_memory is True without a device; pass the device"):
        ReplayBuffer(10, SPEC, pin_memory=True)
