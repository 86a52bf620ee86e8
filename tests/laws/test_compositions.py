"""Every wrapper around every other: a useful combination is lawful, and others raise an error with the reason."""

import functools
import itertools
import re

import numpy as np
import pytest
import torch

from replaykit import (
    CombinedReplay,
    Field,
    HindsightReplay,
    LargeBatchReplay,
    LatestBuffer,
    MixedReplay,
    PrioritizedBuffer,
    RateLimit,
    RateLimitedReplay,
    RecentReplay,
    ReplayBuffer,
    SequenceReplay,
    Spec,
)
from replaykit.testing import assert_lawful

SPEC = Spec(obs={"achieved_goal": Field((1,)), "desired_goal": Field((1,))}, action=Field(()))
T = 5
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def reward_of(achieved, desired, info):
    return 1.0 * (achieved == desired).all(axis=-1) - 1.0


def priorities_of(batch):
    return 1.0 + batch.indices % 3


def filled(make=ReplayBuffer, **options):
    """A buffer with forty of sixty steps, in episodes of eleven."""
    buffer = make(40, SPEC, seed=0, **options)
    for t in range(60):
        obs, next_obs = ({"achieved_goal": [x], "desired_goal": [9]} for x in (t, t + 1))
        buffer.add(obs, 0, -1.0, next_obs, t % 11 == 0, False)
    return buffer


def mixed_with_another(replay):
    sources = {"one": replay, "other": filled(device=replay.backend.device)}
    return MixedReplay(sources, shares={"one": 0.6, "other": 0.4}, add_to="one", seed=3)


BUFFERS = {
    "uniform": filled,
    "prioritized": lambda **place: filled(PrioritizedBuffer, n_step=1, weights="buffer", **place),
    "ranked": lambda **place: filled(PrioritizedBuffer, variant="rank", **place),
    "latest": lambda **place: filled(LatestBuffer, **place),
}
LAYERS = {
    "combined": CombinedReplay,
    "hindsight": lambda inner: HindsightReplay(inner, reward_of),
    "large": lambda inner: LargeBatchReplay(inner, 3, priority_fn=priorities_of),
    "mixed": mixed_with_another,
    "limited": lambda inner: RateLimitedReplay(inner, RateLimit(1.0)),
    "recent": lambda inner: RecentReplay(inner, 20),
    "sequences": lambda inner: SequenceReplay(inner, T, stride=2, burn_in=1),
}
REFUSED = {
    ("combined", "large"): "inner has a CombinedReplay",
    ("combined", "recent"): "inner contains a CombinedReplay",
    ("hindsight", "large"): "inner has a HindsightReplay",
    ("limited", "mixed"): "source 'one' has a RateLimit",
    ("large", "combined"): "inner contains a LargeBatchReplay, whose",
    ("large", "mixed"): "source 'one' has no probabilities of single",
    ("large", "recent"): "inner contains a LargeBatchReplay",
    ("large", "sequences"): "whose transitions have no probabilities",
    ("mixed", "recent"): "inner contains a MixedReplay",
    ("sequences", "mixed"): "source 'one' returns sequences",
    ("sequences", "recent"): "inner contains a SequenceReplay",
}
"""Inner and outer, with an outer wrapper anywhere around the inner one."""
NOT_ON_DEVICE = {"ranked", "large", "recent"}


def reasons_against(kind, layers):
    """The possible errors of a stack; empty if it can be built."""
    found = [REFUSED[pair] for pair in itertools.combinations(layers, 2) if pair in REFUSED]
    return found + ["inner contains a"] * (kind != "uniform" and "recent" in layers)


def stacked(kind, layers, **place):
    """A buffer in these wrappers, the innermost first."""
    return functools.reduce(lambda replay, name: LAYERS[name](replay), layers, BUFFERS[kind](**place))


PLACES = [(kind, None) for kind in BUFFERS] + [(kind, DEVICE) for kind in BUFFERS if kind not in NOT_ON_DEVICE]


@pytest.mark.parametrize(("kind", "device"), PLACES)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_every_order_is_lawful_or_refused_with_the_reason(kind, device, depth):
    """Batches, updates, episodes and epochs of every stack of different wrappers are lawful."""
    for layers in itertools.permutations([name for name in LAYERS if not device or name not in NOT_ON_DEVICE], depth):
        reasons = reasons_against(kind, layers)
        if reasons:
            with pytest.raises(ValueError, match="|".join(map(re.escape, reasons))):
                stacked(kind, layers, device=device)
            continue
        replay = stacked(kind, layers, device=device)
        batch = assert_lawful(replay, 6)
        assert ("source" in batch, "mask" in batch, "relabelled" in batch) == tuple(
            name in layers for name in ("mixed", "sequences", "hindsight")
        )
        is_prioritized = kind in ("prioritized", "ranked") and "recent" not in layers
        if "sequences" in layers:
            applied = replay.update_priorities(batch.indices, np.ones((6, T)), mask=batch.loss_mask)
        else:
            applied = replay.update_priorities(batch.indices, np.ones(6))
        assert (applied > 0) == is_prioritized, layers
        epoch = np.concatenate([part.to_numpy().indices for part in replay.epoch(7)])
        assert (
            sorted(epoch.tolist()) == replay.stored()[replay.begins_row(replay.stored())].tolist() or "mixed" in layers
        )
        assert sum(len(episode.indices) for episode in replay.episodes()) == len(replay)
