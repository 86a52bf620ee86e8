"""The states of stored transitions as a table of features, and how far the mean of a batch is from the buffer's."""

import math
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from replaykit.diagnostics.distribution_shift import standardized_shift
from replaykit.diagnostics.draw_counts import Indices
from replaykit.replay import Replay

SHIFT_NAMES = ("mean_shift", "design_effect", "squared_bias", "effective_batch_size", "successive_correlation")
"""The numbers that :func:`summarise_shifts` returns."""

MIN_PAIRS = 5
"""Minimum number of pairs of successive batches for a correlation."""

MAX_REFERENCE_STATES = 512
"""Number of stored states with which a batch is compared. Fewer if states are large; see `MAX_REFERENCE_BYTES`."""

MAX_REFERENCE_BYTES = 1 << 23
"""Maximum size in bytes of the states read from the buffer at a time. At least 32 states are read in any case."""


class StateReader:
    """Reads the stored `obs` of transitions as a table with one column for each feature.

    Nested observations are concatenated. If there are more than `max_features`, a fixed random selection is read.

    Attributes
    ----------
    num_features : int
        The number of features of a state.
    selected : ndarray of int64
        The features that are read.
    reference_size : int
        The number of states to read from the buffer for a comparison.
    """

    def __init__(self, buffer: Replay, max_features: int, rng: np.random.Generator) -> None:
        self._buffer = buffer
        names = [leaf.name for leaf in buffer.spec.leaves if leaf.name.partition(".")[0] == "obs"]
        no_indices = np.zeros(0, np.int64)
        tables = [self._read(no_indices, name) for name in names]
        widths = [table.shape[1] for table in tables]
        self.num_features: int = sum(widths)
        if self.num_features > max_features:
            self.selected: npt.NDArray[Any] = np.sort(rng.choice(self.num_features, max_features, replace=False))
        else:
            self.selected = np.arange(self.num_features)
        # The selected columns of each leaf, so that the others need not be converted
        leaf = np.searchsorted(np.cumsum(widths), self.selected, side="right")
        column = self.selected - np.cumsum([0, *widths])[leaf]
        self._columns = {name: column[leaf == i] for i, name in enumerate(names) if (leaf == i).any()}
        state_bytes = sum(table.itemsize * table.shape[1] for table in tables)
        self.reference_size: int = int(np.clip(MAX_REFERENCE_BYTES // max(state_bytes, 1), 32, MAX_REFERENCE_STATES))

    def read(self, indices: Indices) -> npt.NDArray[np.float64]:
        """The selected features of these transitions, of shape (B, D)."""
        parts = [self._read(indices, name)[:, columns] for name, columns in self._columns.items()]
        return np.concatenate([part.astype(np.float64) for part in parts], axis=1)

    def _read(self, indices: Indices, name: str) -> npt.NDArray[Any]:
        """One leaf of these transitions, of shape (B, D)."""
        return _flat(self._buffer.backend.host(name, self._buffer.read(indices, name)))


def _flat(states: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """States as (B, D) in their own dtype; a complex number becomes two real ones."""
    if states.dtype.kind == "c":
        states = np.stack((states.real, states.imag), axis=-1)
    return states.reshape(states.shape[0], math.prod(states.shape[1:]))


class MeanShift(NamedTuple):
    """How far the means of a batch and of the batch before it are from the buffer's mean.

    Attributes
    ----------
    batch : ndarray of shape (D,)
        The shift of each feature in standard deviations; nan for a constant feature.
    noise : float
        The variance of `batch` under uniform, independent draws.
    before : ndarray of shape (D,)
        The same for the batch before; nan if there is none.
    reference_noise : float
        The part of `noise` that both shifts share, because both batches are compared with the same reference states.
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
    ) -> "MeanShift":
        """Compute the shift from the states of a batch, of the previous batch (possibly empty), and of the buffer."""
        unknown = np.full(drawn.shape[1], np.nan)
        batch, noise = standardized_shift(drawn, reference)
        earlier = standardized_shift(before, reference)[0] if before.shape[0] else unknown
        return cls(batch, noise, earlier, 1.0 / reference.shape[0])


def summarise_shifts(shifts: Collection[MeanShift], batch_size: float) -> dict[str, float]:
    """The mean shift of several batches, split into variance and bias; nan where there are too few batches."""
    found = dict.fromkeys(SHIFT_NAMES, float("nan"))
    if len(shifts) < 2:
        return found
    # In units in which uniform, independent draws have variance 1
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
    if pairs.shape[0] >= MIN_PAIRS and pairs.size:
        common = float(np.mean([shift.reference_noise for shift in shifts]))
        covariance, variance = (pairs[:, 0] * pairs[:, 1]).mean() - common, (pairs**2).mean() - common
        correlation = float(np.clip(covariance / variance, -1.0, 1.0)) if variance > 0.0 else float("nan")
        found["successive_correlation"] = correlation
    return found
