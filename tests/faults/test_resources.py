"""Memory, descriptors and compilation: the cost of long runs, and running without a compiler."""

import copy
import gc
import hashlib
import importlib
import itertools
import os
import pickle
import sys
import tracemalloc
import weakref
from pathlib import Path

import numpy as np
import pytest
from numba import config

import replaykit
from replaykit import Field, PrioritizedBuffer, ReplayBuffer, ReplayWrapper, SequenceReplay, Spec
from replaykit.storage import LocalStorage
from replaykit.testing import assert_freed, bits_of
from tests.faults.stacks import FLAT, STACKS, every_stack, full, refused
from tests.faults.test_processes import python
from tests.helpers import limit_memory

compiled = pytest.mark.skipif(config.DISABLE_JIT, reason="nothing is compiled")
TEN_MILLION = """
import resource
import numpy as np
from replaykit import PrioritizedBuffer
from tests.faults.stacks import FLAT, STACKS
stack = STACKS["prioritized"]
replay = PrioritizedBuffer(10_000, FLAT, seed=0)
stretch, one = stack.steps((10_000,)), stack.steps()
def run(stretches, steps):
    for _ in range(stretches):
        replay.extend(**stretch)
        batch = replay.sample(64)
        replay.update_priorities(batch.indices, np.ones(64))
    for _ in range(steps):
        replay.add(**one)
run(20, 1_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(1_000, 20_000)
print(int(replay.stats()["added"]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the size of a process is counted otherwise on this system")
@compiled
def test_ten_million_adds_take_constant_memory():
    """After ten million adds, a process needs no more memory than when the buffer had filled up for the first time."""
    added, kilobytes = map(int, python("-c", TEN_MILLION).split())
    assert added > 10_000_000
    assert kilobytes < 2_000


@every_stack
def test_adding_and_sampling_leave_nothing_behind(stack):
    """A thousand steps of a training loop do not increase memory."""
    replay, one = full(stack), stack.steps()

    def train(steps):
        for _ in range(steps):
            replay.add(**one)
            batch = replay.sample(8)
            replay.update_priorities(batch.indices, np.ones(8))

    train(50)
    gc.collect()
    tracemalloc.start()
    try:
        train(50)
        before = tracemalloc.get_traced_memory()[0]
        train(500)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 20_000
    finally:
        tracemalloc.stop()


@every_stack
def test_a_dropped_buffer_is_freed_at_once(stack):
    """The memory of a buffer is freed as soon as nothing refers to it, without the garbage collector."""
    replay = full(stack)
    batch = replay.sample(3)
    replay.update_priorities(batch.indices, np.ones(3))
    assert_freed({"copy": copy.deepcopy(replay)}, "copy")
    variables = {"replay": replay}
    del replay
    assert_freed(variables, "replay")


LARGE = Spec(Field((3, 20, 20), np.uint8), Field(()), big=Field((1100,), np.uint8))
PLACES = {
    "memory": {"stack": 2},
    "files": {"storage": "files"},
    "device": {"device": "cpu"},
    "pinned memory": {"device": "cpu", "pin_memory": True},
}


@pytest.mark.parametrize("place", PLACES)
def test_a_dropped_buffer_of_large_fields_is_freed_at_once(place, tmp_path, monkeypatch):
    """The same for observations that are stored once, and for large fields, wherever they are stored."""
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    variables = {"replay": SequenceReplay(PrioritizedBuffer(6, LARGE, seed=0, **PLACES[place]), 2)}
    for number in range(20):
        obs, next_obs = (np.full((3, 20, 20), value, np.uint8) for value in (number, number + 1))
        variables["replay"].add(obs, 0.0, 1.0, next_obs, number % 7 == 6, False, big=np.zeros(1100, np.uint8))
    variables["replay"].sample(2)
    variables["replay"].save(tmp_path / "saved")
    assert_freed(variables, "replay")


def test_the_functions_that_a_spec_generates_are_freed_at_once():
    """A packed row and its generated functions are in no reference cycle."""
    row = LocalStorage(6, FLAT).row
    made = [row, row.encode_row, row.encode_steps, row.encode_lanes, row.name_batch, row.name_transitions]
    references = [weakref.ref(each) for each in made]
    gc.disable()
    try:
        del row, made
        assert [reference() for reference in references] == [None] * 6
    finally:
        gc.enable()


class Cyclic(ReplayWrapper):
    """A wrapper that refers to itself."""

    def __init__(self, inner):
        super().__init__(inner)
        self.me = self


def test_a_reference_cycle_is_named():
    """`assert_freed` fails for a replay that would stay in memory until the garbage collector runs."""
    with pytest.raises(AssertionError, match="replay, .*storage.rows.*reference cycle"):
        assert_freed({"replay": Cyclic(full(STACKS["uniform"]))}, "replay")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors cannot be counted on this system")
def test_no_file_descriptor_and_no_shared_memory_is_left():
    """Buffers that were used and deleted leave no open file and no shared memory."""

    def use():
        for stack in STACKS.values():
            replay = full(stack)
            pickle.loads(pickle.dumps(replay)).sample(3)

    use()
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        use()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before
    assert "/dev/shm/replaykit" not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("make", [ReplayBuffer, PrioritizedBuffer])
def test_a_capacity_just_beyond_memory_is_refused_and_names_the_bytes(make, monkeypatch):
    """The needed memory, with priorities, is compared with the available memory. A buffer that just fits is built."""
    needed = make(1000, FLAT).nbytes
    limit_memory(monkeypatch, needed * 3 // 4)
    with refused(None, MemoryError, "capacity", "needs", "MiB", "available", "lower the capacity"):
        make(1000, FLAT)
    limit_memory(monkeypatch, needed * 2)
    make(1000, FLAT)


# -- Compilation -------------------------------------------------------------------------------------------------


def digest_of(*names):
    """A digest of everything that a short run of these replays returns."""
    digest = hashlib.sha256()
    for name, (lanes, n_step) in itertools.product(names, ((1, 1), (2, 3))):
        stack = STACKS[name]
        replay = stack.build(8, num_envs=lanes, n_step=n_step)
        lead = (lanes,) if lanes > 1 else ()
        for count in (3, 9):
            errors = np.arange(1.0, count * lanes + 1).reshape(count, *lead)
            replay.extend(**stack.steps((count, *lead)), td_error=errors)
            replay.add(**stack.steps(lead), mask=np.arange(lanes) == 0 if lead else None)
            batch = replay.sample(6)
            replay.update_priorities(batch.indices, np.arange(6.0) - 2)
            digest.update(repr(bits_of(batch)).encode())
        replay.check()
    return digest.hexdigest()


PRINT_DIGEST = "import sys; from tests.faults.test_resources import digest_of; print(digest_of(*sys.argv[1:]))"


def test_without_compilation_every_batch_is_the_same():
    """With NUMBA_DISABLE_JIT=1, which turns compilation off, batches are identical."""
    assert python("-c", PRINT_DIGEST, *STACKS, NUMBA_DISABLE_JIT=1) == digest_of(*STACKS)


@compiled
def test_no_kernel_reads_or_writes_outside_its_arrays():
    """With NUMBA_BOUNDSCHECK=1, which checks each array index, no error is raised and batches are identical."""
    assert python("-c", PRINT_DIGEST, "prioritized", NUMBA_BOUNDSCHECK=1) == digest_of("prioritized")


def compilations():
    """How many kernels were compiled or loaded so far, each for its types."""
    folder = Path(replaykit.__file__).parent / "_kernels"
    modules = [importlib.import_module(f"replaykit._kernels.{path.stem}") for path in folder.glob("[!_]*.py")]
    kernels = {id(kernel): kernel for module in modules for kernel in vars(module).values()}
    return sum(len(kernel.signatures) for kernel in kernels.values() if hasattr(kernel, "signatures"))


@compiled
@every_stack
def test_nothing_is_compiled_after_the_first_batch(stack):
    """After one `add`, `extend`, batch and update, other sizes, dtypes and memory layouts compile nothing."""
    replay = full(stack)
    replay.add(**stack.steps())
    replay.add(**stack.steps(obs=np.zeros(3)), td_error=1.0)
    before = compilations()
    assert before > 3
    for count, dtype in ((1, np.float64), (7, np.float32), (50, ">f4"), (3, np.float16)):
        obs = np.zeros((count, 3), dtype)
        replay.extend(**stack.steps((count,), obs=obs, reward=np.zeros(count, dtype)))
        replay.add(**stack.steps(obs=np.asfortranarray(obs)[0][::-1], reward=1))
        batch = replay.sample(count + 1)
        replay.update_priorities(batch.indices[::-1], batch.reward.astype(dtype))
        replay.update_priorities(batch.indices.tolist(), batch.reward.tolist())
    assert compilations() == before
