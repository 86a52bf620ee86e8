"""What several test modules use."""

import os
import pickle
import sys
from typing import Any

import numpy as np
import pytest

import replaykit
from replaykit import Field, PrioritizedBuffer, Replay, Spec
from replaykit.trees import leaves_of

PACKAGE = os.path.dirname(replaykit.__file__)
FLAT = Spec(obs=Field((3,)), action=Field((), np.int64))


def step(number: float, **changes: Any) -> dict[str, Any]:
    """One transition of the spec `FLAT`, told by its number."""
    fields = {
        "obs": np.full(3, number, np.float32),
        "action": 1,
        "reward": float(number),
        "next_obs": np.full(3, number + 0.5, np.float32),
        "terminated": False,
        "truncated": False,
    }
    return fields | changes


def stretch(count: int, lanes: int = 1, **changes: Any) -> dict[str, Any]:
    """`count` transitions of each of `lanes` lanes of the spec `FLAT`."""
    lead = (count, lanes) if lanes > 1 else (count,)
    numbers = np.arange(count * lanes, dtype=np.float32).reshape(lead)
    fields = {
        "obs": numbers[..., None].repeat(3, axis=-1),
        "action": np.ones(lead, np.int64),
        "reward": numbers,
        "next_obs": numbers[..., None].repeat(3, axis=-1) + np.float32(0.5),
        "terminated": np.zeros(lead, np.bool_),
        "truncated": np.zeros(lead, np.bool_),
    }
    return fields | changes


def filled(buffer: Replay, count: int) -> Replay:
    """`buffer` of the spec `FLAT`, with `count` transitions of one lane in it."""
    buffer.extend(**stretch(count))
    return buffer


def prioritized(values: Any, **options: Any) -> PrioritizedBuffer:
    """A prioritized buffer whose transitions have these priorities."""
    options = {"alpha": 1.0, "seed": 0} | options
    buffer = PrioritizedBuffer(len(values), FLAT, **options)
    filled(buffer, len(values))
    buffer.update_priorities(np.arange(len(values)), priorities=values)
    return buffer


class unchanged:  # noqa: N801
    """Context in which an error of a kind is raised, its words match, and the replay stays bit-identical."""

    def __init__(self, replay: Replay, error: Any, match: str) -> None:
        self.replay = replay
        self.raises = pytest.raises(error, match=match)

    def __enter__(self) -> None:
        self.before = pickle.dumps(self.replay)
        self.raises.__enter__()

    def __exit__(self, *exception: Any) -> bool | None:
        handled = self.raises.__exit__(*exception)
        assert pickle.dumps(self.replay) == self.before, "a refused call changed the buffer"
        return handled


def arrays_of(batch: Any) -> dict[str, Any]:
    """The arrays of a batch by path."""
    return dict(leaves_of(dict(batch.items())))


def interrupted(call: Any, at: int, module: str = "") -> bool:
    """Run `call`, raising KeyboardInterrupt at the `at`-th line of the package or module; whether there is one."""
    lines = 0

    def trace(frame: Any, event: str, _argument: Any) -> Any:
        nonlocal lines
        file = frame.f_code.co_filename
        if not (file.startswith(PACKAGE) and file.endswith(module)) or "_kernels" in file:
            return None
        if event == "line":
            lines += 1
            if lines == at:
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False
