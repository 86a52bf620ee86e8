"""A storage, distributions and wrappers as a user would write them: from the docstrings, in plain Python."""

from typing import NamedTuple

import numpy as np

from replaykit import FieldNameError, ReplayWrapper
from replaykit.batch import Draw, Rewrite, Window
from replaykit.distributions import Distribution
from replaykit.storage import Storage
from replaykit.testing import NaiveReplay

# -- A storage -----------------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """A stored step: its leaves, whether its episode ends after it, and the episode's number and first index."""

    leaves: list
    ends: bool
    episode: int
    start: int


class ListStorage(Storage):
    """Steps in a dict by index, in the order in which they were written."""

    def __init__(self, capacity, spec, num_envs=1):
        super().__init__(capacity, spec, num_envs)
        self.bounds = np.zeros((2, self.num_envs), np.int64)
        self.steps = {}
        self.is_over = np.ones(self.num_envs, np.bool_)
        self.episodes = np.arange(self.num_envs) - self.num_envs
        self.starts = np.zeros(self.num_envs, np.int64)
        self.positions = {leaf.name: i for i, leaf in enumerate(self.spec.leaves)}

    def write(self, block, steps, mask=None):
        indices = np.full(steps * self.num_envs, -1, np.int64)
        chosen = np.arange(indices.size) if mask is None else np.flatnonzero(mask)
        for row, place in enumerate(chosen.tolist()):
            indices[place] = self.write_one(place % self.num_envs, [leaf[row].copy() for leaf in block])
        return indices

    def write_one(self, lane, leaves):
        first, cursor = self.bounds[:, lane].tolist()
        if cursor - first == self.length:
            self.bounds[0, lane] += 1
            del self.steps[first * self.num_envs + lane]
        index = cursor * self.num_envs + lane
        if self.is_over[lane]:
            self.episodes[lane] += self.num_envs
            self.starts[lane] = index
        ends = bool(leaves[self.positions["terminated"]] or leaves[self.positions["truncated"]])
        self.steps[index] = Step(leaves, ends, int(self.episodes[lane]), int(self.starts[lane]))
        self.is_over[lane] = ends
        self.bounds[1, lane] += 1
        return index

    def end_episode(self, lanes):
        self.is_over[lanes] = True
        for lane in lanes.tolist():
            newest = (int(self.bounds[1, lane]) - 1) * self.num_envs + lane
            if newest in self.steps:
                self.steps[newest] = self.steps[newest]._replace(ends=True)

    def clear(self):
        self.bounds[0] = self.bounds[1]
        self.is_over[:] = True
        self.steps.clear()

    def window(self, indices, n):
        flat = indices.reshape(-1)
        self.refuse(flat)
        windows = [self.steps_from(index, n) for index in flat.tolist()]
        shape = self.spec["reward"].shape
        reward, length = np.zeros((flat.size, n, *shape)), np.array([len(window) for window in windows], np.int64)
        for row, window in enumerate(windows):
            reward[row, : len(window)] = [step.leaves[self.positions["reward"]] for step in window]
        flags = [
            np.array([window[-1].leaves[self.positions[name]] for window in windows], np.bool_)
            for name in ("terminated", "truncated")
        ]
        return Window(flat, indices.shape, self.num_envs, reward, length, *flags)

    def steps_from(self, index, n):
        window = [self.steps[index]]
        while len(window) < n and not window[-1].ends and index + self.num_envs in self.steps:
            index += self.num_envs
            window.append(self.steps[index])
        return window

    def reduce(self, window, powers):
        last = window.indices + (window.length - 1) * self.num_envs
        leaves = [self.read(last if leaf.is_of_last else window.indices, leaf.name) for leaf in self.spec.leaves]
        dtype = self.spec["reward"].dtype
        total = np.array(window.reward[:, 0], np.float64)
        for k in range(1, window.reward.shape[1]):
            longer = window.length > k
            total[longer] += powers[k] * window.reward[longer, k]
        discount = np.where(window.terminated, 0.0, powers[window.length]).astype(dtype)
        leaves[self.positions["terminated"]], leaves[self.positions["truncated"]] = window.terminated, window.truncated
        with np.errstate(over="ignore"):
            leaves[self.positions["reward"]] = total.astype(dtype)
        for rewrite in window.rewrites:
            for name in rewrite.fields:
                leaves[self.positions[name]][rewrite.rows] = rewrite.values
        fields = self.spec.unflatten(leaves, tuple(self.spec))
        return fields | {"discount": discount, "length": window.length} | window.added

    def read(self, indices, name):
        if name not in self.positions:
            raise FieldNameError(f"unknown field {name!r}; expected one of {', '.join(self.positions)}")
        self.refuse(indices[indices != -1])
        leaf = self.spec.leaves[self.positions[name]]
        values = np.zeros((len(indices), *leaf.shape), leaf.dtype)
        for row, index in enumerate(indices.tolist()):
            if index != -1:
                values[row] = self.steps[index].leaves[self.positions[name]]
        return values

    def episode(self, indices):
        self.refuse(indices[indices != -1])
        found = np.full((3, len(indices)), -1, np.int64)
        for row, index in enumerate(indices.tolist()):
            if index != -1:
                last = index + (len(self.steps_from(index, self.length)) - 1) * self.num_envs
                found[:, row] = self.steps[index].episode, self.steps[index].start, last
        return tuple(found)

    def latest(self, count):
        return np.array(list(self.steps)[-count:], np.int64)

    def state(self):
        steps = list(self.steps.values())
        leaves = {
            leaf.name: np.array([step.leaves[i] for step in steps], leaf.dtype).reshape(len(steps), *leaf.shape)
            for i, leaf in enumerate(self.spec.leaves)
        }
        return leaves | {
            "indices": np.array(list(self.steps), np.int64),
            "of_steps": np.array([step[1:] for step in steps], np.int64).reshape(len(steps), 3),
            "bounds": self.bounds,
            "of_lanes": np.stack((self.is_over, self.episodes, self.starts)),
        }

    def restore(self, state):
        self.bounds[:] = state["bounds"]
        self.is_over[:], self.episodes[:], self.starts[:] = state["of_lanes"]
        self.steps.clear()
        for row, index in enumerate(state["indices"].tolist()):
            ends, episode, start = state["of_steps"][row].tolist()
            leaves = [np.array(state[name][row]) for name in self.positions]
            self.steps[index] = Step(leaves, bool(ends), episode, start)


# -- Distributions -------------------------------------------------------------------------------------------------


class Recency(Distribution):
    """The r-th newest is drawn with a probability in proportion to ``exp(-r / scale)``."""

    def __init__(self, storage, scale=5.0):
        super().__init__(storage)
        self.scale = scale

    def shares(self):
        newest = self.storage.latest(len(self.storage))
        masses = np.exp(-np.arange(newest.size)[::-1] / self.scale)
        return newest, masses / masses.sum()

    def draw(self, batch_size, rng):
        indices, shares = self.shares()
        places = np.minimum(np.searchsorted(shares.cumsum(), rng.random(batch_size), "right"), indices.size - 1)
        return Draw(indices[places], shares[places])

    def probability(self, indices, batch_size):
        self.storage.slots(indices)
        share_of = dict(zip(*(values.tolist() for values in self.shares()), strict=True))
        return np.array([share_of[index] for index in indices.tolist()])


class NaiveRecency(NaiveReplay):
    """The model of a buffer with `Recency`."""

    def shares(self, batch_size, wrappers=None):
        if self.combined and wrappers != 0:
            return super().shares(batch_size, wrappers)
        masses = {step.index: np.exp(-rank / 5.0) for rank, step in enumerate(reversed(self.steps))}
        total = sum(masses.values())
        return {index: mass / total for index, mass in masses.items()}

    def points(self, count, rng):
        return rng.random(count)

    def line(self):
        return [(step.index, np.exp(-rank / 5.0)) for rank, step in enumerate(reversed(self.steps))][::-1]


class ListedPriorities(Distribution):
    """Proportional priorities in an array, which is summed for each batch."""

    alpha, beta, eps = 0.6, 0.4, 1e-2

    def __init__(self, storage):
        super().__init__(storage)
        self.scaled = storage.allocate("scaled", (storage.capacity,), np.float64)
        self.known = {}  # the slot of each index whose priority has been set or given

    def settle(self):
        stored = self.storage.stored().tolist()
        slots = {index: index % self.storage.capacity for index in stored}
        kept = [self.scaled[slot] for index, slot in self.known.items() if slot in set(slots.values())]
        initial = max(kept, default=0.0) or 1.0
        gone = set(self.known.values()) - set(slots.values())
        self.scaled[list(gone)] = 0.0
        self.scaled[[slot for index, slot in slots.items() if index not in self.known]] = initial
        self.known = slots

    def masses(self):
        self.settle()
        stored = self.storage.stored()
        return stored, self.scaled[stored % self.storage.capacity]

    def draw(self, batch_size, rng):
        stored, masses = self.masses()
        if not masses.any():
            raise ValueError("every priority is 0")
        shares = masses / masses.sum()
        running = shares.cumsum()
        places = np.searchsorted(running, rng.random(batch_size) * running[-1], "right")
        return Draw(stored[places], shares[places])

    def probability(self, indices, batch_size):
        slots = self.storage.slots(indices)
        _, masses = self.masses()
        return self.scaled[slots] / (masses.sum() or 1.0)

    def update(self, slots, priorities):
        self.settle()
        for slot, priority in zip(slots.tolist(), priorities.tolist(), strict=True):
            self.scaled[slot] = priority**self.alpha
        return len(slots)

    def weigh(self, draw, size):
        weights = (size * draw.probabilities) ** -self.beta
        return (weights / weights.max()).astype(np.float32)

    def state(self):
        indices, masses = self.masses()
        return {"indices": indices, "masses": masses}

    def restore(self, state):
        self.known = {index: index % self.storage.capacity for index in state["indices"].tolist()}
        self.scaled[:] = 0.0
        self.scaled[list(self.known.values())] = state["masses"]


# -- Wrappers ------------------------------------------------------------------------------------------------------


class Counting(ReplayWrapper):
    """A wrapper that counts the calls of its subclasses' overrides in `calls`."""

    def __init__(self, inner):
        super().__init__(inner)
        self.calls = set()


class Scaled(Counting):
    """A wrapper that subtracts three quarters from rewards."""

    def change(self, window):
        self.calls.add("change")
        window.reward[:] -= 0.75
        window.reward[np.arange(window.reward.shape[1]) >= window.length[:, None]] = 0.0
        return window


class Replaced(Counting):
    """A wrapper that replaces arrays of the window: float32 rewards, and truncated at even indices."""

    def change(self, window):
        self.calls.add("change")
        window.reward = (window.reward * 2).astype(np.float32)
        window.truncated = window.truncated | (window.indices % 2 == 0)
        window.added["is_even"] = (window.indices % 2 == 0).reshape(window.shape)
        return window


class Shorter(Counting):
    """A wrapper with windows of at most two steps."""

    def change(self, window):
        self.calls.add("change")
        is_shorter = window.length > 2
        window.length[is_shorter] = 2
        window.reward[is_shorter, 2:] = 0.0
        window.terminated[is_shorter] = window.truncated[is_shorter] = False
        return window


class OtherActions(Counting):
    """A wrapper in which actions of every second row are 7."""

    def change(self, window):
        self.calls.add("change")
        rows = np.arange(0, window.indices.size, 2)
        window.rewrites.append(Rewrite(("action",), rows, np.full(rows.size, 7)))
        return window


class FromTheStart(Counting):
    """A wrapper with windows that begin one step later, if the episode continues."""

    def window(self, indices):
        self.calls.add("window")
        _, _, last = self.inner.episode(indices.reshape(-1))
        later = indices + np.where(indices < last.reshape(indices.shape), self.successor, 0)
        return self.inner.window(later)


class Negated(Counting):
    """A wrapper that negates the summed rewards."""

    def reduce(self, window):
        self.calls.add("reduce")
        fields = self.inner.reduce(window)
        return fields | {"reward": -fields["reward"]}


class Squared(Counting):
    """A wrapper that squares weights."""

    def weigh(self, draw):
        self.calls.add("weigh")
        return self.inner.weigh(draw) ** 2


class OldestToo(Counting):
    """A wrapper whose last row is the oldest stored transition of the first lane that is not empty."""

    def oldest_index(self):
        return self.oldest[self.oldest >= 0][0]

    def draw(self, batch_size):
        self.calls.add("draw")
        if batch_size == 1:
            return Draw(np.array([self.oldest_index()]), np.ones(1))
        indices = np.append(self.inner.draw(batch_size - 1).indices, self.oldest_index())
        return Draw(indices, self.probability(indices, batch_size))

    def probability(self, indices, batch_size=1):
        is_oldest = np.asarray(indices) == self.oldest_index()
        if batch_size == 1:
            return is_oldest * 1.0
        return ((batch_size - 1) * self.inner.probability(indices, batch_size - 1) + is_oldest) / batch_size


class Doubtful(ReplayWrapper):
    """A wrapper in which a quarter of the draws, at random, are uniform."""

    def draw(self, batch_size):
        with self.lock:
            indices = self.inner.draw(batch_size).indices
            is_other = self.rng.random(batch_size) < 0.25
            indices[is_other] = self.rng.choice(self.stored(), is_other.sum())
            least = self.least_probability(batch_size, np.empty(0, np.int64))
            return Draw(indices, self.probability(indices, batch_size), least)

    def probability(self, indices, batch_size=1):
        with self.lock:
            return 0.75 * self.inner.probability(indices, batch_size) + 0.25 / len(self)


class NaiveDoubtful(NaiveReplay):
    """The model of `Doubtful` around a buffer."""

    def shares(self, batch_size, wrappers=None):
        shares = super().shares(batch_size, wrappers)
        return {index: 0.75 * share + 0.25 / len(shares) for index, share in shares.items()}


class Stale(Doubtful):
    """A wrapper that changes the inner draw, but wrongly keeps its least probability."""

    def draw(self, batch_size):
        draw = self.inner.draw(batch_size)
        draw.probabilities = self.probability(draw.indices, batch_size)
        return draw


WRAPPERS = [Counting, Scaled, Replaced, Shorter, OtherActions, FromTheStart, Negated, Squared, OldestToo]
