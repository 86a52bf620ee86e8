"""Rank-based prioritization: probabilities depend on the order of the priorities."""

from collections.abc import Callable
from typing import Any

import numpy as np

from replaykit._kernels import lazy
from replaykit.batch import Draw
from replaykit.chunks import Slots
from replaykit.distributions.base import Floats
from replaykit.distributions.prioritized import Draws, Prioritized, Weights
from replaykit.storage.base import Indices, Storage

kernels: Any = lazy("ranks")

_SHORTEST = 8  # smallest number of entries in a block


class Rank(Prioritized):
    """``P = rank**-alpha / sum(rank**-alpha)``. The largest priority has rank 1, the smallest has rank N.

    Among equal priorities, the larger index comes first. Ranks and probabilities are always up to date: there is no
    periodic sort. A draw is O(B log C). A changed priority or a new transition is O(C^(1/3)), amortised: it shifts a
    few dozen entries in a buffer of one million. If one update, or the additions since the last draw, change more than
    an eighth of the priorities, all are sorted: O(N log N). The order takes about 75 bytes per transition.

    The paper divides the ranks into B segments of approximately equal probability and draws uniformly from each. This
    differs slightly from the power law that its weights assume. Here the power law is drawn from directly, as with a
    sum tree, so that probabilities and weights are exact.

    Parameters
    ----------
    storage : Storage
    alpha, beta, draws, weights
        As in `replaykit.PrioritizedBuffer`.

    References
    ----------
    Schaul et al. (2016), Prioritized Experience Replay, section 3.3.

    Examples
    --------
    >>> from replaykit import Buffer, Field, Spec
    >>> from replaykit.distributions import Rank
    >>> from replaykit.storage import LocalStorage
    >>> storage = LocalStorage(4, Spec(obs=Field(()), action=Field(())))
    >>> buffer = Buffer(storage, Rank(storage, alpha=1.0), seed=0)
    >>> for step in range(4):
    ...     index = buffer.add(step, 0, 1.0, step + 1, False, False)
    >>> buffer.update_priorities([0, 1, 2, 3], td_errors=[9.0, -0.1, 200.0, 3.0])
    4
    >>> buffer.probability([2, 0, 3, 1])  # 1, 1/2, 1/3 and 1/4 over their sum
    array([0.48, 0.24, 0.16, 0.12])
    """

    saved_name = "priorities"
    largest_value: float = Prioritized.largest_priority

    def __init__(
        self,
        storage: Storage,
        *,
        alpha: float = 0.6,
        beta: float | Callable[[int], float] = 0.4,
        draws: Draws = "stratified",
        weights: Weights = "batch",
    ) -> None:
        super().__init__(storage, alpha, beta, draws, weights)
        capacity = storage.capacity
        span = max(2 << capacity.bit_length() // 3, _SHORTEST)
        blocks = 3 * (capacity // span + 1) + 2
        needed = storage.nbytes + 24 * capacity + (16 * span + 8 * (kernels.ROWS + 1)) * blocks
        storage.refuse_size(needed, f"capacity {capacity} with ranks")
        make = storage.allocate
        self._table: Indices = make("order", (kernels.ROWS, blocks + 1), np.int64)
        limits: Floats = make("order_limits", (blocks,), np.float64)
        keys: Floats = make("order_priorities", (blocks * span,), np.float64)
        self._members: Indices = make("order_indices", (blocks * span,), np.int64)
        self._order = self._table, limits, keys, self._members, make("order_blocks", (capacity,), np.int64)
        self._priorities: Floats = make("priorities", (capacity,), np.float64)
        self.settled: Indices = make("settled_ranks", (2, storage.num_envs), np.int64)
        self._masses: Floats = make("rank_masses", (capacity + 1,), np.float64)
        np.cumsum(np.arange(1.0, capacity + 1.0) ** -self._alpha, out=self._masses[1:])
        header = self._table[kernels.HEADER]
        header[[kernels.SPAN, kernels.TOP]] = span, 1 << (blocks.bit_length() - 1)
        self._sort()

    def _sort(self) -> None:
        """Rebuild the order from the priorities. O(N log N)."""
        capacity = self.storage.capacity
        indices = np.sort(Slots(self.settled, capacity).all())[::-1]
        indices = indices[np.argsort(-self._priorities[indices % capacity], kind="stable")]
        kernels.fill(*self._order, capacity, self._priorities, indices)

    def settle(self) -> None:
        """Give the transitions added since the last call the largest priority in the buffer, or 1 if it was empty."""
        storage = self.storage
        while kernels.settle(*self._order, self._priorities, self.settled, storage.bounds, storage.capacity):
            self._sort()

    def update(self, slots: Indices, priorities: Floats) -> int:
        self.settle()
        storage = self.storage
        if kernels.update(*self._order, self._priorities, storage.bounds, storage.capacity, slots, priorities):
            self._sort()
        return len(slots)

    def draw(self, batch_size: int, rng: np.random.Generator) -> Draw:
        self.settle()
        points, is_stratified = rng.random(batch_size), self._draws == "stratified"
        indices, probabilities = np.empty(batch_size, np.int64), np.empty(batch_size)
        alpha, order = self._alpha, (self._table, self._members, self._masses)
        kernels.draw(*order, points, is_stratified, alpha, indices, probabilities)
        least = self._shares(len(self.storage)) if self._weights == "buffer" else None
        return Draw(indices, probabilities, least)

    def probability(self, indices: Indices, batch_size: int) -> Floats:
        """``rank**-alpha / sum(rank**-alpha)`` of each stored index. O(B log C)."""
        return np.asarray(self._shares(self.ranks(indices)))

    def ranks(self, indices: Indices) -> Indices:
        """The rank of each stored index, from 1 to N. Raises IndexError for an index that is not stored."""
        slots, found = self.storage.slots(indices), np.empty(len(indices), np.int64)
        self.settle()
        table, _limits, keys, members, blocks = self._order
        kernels.ranks(table, keys, members, blocks, self._priorities, slots, indices, found)
        return found

    def _shares(self, ranks: Any) -> Any:
        """The probabilities of ranks. They are positive even if the powers underflow."""
        total = self._masses[len(self.storage)]
        return np.maximum(np.asarray(ranks, np.float64) ** -self._alpha / total, kernels.SMALLEST_PROBABILITY)

    def mass(self) -> float:
        return float(self._masses[len(self.storage)])

    def least_probability(self, batch_size: int, without: Indices) -> float:
        last, taken = len(self.storage), set(self.ranks(without).tolist())
        while last in taken:
            last -= 1
        return float(self._shares(last)) if last else np.inf

    def values(self) -> Floats:
        """The priorities."""
        return self._priorities

    def set_values(self, settled: Indices, slots: Indices, values: Floats) -> None:
        self._table[kernels.HEADER, kernels.STALE] = 1
        self.settled[:] = settled
        self._priorities[slots] = values
        self._sort()

    def stats(self) -> dict[str, float]:
        self.settle()
        size, largest, median = len(self.storage), 0.0, 0.0
        if size:
            keys = self._order[2]
            largest, median = (keys[kernels.position_of(self._table, rank)] for rank in (0, size // 2))
        return {"beta": self.beta, "priority_max": largest, "priority_median": median}

    def check(self) -> None:
        self.settle()
        storage, (table, limits, keys, members, blocks) = self.storage, self._order
        assert (self.settled == storage.bounds).all(), "a new transition did not get its priority"
        used, size, _, span, _ = table[kernels.HEADER, : kernels.HEADERS].tolist()
        directory, counts = table[kernels.DIRECTORY, :used], table[kernels.COUNT]
        places = np.concatenate([block * span + np.arange(counts[block]) for block in directory])
        found, slots = members[places], members[places] % storage.capacity
        assert size == len(found) == len(storage), "the order does not contain every transition once"
        assert (np.sort(found) == np.sort(storage.stored())).all(), "the order does not contain every transition once"
        assert (keys[places] == self._priorities[slots]).all(), "an entry differs from the priority of its slot"
        assert (blocks[slots] == places // span).all(), "a slot does not name the block of its entry"
        assert (np.lexsort((-found, -keys[places])) == np.arange(size)).all(), "the order is not that of the priorities"
        assert (table[kernels.PLACE, directory] == np.arange(used)).all(), "a block is not in its place"
        assert (self.ranks(found) == np.arange(1, size + 1)).all(), "a rank is wrong"
        starts = np.cumsum(counts[directory]) - counts[directory]
        for place, start in enumerate(starts.tolist()):
            limit = limits[place], table[kernels.LIMIT, place]
            for at, is_before in ((start - 1, True), (start, False)):
                if place and 0 <= at < size:
                    entry = keys[places[at]], found[at]
                    assert ((-entry[0], -entry[1]) < (-limit[0], -limit[1])) == is_before, "a limit is wrong"
