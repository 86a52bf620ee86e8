"""Indices of shards: one ring for all lanes, and a new range of steps after each restart."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replaykit.distributed.generations import STEPS, Generations


@given(st.integers(1, 6), st.integers(1, 4), st.data())
def test_indices_go_to_their_shard_and_back(shards, lanes, data):
    """In every generation, each index of a shard differs from all others, and is mapped back to its shard."""
    ring = Generations(shards, lanes)
    for k in data.draw(st.lists(st.integers(0, shards - 1), max_size=5)):
        ring.restart(k)
    own = [
        np.array(data.draw(st.lists(st.integers(0, STEPS * lanes - 1), max_size=5)), np.int64) for _ in range(shards)
    ]
    everywhere = np.concatenate([ring.mapped(k, part) for k, part in enumerate(own)])
    assert not ring.is_stale(everywhere).any()
    rows = ring.split(everywhere)
    for k, part in enumerate(own):
        np.testing.assert_array_equal(rows.own[k], part)
    assert (ring.ring.owner[everywhere % ring.successor] == np.repeat(np.arange(shards), list(map(len, own)))).all()
    assert len(set(everywhere.tolist())) == sum(len(set(part.tolist())) for part in own)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 3), st.integers(0, 100))
def test_a_restart_makes_older_indices_stale_and_never_gives_them_again(shards, lanes, k, step):
    """Successive generations of a shard have disjoint, ascending indices."""
    ring, k = Generations(shards, lanes), k % shards
    own = np.arange(step, step + 5 * lanes)
    before, cursors = ring.mapped(k, own), np.full(shards * lanes, step + 5)
    assert not ring.is_unknown(before, cursors).any()
    ring.restart(k)
    after = ring.mapped(k, own)
    assert (after == before + STEPS * ring.successor).all()
    assert ring.is_stale(before).all() and not ring.is_stale(after).any()
    assert not ring.is_unknown(before, cursors).any()
    assert ring.is_unknown(after, np.zeros_like(cursors)).all()
    assert (ring.bounds([np.zeros((2, lanes), np.int64)] * shards)[0, k * lanes : (k + 1) * lanes] == STEPS).all()


def test_padding_stays_padding():
    """The entry -1 of `step_indices` is the same in every shard."""
    ring = Generations(2, 2)
    ring.restart(1)
    np.testing.assert_array_equal(ring.mapped(1, np.array([[0, -1]])), [[2 + STEPS * 4, -1]])


def test_indices_run_out_with_an_error():
    """After about eight million restarts of a single lane, the next one raises an error. No index is reused."""
    ring = Generations(1, 1)
    ring.each = [ring.most]
    assert ring.mapped(0, np.array([STEPS - 1]))[0] == (ring.most + 1) * STEPS - 1 < 2**63
    with pytest.raises(OverflowError, match="no indices are left"):
        ring.restart(0)
