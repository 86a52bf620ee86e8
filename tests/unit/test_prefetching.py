"""`batches`: their contents, when they are made, errors in order, and no remaining threads."""

import gc
import os
import pickle
import threading
import time

import numpy as np
import pytest

from replaykit import CombinedReplay, Field, LatestBuffer, PrioritizedBuffer, ReplayBuffer, Spec
from replaykit.prefetching import Batches
from replaykit.testing import bits_of
from tests.helpers import run_in_child

SPEC = Spec(obs=Field((3,)), action=Field((), np.int64))
WIDE = Spec(obs=Field((40, 50)), action=Field((), np.int64))


def filled(spec=SPEC, make=ReplayBuffer, count=30, **options):
    buffer = make(100, spec, seed=0, **options)
    for step in range(count):
        buffer.add(np.full(spec["obs"].shape, step), 0, 1.0, np.full(spec["obs"].shape, step), step % 9 == 8, False)
    return buffer


def threads():
    gc.collect()
    return threading.active_count()


@pytest.mark.parametrize("make", [ReplayBuffer, PrioritizedBuffer, LatestBuffer])
@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("spec", [SPEC, WIDE], ids=["small", "large"])
def test_batches_are_those_of_sample(make, prefetch, spec):
    """Batches are those of `sample`, with or without a thread, if the buffer does not change."""
    twin, buffer = filled(spec, make), CombinedReplay(filled(spec, make))
    with buffer.batches(64, prefetch=prefetch) as batches:
        for _, batch in zip(range(6), batches, strict=False):
            assert bits_of(batch) == bits_of(CombinedReplay(twin).sample(64))


def test_large_batches_are_made_in_a_thread_and_small_ones_are_not():
    before = threads()
    small, large = filled().batches(64), filled(WIDE).batches(64)
    next(small)
    assert threads() == before
    next(large)
    assert threads() == before + 1
    none = filled(WIDE).batches(64, prefetch=0)
    next(none)
    assert threads() == before + 1
    large.close()
    assert threads() == before


def test_at_most_so_many_batches_are_made_ahead():
    buffer = filled(WIDE)
    batches = buffer.batches(64, prefetch=3)
    next(batches)
    deadline = time.monotonic() + 10
    while buffer.stats()["batches"] < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.05)
    assert buffer.stats()["batches"] == 4
    batches.close()


def test_a_thousand_iterators_leave_no_thread():
    buffer, before = filled(WIDE), threads()
    for number in range(1000):
        batches = buffer.batches(16, prefetch=1)
        if number % 20 == 0:
            next(batches)
            next(batches)
        if number % 3 == 0:
            batches.close()
    del batches
    assert threads() == before


@pytest.mark.parametrize("end", ["close", "with", "forget", "error"])
def test_an_iterator_ends_without_a_thread(end):
    buffer, before = filled(WIDE), threads()
    batches = buffer.batches(64)
    if end == "with":
        with batches:
            next(batches)
    elif end == "error":
        with pytest.raises(KeyError), batches:  # noqa: PT012 - a consumer that fails
            next(batches)
            raise KeyError
    else:
        next(batches)
    if end == "close":
        batches.close()
        batches.close()
    if end != "forget":
        with pytest.raises(StopIteration):
            next(batches)
    del batches
    assert threads() == before


@pytest.mark.parametrize("spec", [SPEC, WIDE], ids=["small", "large"])
def test_an_error_is_raised_in_place_of_the_batch(spec):
    """An error is raised in place of its batch. The next call tries again."""
    buffer, before = filled(spec, count=0), threads()
    batches = buffer.batches(64)
    for _ in range(2):
        with pytest.raises(ValueError, match="the buffer is empty"):
            next(batches)
    buffer.add(np.zeros(spec["obs"].shape), 0, 1.0, np.zeros(spec["obs"].shape), False, False)
    assert len(next(batches)) == 64
    batches.close()
    assert threads() == before


def test_batches_that_are_ahead_come_before_an_error():
    made = iter(range(3))

    def make():
        return next(made)

    batches = Batches(make, 2, False)
    assert [next(batches) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(StopIteration):
        next(batches)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
        ({"batch_size": 2.0}, TypeError, "batch_size is 2.0"),
        ({"batch_size": 2, "prefetch": -1}, ValueError, "prefetch is -1"),
        ({"batch_size": 2, "prefetch": True}, TypeError, "prefetch is True"),
        ({"batch_size": 2, "device": "nonsense"}, RuntimeError, "nonsense"),
    ],
)
def test_wrong_arguments_are_refused_at_once(arguments, error, match):
    if "device" in arguments:
        pytest.importorskip("torch")
    with pytest.raises(error, match=match):
        filled().batches(**arguments)


@pytest.mark.parametrize("spec", [SPEC, WIDE], ids=["small", "large"])
def test_tensors_have_the_shapes_that_were_asked_for(spec):
    torch = pytest.importorskip("torch")
    with filled(spec).batches(64, device="cpu", dtype=torch.float64, column=True) as batches:
        batch = next(batches)
    assert batch.obs.dtype == torch.float64
    assert batch.reward.shape == (64, 1)


def test_a_data_loader_takes_them():
    data = pytest.importorskip("torch.utils.data")
    batches = filled().batches(8)
    assert isinstance(batches, data.IterableDataset)
    loader = iter(data.DataLoader(batches, batch_size=None))
    assert next(loader).obs.shape == (8, 3)
    with pytest.raises(TypeError, match="batches\\(\\) cannot be copied"):
        pickle.dumps(batches)


def test_workers_of_a_data_loader_are_refused(monkeypatch):
    data = pytest.importorskip("torch.utils.data")
    monkeypatch.setattr(data, "get_worker_info", lambda: object())
    with pytest.raises(RuntimeError, match="num_workers=0"):
        iter(filled().batches(8))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_has_a_thread_of_its_own():
    batches = filled(WIDE).batches(64)
    next(batches)

    def child():
        assert len(next(batches)) == 64
        batches.close()

    run_in_child(child)
    assert len(next(batches)) == 64
    batches.close()
