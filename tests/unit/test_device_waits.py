"""Nothing that a training loop calls waits for the device.

On a GPU, torch itself raises an error for an operation that waits. On the CPU nothing waits, so the operations that
would wait on a GPU are looked for among those that are executed. `TorchBackend.send` is the only way from the CPU to a
device, which tests/unit/test_architecture.py makes sure of.
"""

import contextlib

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from replaykit import CombinedReplay, LatestBuffer, PrioritizedBuffer, ReplayBuffer, SequenceReplay
from replaykit.on_device.backend import TorchBackend

from .test_frames_on_device import FRAME, Stream, spec_of
from .test_on_device import DEVICE, SPEC, stretch, tensors

WAITING = {
    "_local_scalar_dense", "bincount", "equal", "is_nonzero", "isin", "masked_select", "nonzero", "_unique", "_unique2",
    "unique_consecutive", "unique_dim",
}  # fmt: skip
"""Operations whose result the CPU needs, or whose result has a size that depends on values."""


class Watch(TorchDispatchMode):
    """Records the operations that wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__.partition(".")[0]
        masks = [each for each in args[1] if each is not None] if name in ("index", "index_put", "index_put_") else []
        if name in WAITING or any(mask.dtype in (torch.bool, torch.uint8) for mask in masks):
            self.found.append(function.__name__)
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def nothing_waits():
    """A context in which an operation that waits for the device raises an error."""
    if DEVICE == "cuda":
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
    else:
        with Watch() as watch, pytest.MonkeyPatch.context() as patch:
            patch.setattr(TorchBackend, "host", to_the_cpu)
            yield
        assert not watch.found


def to_the_cpu(_backend, _name, value):
    """A replacement of `TorchBackend.host`, which must not get a tensor."""
    assert isinstance(value, np.ndarray), "a tensor was copied to the CPU"
    return value


def latest(**options):
    return LatestBuffer(40, SPEC, **options)


def uniform(**options):
    return ReplayBuffer(40, SPEC, n_step=2, **options)


def prioritized(**options):
    return PrioritizedBuffer(40, SPEC, n_step=2, **options)


def with_largest_weight(**options):
    return PrioritizedBuffer(40, SPEC, draws="iid", weights="buffer", **options)


def combined(**options):
    return CombinedReplay(prioritized(**options), 30)


def sequences(**options):
    return SequenceReplay(prioritized(**options), 3)


KINDS = [latest, uniform, prioritized, with_largest_weight, combined, sequences]


@pytest.mark.parametrize("pin_memory", [False, True])
@pytest.mark.parametrize("make", KINDS)
def test_a_training_loop_never_waits(make, pin_memory):
    replay = make(num_envs=2, device=DEVICE, pin_memory=pin_memory, seed=0)
    data = [stretch(4, 2, seed=k) for k in range(40)]
    if not pin_memory:
        data = [tensors(each) for each in data]
    errors = torch.rand(32, device=DEVICE)
    replay.extend(**data[0])
    replay.sample(32)  # what is needed once
    with nothing_waits():
        for k, each in enumerate(data):
            replay.extend(**each)
            if k % 3 == 0:
                replay.extend(**each, mask=np.array([True, False]))
            batch = replay.sample(32)
            if make in (prioritized, with_largest_weight, combined):
                replay.update_priorities(batch.indices, errors)
            replay.overwrite(batch.indices.reshape(-1), reward=torch.zeros(batch.indices.numel(), device=DEVICE))
    replay.check()


@pytest.mark.parametrize("pin_memory", [False, True])
@pytest.mark.parametrize("options", [{"share": "all"}, {"stack": 3}])
def test_observations_that_are_stored_once_do_not_wait(options, pin_memory):
    """With frames, nothing waits when there are enough places for the last observations of episodes."""
    stream = Stream(FRAME, 2, seed=0)
    buffer = ReplayBuffer(200, spec_of(FRAME), num_envs=2, device=DEVICE, pin_memory=pin_memory, seed=0, **options)
    data = [stream.steps(5) for _ in range(100)]
    if not pin_memory:
        data = [tensors(each) for each in data]
    for each in data[:60]:
        buffer.extend(**each)
        buffer.sample(32)
    with nothing_waits():
        for each in data[60:]:
            buffer.extend(**each)
            buffer.sample(32)
    buffer.check()


def test_the_watch_finds_what_waits():
    """The watch detects an operation that waits, so the test above can fail."""
    values = torch.arange(4.0)
    for wait in (lambda: values[values > 1.0], lambda: float(values.sum()), lambda: values.unique()):
        with Watch() as watch:
            wait()
        assert watch.found
