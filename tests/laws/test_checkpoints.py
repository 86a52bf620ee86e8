"""A replay that was saved and loaded continues bit for bit, with any parts, and saved at any moment."""

import dataclasses
import io
import os
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import replaykit
from replaykit import CombinedReplay, LinearSchedule, PrioritizedBuffer, ReplayBuffer
from replaykit import chunks as chunks_module
from replaykit.saving import checkpoint
from replaykit.saving.directory import Directory
from replaykit.testing import build, configurations
from tests.checkpoints import Learner, assert_tidy, bytes_of, content_of
from tests.laws.streams import GAMMA, Stream, run_together


def smaller_chunks(patch, nbytes):
    """Limit chunks to this number of bytes, so that small buffers have many."""
    patch.setattr(chunks_module, "CHUNK_BYTES", nbytes)
    patch.setattr(checkpoint, "CHUNK_BYTES", nbytes)


def through_torch(source, target):
    torch = pytest.importorskip("torch")
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    target.load_state_dict(torch.load(file, weights_only=True))


# -- Continuing after a load ---------------------------------------------------------------------------------------


@given(
    configurations(replace=(True, False)), st.integers(0, 1 << 30), st.integers(0, 60),
    st.sampled_from([1 << 22, 4000, 60, 1]), st.sampled_from(["path", "state_dict", "load"]), st.booleans(),
)  # fmt: skip
def test_what_was_loaded_goes_on_as_what_was_saved(tmp_path_factory, configuration, seed, count, nbytes, way, is_used):
    """A loaded replay has the same batches, priorities, episodes and counters. Saving changes nothing."""
    path = tmp_path_factory.mktemp("checkpoint")
    saved, twin, loaded = (build(configuration)[0] for _ in range(3))
    for replay in (saved, twin):
        if hasattr(replay, "beta"):
            replay.beta = LinearSchedule(0.4, 1.0, 20)
        Learner(seed).act(replay, count)
    if is_used:
        Learner(seed + 1).act(loaded, 20)
    with pytest.MonkeyPatch.context() as patch:
        smaller_chunks(patch, nbytes)
        if way == "state_dict":
            through_torch(saved, loaded)
        else:
            saved.save(path)
            loaded.load(path)
        if way == "load" and not configuration.combined and configuration.hindsight is None:
            loaded = replaykit.load(path)
    assert content_of(saved) == content_of(twin) == content_of(loaded)
    after = [Learner(seed + 2).act(replay, 25) for replay in (saved, twin, loaded)]
    assert after[0] == after[1] == after[2]
    assert saved.stats() == twin.stats() or configuration.spec == "frames"
    for replay in (saved, loaded):
        replay.check()
    assert content_of(saved) == content_of(loaded)


@given(configurations(), st.integers(0, 1 << 30), st.sampled_from([1 << 22, 1000, 60, 1]))
def test_a_path_that_is_saved_to_again_has_what_a_new_one_has(tmp_path_factory, configuration, seed, nbytes):
    """A second save to a path gives the same checkpoint as a save to a new path."""
    replay, learner = build(configuration)[0], Learner(seed)
    path = tmp_path_factory.mktemp("checkpoint")
    with pytest.MonkeyPatch.context() as patch:
        smaller_chunks(patch, nbytes)
        for number in range(4):
            learner.act(replay, 1 + number * 4)
            if number == 2 and seed % 2:  # go on from the file
                replay.load(path)
            replay.save(path)
            loaded = build(configuration)[0]
            loaded.load(path)
            assert content_of(loaded) == content_of(replay)
            assert_tidy(path)


def test_a_second_save_writes_only_what_has_changed(tmp_path, monkeypatch):
    """A second save writes only changed rows. The others stay in their files, also after a load."""
    stream = Stream()
    smaller_chunks(monkeypatch, 2000)
    buffer = PrioritizedBuffer(400, stream.spec, gamma=GAMMA, seed=0)
    buffer.extend(**stream.rows(np.arange(300)))
    buffer.save(tmp_path)
    files = {file.name for file in tmp_path.iterdir()}
    buffer.save(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == files
    loaded = PrioritizedBuffer(400, stream.spec, gamma=GAMMA)
    loaded.load(tmp_path)
    for replay, first in ((buffer, 300), (loaded, 300), (loaded, 303)):
        reads = []
        storage = replay.storage
        for key, chunks in list(storage.state().items()):
            if key == "rows":
                monkeypatch.setattr(type(chunks), "__getitem__", counted(type(chunks).__getitem__, reads))
        replay.extend(**stream.rows(np.arange(first, first + 3)))
        files = {file.name for file in tmp_path.iterdir()}
        replay.save(tmp_path)
        monkeypatch.undo()
        smaller_chunks(monkeypatch, 2000)
        assert len(files - {file.name for file in tmp_path.iterdir()}) < 12


def counted(function, calls):
    def count(self, k):
        calls.append(k)
        return function(self, k)

    return count


# -- Another capacity ----------------------------------------------------------------------------------------------


@given(configurations(), st.integers(1, 30), st.integers(0, 1 << 30), st.integers(0, 60))
def test_another_capacity_keeps_the_newest_that_fit(configuration, capacity, seed, count):
    """With another capacity, the newest transitions are kept, with values, priorities, episodes and order."""
    pytest.importorskip("torch")
    saved = build(configuration)[0]
    Learner(seed).act(saved, count)
    loaded = build(dataclasses.replace(configuration, capacity=capacity))[0]
    loaded.load_state_dict(saved.state_dict())
    length = loaded.capacity // loaded.num_envs
    first, cursor = saved.bounds
    assert (loaded.bounds == [np.maximum(first, cursor - length), cursor]).all()
    kept = loaded.stored()
    for leaf in saved.spec.leaves:
        if configuration.stack == 1 or "obs" not in leaf.name:
            assert bytes_of(loaded.read(kept, leaf.name)) == bytes_of(saved.read(kept, leaf.name))
    for mine, theirs in zip(loaded.episode(kept), saved.episode(kept), strict=True):
        assert (mine == theirs).all()
    order = [index for index in saved.latest(saved.capacity).tolist() if index in set(kept.tolist())]
    assert loaded.latest(loaded.capacity).tolist() == order
    if configuration.kind == "prioritized" and kept.size and not configuration.combined:
        mine, theirs = loaded.probability(kept), saved.probability(kept)
        if theirs.sum() > 0.0 and len(saved) == len(loaded):
            np.testing.assert_allclose(mine, theirs, rtol=1e-9)
    loaded.check()
    Learner(seed).act(loaded, 20)
    loaded.check()


@pytest.mark.parametrize("variant", ["proportional", "rank"])
@given(
    num_envs=st.integers(1, 4), before=st.integers(1, 5), after=st.integers(1, 12),
    alpha=st.sampled_from([0.3, 1.0]), seed=st.integers(0, 1 << 30),
)  # fmt: skip
def test_what_was_added_last_has_the_same_priority_in_another_capacity(variant, num_envs, before, after, alpha, seed):
    """New transitions get the same priority, even if the transition with the largest one does not fit."""
    pytest.importorskip("torch")
    rng, stream = np.random.default_rng(seed), Stream(num_envs, (1,), np.float32)
    options = {"num_envs": num_envs, "alpha": alpha, "seed": 0, "variant": variant}
    saved, loaded = (PrioritizedBuffer(length * num_envs, stream.spec, **options) for length in (before, after))
    for step in range(int(rng.integers(1, 20))):
        numbers = np.arange(step * num_envs, (step + 1) * num_envs)
        saved.add(**stream.rows(numbers), mask=rng.random(num_envs) < 0.8)
        if rng.random() < 0.4 and len(saved):
            errors = rng.exponential(size=len(saved)) * rng.choice([0.01, 1.0, 50.0])
            saved.update_priorities(saved.stored(), errors)
    loaded.load_state_dict(saved.state_dict())
    kept = loaded.stored()
    expected = saved.probability(kept)
    if variant == "proportional" and kept.size:
        np.testing.assert_allclose(loaded.probability(kept), expected / expected.sum(), rtol=1e-9)
    if variant == "rank":
        assert (np.argsort(loaded.probability(kept)) == np.argsort(expected)).all()
    loaded.check()


# -- Beside other threads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", ["none", "all"])
@pytest.mark.parametrize("capacity", [40, 400])
def test_a_checkpoint_is_one_moment_beside_threads(tmp_path, monkeypatch, capacity, share):
    """A checkpoint beside threads has whole rows. Those that are overwritten during the save are left out."""
    stream = Stream(2, (3, 30), np.uint8)
    options = {"num_envs": 2, "gamma": GAMMA, "share": share}
    buffer = PrioritizedBuffer(capacity, stream.spec, seed=0, **options)
    smaller_chunks(monkeypatch, 500)
    if capacity == 40:  # lets others overwrite all transitions during a save
        monkeypatch.setattr(os, "fsync", lambda _descriptor: time.sleep(0.001))
    buffer.extend(**stream.rows(np.arange(2 * capacity).reshape(-1, 2)))
    added, moments = [capacity], []

    def add(_number):
        numbers = np.arange(added[0] * 2, added[0] * 2 + 6).reshape(3, 2)
        buffer.extend(**stream.rows(numbers))
        added[0] += 3

    def learn(_number):
        batch = buffer.sample(8)
        buffer.update_priorities(batch.indices, np.ones(8))

    def save(number):
        path = tmp_path / str(number % 2)
        before = added[0]
        buffer.save(path)
        loaded = PrioritizedBuffer(capacity, stream.spec, **options)
        loaded.load(path)
        stored = loaded.stored()
        assert (loaded.bounds[1] >= before).all()
        if stored.size:
            assert (loaded.read(stored, "obs") == stream.obs(stored)).all(), "a torn frame"
            assert (loaded.read(stored, "next_obs") == stream.obs(stored + 2)).all(), "a torn frame"
            for name, values in stream.rows(stored).items():
                if "obs" not in name:
                    assert (loaded.read(stored, name) == values).all(), f"a torn {name}"
            with buffer.lock:
                both = np.intersect1d(buffer.stored(), stored)
                for mine, theirs in zip(loaded.episode(both)[:2], buffer.episode(both)[:2], strict=True):
                    assert (mine == theirs).all(), "another episode"
        moments.append((len(loaded), loaded.bounds[1, 0]))
        loaded.check()
        small = PrioritizedBuffer(10, stream.spec, **options)
        small.load(path)
        small.check()

    run_together(add, learn, save, least=6, seconds=0.4, interval=1e-5)
    buffer.check()
    if capacity == 40:
        assert any(size < capacity for size, _ in moments), "nothing was overwritten meanwhile"


def test_what_is_done_in_the_middle_of_a_save_is_left_out(tmp_path, monkeypatch):
    """A checkpoint shows the buffer at the start of the save, also if steps are added or episodes end meanwhile."""
    for at in range(30):
        stream = Stream()
        buffer = ReplayBuffer(30, stream.spec, gamma=GAMMA, seed=0)
        buffer.extend(**stream.rows(np.arange(47)))
        episodes = dict(
            zip(
                buffer.stored().tolist(),
                zip(*map(np.ndarray.tolist, buffer.episode(buffer.stored())), strict=True),
                strict=True,
            )
        )
        smaller_chunks(monkeypatch, 2 * buffer.storage.row.nbytes)
        calls, write = [], Directory.write

        def writing(self, name, array, former=None, calls=calls, write=write, at=at, buffer=buffer, stream=stream):
            calls.append(name)
            if len(calls) == at:
                if at % 3 == 2:
                    buffer.clear()
                elif at % 3 == 1:
                    buffer.end_episode()
                buffer.extend(**stream.rows(np.arange(47, 47 + at)))
            return write(self, name, array, former)

        monkeypatch.setattr(Directory, "write", writing)
        buffer.save(tmp_path)
        monkeypatch.undo()
        loaded = ReplayBuffer(30, stream.spec, gamma=GAMMA)
        loaded.load(tmp_path)
        loaded.check()
        stored = loaded.stored()
        assert loaded.bounds[1, 0] == 47
        is_early = 0 < at <= len(calls)
        assert stored.size == 30 if not is_early or at > 17 else stored.size in (0, 30, 30 - at)
        if stored.size:
            found = zip(*map(np.ndarray.tolist, loaded.episode(stored)), strict=True)
            assert dict(zip(stored.tolist(), found, strict=True)) == {i: episodes[i] for i in stored.tolist()}
            stream.assert_whole(loaded.sample(20))
        loaded.extend(**stream.rows(np.arange(47, 60)))
        loaded.check()
        number, first, _ = loaded.episode([47])
        reference = ReplayBuffer(100, stream.spec)
        reference.extend(**stream.rows(np.arange(60)))
        assert (number, first) == tuple(part[0] for part in reference.episode([47])[:2]) or at % 3 == 2


def test_others_wait_at_most_for_one_chunk(tmp_path, monkeypatch):
    """A save releases the lock between chunks, and never holds it while a file is written."""
    stream = Stream()
    buffer = ReplayBuffer(200, stream.spec, gamma=GAMMA, seed=0)
    buffer.extend(**stream.rows(np.arange(200)))
    smaller_chunks(monkeypatch, 10 * buffer.storage.row.nbytes)
    order, read, write = [], chunks_module.LiveChunks.__getitem__, Directory.write

    def reading(self, k):
        assert buffer.lock._is_owned()
        order.append("read")
        return read(self, k)

    def writing(self, *arguments):
        assert not buffer.lock._is_owned()
        added = threading.Thread(target=lambda: order.append(len(buffer)))
        added.start()
        added.join(10)
        assert not added.is_alive(), "the lock is held"
        order.append("write")
        return write(self, *arguments)

    monkeypatch.setattr(chunks_module.LiveChunks, "__getitem__", reading)
    monkeypatch.setattr(Directory, "write", writing)
    buffer.save(tmp_path)
    assert order.count("read") == 20
    assert "read read" not in " ".join(map(str, order))


def test_two_savers_and_a_loader_of_one_path(tmp_path):
    """Each load finds a complete checkpoint of one of the savers, and no additional file is left."""
    stream = Stream()
    buffers = [CombinedReplay(ReplayBuffer(50, stream.spec, gamma=GAMMA, seed=seed)) for seed in range(2)]
    for buffer in buffers:
        buffer.extend(**stream.rows(np.arange(60)))
    buffers[0].save(tmp_path)
    added = [60, 60]

    def saving(which):
        def save(_number):
            buffers[which].extend(**stream.rows(np.arange(added[which], added[which] + 3)))
            added[which] += 3
            buffers[which].save(tmp_path)

        return save

    def load(_number):
        loaded = CombinedReplay(ReplayBuffer(50, stream.spec, gamma=GAMMA))
        loaded.load(tmp_path)
        loaded.check()
        stream.assert_whole(loaded.sample(20))

    run_together(saving(0), saving(1), load, least=8, seconds=0.3, interval=1e-5)
    assert_tidy(tmp_path)
