"""Frames kept once: the same batches as when everything is stored."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replaykit import Field, ReplayBuffer, Spec
from replaykit.testing import assert_lawful, bits_of
from tests.helpers import frame


@given(
    shape=st.sampled_from([(300,), (40, 40), (3, 20, 20), (4, 20, 20), (2, 2, 2, 200)]),
    dtype=st.sampled_from([np.uint8, np.float32, np.float64, np.complex64, np.bool_]),
    lanes=st.integers(1, 3),
    length=st.integers(1, 6),
    n_step=st.integers(1, 3),
    stack=st.integers(1, 3),
    padding=st.sampled_from(["reset", "zero"]),
    data=st.data(),
)
@settings(max_examples=2 * settings().max_examples)
@pytest.mark.filterwarnings("ignore:.* contains NaN or:RuntimeWarning")
def test_batches_do_not_depend_on_sharing(shape, dtype, lanes, length, n_step, stack, padding, data):
    """Batches are the same bits with and without shared frames, for every kind of stream.

    Frames are equal only if their bits are: NaN is, and 0.0 and -0.0 are not.
    """
    stack = stack if len(shape) >= 2 else 1
    spec = Spec(obs=Field(shape, dtype), action=Field(()))
    options = {"num_envs": lanes, "n_step": n_step, "stack": stack, "padding": padding, "seed": 0}
    buffers = [ReplayBuffer(lanes * length, spec, share=share, **options) for share in ("large", "all", "none")]
    palette = [np.zeros(shape, dtype), np.full(shape, 1).astype(dtype), frame(3, shape).astype(dtype)]
    if np.dtype(dtype).kind in "fc":
        palette += [-palette[0], np.full(shape, np.nan, dtype)]
    choice = st.integers(0, len(palette) - 1)
    last = [palette[0]] * lanes
    for _ in range(data.draw(st.integers(1, 14), label="calls")):
        steps = data.draw(st.sampled_from([None, None, 0, 1, 2, 7]), label="steps")
        grid = []
        for _ in range(1 if steps is None else steps):
            row = []
            for lane in range(lanes):
                move = data.draw(st.sampled_from(["on", "shifted", "still", "elsewhere", "edited"]), label="move")
                obs = palette[data.draw(choice)] if move == "elsewhere" else last[lane]
                new = palette[data.draw(choice)]
                if move == "shifted":
                    new = np.concatenate((obs[1:], new[:1]))
                elif move == "still":
                    new = obs
                elif move == "edited":
                    new = obs.copy()
                    new.view(np.uint8).flat[-1] ^= 1
                last[lane] = new
                end = data.draw(st.sampled_from([0, 0, 0, 1, 2]), label="end")
                row.append((obs, 0.0, 0.0, new, end == 1, end == 2))
            grid.append(row)
        lead = (() if steps is None else (steps,)) + (() if lanes == 1 else (lanes,))
        if grid:
            arrays = [np.array([[e[i] for e in row] for row in grid]) for i in range(6)]
            arrays = [array.reshape(lead + array.shape[2:]) for array in arrays]
        else:
            arrays = [np.zeros(lead + s, t) for s, t in [(shape, dtype), ((), "f4"), ((), "f4"), (shape, dtype)]]
            arrays += [np.zeros(lead, np.bool_)] * 2
        mask = None
        if data.draw(st.booleans(), label="masked") and lead:
            count = int(np.prod(lead))
            mask = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)), np.bool_).reshape(lead)
        after = data.draw(st.sampled_from(["", "", "", "end_episode", "clear"]), label="after")
        for buffer in buffers:
            (buffer.add if steps is None else buffer.extend)(*arrays, mask=mask)
            if after:
                getattr(buffer, after)()
    if len(buffers[0]):
        batches = [bits_of(assert_lawful(buffer, 9)) for buffer in buffers]
        assert batches[0] == batches[1] == batches[2]
