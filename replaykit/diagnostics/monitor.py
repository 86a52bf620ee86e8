"""`ReplayMonitor`: records the measures during training."""

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from replaykit.batch import Batch
from replaykit.checks import prefixed
from replaykit.diagnostics.arguments import Compared, count
from replaykit.diagnostics.distribution_shift import energy_distance, relative_age, weighted_td_lift
from replaykit.diagnostics.draw_counts import DrawCounts, Indices, StoredSteps
from replaykit.diagnostics.independence import duplicates, overlap, share_of_equal_pairs, temporal_distance
from replaykit.diagnostics.plotting import draw_panels
from replaykit.diagnostics.priorities import draw_count_stats, draw_distribution, weight_stats
from replaykit.diagnostics.state_features import SHIFT_NAMES, MeanShift, StateReader, summarise_shifts
from replaykit.diagnostics.symptoms import warnings_for
from replaykit.diagnostics.td_error import td_error_stats
from replaykit.field import as_array, as_float64, as_indices
from replaykit.replay import Replay
from replaykit.trees import leaves_of, map_tree

AVERAGED = (
    *(f"td_error_{name}" for name in ("mean", "median", "max", "std", "q10", "q25", "q75", "q90", "bias")),
    "td_error_top_decile_share", "td_error_nonfinite_share", "td_lift",
    "duplicates", "overlap", "same_episode", "temporal_distance", "relative_age", "age_steps",
    "energy_distance", "state_nonfinite_share", "stale_share",
    *(f"weight_{name}" for name in ("effective_share", "mean", "min", "max", "collapsed_share")),
)  # fmt: skip
"""Numbers of a batch. `stats` averages them over the window."""
LATEST = (
    "recorded_batches", "stored_transitions", "batch_size", "draws_per_transition", "lifetime_batches",
    "stale_update_share",
    *(f"probability_{name}" for name in (
        "top_percent_share", "entropy", "perplexity_share", "largest", "undrawable_share", "starved_share"
    )),
    *(f"draws_{name}" for name in ("mean", "max", "never_share", "never_expected", "dispersion")),
    "features", "features_total", "reference_states",
)  # fmt: skip
"""Numbers of the buffer. `stats` returns the latest values."""

MAX_TRANSITIONS = 4_096
"""Maximum number of stored transitions whose probabilities, draw counts and episodes are examined."""
MAX_STATES_FOR_DISTANCES = 128
"""Maximum number of states for the energy distance, whose cost is quadratic in it."""
MAX_HISTORY = 10_000
"""Maximum number of rows of the history. When there are more, every second row is dropped."""


class ReplayMonitor:
    """Measures the batches of a buffer or wrapper during training, to show whether the replay is healthy.

    Call :meth:`record` with every batch. The monitor counts the draws of each transition. It examines every `every`-th
    batch in detail: its TD errors, its importance weights, the distribution of the draws, and how far the batch is from
    independent uniform draws. The monitor reads the buffer through its public methods and uses its own random
    generator, so batches are bit-identical with and without it.

    Methods: `record`. To read the results: `stats`, `history`, `warnings`, `plot`.

    The compared states are the stored `obs`, without changes by wrappers. Nested observations are concatenated. If a
    state has more than `max_features` numbers, like an image, a fixed random selection of `max_features` of them is
    compared: ``stats()["features"]`` of ``stats()["features_total"]``. If more than 4,096 transitions are stored, a
    uniform sample of 4,096 represents them.

    Memory: 12 bytes for each slot of the buffer, the indices of `every` batches, and the history. Time: see
    :doc:`/explanation/is-my-replay-healthy`.

    Parameters
    ----------
    buffer : Replay
        The buffer or wrapper that batches are sampled from; with several wrappers, the outermost.
    every : int
        Every `every`-th batch is examined.
    window : int
        The number of examined batches over which `stats` averages. A single batch is noisy.
    max_features : int
        Maximum number of compared features of a state.
    seed : int
        Seed for the choice of features and of the stored transitions that batches are compared with.

    Examples
    --------
    >>> from replaykit import Field, LatestBuffer, ReplayBuffer, Spec
    >>> from replaykit.diagnostics import ReplayMonitor
    >>> def watch(cls):
    ...     buffer = cls(1000, Spec(obs=Field(()), action=Field(())), seed=0)
    ...     monitor = ReplayMonitor(buffer, every=10)
    ...     for step in range(2000):
    ...         index = buffer.add(step % 100, 0, 1.0, step % 100 + 1, step % 100 == 99, False)
    ...         batch = buffer.sample(32)
    ...         monitor.record(batch, td_errors=batch.reward)
    ...     return monitor
    >>> names = "same_episode", "temporal_distance", "mean_shift"
    >>> stats = watch(ReplayBuffer).stats()
    >>> tuple(round(stats[name], 1) for name in names)
    (1.0, 1.0, 1.1)
    >>> stats = watch(LatestBuffer).stats()
    >>> tuple(round(stats[name], 2) for name in names)
    (9.27, 0.03, 14.73)
    """

    def __init__(
        self, buffer: Replay, every: int = 200, *, window: int = 20, max_features: int = 64, seed: int = 0
    ) -> None:
        if not isinstance(buffer, Replay):
            raise TypeError(f"buffer is a {type(buffer).__name__}; expected a buffer or a wrapper around one")
        self.buffer = buffer
        self.every: int = count("every", every)
        self.window: int = count("window", window, 2)
        self._rng = np.random.default_rng(seed)
        self._state_reader = StateReader(buffer, count("max_features", max_features), self._rng)
        self._draw_counts = DrawCounts(buffer.num_slots, buffer.successor)
        self._batches = 0
        self._draws = 0
        numbers = buffer.stats()
        self._last_totals = (0, numbers["added"], numbers.get("stale_updates", 0.0))  # draws, adds, stale updates
        self._examined: deque[dict[str, float]] = deque(maxlen=self.window)
        self._shifts: deque[MeanShift] = deque(maxlen=self.window)
        self._history: list[dict[str, float]] = []

    # -- Recording -------------------------------------------------------------------------------------------

    def record(self, batch: Any, td_errors: Any = None) -> None:
        """Count the draws of a batch. Every `every`-th batch is also examined.

        To save time, the arguments are checked only for the first batch and for examined batches.

        Parameters
        ----------
        batch : Batch
            A batch from `sample`, as arrays or as tensors on the CPU. For sequences, single transitions are examined,
            each with the weight and the probability of its row.
        td_errors : array-like of shape (B,), or (B, T) for sequences, float, optional
            Signed TD errors. NaN and infinite errors are counted, and left out of the other numbers.

        Raises
        ------
        TypeError
            If `batch` has no `indices`, or a tensor requires grad or is not on the CPU.
        ValueError
            If `td_errors` and the indices differ in shape, or the batch is empty.
        IndexError
            If an index was never returned by the buffer. Stale indices are counted, but not examined.
        """
        if not hasattr(batch, "indices"):
            raise TypeError(f"batch is a {type(batch).__name__} without indices; expected a Batch that sample returned")
        backend = self.buffer.backend
        if not backend.is_numpy:
            batch = batch.to_numpy()
            td_errors = None if td_errors is None else backend.host("td_errors", td_errors)
        if hasattr(batch, "step_indices"):
            batch, td_errors = _transitions_of(batch, td_errors)
        indices = as_indices("batch.indices", batch.indices)
        is_due = (self._batches + 1) % self.every == 0
        if is_due or not self._batches:
            self._check(indices, td_errors)
        if not self._batches:
            self._draw_counts.start(StoredSteps.of(self.buffer))
        self._draw_counts.record(indices.copy(), len(self.buffer))
        self._batches += 1
        self._draws += indices.size
        if is_due:
            self._examine(batch, indices, None if td_errors is None else as_float64("td_errors", td_errors))

    def _on_host(self, values: Any) -> npt.NDArray[Any]:
        """Values that the buffer returned, as a NumPy array."""
        return self.buffer.backend.host("values", values)

    def _check(self, indices: Indices, td_errors: Any) -> None:
        """Raise an error if the indices or the TD errors are invalid."""
        if not indices.size:
            raise ValueError("batch is empty; expected at least one transition")
        shape = indices.shape if td_errors is None else as_float64("td_errors", td_errors).shape
        if shape != indices.shape:
            raise ValueError(f"td_errors has shape {shape}; expected {indices.shape}, that of batch.indices")
        newest = self.buffer.newest[indices % self.buffer.successor]
        is_known = (newest >= 0) | (self.buffer.stats()["added"] == 0.0)  # after a reset, a lane has no newest step
        wrong = indices[(indices < 0) | ((indices > newest) & is_known)]
        if wrong.size:
            raise IndexError(
                f"batch.indices contains {wrong[0]}, which the buffer never returned; pass batches of the buffer that "
                "the monitor was built with"
            )

    def _examine(self, batch: Any, indices: Indices, errors: npt.NDArray[np.float64] | None) -> None:
        stored = StoredSteps.of(self.buffer)
        previous = self._draw_counts.previous
        self._draw_counts.update(stored)
        numbers = dict.fromkeys(AVERAGED, float("nan"))
        is_stored = stored.contains(indices)
        numbers["stale_share"] = 1.0 - float(is_stored.mean())
        numbers["state_nonfinite_share"] = _nonfinite_share(batch, indices.size)
        probabilities = as_float64("batch.probabilities", batch.probabilities)
        numbers |= _td_error_numbers(errors, probabilities)
        numbers |= _weight_numbers(as_float64("batch.weights", batch.weights))
        latest = self._lifetime_numbers(indices.size)
        if is_stored.any():
            size = int(stored.sizes.sum())
            if size <= MAX_TRANSITIONS:
                sample = stored.indices_at(np.arange(size))
            else:
                sample = stored.indices_at(self._rng.integers(size, size=MAX_TRANSITIONS))
            numbers |= self._position_numbers(indices[is_stored], previous, sample, stored)
            numbers |= self._state_numbers(indices[is_stored], previous, stored)
            latest |= self._probability_numbers(sample, indices.size, size)
        self._examined.append(numbers)
        self._history.append(self._summary(latest))
        if len(self._history) > MAX_HISTORY:
            del self._history[1::2]

    def _lifetime_numbers(self, batch_size: int) -> dict[str, float]:
        """The number of batches while a transition is stored, and its number of draws in that time."""
        numbers = self.buffer.stats()
        draws, added, stale = self._last_totals
        self._last_totals = self._draws, numbers["added"], numbers.get("stale_updates", 0.0)
        drawn, new = self._draws - draws, numbers["added"] - added
        return {
            "recorded_batches": float(self._batches),
            "stored_transitions": numbers["size"],
            "batch_size": float(batch_size),
            "draws_per_transition": drawn / new if new else float("inf"),
            "lifetime_batches": numbers["capacity"] * drawn / batch_size / new if new else float("inf"),
            "stale_update_share": (self._last_totals[2] - stale) / drawn,
            "features": float(self._state_reader.selected.size),
            "features_total": float(self._state_reader.num_features),
            "reference_states": float(self._state_reader.reference_size),
        }

    def _position_numbers(
        self, indices: Indices, previous: Indices | None, sample: Indices, stored: StoredSteps
    ) -> dict[str, float]:
        """The positions in the buffer from which a batch was drawn, compared with uniform draws."""
        size, ages = int(stored.sizes.sum()), stored.ages(indices)
        age = relative_age(ages, stored.sizes)
        # The expected share of pairs, sum (L / N)², is the mean of L / N over transitions drawn uniformly
        _, first, last = (self._on_host(each) for each in self.buffer.episode(sample))
        lanes = sample % stored.oldest.size
        first = np.maximum(first // stored.oldest.size, stored.oldest[lanes])
        lengths = last // stored.oldest.size - first + 1
        pairs = Compared(
            share_of_equal_pairs(self._on_host(self.buffer.episode(indices)[0])), float(lengths.mean()) / size
        )
        return {
            "duplicates": duplicates(indices, size).ratio,
            "overlap": overlap(indices, previous, size).ratio if previous is not None else float("nan"),
            "same_episode": pairs.ratio,
            "temporal_distance": temporal_distance(ages, stored.sizes).ratio,
            "relative_age": age.ratio,
            "age_steps": age.value,
        }

    def _state_numbers(self, indices: Indices, previous: Indices | None, stored: StoredSteps) -> dict[str, float]:
        """How the states of a batch differ from the stored states."""
        if not self._state_reader.num_features:
            return {}
        reference = self._state_reader.read(
            stored.indices_at(self._rng.integers(stored.sizes.sum(), size=self._state_reader.reference_size))
        )
        drawn = self._state_reader.read(indices)
        before = self._state_reader.read(indices[:0] if previous is None else previous[stored.contains(previous)])
        found = dict[str, float]()
        drawn, before, reference = (states[np.isfinite(states).all(axis=1)] for states in (drawn, before, reference))
        if drawn.shape[0] and reference.shape[0]:
            self._shifts.append(MeanShift.between(drawn, before, reference))
        if min(drawn.shape[0], reference.shape[0]) > 1:
            # Every k-th transition, because stratified draws are ordered by time, so the first ones would be the oldest
            spread = drawn[:: -(-drawn.shape[0] // MAX_STATES_FOR_DISTANCES)]
            found["energy_distance"] = energy_distance(spread, reference[:MAX_STATES_FOR_DISTANCES])
        return found

    def _probability_numbers(self, sample: Indices, batch_size: int, size: int) -> dict[str, float]:
        """How unequal the probabilities and the draw counts of the stored transitions are."""
        draws = draw_count_stats(*self._draw_counts.counts(sample))
        found = {f"draws_{name}": value for name, value in draws.items()}
        if self.buffer.is_conditional:  # for example, a LargeBatchReplay
            return found
        is_start = self.buffer.begins_row(sample)
        if not is_start.any():
            return found
        size, sample = max(round(size * is_start.mean()), 1), sample[is_start]
        p = self._on_host(self.buffer.probability(sample, batch_size))
        found["probability_starved_share"] = float((p * size < 0.1).mean())
        if p.max() > 0.0:
            shape = draw_distribution(p)
            # `p` may be a sample. Its perplexity share estimates the buffer's, and the entropy follows from the share
            shape["entropy"] = 1.0 + np.log(shape["perplexity_share"]) / np.log(size) if size > 1 else 1.0
        else:  # few transitions can be drawn, and none of them is in the sample
            shape = {"top_percent_share": 1.0, "undrawable_share": 1.0}
        return found | {f"probability_{name}": float(value) for name, value in shape.items()}

    def _summary(self, latest: dict[str, float]) -> dict[str, float]:
        """The numbers for `stats`: `latest`, and averages over the window."""
        table = np.array([list(found.values()) for found in self._examined])
        known = np.isfinite(table)
        sums = np.where(known, table, 0.0).sum(axis=0)
        means = np.divide(sums, known.sum(axis=0), out=np.full(sums.shape, np.nan), where=known.any(axis=0))
        return (
            dict.fromkeys(LATEST, float("nan"))
            | latest
            | dict(zip(AVERAGED, means.tolist(), strict=True))
            | summarise_shifts(self._shifts, latest["batch_size"])
        )

    # -- Looking ---------------------------------------------------------------------------------------------

    def stats(self, prefix: str = "") -> dict[str, float]:
        """Metrics for a logger. The names are always the same. Unknown numbers are nan.

        Numbers of a batch are averages over the last `window` examined batches. :doc:`/reference/diagnostics` lists all
        names. They differ from the names in the `stats` of a buffer.

        Parameters
        ----------
        prefix : str
            A prefix for each name, such as ``"replay/"``.
        """
        if self._history:
            return prefixed(self._history[-1], prefix)
        unknown = dict.fromkeys((*LATEST, *AVERAGED, *SHIFT_NAMES), float("nan"))
        return prefixed(unknown | {"recorded_batches": float(self._batches)}, prefix)

    @property
    def history(self) -> list[dict[str, float]]:
        """The `stats` after each examined batch. If there are more than 10,000, every second one is dropped."""
        return [dict(row) for row in self._history]

    def warnings(self) -> list[str]:
        """Warnings about unhealthy numbers, each with the measured value and a remedy. Empty if there are none.

        Examples
        --------
        >>> from replaykit import Field, PrioritizedBuffer, Spec
        >>> from replaykit.diagnostics import ReplayMonitor
        >>> spec = Spec(obs=Field(()), action=Field(()))
        >>> buffer = PrioritizedBuffer(1000, spec, alpha=1.0, eps=1e-6, seed=0)
        >>> for step in range(1000):
        ...     x = step % 100
        ...     index = buffer.add(x, 0, 1.0, x + 1, x == 99, False)
        >>> td_errors = np.arange(1000) >= 998
        >>> applied = buffer.update_priorities(np.arange(1000), td_errors)
        >>> monitor = ReplayMonitor(buffer, every=10)
        >>> for _ in range(100):
        ...     monitor.record(buffer.sample(32))
        >>> warnings = monitor.warnings()
        >>> len(warnings), warnings[-1]  # doctest: +NORMALIZE_WHITESPACE
        (8, '99.5% of the stored transitions have never been drawn; under uniform draws
        4.1% would not have been. Raise eps, or lower alpha.')
        """
        return warnings_for(self.stats())

    def plot(self, ax: Any = None, panels: Sequence[str] | None = None) -> Any:
        """Plot the history against the number of batches. A dashed line marks the value under i.i.d. draws.

        Needs Matplotlib.

        Parameters
        ----------
        ax : Axes, or array of Axes, optional
            The axes to draw on, one for each panel. By default, a new figure is made.
        panels : sequence of str, optional
            Any of ``"td_error"``, ``"pairs"``, ``"mean"``, ``"states"``, ``"weights"`` and ``"draws"``. By default, all
            of them; if `ax` has fewer axes, the first ones.

        Returns
        -------
        matplotlib.figure.Figure
        """
        return draw_panels(self._history, ax, panels)


def _transitions_of(batch: Any, td_errors: Any) -> tuple[Batch, npt.NDArray[np.float64] | None]:
    """Flatten sequences to a batch of transitions without padding. Also returns their TD errors."""
    steps = as_array("batch.step_indices", batch.step_indices)
    mask = steps >= 0
    rows = np.nonzero(mask)[0]
    if td_errors is not None:
        td_errors = as_float64("td_errors", td_errors)
        if td_errors.shape != steps.shape:
            raise ValueError(f"td_errors has shape {td_errors.shape}; expected {steps.shape}, that of the sequences")
        td_errors = td_errors[mask]

    def real(leaf: Any, path: str) -> npt.NDArray[Any]:
        return as_array(path, leaf)[mask]

    fields: dict[str, Any] = {name: map_tree(real, getattr(batch, name), name) for name in ("obs", "next_obs")}
    fields |= {name: as_array(name, getattr(batch, name))[rows] for name in ("weights", "probabilities")}
    return Batch.of(fields | {"indices": steps[mask]}), td_errors


def _nonfinite_share(batch: Any, size: int) -> float:
    """The share of a batch with a NaN or infinite number anywhere in `obs` or `next_obs`."""
    is_finite = np.ones(size, np.bool_)
    for name, leaf in leaves_of({"obs": batch.obs, "next_obs": batch.next_obs}, "batch"):
        values = as_array(name, leaf)
        if values.dtype.kind in "fc":
            is_finite &= np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
    return 1.0 - float(is_finite.mean())


def _td_error_numbers(
    errors: npt.NDArray[np.float64] | None, probabilities: npt.NDArray[np.float64]
) -> dict[str, float]:
    """Statistics of the TD errors of a batch, and how much larger they are than the buffer's."""
    if errors is None:
        return {}
    found = td_error_stats(errors)
    found["nonfinite_share"] = found.pop("nonfinite") / errors.size
    known = np.isfinite(errors) & (probabilities > 0.0)
    lift = weighted_td_lift(errors[known], probabilities[known]) if known.any() else float("nan")
    return {f"td_error_{name}": value for name, value in found.items()} | {"td_lift": lift}


def _weight_numbers(weights: npt.NDArray[np.float64]) -> dict[str, float]:
    """Statistics of the weights of a batch. If some are infinite, the others count as 0."""
    infinite = np.isinf(weights)
    weights = infinite.astype(np.float64) if infinite.any() else weights
    return {f"weight_{name}": value for name, value in weight_stats(weights).items()}
