"""Buffers in mapped files: the same batches, intact files after a process dies, and errors that name the file."""

import copy
import gc
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from replaykit import (
    Buffer,
    CombinedReplay,
    Field,
    HindsightReplay,
    LatestBuffer,
    PrioritizedBuffer,
    ReplayBuffer,
    Spec,
)
from replaykit.distributions import Uniform
from replaykit.storage import LocalStorage, MappedStorage
from replaykit.testing import bits_of
from tests.helpers import run_in_child

FLAT = Spec(obs=Field((3,)), action=Field((), np.int64), note=Field((2,), np.bool_))
IMAGES = Spec(obs=Field((40, 40), np.uint8), action=Field((), np.int64), note=Field((600,), np.float32))
STACKS = Spec(obs={"image": Field((6, 7), np.uint8), "a/b": Field((3,))}, action=Field(()))
LANES = 3


def values(rng, spec, lead):
    """Random values of a step, with leading axes."""

    def of(tree):
        if isinstance(tree, dict):
            return {key: of(entry) for key, entry in tree.items()}
        return rng.integers(0, 2, (*lead, *tree.shape)).astype(tree.dtype)

    ended = rng.random((2, *lead)) < 0.1
    fields = {"obs": of(spec["obs"]), "action": of(spec["action"]), "next_obs": of(spec["obs"])}
    extras = {name: of(spec[name]) for name in spec.extra}
    return fields | extras | {"reward": rng.random(lead), "terminated": ended[0], "truncated": ended[1]}


def step(replay, rng, count):
    """Take `count` random actions with a replay. Returns the bits of its batches."""
    found = []
    for _ in range(count):
        lead = (replay.num_envs,) if replay.num_envs > 1 else ()
        kind = rng.integers(8)
        if kind < 5:
            mask = rng.random(lead) < 0.7 if lead and kind == 4 else None
            replay.add(**values(rng, replay.spec, lead), **({} if mask is None else {"mask": mask}))
        elif kind == 5:
            replay.extend(**values(rng, replay.spec, (int(rng.integers(1, 9)), *lead)))
        elif kind == 6 and rng.random() < 0.2:
            replay.end_episode()
        if len(replay):
            batch = replay.sample(3)
            found.append(bits_of(batch))
            replay.update_priorities(batch.indices, rng.normal(size=3))
    return found


@pytest.mark.parametrize("make", [ReplayBuffer, PrioritizedBuffer, LatestBuffer])
@pytest.mark.parametrize(
    ("spec", "options"),
    [(FLAT, {"n_step": 3}), (FLAT, {"num_envs": LANES}), (IMAGES, {}), (STACKS, {"stack": 3, "num_envs": 2})],
    ids=["flat", "lanes", "images", "stacks"],
)
def test_a_mapped_buffer_serves_what_one_in_memory_serves(tmp_path, make, spec, options):
    """A mapped buffer returns the same batches as one in memory, bit for bit, also after the files are reopened."""
    twin = make(17, spec, seed=0, **options)
    for part in range(4):
        mapped = make(17, spec, seed=0, storage=tmp_path / "files", **options)
        mapped.check()
        mapped.rng.bit_generator.state = twin.rng.bit_generator.state
        assert len(mapped) == len(twin)
        found, expected = (step(replay, np.random.default_rng(part), 25) for replay in (mapped, twin))
        assert found == expected
        mapped.check()
        del mapped
    assert len(twin) > 10


def test_the_storage_alone_can_be_mapped(tmp_path):
    """A `MappedStorage` joins any distribution, and each of its arrays is a file."""
    storage = MappedStorage(tmp_path, 10, FLAT)
    buffer = CombinedReplay(Buffer(storage, Uniform(storage), seed=0))
    step(buffer, np.random.default_rng(0), 20)
    assert len(buffer) == 10
    assert {name for name in os.listdir(tmp_path) if name.endswith(".array")} == {
        "header.array",
        "rows.array",
        "tables.array",
    }


def test_hindsight_around_mapped_files(tmp_path):
    """Wrappers around a mapped buffer return the same batches as in memory."""
    spec = Spec(obs={name: Field(()) for name in ("observation", "achieved_goal", "desired_goal")}, action=Field(()))

    def reward_fn(achieved, desired, info):
        return -(np.abs(achieved - desired) > 0.5).astype(np.float32)

    replays = [HindsightReplay(ReplayBuffer(9, spec, seed=0, storage=path), reward_fn) for path in (None, tmp_path)]
    assert step(replays[0], np.random.default_rng(0), 30) == step(replays[1], np.random.default_rng(0), 30)


# -- The death of a process --------------------------------------------------------------------------------------


ADDING = """
    import sys
    import numpy as np
    from replaykit import Field, PrioritizedBuffer, Spec

    spec = Spec(obs=Field(({size},), np.int64), action=Field((), np.int64))
    buffer = PrioritizedBuffer({capacity}, spec, num_envs=2, storage={path!r}, share={share!r})
    step = int(buffer.bounds[1, 0])
    while True:
        obs = np.full((2, {size}), [[2 * step], [2 * step + 1]])
        ended = np.array([step % 5 == 4, step % 3 == 2])
        buffer.add(obs, obs[:, 0], obs[:, 0] / 7, obs + 2, ended, np.zeros(2, bool))
        print(step, flush=True)
        step += 1
        if step % 4 == 0:
            batch = buffer.sample(8)
            buffer.update_priorities(batch.indices, batch.reward)
"""


@pytest.mark.parametrize("size", [3, 300])
def test_a_killed_process_loses_at_most_the_step_that_it_was_writing(tmp_path, size):
    """After a process is killed at any moment, all rows and priorities are complete, and the next process continues."""
    rng, capacity, before = np.random.default_rng(0), 64, -1
    options = {"size": size, "capacity": capacity, "path": str(tmp_path / "files"), "share": "large"}
    for _ in range(5):
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(ADDING.format(**options))], stdout=subprocess.PIPE, text=True
        )
        with child:
            assert child.stdout.readline()
            time.sleep(float(rng.random()) * 0.05)
            os.kill(child.pid, signal.SIGKILL)
            said = [line for line in child.stdout.read().split("\n")[:-1] if line.strip()]
        spec = Spec(obs=Field((size,), np.int64), action=Field((), np.int64))
        buffer = PrioritizedBuffer(capacity, spec, num_envs=2, storage=tmp_path / "files", seed=0)
        buffer.check()
        stored = buffer.stored()
        if said:
            assert stored.max() >= 2 * int(said[-1]) + 1
        assert stored.max() > before
        before = stored.max()
        assert (buffer.read(stored, "obs") == stored[:, None]).all()
        assert (buffer.read(stored, "next_obs") == stored[:, None] + 2).all()
        assert (buffer.read(stored, "action") == stored).all()
        ends = np.where(stored % 2 == 0, (stored // 2) % 5 == 4, (stored // 2) % 3 == 2)
        assert (buffer.read(stored, "terminated") == ends).all()
        _, first, last = buffer.episode(stored)
        assert ((first <= stored) & (stored <= last)).all()
        assert np.isclose(buffer.probability(stored).sum(), 1.0)
        buffer.sample(16)
        del buffer
        gc.collect()


def test_unfinished_writes_are_forgotten(tmp_path):
    """If a process is killed in the middle of a write, this write is undone when the files are opened again."""
    buffer = PrioritizedBuffer(6, FLAT, storage=tmp_path, seed=0)
    for number in range(8):
        buffer.add([number] * 3, number, 1.0, [number + 1] * 3, number == 6, False, note=[True, False])
    buffer.sample(2)
    storage = buffer.storage
    block = storage.encode_step([9] * 3, 9, 1.0, [9] * 3, True, False, {"note": [True, True]})
    kernels = pytest.importorskip("replaykit._kernels.store")
    indices = np.empty(1, np.int64)
    kernels.store(block, 1, kernels.RETIRE, *storage._written, indices)
    storage._lanes[kernels.EPISODE] += 1  # as in the middle of PUBLISH
    storage._lanes[kernels.OVER] = 1
    storage.tables[kernels.STOPS, storage._lanes[kernels.PLACE]] = 99
    buffer.distribution.tree.nodes[1] = 123.0  # a sum that was not computed anew
    del buffer, storage
    gc.collect()
    buffer = PrioritizedBuffer(6, FLAT, storage=tmp_path, seed=0)
    buffer.check()
    assert buffer.stored().tolist() == [3, 4, 5, 6, 7]
    assert buffer.episode([6, 7])[2].tolist() == [6, 7]
    assert buffer.add([8] * 3, 8, 1.0, [9] * 3, False, False, note=[True, False]) == [8]
    assert buffer.episode([7])[2].tolist() == [8]
    buffer.check()


# -- Refusals ----------------------------------------------------------------------------------------------------


def test_a_second_storage_on_the_same_files_is_refused(tmp_path):
    """Opening the files a second time raises an error, in the same process and in another one."""
    buffer = ReplayBuffer(5, FLAT, storage=tmp_path)
    with pytest.raises(OSError, match="is in use by another buffer or process"):
        ReplayBuffer(5, FLAT, storage=tmp_path)
    program = f"""
from replaykit import Field, ReplayBuffer, Spec
ReplayBuffer(5, Spec(obs=Field((3,)), action=Field(()), note=Field((2,), bool)), storage={str(tmp_path)!r})
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "is in use by another buffer or process" in result.stderr
    assert len(buffer) == 0


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"capacity": 6}, "capacity was 5, but is 6 here"),
        ({"num_envs": 2}, "num_envs was 1, but is 2 here"),
        ({"spec": STACKS}, "spec was "),
        ({"share": "none"}, "share was 'large', but is 'none' here"),
        ({"alpha": 0.5}, "alpha was 0.6, but is 0.5 here"),
    ],
)
def test_files_that_were_made_otherwise_are_refused(tmp_path, options, match):
    """Opening the files with other arguments raises an error that names the argument. The files are unchanged."""
    buffer = PrioritizedBuffer(5, FLAT, storage=tmp_path)
    buffer.add([0] * 3, 0, 1.0, [0] * 3, False, False, note=[True, False])
    del buffer
    arguments = {"capacity": 5, "spec": FLAT} | options
    with pytest.raises(ValueError, match=match):
        PrioritizedBuffer(**arguments, storage=tmp_path)
    assert len(PrioritizedBuffer(5, FLAT, storage=tmp_path)) == 1


def test_a_directory_with_other_files_is_refused(tmp_path):
    """Building a buffer in a directory with other files raises an error. These files are unchanged."""
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match="has other files, such as thesis.tex"):
        ReplayBuffer(5, FLAT, storage=tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize("change", ["cut", "longer", "layout", "format", "lanes"])
def test_damaged_files_are_refused(tmp_path, change):
    """Files of wrong sizes, an unreadable or newer layout, and impossible positions of lanes raise an error."""
    buffer = ReplayBuffer(5, FLAT, storage=tmp_path)
    buffer.add([0] * 3, 0, 1.0, [0] * 3, False, False, note=[True, False])
    if change == "lanes":
        buffer.bounds[0] = 9
    del buffer
    gc.collect()
    if change == "cut":
        with open(tmp_path / "rows.array", "r+b") as file:
            file.truncate(3)
    elif change == "longer":
        with open(tmp_path / "header.array", "ab") as file:
            file.write(bytes(8))
    elif change != "lanes":
        text = (tmp_path / "layout.json").read_text()
        (tmp_path / "layout.json").write_text(text[:-9] if change == "layout" else text.replace(": 1,", ": 2,", 1))
    with pytest.raises(ValueError, match="damaged|has the format 2"):
        ReplayBuffer(5, FLAT, storage=tmp_path)


def test_a_full_disk_is_noticed_when_the_files_are_made(tmp_path, monkeypatch):
    """If the disk is too small, building the buffer raises an error. A later write cannot crash the process."""

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match="GiB") as raised:
        ReplayBuffer(10**13, FLAT, storage=tmp_path / "files")
    assert raised.value.filename.endswith("rows.array")


def test_storage_that_is_no_path_is_refused(tmp_path):
    """A `storage` that is not a path raises a TypeError with its type."""
    with pytest.raises(TypeError, match="storage is a int; expected the path of a directory"):
        ReplayBuffer(5, FLAT, storage=7)


# -- Forks, copies and checkpoints -------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_cannot_use_the_files(tmp_path):
    """In a forked process, `add`, `sample` and `clear` raise a RuntimeError. The parent can continue."""
    buffer = ReplayBuffer(5, FLAT, storage=tmp_path, seed=0)
    one = {"obs": [0] * 3, "action": 0, "reward": 1.0, "next_obs": [0] * 3, "terminated": False, "truncated": False}
    buffer.add(**one, note=[True, False])

    def child():
        for call in (lambda: buffer.add(**one, note=[True, False]), lambda: buffer.sample(1), buffer.clear):
            with pytest.raises(RuntimeError, match="a forked process cannot use them"):
                call()

    run_in_child(child)
    assert len(buffer) == 1
    buffer.add(**one, note=[True, False])
    buffer.sample(2)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda replay: pickle.loads(pickle.dumps(replay))])
def test_a_copy_is_in_memory(tmp_path, duplicate):
    """A deep copy or a pickle of a mapped buffer is in memory, and draws the same batches."""
    storage = MappedStorage(tmp_path / "b", 9, FLAT)
    for mapped in (PrioritizedBuffer(9, FLAT, storage=tmp_path / "a", seed=0), Buffer(storage, Uniform(storage))):
        step(mapped, np.random.default_rng(0), 20)
        twin = duplicate(mapped)
        assert type(twin.storage) is LocalStorage
        assert step(twin, np.random.default_rng(1), 20) == step(mapped, np.random.default_rng(1), 20)


def test_checkpoints_of_mapped_buffers_are_those_of_others(tmp_path):
    """A checkpoint of a mapped buffer can be loaded into memory and into other mapped files."""
    mapped = PrioritizedBuffer(9, IMAGES, storage=tmp_path / "files", seed=0)
    step(mapped, np.random.default_rng(0), 30)
    mapped.save(tmp_path / "checkpoint")
    inside = PrioritizedBuffer(9, IMAGES)
    inside.load(tmp_path / "checkpoint")
    other = PrioritizedBuffer(9, IMAGES, storage=tmp_path / "others")
    other.load(tmp_path / "checkpoint")
    expected = step(mapped, np.random.default_rng(1), 20)
    assert step(inside, np.random.default_rng(1), 20) == expected
    assert step(other, np.random.default_rng(1), 20) == expected


def test_the_order_of_writing_is_right_after_a_load_and_a_restart(tmp_path):
    """After a load or a reopening of files, lanes with different numbers of steps keep the order of writing."""
    one = {"obs": np.zeros((2, 3)), "action": [0, 0], "reward": [0.0] * 2, "next_obs": np.zeros((2, 3))}
    one |= {"terminated": [False] * 2, "truncated": [False] * 2, "note": np.zeros((2, 2), np.bool_)}
    twin, mapped = ReplayBuffer(20, FLAT, num_envs=2), ReplayBuffer(20, FLAT, num_envs=2, storage=tmp_path / "files")
    for _ in range(5):
        mapped.add(**one, mask=[False, True])
    for _ in range(4):
        twin.add(**one)
    twin.save(tmp_path / "checkpoint")
    mapped.load(tmp_path / "checkpoint")
    del mapped
    mapped = ReplayBuffer(20, FLAT, num_envs=2, storage=tmp_path / "files")
    for mask in ([True, True], [True, False], [True, False], [False, True]):
        for replay in (twin, mapped):
            replay.add(**one, mask=mask)
        assert mapped.latest(20).tolist() == twin.latest(20).tolist()
