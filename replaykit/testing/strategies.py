"""Hypothesis strategies: buffers of every kind, every stack of wrappers around them, and values to add."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from replaykit.buffer import Buffer
from replaykit.buffers import LatestBuffer, PrioritizedBuffer, ReplayBuffer
from replaykit.combined import CombinedReplay
from replaykit.distributions import Distribution, Latest, Proportional, Rank, Uniform
from replaykit.field import Field
from replaykit.hindsight import HindsightReplay
from replaykit.large_batch import LargeBatchReplay
from replaykit.recent import RecentReplay
from replaykit.replay import Replay
from replaykit.spec import Spec
from replaykit.storage import LocalStorage, Storage
from replaykit.testing.model import NaiveHindsight, NaiveReplay
from replaykit.trees import Tree

SPECS = {
    "flat": Spec(obs=Field((3,)), action=Field((), np.int64)),
    "nested": Spec(
        obs={"image": Field((2, 2), np.uint8), "pair": (Field((), np.float64), Field((1,), np.int16))},
        action=(Field((2,), np.float16), Field((), np.bool_)),
        reward=Field((), np.float64),
        info={"z": Field((), np.complex64)},
    ),
    "large": Spec(obs=Field((300,), np.float32), action=Field((5,), np.int8)),
    "frames": Spec(obs=Field((3, 5), np.uint8), action=Field(()), big=Field((1030,), np.uint8)),
    "stacked": Spec(obs=Field((4, 17, 17), np.uint8), action=Field(())),
    "goal": Spec(
        obs={"camera": Field((4, 2), np.float32), "achieved_goal": Field((2,)), "desired_goal": Field((2,))},
        action=Field((), np.int64),
        cost=Field((), np.float64),
    ),
    "objectives": Spec(
        obs={"achieved_goal": Field((2,)), "desired_goal": Field((2,))},
        action=Field((), np.int64),
        reward=Field((3,)),
        cost=Field((), np.float64),
    ),
    "goals": Spec(
        obs={
            "speed": Field((), np.float64),
            "target": Field((260,)),
            "place": Field((260,)),
            "target_speed": Field((), np.float64),
        },
        action=Field((), np.int64),
        cost=Field((), np.float64),
    ),
}
"""Specs that together have every kind of field: packed, large and nested fields, every word size, single and stacked
frames, rewards of several numbers, and goals of several fields."""


def reward_of_goal(achieved_goal: Any, desired_goal: Any, info: dict[str, Any]) -> Any:
    """A reward that identifies its arguments, and whether the goal was reached."""
    reached = (achieved_goal == desired_goal).all(axis=-1)
    return achieved_goal[:, 0] - 2 * desired_goal[:, 1] + info["cost"] + 1000 * reached


def rewards_of_goal(achieved_goal: Any, desired_goal: Any, info: dict[str, Any]) -> Any:
    """Three such rewards, each with different numbers."""
    first = reward_of_goal(achieved_goal, desired_goal, info)
    rewards = first, achieved_goal[:, 1] - desired_goal[:, 0] + 0.0 * first, 0.3 * first
    if isinstance(first, np.ndarray):
        return np.stack(rewards, axis=1)
    import torch

    return torch.stack(rewards, dim=1)


def is_near(achieved_goal: Any, desired_goal: Any, info: dict[str, Any]) -> Any:
    """Whether the goal is near. This is also true some steps before and after it."""
    return abs(achieved_goal - desired_goal)[:, 0] < 1.5


def size_of(reward: Any) -> Any:
    """A priority for each reward, of one number or of several."""
    return np.abs(np.asarray(reward, np.float64)).reshape(len(reward), -1).sum(axis=1) + 0.25


def size_of_reward(batch: Any) -> Any:
    """`size_of` for the rows of a large batch."""
    return size_of(batch.reward)


def reward_of_goals(achieved_goal: Any, desired_goal: Any, info: dict[str, Any]) -> Any:
    """A reward that identifies its arguments, for goals of two fields."""
    (place, speed), (target, target_speed) = achieved_goal, desired_goal
    reached = (place == target).all(axis=-1) & (speed == target_speed)
    return place[:, 0] - 2 * target[:, -1] + 3 * speed - 4 * target_speed + info["cost"] + 1000 * reached


def are_near(achieved_goal: Any, desired_goal: Any, info: dict[str, Any]) -> Any:
    """Whether both goals are near."""
    (place, speed), (target, target_speed) = achieved_goal, desired_goal
    return (abs(place - target)[:, 0] < 1.5) & (abs(speed - target_speed) < 1.5)


_GOALS: dict[str, dict[str, Any]] = {
    "goal": {"reward_fn": reward_of_goal, "terminated_fn": is_near},
    "objectives": {"reward_fn": rewards_of_goal, "terminated_fn": is_near},
    "goals": {
        "reward_fn": reward_of_goals,
        "terminated_fn": are_near,
        "achieved_goal": ("place", "speed"),
        "desired_goal": ("target", "target_speed"),
    },
}
"""The arguments of a ``HindsightReplay`` for each spec that has goals."""


@dataclass(frozen=True)
class Relabelling:
    """The ``HindsightReplay`` of a configuration. If `terminates`, it has a `terminated_fn`. If `is_outermost`, it is
    around every ``CombinedReplay``, otherwise inside all of them.
    """

    strategy: Any
    ratio: float
    terminates: bool
    is_outermost: bool

    def options(self, spec: str) -> dict[str, Any]:
        """Its arguments for transitions of the spec of this name."""
        options = _GOALS[spec] | {"strategy": self.strategy, "ratio": self.ratio}
        return options if self.terminates else options | {"terminated_fn": None}


@dataclass(frozen=True)
class Configuration:
    """A buffer and the wrappers around it."""

    kind: str
    spec: str
    capacity: int
    num_envs: int
    n_step: int
    gamma: float
    stack: int
    padding: Any
    share: Any
    alpha: float
    beta: float
    eps: float
    draws: Any
    weights: Any
    combined: tuple[int, ...]
    hindsight: Relabelling | None
    seed: int
    replace: bool = True
    recent: int | None = None
    large: int | None = None


def configurations(
    kinds: tuple[str, ...] = ("uniform", "prioritized", "rank", "latest"),
    specs: tuple[str, ...] = tuple(SPECS),
    replace: tuple[bool, ...] = (True,),
    recent: tuple[int | None, ...] = (None,),
    large: tuple[int | None, ...] = (None,),
) -> st.SearchStrategy[Configuration]:
    """Any buffer of these kinds and specs, small enough to be overwritten often, and any wrappers that suit its spec.

    Uniform buffers draw with replacement by default; see `replace`. If `recent` or `large` has a number, a
    ``RecentReplay`` or a ``LargeBatchReplay`` with this argument is around the buffer, inside all other wrappers. A
    ``RecentReplay`` needs uniform buffers, and a ``LargeBatchReplay`` has no ``CombinedReplay`` around it.
    """
    options = {"replace": st.sampled_from(replace), "recent": st.sampled_from(recent), "large": st.sampled_from(large)}
    return st.sampled_from(specs).flatmap(lambda spec: _configurations(kinds, spec, options))


def _configurations(
    kinds: tuple[str, ...], spec: str, options: dict[str, st.SearchStrategy[Any]]
) -> st.SearchStrategy[Configuration]:
    relabellings = st.builds(
        Relabelling,
        strategy=st.sampled_from(["future", "final", "episode", "random"]),
        ratio=st.sampled_from([0.0, 0.5, 0.8, 1.0]),
        terminates=st.booleans(),
        is_outermost=st.booleans(),
    )
    has_frames = any(leaf.name.startswith("obs") and len(leaf.shape) >= 2 for leaf in SPECS[spec].leaves)
    return st.builds(
        Configuration,
        kind=st.sampled_from(kinds),
        spec=st.just(spec),
        capacity=st.integers(1, 17),
        num_envs=st.integers(1, 4),
        n_step=st.integers(1, 5),
        gamma=st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]),
        stack=st.integers(1, 4) if has_frames else st.just(1),
        padding=st.sampled_from(["reset", "zero"]),
        share=st.sampled_from(["large", "all", "none"]),
        alpha=st.sampled_from([0.0, 0.3, 0.6, 1.0]),
        beta=st.sampled_from([0.0, 0.4, 1.0]),
        eps=st.sampled_from([1e-2, 1.0]),
        draws=st.sampled_from(["stratified", "iid"]),
        weights=st.sampled_from(["batch", "buffer", "none"]),
        combined=st.lists(st.integers(1, 3), max_size=2).map(tuple),
        hindsight=relabellings if spec in _GOALS else st.none(),
        seed=st.integers(0, 2**32 - 1),
        **options,
    )


def build(
    configuration: Configuration,
    model: type[NaiveReplay] = NaiveReplay,
    *,
    storage: Callable[[int, Spec, int], Storage] | None = None,
    distribution: Callable[[Storage], Distribution] | None = None,
) -> tuple[Replay, NaiveReplay]:
    """The replay that a configuration describes, and its model.

    Parameters
    ----------
    configuration : Configuration
    model : type
        `NaiveReplay`, or a subclass of it.
    storage : callable, optional
        A function of a capacity, a spec and a number of lanes. It returns the storage to use instead of a
        ``LocalStorage``. Observations are then not stacked.
    distribution : callable, optional
        A function of a storage. It returns the distribution to use instead of the configuration's. The model must know
        its probabilities.
    """
    c = configuration
    spec = SPECS[c.spec]
    shared: dict[str, Any] = {
        "num_envs": c.num_envs,
        "n_step": c.n_step,
        "gamma": c.gamma,
        "stack": c.stack if storage is None else 1,
        "padding": c.padding,
    }
    priorities: dict[str, Any] = {"alpha": c.alpha, "beta": c.beta, "eps": c.eps, "weights": c.weights}
    replay: Replay
    if storage is not None or distribution is not None:
        if storage is None:
            place: Storage = LocalStorage(c.capacity, spec, c.num_envs, stack=c.stack, padding=c.padding, share=c.share)
        else:
            place = storage(c.capacity, spec, c.num_envs)
        if distribution is not None:
            drawn = distribution(place)
        elif c.kind == "prioritized":
            drawn = Proportional(place, draws=c.draws, **priorities)
        elif c.kind == "rank":
            drawn = Rank(place, draws=c.draws, alpha=c.alpha, beta=c.beta, weights=c.weights)
        else:
            drawn = Uniform(place, replace=c.replace) if c.kind == "uniform" else Latest(place)
        replay = Buffer(place, drawn, n_step=c.n_step, gamma=c.gamma, seed=c.seed)
    else:
        common = shared | {"share": c.share, "seed": c.seed}
        if c.kind == "prioritized":
            replay = PrioritizedBuffer(c.capacity, spec, draws=c.draws, **priorities, **common)
        elif c.kind == "rank":
            options = {name: value for name, value in priorities.items() if name != "eps"}
            replay = PrioritizedBuffer(c.capacity, spec, draws=c.draws, variant="rank", **options, **common)
        elif c.kind == "uniform":
            replay = ReplayBuffer(c.capacity, spec, replace=c.replace, **common)
        else:
            replay = LatestBuffer(c.capacity, spec, **common)
    if c.recent is not None:
        replay = RecentReplay(replay, newest=c.recent)
    if c.large is not None:
        replay = LargeBatchReplay(replay, c.large, priority_fn=size_of_reward)
    combined = c.combined if c.large is None else ()
    if c.hindsight is not None and not c.hindsight.is_outermost:
        replay = HindsightReplay(replay, **c.hindsight.options(c.spec))
    for latest in combined:
        replay = CombinedReplay(replay, latest)
    if c.hindsight is not None and c.hindsight.is_outermost:
        replay = HindsightReplay(replay, **c.hindsight.options(c.spec))
    draws = {"uniform": "iid", "prioritized": c.draws, "rank": c.draws}.get(c.kind) if distribution is None else None
    naive = model(
        kind=c.kind,
        length=-(-c.capacity // c.num_envs),
        **shared,
        **priorities,
        draws=draws,
        replace=c.replace or c.kind != "uniform" or distribution is not None,
        combined=list(combined),
        hindsight=None if c.hindsight is None else NaiveHindsight(**c.hindsight.options(c.spec)),
        recent=c.recent,
        large=c.large,
        priority_fn=size_of,
    )
    return replay, naive


def values_of(tree: Tree, number: int) -> Tree:
    """A value for a tree of fields that identifies its `number`, so that tests detect values in the wrong place."""
    if isinstance(tree, dict):
        return {key: values_of(value, number + i) for i, (key, value) in enumerate(tree.items())}
    if isinstance(tree, tuple):
        return tuple(values_of(value, number + i) for i, value in enumerate(tree))
    grid = number + np.arange(np.prod(tree.shape, dtype=int)).reshape(tree.shape)
    if tree.dtype.kind in "iu":
        return (grid % 127).astype(tree.dtype)
    if tree.dtype.kind == "b":
        return (grid % 3 == 0).astype(tree.dtype)
    return (grid * 0.1).astype(tree.dtype)
