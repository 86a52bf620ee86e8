"""Batches made by one kernel each, where all fields are packed and nobody asks for the windows between."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from replaykit._kernels import lazy
from replaykit.episodes import SCOPES, Episodes
from replaykit.field import Field
from replaykit.packing import batch_namer
from replaykit.ring import Layout, Ring
from replaykit.spec import Spec

batches = lazy("batches")
goals = lazy("goals")
_UINT8 = np.dtype(np.uint8)
_SCOPES = {scope: number for number, scope in enumerate((*SCOPES, "random"))}
_DERIVED = {
    "length": Field((), np.int64),
    "weights": Field((), np.float32),
    "probabilities": Field((), np.float64),
    "indices": Field((), np.int64),
}
"""Fields of a batch that follow `discount`, which is of the reward's dtype."""


class BatchLayout(Layout):
    """All fields of a batch: those of a transition, and those that are in no row.

    Parameters
    ----------
    ring : Ring
    spec : Spec
    of_last : sequence of int
        The leaves that are of the last step of a window, rather than of the first.
    """

    def __init__(self, ring: Ring, spec: Spec, of_last: Sequence[int]) -> None:
        names = [leaf.name for leaf in spec.leaves]
        reward = names.index("reward")
        super().__init__(ring, range(len(names)), {"discount": spec.leaves[reward].field, **_DERIVED})
        self.plan = np.vstack((self.plan, np.zeros_like(self.plan[0])))
        self.plan[2, of_last] = 1
        self.numbers = np.array([reward, names.index("terminated")])


class PackedBatches:
    """Makes batches of a ring of which every field is in the packed row; all fields are views of one block of memory.

    `is_single` tells whether windows have one step: only then can `uniform`, `prioritized` and `relabel` be called.

    Parameters
    ----------
    ring : Ring
    episodes : Episodes
    spec : Spec
    of_last : sequence of int
        As those of `BatchLayout`.
    powers : ndarray of shape (n + 1,), float64
        Of the discount, up to the most steps of a window.
    """

    def __init__(
        self, ring: Ring, episodes: Episodes, spec: Spec, of_last: Sequence[int], powers: npt.NDArray[np.float64]
    ) -> None:
        self._ring, self._episodes, self._spec = ring, episodes, spec
        self._powers, self._gamma = powers, float(powers[1])
        self.is_single = len(powers) == 2
        self._layout = BatchLayout(ring, spec, of_last)
        self._positions = {leaf.name: i for i, leaf in enumerate(spec.leaves)}
        self._bind()

    def _bind(self) -> None:
        """Make the function that copies and pickles do not keep."""
        self._name = batch_namer(self._spec, ("discount", *_DERIVED))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_name"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._bind()

    def at(self, indices: npt.NDArray[np.int64]) -> dict[str, Any]:
        """``reduce(window(indices))``, where nobody changes the windows, with room for what the draw tells. O(B n).

        Raises
        ------
        IndexError
            If an index is stale or was never given out.
        """
        ring, layout = self._ring, self._layout
        block, record = layout.block(indices.shape[0])
        stored, made = (ring.bounds, ring.bytes, ring.row_bytes), (layout.plan, layout.numbers)
        if self.is_single:
            wrong = batches.batch_at(indices, *stored, *made, self._gamma, block)
        else:
            wrong = batches.n_step_batch_at(indices, *stored, ring.ended, self._powers, *made, block)
        ring.refuse(indices, wrong)
        return self._name(*np.ndarray((), record, block).item())

    def uniform(self, uniforms: npt.NDArray[np.float64]) -> dict[str, Any]:
        """All fields of a batch of single steps, drawn as `Ring.uniform` draws. O(B)."""
        ring, layout = self._ring, self._layout
        record = layout.records.get(len(uniforms)) or layout.record(len(uniforms))
        block = np.empty(record.itemsize, _UINT8)
        batches.uniform_batch(
            uniforms, ring.bounds, ring.bytes, ring.row_bytes, layout.plan, layout.numbers, self._gamma, block
        )
        return self._name(*np.ndarray((), record, block).item())

    def prioritized(
        self,
        nodes: npt.NDArray[np.float64],
        marks: npt.NDArray[np.float64],
        settled: npt.NDArray[np.int64],
        points: npt.NDArray[np.float64],
        scheme: int,
    ) -> dict[str, Any]:
        """All fields but the weights of a batch of single steps drawn from a tree. O(B log C).

        `points` holds the uniform numbers of the draw; it becomes the ratios of the probabilities to the least.
        """
        ring, layout = self._ring, self._layout
        record = layout.records.get(len(points)) or layout.record(len(points))
        block = np.empty(record.itemsize, _UINT8)
        batches.prioritized_batch(
            nodes, marks, settled, points, scheme, ring.bounds, ring.bytes, ring.row_bytes,
            layout.plan, layout.numbers, self._gamma, block,
        )  # fmt: skip
        return self._name(*np.ndarray((), record, block).item())

    def places_of_goal(self, achieved: str, desired: tuple[str, str]) -> npt.NDArray[np.int64]:
        """What :meth:`relabel` needs to know of these leaves, an achieved goal and two desired: where they are."""
        numbers = [self._positions[name] for name in (achieved, *desired)]
        return np.array([*numbers, self._layout.plan[0, numbers[0]]])

    def relabel(
        self,
        fields: dict[str, Any],
        indices: npt.NDArray[np.int64],
        uniforms: npt.NDArray[np.float64],
        ratio: float,
        scope: str,
        goal: npt.NDArray[np.int64],
        chosen: npt.NDArray[np.bool_],
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
        """Give a share of a batch of single steps goals that were achieved in the steps of a scope. O(B).

        Where ``uniforms[0]`` is below `ratio`, `chosen` becomes True, and ``uniforms[1]`` chooses the step. Returns the
        places of the chosen, and the bytes of 2B goals: what they achieved, and from the middle on their new goals.
        """
        ring, layout = self._ring, self._layout
        if scope != "random":
            self._episodes.sync()
        count, plan = indices.shape[0], layout.plan
        places, spare = np.empty(count, np.int64), np.empty(2 * count * plan[1].item(goal.item(0)), np.uint8)
        total = goals.relabel(
            indices, uniforms, ratio, _SCOPES[scope], ring.bounds, ring.bytes, ring.row_bytes, self._episodes.tables,
            plan, goal, fields["reward"].base, chosen, places, spare,
        )  # fmt: skip
        return places[:total], spare
