"""Which episode a transition belongs to, and where that episode starts and ends."""

from typing import Literal

import numpy as np
import numpy.typing as npt

from replaykit._kernels import lazy
from replaykit.ring import Ring

kernels = lazy("lanes")


SCOPES = ("future", "final", "episode")
"""Which steps of an episode are allowed, in the order of the kernels' numbers."""
EPISODE_BYTES = 25
"""What a slot costs for its episode: a number, a start, an end and a flag."""


class Episodes:
    """The episodes of a ring's lanes: lookups in O(1), without scanning, at O(1) a stored step.

    An episode is a run of steps of one lane, up to one that ended. It is named by a number that is never
    reused, and its `start` stays known when its first steps have been overwritten. The tables are brought up
    to date when they are asked, or just before the ring would overwrite a step they have not seen.
    """

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._synced = np.zeros(ring.num_envs, np.int64)
        self._over = np.ones(ring.num_envs, np.bool_)
        self._latest = np.arange(ring.num_envs, dtype=np.int64) - ring.num_envs
        self.tables = np.zeros((3, ring.capacity), np.int64)  # number of each slot, first and last of each episode
        self._seen = 0  # the ring's clock when the tables were up to date

    @property
    def nbytes(self) -> int:
        """Bytes of the tables."""
        return self.tables.nbytes

    def sync(self) -> None:
        """Bring the tables up to date.

        Must be called before a step that they have not seen is overwritten: before the ring's clock passes its `due`.
        """
        ring = self._ring
        if ring.clock == self._seen:
            return
        clock = ring.clock
        kernels.note_episodes(
            ring.bounds, self._synced, ring.ended,
            self._over, self._latest, self.tables,
        )  # fmt: skip
        self._seen = clock
        ring.due = clock + ring.length

    def end(self, mask: npt.NDArray[np.bool_]) -> None:
        """End the running episodes of the lanes in `mask` after their newest step."""
        self.sync()
        ring = self._ring
        lanes = np.flatnonzero(mask & (ring.cursor > ring.first))
        ring.ended[((ring.cursor[lanes] - 1) * ring.num_envs + lanes) % ring.capacity] = True
        self._over |= mask  # of a lane that an interrupted add has left empty, too

    def clear(self) -> None:
        """The next step of each lane begins another episode; for when the ring has been cleared."""
        self._over[:] = True

    def number(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The episodes' numbers, of the shape of `indices`; those of lane e are e modulo `num_envs`."""
        return self._lookup(indices)

    def start(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Index of the first step of each index's episode, which may no longer be stored."""
        first: npt.NDArray[np.int64] = self.tables[1, self._lookup(indices) % self._ring.capacity]
        return first

    def stop(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Index of the last step of each index's episode that is stored: its end, or the newest if it is running."""
        last: npt.NDArray[np.int64] = self.tables[2, self._lookup(indices) % self._ring.capacity]
        return last

    def pick(
        self,
        indices: npt.NDArray[np.int64],
        uniforms: npt.NDArray[np.float64],
        among: Literal["future", "final", "episode"],
    ) -> npt.NDArray[np.int64]:
        """A stored step of each index's episode, chosen by its number in [0, 1); all allowed ones equally likely. O(B).

        Allowed are those from the index itself on (`"future"`), the last (`"final"`), or all that are stored.

        Raises
        ------
        IndexError
            If an index is stale or was never given out.
        """
        self.sync()
        ring = self._ring
        picked = np.empty(indices.shape[0], np.int64)
        ring.refuse(indices, kernels.pick(
            indices, uniforms, SCOPES.index(among), ring.bounds, self.tables, picked
        ))  # fmt: skip
        return picked

    def _lookup(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        slots = self._ring.slots(indices)
        self.sync()
        numbers: npt.NDArray[np.int64] = self.tables[0, slots]
        return numbers

    def check(self) -> None:
        """Verify the tables against the rows.

        Raises
        ------
        AssertionError
            Naming the broken invariant.
        """
        ring = self._ring
        for lane in range(ring.num_envs):
            steps = np.arange(ring.first[lane], ring.cursor[lane])
            indices = steps * ring.num_envs + lane
            if not indices.size:
                continue
            begins = np.r_[True, ring.ended[indices % ring.capacity][:-1]]
            last = np.r_[np.flatnonzero(begins)[1:] - 1, indices.size - 1][np.cumsum(begins) - 1]
            assert (self.stop(indices) == indices[last]).all(), f"lane {lane}: an episode's end is wrong"
            numbers = self.number(indices)
            assert (np.diff(numbers) == ring.num_envs * begins[1:]).all(), (
                f"lane {lane}: episode numbers are not consecutive"
            )
            assert (numbers % ring.num_envs == lane).all(), f"lane {lane}: an episode of another lane"
            inner = np.cumsum(begins) > 1
            first = indices[np.flatnonzero(begins)][np.cumsum(begins) - 1]
            assert (self.start(indices)[inner] == first[inner]).all(), f"lane {lane}: an episode's start is wrong"
            assert (self.start(indices)[~inner] <= indices[0]).all(), f"lane {lane}: an episode starts after its steps"
