"""Helpers that several test modules share. They use public methods of replaykit only."""

import dis
import functools
import io
import linecache
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import strategies as st

import replaykit
from replaykit import (
    CombinedReplay,
    Field,
    LatestBuffer,
    PrioritizedBuffer,
    Replay,
    ReplayBuffer,
    ReplayWrapper,
    Spec,
    SumTree,
)

PACKAGE = os.path.dirname(replaykit.__file__)
FLAT = Spec(obs=Field((3,)), action=Field((), np.int64))

BUFFERS = [ReplayBuffer, PrioritizedBuffer, LatestBuffer, lambda *a, **k: CombinedReplay(ReplayBuffer(*a, **k))]
every_buffer = pytest.mark.parametrize("make", BUFFERS, ids=["uniform", "prioritized", "latest", "combined"])


# -- Transitions -------------------------------------------------------------------------------------------------


def step(number: float, **changes: Any) -> dict[str, Any]:
    """One transition of the spec `FLAT` whose values are computed from `number`."""
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
    """`buffer` after `count` transitions of the spec `FLAT` were added to its only lane."""
    buffer.extend(**stretch(count))
    return buffer


def random_walk(buffer: Replay, steps: int, seed: int = 0, length: int = 50) -> Replay:
    """`buffer` after a random walk of the spec `FLAT` was added, in episodes of `length` steps."""
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(-(-steps // length), length, 3)).cumsum(axis=1).reshape(-1, 3)[:steps]
    ends = np.arange(steps) % length == length - 1
    buffer.extend(states, np.zeros(steps, int), np.zeros(steps), states, ends, np.zeros(steps, bool))
    return buffer


def prioritized(values: Any, **options: Any) -> PrioritizedBuffer:
    """A prioritized buffer whose transitions have these priorities."""
    options = {"alpha": 1.0, "seed": 0} | options
    buffer = PrioritizedBuffer(len(values), FLAT, **options)
    filled(buffer, len(values))
    buffer.update_priorities(np.arange(len(values)), priorities=values)
    return buffer


def frame(number: int, shape: tuple[int, ...] = (84, 84)) -> Any:
    """A frame that differs for each number."""
    rows = np.arange(np.prod(shape)).reshape(shape)
    return ((rows * (number + 1) + number) % 251).astype(np.uint8)


# -- What a buffer holds -----------------------------------------------------------------------------------------


def stored_indices(replay: Replay) -> Any:
    """Every stored index, one lane after the other, oldest first."""
    lanes = [
        np.arange(oldest, newest + 1, replay.num_envs) if oldest >= 0 else np.zeros(0, np.int64)
        for oldest, newest in zip(replay.oldest, replay.newest, strict=True)
    ]
    return np.concatenate(lanes)


def lane_sizes(replay: Replay) -> list[int]:
    """The number of transitions that each lane stores."""
    return [int((stored_indices(replay) % replay.num_envs == lane).sum()) for lane in range(replay.num_envs)]


class unchanged:  # noqa: N801
    """A context in which an error of a given type and message must be raised, and the replay stays bit-identical."""

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


# -- Nested values and batches -----------------------------------------------------------------------------------


def leaves_of(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of nested dicts and tuples with its path, such as ``obs.position.0``."""
    if isinstance(tree, dict | tuple):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from leaves_of(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, tree


def map_leaves(function: Callable[..., Any], *trees: Any) -> Any:
    """A tree of the same structure, with `function` of the corresponding leaves of some trees."""
    first = trees[0]
    if isinstance(first, dict):
        return {key: map_leaves(function, *(tree[key] for tree in trees)) for key in first}
    if isinstance(first, tuple):
        return tuple(map_leaves(function, *entries) for entries in zip(*trees, strict=True))
    return function(*trees)


def arrays_of(batch: Any) -> dict[str, Any]:
    """The arrays of a batch by path."""
    return dict(leaves_of(dict(batch.items())))


def stacked_lanes(values: Any, lanes: int) -> Any:
    """The values of several lanes, stacked; with one lane, its value as it is."""
    return values[0] if lanes == 1 else map_leaves(lambda *leaves: np.array(leaves), *values)


class StepByStep(ReplayWrapper):
    """A wrapper that changes nothing, but overrides `window`, so that batches are made by separate verbs."""

    def window(self, indices: Any) -> Any:
        return self.inner.window(indices)


# -- Goals -------------------------------------------------------------------------------------------------------

GOAL = Field((2,), np.float64)
GOAL_SPEC = Spec(obs={"achieved_goal": GOAL, "desired_goal": GOAL}, action=Field((), np.int64))
STRATEGIES = ("future", "final", "episode", "random")
UNREACHABLE = np.array([-1.0, -1.0])


def sparse(achieved_goal: Any, desired_goal: Any, info: Any) -> Any:
    """The reward -1, or 0 at the goal."""
    return (achieved_goal == desired_goal).all(axis=-1) - 1.0


def reached(achieved_goal: Any, desired_goal: Any, info: Any) -> Any:
    """Whether the goal is reached."""
    return (achieved_goal == desired_goal).all(axis=-1)


def state(lane: int, moment: int) -> Any:
    """A goal that contains its lane and the number of its observation."""
    return np.array([lane, moment], np.float64)


def goal_episodes(buffer: Replay, lengths: Any, ends: str | None = "truncated") -> int:
    """Add episodes of these lengths to every lane; observation numbers differ between episodes.

    Returns the number of observations of each lane.
    """
    lanes, moment = buffer.num_envs, 0
    for length in lengths:
        for t in range(length):
            now, then = (np.stack([state(e, moment + t + dt) for e in range(lanes)]) for dt in (0, 1))
            goals = np.tile(UNREACHABLE, (lanes, 1))
            if lanes == 1:
                now, then, goals = now[0], then[0], goals[0]
            flags: dict[str, Any] = {"terminated": np.zeros(lanes, bool), "truncated": np.zeros(lanes, bool)}
            if t == length - 1 and ends is not None:
                flags[ends][:] = True
            if lanes == 1:
                flags = {name: bool(flag[0]) for name, flag in flags.items()}
            buffer.add(
                {"achieved_goal": now, "desired_goal": goals},
                np.zeros((lanes,) if lanes > 1 else (), np.int64),
                np.full((lanes,) if lanes > 1 else (), -1.0),
                {"achieved_goal": then, "desired_goal": goals},
                **flags,
            )
        moment += length + 1
    return moment


# -- Sum trees ---------------------------------------------------------------------------------------------------

priorities = st.one_of(
    st.just(0.0),
    st.floats(1e-300, 1e300),
    st.sampled_from([1e-300, 1e300, 1.0, 0.1, 3.0]),
    st.floats(0.0, 10.0),
)


def tree_of(values: Any) -> SumTree:
    """A sum tree with these leaves."""
    tree = SumTree(len(values))
    tree.set(np.arange(len(values)), values)
    return tree


# -- Memory ------------------------------------------------------------------------------------------------------


def limit_memory(monkeypatch: pytest.MonkeyPatch, available: int) -> None:
    """Let the operating system report that `available` bytes of memory are free."""

    def open_file(file: Any, *arguments: Any, **options: Any) -> Any:
        if file == "/proc/meminfo":
            return io.StringIO(f"MemAvailable: {available // 1024} kB\n")
        return open_original(file, *arguments, **options)

    open_original = open
    monkeypatch.setattr("builtins.open", open_file)


# -- Processes ---------------------------------------------------------------------------------------------------


def run_in_child(function: Callable[[], Any]) -> None:
    """Run `function` in a forked child. Fails if it raises an error or hangs."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            function()
            code = 0
        finally:
            os._exit(code)
    deadline = time.monotonic() + 30
    while (status := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.001)
    if status == (0, 0):
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert os.waitstatus_to_exitcode(status[1]) == 0


# -- Interrupts --------------------------------------------------------------------------------------------------


def interrupted(call: Any, at: int, module: str = "") -> bool:
    """Run `call` and raise KeyboardInterrupt at the `at`-th line of the package, or of one module of it.

    Lines that set the flag of a running sample do not count: Python looks for signals after calls, and there is none
    between this assignment and the lines around it. Neither do those that read the size of the memory from open files.

    Returns whether there was such a line.
    """
    lines = 0

    def trace(frame: Any, event: str, _argument: Any) -> Any:
        nonlocal lines
        file = frame.f_code.co_filename
        if not (file.startswith(PACKAGE) and file.endswith(module)) or "_kernels" in file or "memory_limit" in file:
            return None
        line = linecache.getline(file, frame.f_lineno).strip()
        if event == "line" and line != "try:" and not line.startswith("lock.sampling ="):
            lines += 1
            if lines == at:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()  # of coverage
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


class Place(NamedTuple):
    """A bytecode of the package."""

    file: str
    number: int | None
    line: str
    bytecode: str


def interrupted_at(call: Any, at: int) -> Place | None:
    """Run `call` and raise KeyboardInterrupt before the `at`-th bytecode of the package. Returns the place or None.

    Kernels are not interrupted. Neither are the bytecodes from the end of the body of a ``with`` statement to the call
    of ``__exit__``, nor the one that enters a ``try`` statement: Python looks for signals after calls and jumps back.
    """
    count, place = 0, None

    def trace(frame: Any, event: str, _argument: Any) -> Any:
        nonlocal count, place
        file = frame.f_code.co_filename
        if event == "call":
            if not file.startswith((PACKAGE, "<replaykit")) or "_kernels" in file or "memory_limit" in file:
                return None
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        elif event == "opcode" and frame.f_lasti not in uninterrupted(frame.f_code):
            count += 1
            if count == at:
                number = frame.f_lineno
                line = linecache.getline(file, number or 0).strip()
                place = Place(file, number, line, dis.opname[frame.f_code.co_code[frame.f_lasti]])
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()  # of coverage
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return place


@functools.cache
def uninterrupted(code: Any) -> set[int]:
    """The offsets of bytecodes between the end of a ``with`` body and ``__exit__``, and of those without effect."""
    found, run = set[int](), list[int]()
    for instruction in dis.get_instructions(code):
        name = instruction.opname
        if name in ("SWAP", "PRECALL", "ROT_TWO", "DUP_TOP") or (name == "LOAD_CONST" and instruction.argval is None):
            run.append(instruction.offset)
            continue
        if name in ("CALL", "CALL_FUNCTION") and len(run) >= 3:  # __exit__(None, None, None)
            found.update([*run, instruction.offset])
        elif name == "NOP":
            found.add(instruction.offset)
        run = []
    return found
