"""The model: what a buffer promises, in lists and loops that one can check by reading."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class NaiveStep:
    """One stored transition, as it was given."""

    lane: int
    index: int
    fields: dict[str, Any]
    scaled: float
    ends_episode: bool
    episode: int
    start: int


@dataclass
class NaiveReplay:
    """A buffer of any kind with any number of combined wrappers, without a single clever step.

    Attributes
    ----------
    kind : {"uniform", "prioritized", "latest"}
    length : int
        Slots of each lane, L.
    num_envs, n_step, gamma, alpha, beta, eps, weights
        As those of the buffers.
    combined : list of int
        `latest` of each ``CombinedReplay`` around the buffer, the innermost first.
    """

    kind: str
    length: int
    num_envs: int
    n_step: int
    gamma: float
    alpha: float = 0.6
    beta: float = 0.4
    eps: float = 1e-2
    weights: str = "batch"
    combined: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.steps: list[NaiveStep] = []  # alive, in the order in which they were added
        self.added = [0] * self.num_envs
        self.episodes = [0] * self.num_envs
        self.begins = [True] * self.num_envs
        self.starts = [0] * self.num_envs

    # -- Writing ---------------------------------------------------------------------------------------------

    def add(self, lane: int, fields: dict[str, Any], scaled: float) -> int:
        """Store one step of one lane and drop the lane's oldest if it is full; its index."""
        index = self.added[lane] * self.num_envs + lane
        if self.begins[lane]:
            self.episodes[lane] += 1
            self.starts[lane] = index
        ends = bool(fields["terminated"]) or bool(fields["truncated"])
        self.steps.append(NaiveStep(lane, index, fields, scaled, ends, self.episodes[lane], self.starts[lane]))
        self.added[lane] += 1
        self.begins[lane] = ends
        of_lane = self.lane(lane)
        if len(of_lane) > self.length:
            self.steps.remove(of_lane[0])
        return index

    def initial(self) -> float:
        """The scaled priority of a new transition: the largest stored, 1 if there is none."""
        return max((step.scaled for step in self.steps), default=0.0) or 1.0

    def scaled(self, td_error: float) -> float:
        """``(abs(td_error) + eps)**alpha``."""
        return float((abs(td_error) + self.eps) ** self.alpha)

    def update(self, indices: list[int], scaled: list[float]) -> int:
        """Set scaled priorities; how many entries were of living transitions."""
        applied = 0
        for index, value in zip(indices, scaled, strict=True):
            for step in self.steps:
                if step.index == index:
                    step.scaled = value
                    applied += 1
        return applied

    def end_episode(self, lanes: list[int]) -> None:
        """The next step of these lanes begins another episode."""
        for lane in lanes:
            self.begins[lane] = True
            for step in self.lane(lane)[-1:]:
                step.ends_episode = True

    def reset(self) -> None:
        """Forget every transition, but not how many there were."""
        self.steps.clear()
        self.begins = [True] * self.num_envs

    # -- Reading ---------------------------------------------------------------------------------------------

    def lane(self, lane: int) -> list[NaiveStep]:
        """The living steps of a lane, oldest first."""
        return [step for step in self.steps if step.lane == lane]

    def newest(self, count: int) -> list[int]:
        """Indices of the `count` transitions added last, oldest first."""
        return [step.index for step in self.steps[-count:]]

    def window(self, index: int) -> list[NaiveStep]:
        """Up to `n_step` steps from `index` on, until the episode ends or nothing is stored."""
        (start,) = (step for step in self.steps if step.index == index)
        window = [start]
        for step in self.lane(start.lane):
            if step.index > start.index and len(window) < self.n_step and not window[-1].ends_episode:
                window.append(step)
        return window

    def reduced(self, index: int) -> dict[str, Any]:
        """The transition that a batch holds for `index`."""
        window = self.window(index)
        first, last = window[0].fields, window[-1].fields
        dtype = np.asarray(first["reward"]).dtype.type
        total = 0.0
        for k, step in enumerate(window):
            total += self.gamma**k * float(step.fields["reward"])
        discount = 0.0 if last["terminated"] else self.gamma ** len(window)
        return {
            **first,
            "reward": dtype(total),
            "next_obs": last["next_obs"],
            "terminated": last["terminated"],
            "truncated": last["truncated"],
            "discount": dtype(discount),
            "length": len(window),
        }

    def shares(self, batch_size: int, wrappers: int | None = None) -> dict[int, float]:
        """The expected share of every living index in a batch, under the innermost `wrappers` (all) of the wrappers."""
        wrappers = len(self.combined) if wrappers is None else wrappers
        indices = [step.index for step in self.steps]
        if wrappers:
            newest = self.newest(self.combined[wrappers - 1])
            drawn = batch_size - len(newest)
            inner = self.shares(drawn, wrappers - 1) if drawn else dict.fromkeys(indices, 0.0)
            return {index: (drawn * inner[index] + (index in newest)) / batch_size for index in indices}
        if self.kind == "uniform":
            return {index: 1.0 / len(indices) for index in indices}
        if self.kind == "latest":
            newest = self.newest(batch_size)
            counts = dict.fromkeys(indices, 0)
            for place in range(batch_size):
                counts[newest[place % len(newest)]] += 1
            return {index: counts[index] / batch_size for index in indices}
        total = math.fsum(step.scaled for step in self.steps) or 1.0
        return {step.index: step.scaled / total for step in self.steps}

    def weigh(self, probabilities: list[float], shares: dict[int, float]) -> list[float]:
        """The weights of a batch with these probabilities."""
        if self.kind != "prioritized":
            return [1.0] * len(probabilities)
        weights = [(len(self.steps) * q) ** -self.beta for q in probabilities]
        if self.weights == "none":
            return weights
        everything = [(len(self.steps) * q) ** -self.beta for q in shares.values() if q > 0.0]
        return [weight / max(weights if self.weights == "batch" else everything) for weight in weights]

    # -- Comparing -------------------------------------------------------------------------------------------

    def assert_batch(self, batch: Any, batch_size: int) -> None:
        """Compare a batch with the model: what is stored bit for bit, probabilities and weights to rounding."""
        indices = [int(index) for index in batch.indices]
        assert len(indices) == batch_size
        tail = [index for k in self.combined for index in self.newest(k)]
        assert indices[batch_size - len(tail) :] == tail, "the newest are not at the end of the batch"
        if self.kind == "latest" and batch_size > len(tail):
            newest, drawn = self.newest(batch_size - len(tail)), indices[: batch_size - len(tail)]
            assert drawn == [newest[place % len(newest)] for place in range(len(drawn))], "not the newest"
        for row, index in enumerate(indices):
            for name, expected in self.reduced(index).items():
                assert_same(expected, batch[name], row, name)
        shares = self.shares(batch_size)
        np.testing.assert_allclose(batch.probabilities, [shares[index] for index in indices], rtol=1e-9)
        weights = self.weigh([float(q) for q in batch.probabilities], shares)
        np.testing.assert_allclose(batch.weights, weights, rtol=2e-6)


def assert_same(expected: Any, got: Any, row: int, path: str) -> None:
    """Compare one row of a field, or of each entry of a nested one, bit for bit."""
    if isinstance(expected, dict):
        assert isinstance(got, dict), path
        assert list(got) == list(expected), path
        for key, value in expected.items():
            assert_same(value, got[key], row, f"{path}.{key}")
    elif isinstance(expected, tuple):
        assert isinstance(got, tuple), path
        assert len(got) == len(expected), path
        for i, value in enumerate(expected):
            assert_same(value, got[i], row, f"{path}.{i}")
    else:
        np.testing.assert_array_equal(got[row], expected, err_msg=path, strict=path != "length")
