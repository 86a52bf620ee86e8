"""Hypothesis strategies: buffers of every kind, every stack of wrappers around them, and what to put in."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from replaykit.buffer import LatestBuffer, ReplayBuffer
from replaykit.combined import CombinedReplay
from replaykit.field import Field
from replaykit.prioritized import PrioritizedBuffer
from replaykit.replay import Replay
from replaykit.spec import Spec
from replaykit.testing.model import NaiveReplay
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
}
"""Specs that between them have every kind of field: packed and large, nested, of every width of word."""


@dataclass(frozen=True)
class Configuration:
    """A buffer and the wrappers around it."""

    kind: str
    spec: str
    capacity: int
    num_envs: int
    n_step: int
    gamma: float
    alpha: float
    beta: float
    eps: float
    draws: Any
    weights: Any
    combined: tuple[int, ...]
    seed: int


def configurations(kinds: tuple[str, ...] = ("uniform", "prioritized", "latest")) -> st.SearchStrategy[Configuration]:
    """Any buffer of these kinds, small enough to wrap around often."""
    return st.builds(
        Configuration,
        kind=st.sampled_from(kinds),
        spec=st.sampled_from(sorted(SPECS)),
        capacity=st.integers(1, 17),
        num_envs=st.integers(1, 4),
        n_step=st.integers(1, 5),
        gamma=st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]),
        alpha=st.sampled_from([0.0, 0.3, 0.6, 1.0]),
        beta=st.sampled_from([0.0, 0.4, 1.0]),
        eps=st.sampled_from([1e-2, 1.0]),
        draws=st.sampled_from(["stratified", "iid", "systematic"]),
        weights=st.sampled_from(["batch", "buffer", "none"]),
        combined=st.lists(st.integers(1, 3), max_size=2).map(tuple),
        seed=st.integers(0, 2**32 - 1),
    )


def build(configuration: Configuration) -> tuple[Replay, NaiveReplay]:
    """The replay that a configuration describes, and its model."""
    c = configuration
    spec = SPECS[c.spec]
    common: dict[str, Any] = {"num_envs": c.num_envs, "n_step": c.n_step, "gamma": c.gamma, "seed": c.seed}
    replay: Replay
    if c.kind == "prioritized":
        replay = PrioritizedBuffer(
            c.capacity,
            spec,
            alpha=c.alpha,
            beta=c.beta,
            eps=c.eps,
            draws=c.draws,
            weights=c.weights,
            **common,
        )
    else:
        replay = (ReplayBuffer if c.kind == "uniform" else LatestBuffer)(c.capacity, spec, **common)
    for latest in c.combined:
        replay = CombinedReplay(replay, latest)
    model = NaiveReplay(
        kind=c.kind,
        length=-(-c.capacity // c.num_envs),
        num_envs=c.num_envs,
        n_step=c.n_step,
        gamma=c.gamma,
        alpha=c.alpha,
        beta=c.beta,
        eps=c.eps,
        weights=c.weights,
        combined=list(c.combined),
    )
    return replay, model


def values_of(tree: Tree, number: int) -> Tree:
    """A value for a tree of fields that tells the `number` it was made from, so that a mix-up shows."""
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
