"""Checks of a saved state of a `LocalStorage`. A correct checksum alone does not make a state valid."""

from typing import Any

import numpy as np
import numpy.typing as npt

from replaykit._kernels import lazy
from replaykit.chunks import Chunks, pieces

kernels: Any = lazy("store")

LARGEST_STEP = 1 << 62
"""All indices are smaller than this."""


def require(holds: Any, problem: str) -> None:
    """Raise ValueError with `problem` if `holds` is false."""
    if not holds:
        raise ValueError(problem)


def check_array(name: str, array: Any, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
    """Raise ValueError unless `array` has this shape and dtype."""
    is_array = isinstance(array, np.ndarray)
    require(is_array and array.shape == shape and array.dtype == dtype, f"{name} is not an array {shape} of {dtype}")


def check_rows(name: str, rows: npt.NDArray[Any], count: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Raise ValueError unless `rows` has `count` rows of this shape and dtype."""
    check_array(name, rows, (count, *shape), dtype)
    require(dtype != np.bool_ or rows.view(np.uint8).max(initial=0) <= 1, f"{name} has other bytes than 0 and 1")


def starts_of(storage: Any, bounds: npt.NDArray[np.int64], running: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The first index of the oldest episode within the bounds of each lane; for an empty lane, that in `running`."""
    oldest = (bounds[0] * storage.num_envs + np.arange(storage.num_envs)) % storage.capacity
    places = storage.tables[kernels.NUMBER, oldest] % storage.capacity
    return np.where(bounds[0] < bounds[1], storage.tables[kernels.STARTS, places], running)


def check_lanes_and_rows(storage: Any, state: dict[str, Any]) -> None:
    """Raise ValueError for an impossible state of a `LocalStorage`, apart from its columns."""
    _check_lanes(state, storage.num_envs)
    for name, chunks in state.items():
        if isinstance(chunks, Chunks):
            is_alike = chunks.slots.capacity == state["capacity"]
            require(is_alike and np.array_equal(chunks.slots.bounds, state["lanes"][:2]), f"{name} is of other steps")
    _check_rows(storage, state)
    if state["split"] >= 0:
        for indices, stamps in pieces(state["stamps"]):
            check_rows("stamps", stamps, len(indices), (), np.dtype(np.int64))


def _check_lanes(state: dict[str, Any], num_envs: int) -> None:
    """Raise ValueError for an impossible state of the lanes of a `LocalStorage`."""
    capacity, lane, lanes = state["capacity"], np.arange(num_envs), state["lanes"]
    require(type(capacity) is int and 0 < capacity < LARGEST_STEP, f"capacity is {capacity!r:.30}")
    require(capacity % num_envs == 0, f"capacity {capacity} is not a multiple of {num_envs}")
    check_array("lanes", lanes, (4, num_envs), np.int64)
    check_array("oldest", state["oldest"], (num_envs,), np.int64)
    check_array("starts", state["starts"], (num_envs,), np.int64)
    (first, cursor, over, episode), oldest, starts = lanes, state["oldest"], state["starts"]
    require((first >= 0).all() and (first <= cursor).all(), "a lane's oldest step is newer than its next")
    require((cursor < LARGEST_STEP // num_envs).all(), "a lane has too many steps")
    require((cursor - first <= capacity // num_envs).all(), "a lane holds more than fits")
    require(((oldest >= first) & (oldest <= cursor)).all(), "oldest is outside the lane")
    require(np.isin(over, (0, 1)).all(), "a flag of a lane is neither 0 nor 1")
    is_number = (episode >= lane - num_envs) & (episode <= (cursor - 1) * num_envs + lane)  # each has at least one step
    is_number &= (episode - lane) % num_envs == 0
    require(is_number.all(), "an episode has an impossible number")
    goes_on = (over == 0) | (oldest < cursor)
    require((~goes_on | (episode >= lane)).all(), "a running episode has no number")
    require((starts >= 0).all() and (starts <= oldest * num_envs + lane)[goes_on].all(), "an episode starts too late")
    require(((starts - lane) % num_envs == 0)[goes_on].all(), "an episode starts in another lane")
    split = state["split"]
    require(type(split) is int and -1 <= split <= cursor.sum(), f"split is {split!r:.30}")


def _check_rows(storage: Any, state: dict[str, Any]) -> None:
    """Raise ValueError for impossible bytes in the rows: flags, rewards that are not finite, episode numbers."""
    lanes, oldest = state["lanes"], state["oldest"]
    row, leaves, num_envs = storage.row, storage.spec.leaves, storage.num_envs
    of_flags = [(row.place[i], leaves[i].field.nbytes) for i in row.packed if leaves[i].dtype == np.bool_]
    flags = np.array([place + k for place, size in of_flags for k in range(size)] + [row.end])
    terminated, truncated = (row.place[storage.positions[name]] for name in ("terminated", "truncated"))
    ended = np.zeros(num_envs, np.int64)
    for indices, rows in pieces(state["rows"]):
        check_rows("rows", rows, len(indices), (row.nbytes,), np.dtype(np.uint8))
        require(rows[:, flags].max(initial=0) <= 1, "a flag has other bytes than 0 and 1")
        ends = rows[:, row.end]
        require((ends >= rows[:, terminated] | rows[:, truncated]).all(), "an episode goes on after its last step")
        rewards = np.ascontiguousarray(rows).view(row.record).reshape(-1)[str(storage.positions["reward"])]
        require(np.isfinite(rewards).all(), "a reward is not finite")
        step, lane = np.divmod(indices, num_envs)
        is_left, is_newest = step >= oldest[lane], step == lanes[1, lane] - 1
        is_over = lanes[2, lane] >= (rows[:, terminated] | rows[:, truncated])
        require(is_over[is_left & is_newest].all(), "a lane goes on after its last step")
        np.add.at(ended, lane[(ends != 0) & is_left & ~is_newest], 1)
    is_number = lanes[3] - ended * num_envs >= np.arange(num_envs)
    require(is_number[oldest < lanes[1]].all(), "there are more episodes than their numbers say")


def check_episodes(storage: Any, indices: npt.NDArray[np.int64], newest: int) -> None:
    """Verify the episode table for all stored indices of a lane, whose newest episode has the number `newest`."""
    number, first, last = storage.episode(indices)
    begins = np.r_[True, storage.rows[indices % storage.capacity, storage.row.end][:-1] != 0]
    run = np.cumsum(begins) - 1
    stops = np.r_[np.flatnonzero(begins)[1:] - 1, indices.size - 1][run]
    assert (last == indices[stops]).all(), "an episode's end is wrong"
    assert (np.diff(number) == storage.num_envs * begins[1:]).all(), "episode numbers are not consecutive"
    assert ((number - indices) % storage.num_envs == 0).all(), "an episode of another lane"
    assert number[-1] == newest, "the newest episode is wrong"
    starts = indices[np.flatnonzero(begins)][run]
    assert (first[run > 0] == starts[run > 0]).all(), "an episode's start is wrong"
    assert (first[run == 0] <= indices[0]).all(), "an episode starts after its steps"
