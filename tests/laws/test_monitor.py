"""ReplayMonitor changes no batch."""

import dataclasses
import pickle

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from replaykit.diagnostics import ReplayMonitor
from replaykit.testing import bits_of, build, configurations, values_of
from tests.helpers import stacked_lanes


@given(
    configuration=configurations(),
    actions=st.lists(st.sampled_from(["add", "add", "add", "sample", "sample", "update", "clear"]), max_size=40),
    every=st.integers(1, 3),
    masked=st.booleans(),
)
def test_batches_are_the_same_with_and_without_it(configuration, actions, every, masked):
    """Batches are the same bits with and without a monitor, in every stack, through every operation."""
    configuration = dataclasses.replace(configuration, alpha=0.7, eps=0.01)
    (watched, _), (alone, _) = build(configuration), build(configuration)
    rng = np.random.default_rng(configuration.seed)
    lanes, size = configuration.num_envs, 3 + sum(configuration.combined)
    watcher = ReplayMonitor(watched, every=every)
    batches = [None, None]
    for number, action in enumerate(actions):
        if action == "add":
            values = {name: [values_of(watched.spec[name], number + e) for e in range(lanes)] for name in watched.spec}
            values["terminated"], values["truncated"] = rng.random((2, lanes)) < 0.2
            mask = rng.random(lanes) < 0.7 if masked else None
            for replay in (watched, alone):
                replay.add(**{name: stacked_lanes(value, lanes) for name, value in values.items()}, mask=mask)
        elif action == "sample" and len(watched):
            batches = [replay.sample(size) for replay in (watched, alone)]
            assert bits_of(batches[0]) == bits_of(batches[1])
        elif action == "update" and batches[0] is not None:
            errors = rng.normal(size=size)
            for replay, batch in zip((watched, alone), batches, strict=True):
                replay.update_priorities(batch.indices, errors)
            watcher.record(batches[0], errors)
        elif action == "clear":
            watched.clear()
            alone.clear()
    assert pickle.dumps(watched.rng) == pickle.dumps(alone.rng)
    watched.check()
    assert set(watcher.stats()) == set(ReplayMonitor(alone).stats())
    assert all(type(value) is float for value in watcher.stats().values())
