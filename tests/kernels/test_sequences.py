"""Rows of sequences, compared with definitions in lists."""

import numpy as np
import pytest

from tests.kernels.forms import both


@both
@pytest.mark.parametrize("num_envs", [1, 3])
def test_spans_begin_with_their_first_stored_step(kernels, num_envs):
    """Spans are counted from the first step of the episode, which may have been overwritten."""
    rng = np.random.default_rng(num_envs)
    for _ in range(100):
        stride, count = int(rng.integers(1, 6)), int(rng.integers(1, 9))
        begin, length = rng.integers(0, 9, num_envs), rng.integers(1, 12, num_envs)
        oldest = begin + rng.integers(0, length)
        bounds = np.stack((oldest, begin + length))
        lanes = rng.integers(0, num_envs, count)
        steps = rng.integers(oldest[lanes], (begin + length)[lanes])
        starts, stops = np.empty((2, count), np.int64)
        first, last = begin[lanes] * num_envs + lanes, (begin + length - 1)[lanes] * num_envs + lanes
        kernels.sequences.spans_of(steps * num_envs + lanes, first, last, bounds, stride, starts, stops)
        for step, lane, start, stop in zip(steps, lanes, starts.tolist(), stops.tolist(), strict=True):
            number = (step - begin[lane]) // stride
            stored = range(oldest[lane], begin[lane] + length[lane])
            span = [s for s in stored if (s - begin[lane]) // stride == number]
            assert (start, stop) == (span[0] * num_envs + lane, (span[-1] + 1) * num_envs + lane)


@both
@pytest.mark.parametrize("successor", [1, 4])
def test_rows_end_with_their_episodes(kernels, successor):
    """Past the end of an episode, the last step is repeated. An end under a new goal shortens the row."""
    rng = np.random.default_rng(successor)
    for _ in range(60):
        count, width, burn_in = int(rng.integers(1, 5)), int(rng.integers(1, 7)), int(rng.integers(0, 3))
        indices, behind, ahead = (rng.integers(0, high, count) * successor for high in (50, 3, 9))
        first, last = np.maximum(indices - behind, indices % successor), indices + ahead
        (steps, served), (opened, is_first) = (
            np.empty((2, count, width), np.int64),
            np.empty((2, count, width), np.bool_),
        )
        kernels.sequences.open_rows(indices, first, last, successor, steps, served, opened, is_first)
        terminated, length = rng.random(count * width) < 0.2, rng.integers(1, 4, count * width)
        mask, loss_mask, found = np.empty_like(opened), np.empty_like(opened), np.empty_like(steps)
        arguments = opened, is_first, steps, terminated, length, burn_in, mask, loss_mask, found
        padding = kernels.sequences.close_rows(*arguments)
        assert padding == (~mask).sum()
        for i in range(count):
            row = [indices[i] + t * successor for t in range(width)]
            real = [step for step in row if step <= last[i]]
            assert served[i].tolist() == real + [last[i]] * (width - len(real))
            assert opened[i].tolist() == [step <= last[i] for step in row]
            begins = indices[i] == first[i]
            assert is_first[i].tolist() == [begins and t == 0 for t in range(width)]
            ends = [t + length[i * width + t] for t in range(len(real)) if terminated[i * width + t]]
            kept = min([len(real), *ends])
            assert mask[i].tolist() == [t < kept for t in range(width)]
            assert loss_mask[i].tolist() == [t < kept and (begins or t >= burn_in) for t in range(width)]
            assert found[i].tolist() == [*row[:kept], *[-1] * (width - kept)]
