"""The model: a simple implementation of the buffers with lists and loops, which can be verified by reading."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from replaykit.trees import Tree, map_tree


@dataclass
class NaiveStep:
    """One stored transition, as it was added, with its stacks."""

    lane: int
    index: int
    fields: dict[str, Any]
    scaled: float
    ends_episode: bool
    episode: int
    start: int


@dataclass
class NaiveHindsight:
    """The model of a ``HindsightReplay`` around the buffer. Its attributes are the arguments of the wrapper."""

    reward_fn: Callable[..., Any]
    terminated_fn: Callable[..., Any] | None = None
    strategy: str = "future"
    ratio: float = 0.8
    achieved_goal: str | tuple[str, ...] = "achieved_goal"
    desired_goal: str | tuple[str, ...] = "desired_goal"

    def keys(self) -> dict[str, str]:
        """The key of each desired goal, with the key of the achieved goal that replaces it."""
        if isinstance(self.achieved_goal, str) or isinstance(self.desired_goal, str):
            return {str(self.desired_goal): str(self.achieved_goal)}
        return dict(zip(self.desired_goal, self.achieved_goal, strict=True))


@dataclass
class NaiveReplay:
    """The model of a buffer of any kind with any number of wrappers, in the simplest possible form.

    Attributes
    ----------
    kind : {"uniform", "prioritized", "rank", "latest"}
    length : int
        Number of slots in each lane, L.
    num_envs, n_step, gamma, stack, padding, alpha, beta, eps, weights
        As in the buffers.
    draws : {"stratified", "iid"}, optional
        How the points of a draw are chosen. If it is None, only probabilities are compared, not draws.
    replace : bool
        Whether an index can occur twice in a batch.
    recent : int, optional
        `newest` of the ``RecentReplay`` around the buffer, inside all other wrappers.
    large : int, optional
        `factor` of the ``LargeBatchReplay`` around these, whose function is `priority_fn`.
    combined : list of int
        `latest` of each ``CombinedReplay`` around the buffer, the innermost first.
    hindsight : NaiveHindsight, optional
        The ``HindsightReplay`` around the buffer.
    """

    kind: str
    length: int
    num_envs: int
    n_step: int
    gamma: float
    stack: int = 1
    padding: str = "reset"
    alpha: float = 0.6
    beta: float = 0.4
    eps: float = 1e-2
    weights: str = "batch"
    draws: str | None = None
    replace: bool = True
    combined: list[int] = field(default_factory=list)
    hindsight: NaiveHindsight | None = None
    recent: int | None = None
    large: int | None = None
    priority_fn: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        self.rows: list[tuple[int, float, float]] = []  # the rows of the last batch that was chosen from a large batch
        self.steps: list[NaiveStep] = []  # the stored steps, in the order in which they were added
        self.added: list[int] = [0] * self.num_envs
        self.episodes: list[int] = [0] * self.num_envs
        self.begins: list[bool] = [True] * self.num_envs
        self.starts: list[int] = [0] * self.num_envs
        self.observed: list[list[Tree]] = [[] for _ in range(self.num_envs)]  # all observations of the running episodes

    # -- Writing ---------------------------------------------------------------------------------------------

    def add(self, lane: int, fields: dict[str, Any], scaled: float) -> int:
        """Store one step of one lane and drop the lane's oldest step if it is full. Returns the index."""
        index = self.added[lane] * self.num_envs + lane
        if self.begins[lane]:
            self.episodes[lane] += 1
            self.starts[lane] = index
            self.observed[lane] = []
        self.observed[lane].append(fields["obs"])
        fields = fields | {
            "obs": self.stacked(self.observed[lane]),
            "next_obs": self.stacked([*self.observed[lane], fields["next_obs"]]),
        }
        ends = bool(fields["terminated"]) or bool(fields["truncated"])
        self.steps.append(NaiveStep(lane, index, fields, scaled, ends, self.episodes[lane], self.starts[lane]))
        self.added[lane] += 1
        self.begins[lane] = ends
        of_lane = self.lane(lane)
        if len(of_lane) > self.length:
            self.steps.remove(of_lane[0])
        return index

    def stacked(self, observed: list[Tree]) -> Tree:
        """The stack at the end of an episode's observations so far. Only frames are stacked."""
        if self.stack == 1:
            return observed[-1]
        first = observed[0]
        if self.padding == "zero":
            first = map_tree(lambda array, _path: np.zeros_like(array), first)
        last = ([first] * self.stack + observed)[-self.stack :]
        newest = last.pop()

        def stack(array: Any, path: str) -> Any:
            return np.stack([at_path(obs, path) for obs in last] + [array]) if np.ndim(array) >= 2 else array

        return map_tree(stack, newest)

    def initial(self) -> float:
        """The scaled priority of a new transition: the largest stored one, or 1 if the buffer is empty."""
        return max((step.scaled for step in self.steps), default=0.0) or 1.0

    def scaled(self, td_error: float) -> float:
        """``(abs(td_error) + eps)**alpha``, or the priority itself if only ranks count."""
        return abs(td_error) if self.kind == "rank" else float((abs(td_error) + self.eps) ** self.alpha)

    def update(self, indices: list[int], scaled: list[float]) -> int:
        """Set scaled priorities. Returns how many entries belong to stored transitions."""
        applied = 0
        for index, value in zip(indices, scaled, strict=True):
            for step in self.steps:
                if step.index == index:
                    step.scaled = value
                    applied += 1
        return applied

    def end_episode(self, lanes: list[int]) -> None:
        """Begin a new episode with the next step of these lanes."""
        for lane in lanes:
            self.begins[lane] = True
            for step in self.lane(lane)[-1:]:
                step.ends_episode = True

    def clear(self) -> None:
        """Remove every transition. The number of added transitions is kept."""
        self.steps.clear()
        self.begins = [True] * self.num_envs

    # -- Reading ---------------------------------------------------------------------------------------------

    def lane(self, lane: int) -> list[NaiveStep]:
        """The stored steps of a lane, oldest first."""
        return [step for step in self.steps if step.lane == lane]

    def newest(self, count: int) -> list[int]:
        """The indices of the `count` newest transitions, oldest first."""
        return [step.index for step in self.steps[-count:]]

    def window(self, index: int) -> list[NaiveStep]:
        """Up to `n_step` steps from `index` on, up to the episode's end or the newest step."""
        (start,) = (step for step in self.steps if step.index == index)
        window = [start]
        for step in self.lane(start.lane):
            if step.index > start.index and len(window) < self.n_step and not window[-1].ends_episode:
                window.append(step)
        return window

    def goal(self, index: int, uniform: float) -> dict[str, Any]:
        """The goals that replace the desired goals at `index`. All come from one step, chosen by a number in [0, 1)."""
        assert self.hindsight is not None
        (step,) = (step for step in self.steps if step.index == index)
        episode = [other for other in self.lane(step.lane) if other.episode == step.episode]
        allowed = {
            "future": [other for other in episode if other.index >= index],
            "final": episode[-1:],
            "episode": episode,
            "random": self.counted(),
        }[self.hindsight.strategy]
        reached = allowed[int(uniform * len(allowed))].fields["next_obs"]
        return {desired: reached[achieved] for desired, achieved in self.hindsight.keys().items()}

    def counted(self) -> list[NaiveStep]:
        """The stored steps in the order in which a uniform draw counts them."""
        by_lane = [self.lane(lane) for lane in range(self.num_envs)]
        if len({(self.added[lane], len(by_lane[lane])) for lane in range(self.num_envs)}) > 1:
            return [step for of_lane in by_lane for step in of_lane]
        capacity = self.length * self.num_envs
        is_full = len(self.steps) == capacity
        return sorted(self.steps, key=lambda step: step.index % capacity if is_full else step.index)

    def is_recent(self, step: NaiveStep) -> bool:
        """Whether a ``RecentReplay`` draws a stored step."""
        count = -(-(self.recent or self.length * self.num_envs) // self.num_envs)
        return step.index in [other.index for other in self.lane(step.lane)[-count:]]

    def relabelled(self, index: int, goal: dict[str, Any]) -> list[NaiveStep]:
        """The window from `index` on, with `goal` as the desired goal. `goal` has a value for each key."""
        hindsight, window = self.hindsight, []
        assert hindsight is not None
        for step in self.window(index):
            step = copy.copy(step)
            keys, reached = hindsight.keys(), step.fields["next_obs"]
            achieved = tuple(np.asarray(reached[keys[key]])[None] for key in keys)
            wanted = tuple(np.asarray(goal[key])[None] for key in keys)
            extras = [name for name in step.fields if name not in _CORE]
            info = {name: map_tree(lambda array, _: np.asarray(array)[None], step.fields[name]) for name in extras}
            is_single = isinstance(hindsight.achieved_goal, str)
            asked = (achieved[0], wanted[0], info) if is_single else (achieved, wanted, info)
            step.fields = step.fields | {
                "obs": step.fields["obs"] | goal,
                "next_obs": step.fields["next_obs"] | goal,
                "reward": np.asarray(hindsight.reward_fn(*asked)[0], step.fields["reward"].dtype),
            }
            if hindsight.terminated_fn is not None:
                step.fields["terminated"] = hindsight.terminated_fn(*asked)[0]
            window.append(step)
            if hindsight.terminated_fn is not None and step.fields["terminated"]:
                break
        return window

    def reduced(self, window: list[NaiveStep]) -> dict[str, Any]:
        """The transition of a window in a batch."""
        first, last = window[0].fields, window[-1].fields
        dtype = np.asarray(first["reward"]).dtype.type
        rewards = [np.asarray(step.fields["reward"], np.float64) for step in window]
        total = np.zeros(rewards[0].shape)
        for place in np.ndindex(total.shape):
            for k, reward in enumerate(rewards):
                total[place] += self.gamma**k * reward[place]
        discount = 0.0 if last["terminated"] else self.gamma ** len(window)
        return {
            **first,
            "reward": total.astype(dtype),
            "next_obs": last["next_obs"],
            "terminated": last["terminated"],
            "truncated": last["truncated"],
            "discount": dtype(discount),
            "length": len(window),
        }

    def shares(self, batch_size: int, wrappers: int | None = None) -> dict[int, float]:
        """The expected share of each stored index in a batch, with the `wrappers` innermost wrappers (default: all)."""
        wrappers = len(self.combined) if wrappers is None else wrappers
        indices = [step.index for step in self.steps]
        if wrappers:
            newest = self.newest(self.combined[wrappers - 1])
            drawn = batch_size - len(newest)
            inner = self.shares(drawn, wrappers - 1) if drawn else dict.fromkeys(indices, 0.0)
            return {index: (drawn * inner[index] + (index in newest)) / batch_size for index in indices}
        if self.kind == "uniform":
            replayed = {step.index for step in self.counted() if self.is_recent(step)}
            return {index: (index in replayed) / len(replayed) for index in indices}
        if self.kind == "latest":
            newest = self.newest(batch_size)
            counts = dict.fromkeys(indices, 0)
            for place in range(batch_size):
                counts[newest[place % len(newest)]] += 1
            return {index: counts[index] / batch_size for index in indices}
        lengths = dict(self.line())
        total = math.fsum(lengths.values()) or 1.0
        return {index: lengths[index] / total for index in indices}

    # -- Drawing ---------------------------------------------------------------------------------------------

    def refusal(self, batch_size: int) -> str | None:
        """The text that the ValueError must contain if a batch cannot be drawn; None if it can."""
        if self.kind == "prioritized" and not any(step.scaled for step in self.steps):
            return "every priority is 0"
        if not self.replace and self.drawn(batch_size) > len([step for step in self.steps if self.is_recent(step)]):
            return "without replacement"
        return None

    def drawn(self, batch_size: int) -> int:
        """The number of drawn rows in a batch. Each ``CombinedReplay`` adds the newest transitions after them."""
        return batch_size * (self.large or 1) - sum(len(self.newest(count)) for count in self.combined)

    def points(self, count: int, rng: np.random.Generator) -> Any:
        """The `count` points in [0, 1) of a draw, from the numbers of `rng`; None if draws are not compared.

        A model with other `shares` overrides `points` to compare draws, and `line` if its line is different.
        """
        if self.draws is None or type(self).shares is not NaiveReplay.shares:
            return None
        size = len(self.line())
        if not self.replace:
            return (rng.choice(size, count, replace=False) + 0.5) / size
        if self.recent is not None:
            return (rng.integers(size, size=count) + 0.5) / size
        uniforms = rng.random(count)
        return (np.arange(count) + uniforms) / count if self.draws == "stratified" else uniforms

    def line(self) -> list[tuple[int, float]]:
        """Every stored index, in its order on the line from which points are drawn, with its length on that line."""
        if self.recent is not None:
            by_lane = [step for lane in range(self.num_envs) for step in self.lane(lane)]
            return [(step.index, 1.0) for step in by_lane if self.is_recent(step)]
        if self.kind == "uniform":
            return [(step.index, 1.0) for step in self.counted()]
        if self.kind == "rank":
            by_rank = sorted(self.steps, key=lambda step: (-step.scaled, -step.index))
            return [(step.index, (place + 1.0) ** -self.alpha) for place, step in enumerate(by_rank)]
        capacity = self.length * self.num_envs
        by_slot = sorted(self.steps, key=lambda step: step.index % capacity)
        return [(step.index, step.scaled) for step in by_slot]

    def assert_drawn(self, indices: Any, batch_size: int, rng: np.random.Generator) -> None:
        """Compare the indices of a batch with the indices at the points of the draw, up to rounding.

        `rng` is the buffer's generator before the draw. Its numbers are drawn again here.
        """
        if self.large:
            self.rows = self.large_batch(batch_size, rng)
            assert [int(index) for index in indices] == [row[0] for row in self.rows], "not from the large batch"
            return
        count, line, indices = self.drawn(batch_size), self.line(), [int(index) for index in indices]
        tail = [index for k in self.combined for index in self.newest(k)]
        assert indices[count:] == tail, "the newest are not at the end of the batch"
        if self.kind == "latest" and type(self).shares is NaiveReplay.shares and count:
            newest = self.newest(count)
            assert indices[:count] == [newest[place % len(newest)] for place in range(count)], "not the newest"
        points = self.points(count, rng) if count else None
        if points is None:
            return
        total, stop = math.fsum(length for _, length in line), 0.0
        stretches: dict[int, tuple[float, float]] = {}
        for index, length in line:
            start, stop = stop, stop + length
            if length > 0.0:
                stretches[index] = start / total, stop / total
        for row, point in enumerate(points.tolist()):
            index = indices[row]
            assert index in stretches, f"index {index} was drawn, but its probability is 0"
            start, stop = stretches[index]
            assert start - _ROUNDING <= point <= stop + _ROUNDING, (
                f"index {index} was drawn in row {row}, but the point {point} is not in [{start}, {stop})"
            )

    def large_batch(self, batch_size: int, rng: np.random.Generator) -> list[tuple[int, float, float]]:
        """The index, conditional probability and weight of each row that is chosen from a large batch."""
        line, count = self.line(), self.drawn(batch_size)
        stops = np.cumsum([length for _, length in line])
        points = self.points(count, rng) * stops[-1]
        large = [line[int(place)][0] for place in np.searchsorted(stops, points, "right").clip(max=len(line) - 1)]
        shares = self.shares(count)
        weights = self.weigh([shares[index] for index in large], shares)
        rewards = np.array([self.reduced(self.window(index))["reward"] for index in large])
        assert self.priority_fn is not None
        p = self.priority_fn(rewards)
        rows = np.searchsorted(p.cumsum(), rng.random(batch_size) * p.sum(), "right").clip(max=count - 1).tolist()
        return [(large[row], float(p[row] / p.sum()), weights[row] * float(p.mean() / p[row])) for row in rows]

    def weigh(self, probabilities: list[float], shares: dict[int, float]) -> list[float]:
        """The weights of a batch with these probabilities."""
        if self.kind not in ("prioritized", "rank"):
            return [1.0] * len(probabilities)
        weights = [(len(self.steps) * q) ** -self.beta for q in probabilities]
        if self.weights == "none":
            return weights
        everything = [(len(self.steps) * q) ** -self.beta for q in shares.values() if q > 0.0]
        return [weight / max(weights if self.weights == "batch" else everything) for weight in weights]

    # -- Comparing -------------------------------------------------------------------------------------------

    def assert_batch(self, batch: Any, batch_size: int, rng: np.random.Generator) -> None:
        """Compare a batch with the model: stored values exactly, probabilities and weights up to rounding.

        `rng` is the buffer's generator after the draw. Relabelling uses its next numbers.
        """
        indices = [int(index) for index in batch.indices]
        assert len(indices) == batch_size
        windows = [self.window(index) for index in indices]
        if self.hindsight is not None:
            ratio = self.hindsight.ratio
            uniforms = rng.random((2, batch_size)) if ratio else np.ones((2, batch_size))
            relabelled = uniforms[0] < ratio
            np.testing.assert_array_equal(batch.relabelled, relabelled, strict=True)
            rows = np.flatnonzero(relabelled)
            for row, uniform in zip(rows.tolist(), uniforms[1, rows], strict=True):
                windows[row] = self.relabelled(indices[row], self.goal(indices[row], uniform))
        for row, window in enumerate(windows):
            for name, expected in self.reduced(window).items():
                assert_same(expected, batch[name], row, name)
        if self.large:
            np.testing.assert_allclose(batch.probabilities, [row[1] for row in self.rows], rtol=1e-9)
            np.testing.assert_allclose(batch.weights, [row[2] for row in self.rows], rtol=2e-6)
            return
        shares = self.shares(batch_size)
        np.testing.assert_allclose(batch.probabilities, [shares[index] for index in indices], rtol=1e-9)
        weights = self.weigh([float(q) for q in batch.probabilities], shares)
        np.testing.assert_allclose(batch.weights, weights, rtol=2e-6)


_ROUNDING = 1e-9
"""How far a point may be outside the stretch of its index, relative to the whole line."""
_CORE = ("obs", "action", "reward", "next_obs", "terminated", "truncated")


def at_path(tree: Tree, path: str) -> Any:
    """The leaf of a tree at a path such as ``image`` or ``pair.0``; the tree itself for an empty path."""
    for key in path.split(".") if path else []:
        tree = tree[int(key)] if isinstance(tree, tuple) else tree[key]
    return tree


def assert_same(expected: Any, got: Any, row: int, path: str) -> None:
    """Compare one row of a field exactly; of a nested field, one row of each leaf."""
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
