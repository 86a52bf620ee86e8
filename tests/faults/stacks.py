"""The replays and the ways to add on which every fault is tested, and the check of an error."""

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pytest

from replaykit import (
    CombinedReplay,
    Field,
    HindsightReplay,
    LatestBuffer,
    PrioritizedBuffer,
    Replay,
    ReplayBuffer,
    Spec,
)
from tests.helpers import sparse

OTHERS = {"action": Field((), np.int64), "pixels": Field((2,), np.uint8)}
FLAT = Spec(Field((3,)), **OTHERS)
GOALS = Spec({"achieved_goal": Field((3,)), "desired_goal": Field((3,))}, **OTHERS)


class Stack(NamedTuple):
    """A buffer, or a buffer in wrappers."""

    make: Callable[..., Replay]
    spec: Spec = FLAT

    def build(self, capacity: int = 6, **options: Any) -> Replay:
        return self.make(capacity, self.spec, seed=0, **options)

    def steps(self, lead: tuple[int, ...] = (), **changes: Any) -> dict[str, Any]:
        """Values of all fields, with leading axes. A change of `obs` changes the achieved goal, if there is one."""
        obs = np.arange(3 * np.prod(lead, dtype=int), dtype=np.float32).reshape(*lead, 3)
        none = np.zeros(lead, np.bool_)
        fields = {"obs": obs, "action": np.ones(lead, np.int64), "reward": np.ones(lead, np.float32)}
        fields |= {"next_obs": obs + 1, "terminated": none, "truncated": none}
        fields |= {"pixels": np.ones((*lead, 2), np.uint8)} | changes
        if self.spec is GOALS:
            for name in fields.keys() & {"obs", "next_obs"}:
                fields[name] = {"achieved_goal": fields[name], "desired_goal": obs}
        return fields

    def name_of(self, field: str) -> str:
        """The name of a field in errors."""
        return f"{field}.achieved_goal" if self.spec is GOALS and field in ("obs", "next_obs") else field


STACKS = {
    "uniform": Stack(ReplayBuffer),
    "prioritized": Stack(PrioritizedBuffer),
    "latest": Stack(LatestBuffer),
    "combined": Stack(lambda *a, **k: CombinedReplay(PrioritizedBuffer(*a, **k))),
    "hindsight": Stack(lambda *a, **k: HindsightReplay(ReplayBuffer(*a, **k), sparse), GOALS),
    "both wrappers": Stack(lambda *a, **k: HindsightReplay(CombinedReplay(PrioritizedBuffer(*a, **k)), sparse), GOALS),
}


class Way(NamedTuple):
    """A way to add: `add` or `extend`, for some lanes, with a mask, with TD errors, or with neither."""

    verb: str
    lanes: int = 1
    option: str = ""

    @property
    def lead(self) -> tuple[int, ...]:
        lanes = (self.lanes,) if self.lanes > 1 else ()
        return (2, *lanes) if self.verb == "extend" else lanes

    def options(self) -> dict[str, Any]:
        if self.option == "mask":
            mask = np.ones(self.lead, np.bool_)
            mask[(..., -1) if self.lead else ()] = not self.lead
            return {"mask": mask}
        return {"td_error": np.ones(self.lead)} if self.option == "td_error" else {}


WAYS = {
    " ".join(filter(None, (verb, f"to {lanes} lanes" if lanes > 1 else "", option and f"with {option}"))): Way(
        verb, lanes, option
    )
    for verb in ("add", "extend")
    for lanes in (1, 2)
    for option in ("", "mask", "td_error")
}


class WayIn(NamedTuple):
    """A stack and a way to add to it."""

    stack: Stack
    way: Way

    def full(self, **options: Any) -> Replay:
        """A full buffer whose ring has gone round, with priorities."""
        replay = self.stack.build(num_envs=self.way.lanes, **options)
        lanes = (self.way.lanes,) if self.way.lanes > 1 else ()
        replay.extend(**self.stack.steps((10, *lanes)))
        stored = replay.stored()
        replay.update_priorities(stored, np.arange(1.0, 1.0 + len(stored)))
        replay.sample(3)
        return replay

    def call(self, replay: Replay, **changes: Any) -> Any:
        """Add or extend, with these values in place of good ones."""
        return getattr(replay, self.way.verb)(**self.stack.steps(self.way.lead, **changes), **self.way.options())

    def repeated(self, value: Any) -> Any:
        """The value of one step for all steps and lanes of the call."""
        if not self.way.lead:
            return value
        return np.full(self.way.lead + np.shape(value), value, np.asarray(value).dtype)

    def name_of(self, field: str) -> str:
        return self.stack.name_of(field)


_TRIED = dict.fromkeys(STACKS, ("add", "extend to 2 lanes with mask"))
_TRIED |= {"uniform": tuple(WAYS), "prioritized": ("add", "add to 2 lanes with td_error", "extend with td_error")}
_WAYS_IN = {f"{stack}: {way}": WayIn(STACKS[stack], WAYS[way]) for stack in STACKS for way in _TRIED[stack]}
every_stack = pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
every_way_in = pytest.mark.parametrize("way_in", _WAYS_IN.values(), ids=_WAYS_IN)
prioritized_stacks = [stack for name, stack in STACKS.items() if name in ("prioritized", "combined", "both wrappers")]


def full(stack: Stack, **options: Any) -> Replay:
    """A full buffer of one lane whose ring has gone round."""
    return WayIn(stack, WAYS["add"]).full(**options)


@contextmanager
def refused(replay: Replay | None, error: Any, *words: Any) -> Iterator[None]:
    """Context in which an error is raised whose message has all words, and the replay stays bit-identical.

    The words are the name of the argument or field, what was expected, and what was given.
    """
    before = pickle.dumps(replay)
    with pytest.raises(error) as caught:
        yield
    message = str(caught.value)
    missing = [word for word in words if str(word) not in message]
    assert not missing, f"the error does not say {missing}: {message}"
    assert pickle.dumps(replay) == before, "a refused call changed the replay"
