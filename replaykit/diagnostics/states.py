"""States as they are stored, and how far the means of batches of them lie from the buffer's."""

import math
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from replaykit.diagnostics.identity import standardised_shift
from replaykit.diagnostics.ledger import Indices
from replaykit.replay import Replay

SHIFT_NAMES = ("mean_shift", "design_effect", "squared_bias", "effective_batch_size", "successive_correlation")
"""What :func:`summary_of` finds."""

FEWEST_PAIRS = 5
"""Of successive batches, for a correlation."""

MOST_STATES = 512
"""States of the buffer that a batch is compared with, at most ..."""
MOST_BYTES = 1 << 23
"""... and the bytes of those that are read at once; at least 32 states are."""


class StateReader:
    """Reads the stored `obs` of transitions as a table of features, the same at all times.

    Attributes
    ----------
    total : int
        Features of a state.
    chosen : ndarray of int64
        Which of them are compared.
    most : int
        States that are read of the buffer, for comparison.
    """

    def __init__(self, buffer: Replay, max_features: int, rng: np.random.Generator) -> None:
        self._buffer = buffer
        names = [leaf.name for leaf in buffer.spec.leaves if leaf.name.partition(".")[0] == "obs"]
        nothing = np.zeros(0, np.int64)
        tables = [_flat(buffer.read(nothing, name)) for name in names]
        widths = [table.shape[1] for table in tables]
        self.total = sum(widths)
        some = self.total > max_features
        self.chosen = np.sort(rng.choice(self.total, max_features, replace=False)) if some else np.arange(self.total)
        # Which columns of which leaf those are, so that no others need to be converted
        leaf = np.searchsorted(np.cumsum(widths), self.chosen, side="right")
        column = self.chosen - np.cumsum([0, *widths])[leaf]
        self._columns = {name: column[leaf == i] for i, name in enumerate(names) if (leaf == i).any()}
        each = sum(table.itemsize * table.shape[1] for table in tables)
        self.most = int(np.clip(MOST_BYTES // max(each, 1), 32, MOST_STATES))

    def read(self, indices: Indices) -> npt.NDArray[np.float64]:
        """The chosen features of these transitions, of shape (B, D)."""
        parts = [_flat(self._buffer.read(indices, name))[:, columns] for name, columns in self._columns.items()]
        return np.concatenate([part.astype(np.float64) for part in parts], axis=1)


def _flat(states: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """States as (B, D) of their own dtype; complex numbers as two real ones."""
    if states.dtype.kind == "c":
        states = np.stack((states.real, states.imag), axis=-1)
    return states.reshape(states.shape[0], math.prod(states.shape[1:]))


class Shift(NamedTuple):
    """How far the mean of a batch lies from the buffer's, and that of the batch before.

    Attributes
    ----------
    batch : ndarray of shape (D,)
        For each feature in standard deviations; nan where it is constant.
    noise : float
        The variance of `batch` under uniform independent draws.
    before : ndarray of shape (D,)
        The same of the batch before; nan without one.
    reference_noise : float
        The part of `noise` that both have in common, since both are compared with the same states of the buffer.
    """

    batch: npt.NDArray[np.float64]
    noise: float
    before: npt.NDArray[np.float64]
    reference_noise: float

    @classmethod
    def between(
        cls,
        drawn: npt.NDArray[np.float64],
        before: npt.NDArray[np.float64],
        reference: npt.NDArray[np.float64],
    ) -> "Shift":
        """Of a batch of states and the one before, which may have none, from those of the buffer."""
        nothing = np.full(drawn.shape[1], np.nan)
        batch, noise = standardised_shift(drawn, reference)
        earlier = standardised_shift(before, reference)[0] if before.shape[0] else nothing
        return cls(batch, noise, earlier, 1.0 / reference.shape[0])


def summary_of(shifts: Collection[Shift], batch_size: float) -> dict[str, float]:
    """What the shifts of several batches say of independence and identity; nan where they do not tell."""
    found = dict.fromkeys(SHIFT_NAMES, float("nan"))
    if len(shifts) < 2:
        return found
    # In units in which uniform independent draws have variance 1
    scaled = np.array([shift.batch / np.sqrt(shift.noise) for shift in shifts])
    varies = np.isfinite(scaled).all(axis=0)
    scaled = scaled[:, varies]
    if scaled.shape[1]:
        found["mean_shift"] = float((scaled**2).mean())
        found["design_effect"] = float(scaled.var(axis=0, ddof=1).mean())
        found["squared_bias"] = found["mean_shift"] - found["design_effect"]
        found["effective_batch_size"] = batch_size / found["mean_shift"] if found["mean_shift"] else float("inf")
    pairs = np.array([(shift.before, shift.batch) for shift in shifts])[:, :, varies]
    pairs = pairs[np.isfinite(pairs).all(axis=(1, 2))]
    if pairs.shape[0] >= FEWEST_PAIRS and pairs.size:
        common = float(np.mean([shift.reference_noise for shift in shifts]))
        alike, each = (pairs[:, 0] * pairs[:, 1]).mean() - common, (pairs**2).mean() - common
        found["successive_correlation"] = float(np.clip(alike / each, -1.0, 1.0)) if each > 0.0 else float("nan")
    return found
