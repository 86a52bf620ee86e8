"""The measures recorded over training, at little cost."""

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from replaykit.diagnostics.figure import draw_panels
from replaykit.diagnostics.identity import energy_distance, relative_age, weighted_td_lift
from replaykit.diagnostics.independence import duplicates, overlap, pairs_alike, temporal_distance
from replaykit.diagnostics.inputs import Compared, count
from replaykit.diagnostics.ledger import DrawLedger, Indices, Stored
from replaykit.diagnostics.priorities import draw_count_stats, draw_distribution, weight_stats
from replaykit.diagnostics.states import SHIFT_NAMES, Shift, StateReader, summary_of
from replaykit.diagnostics.td_error import td_error_stats
from replaykit.diagnostics.words import words_for
from replaykit.field import as_float64, as_indices
from replaykit.replay import Replay

AVERAGED = (
    *(f"td_error_{name}" for name in ("mean", "median", "max", "std", "q10", "q25", "q75", "q90", "bias")),
    "td_error_top_decile_share", "td_error_nonfinite_share", "td_lift",
    "duplicates", "overlap", "same_episode", "temporal_distance", "relative_age", "age_steps",
    "energy_distance", "state_nonfinite_share", "stale_share",
    *(f"weight_{name}" for name in ("effective_share", "mean", "min", "max", "collapsed_share")),
)  # fmt: skip
"""What is averaged over the batches of the window."""
LATEST = (
    "batches", "size", "batch_size", "draws_per_transition", "lifetime_batches", "stale_update_share",
    *(f"probability_{name}" for name in (
        "top_percent_share", "entropy", "perplexity_share", "largest", "undrawable_share", "starved_share"
    )),
    *(f"draws_{name}" for name in ("mean", "max", "never_share", "never_expected", "dispersion")),
    "features", "features_total", "reference_states",
)  # fmt: skip
"""What is as of the last batch examined."""

MOST_TRANSITIONS = 4_096  # whose probabilities, draws and episodes are looked at
MOST_DISTANCES = 128  # states of each side whose distances are taken: that costs the square of their number
LONGEST_HISTORY = 10_000


class ReplayMonitor:
    """Watches the batches of any buffer or wrapper: is the replay healthy?

    Call :meth:`record` with every batch. It counts which transitions are drawn, and examines one batch in `every`
    closely: TD errors, importance weights, the distribution of the draws, and how far the batch is from independent
    uniform draws. It reads the buffer through its public methods, draws from a generator of its own, and changes
    nothing: batches are bit for bit the same with and without it.

    Methods: `record`; for looking `stats`, `history`, `warnings`, `plot`.

    States are compared as they are stored, the `obs` of a transition, whatever wrappers make of them; nested ones are
    laid side by side. Of states with more than `max_features` numbers, such as images, a random selection of as many
    is compared, the same at all times: ``stats()["features"]`` of ``stats()["features_total"]``. Of more than 4,096
    transitions a uniform sample of as many stands for all.

    Memory: 12 bytes for each slot of the buffer, the indices of `every` batches, and the history. Time: see
    :doc:`/explanation/is-my-replay-healthy`.

    Parameters
    ----------
    buffer : Replay
        What the batches are sampled from: the outermost wrapper.
    every : int
        Batches from one that is examined to the next.
    window : int
        Examined batches over which `stats` averages. One batch alone says little.
    max_features : int
        Numbers of a state that are compared, at most.
    seed : int
        Of the monitor's own choices: which stored transitions it compares batches with.

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
    >>> stats = watch(ReplayBuffer).stats()
    >>> round(stats["same_episode"], 1), round(stats["temporal_distance"], 1), round(stats["mean_shift"], 1)
    (1.0, 1.0, 1.1)
    >>> stats = watch(LatestBuffer).stats()
    >>> round(stats["same_episode"], 1), round(stats["temporal_distance"], 2), round(stats["mean_shift"], 1)
    (9.3, 0.03, 14.7)
    """

    def __init__(
        self, buffer: Replay, every: int = 200, *, window: int = 20, max_features: int = 64, seed: int = 0
    ) -> None:
        if not isinstance(buffer, Replay):
            raise TypeError(f"buffer is a {type(buffer).__name__}; expected a buffer or a wrapper around one")
        self.buffer = buffer
        self.every = count("every", every)
        self.window = count("window", window, 2)
        self._rng = np.random.default_rng(seed)
        self._states = StateReader(buffer, count("max_features", max_features), self._rng)
        self._ledger = DrawLedger(buffer.capacity, buffer.num_envs)
        self._batches = 0
        self._draws = 0
        numbers = buffer.stats()
        self._since = (0, numbers["added"], numbers.get("stale_updates", 0.0))  # draws, adds, stale updates so far
        self._examined: deque[dict[str, float]] = deque(maxlen=self.window)
        self._shifts: deque[Shift] = deque(maxlen=self.window)
        self._history: list[dict[str, float]] = []

    # -- Recording -------------------------------------------------------------------------------------------

    def record(self, batch: Any, td_errors: Any = None) -> None:
        """Take notice of a batch; examine it, if it is due.

        What is wrong with a batch is found when it is the first, or one to be examined.

        Parameters
        ----------
        batch : Batch
            As `sample` gave it, or its tensors on the CPU.
        td_errors : array-like of shape (B,), float, optional
            With their sign, as for `update_priorities`. NaN and infinite ones are counted, and left out elsewhere.

        Raises
        ------
        TypeError
            If `batch` has no indices, as a Batch has, or a tensor requires grad or is not on the CPU.
        ValueError
            If the shape of `td_errors` is not that of the indices, or the batch is empty.
        IndexError
            If an index was never given out. Stale ones are counted, and left out elsewhere.
        """
        if not hasattr(batch, "indices"):
            raise TypeError(f"batch is a {type(batch).__name__} without indices; expected a Batch, as sample gives it")
        indices = as_indices("batch.indices", batch.indices)
        due = (self._batches + 1) % self.every == 0
        if due or not self._batches:
            self._check(indices, td_errors)
        if not self._batches:
            self._ledger.begin(Stored.of(self.buffer))
        self._ledger.note(indices.copy(), len(self.buffer))
        self._batches += 1
        self._draws += indices.size
        if due:
            self._examine(batch, indices, None if td_errors is None else as_float64("td_errors", td_errors))

    def _check(self, indices: Indices, td_errors: Any) -> None:
        """Refuse what is wrong with a batch. To save time, only of the first batch and of those to be examined."""
        if not indices.size:
            raise ValueError("batch is empty; expected at least one transition")
        shape = indices.shape if td_errors is None else as_float64("td_errors", td_errors).shape
        if shape != indices.shape:
            raise ValueError(f"td_errors has shape {shape}; expected {indices.shape}, that of batch.indices")
        newest = self.buffer.newest[indices % self.buffer.num_envs]
        is_known = (newest >= 0) | (self.buffer.stats()["added"] == 0.0)  # a reset leaves a lane without a newest
        wrong = indices[(indices < 0) | ((indices > newest) & is_known)]
        if wrong.size:
            raise IndexError(
                f"batch.indices contains {wrong[0]}, which was never given out; pass batches of the buffer that the "
                "monitor was made for"
            )

    def _examine(self, batch: Any, indices: Indices, errors: npt.NDArray[np.float64] | None) -> None:
        stored = Stored.of(self.buffer)
        previous = self._ledger.previous
        self._ledger.settle(stored)
        found = dict.fromkeys(AVERAGED, float("nan"))
        alive = stored.has(indices)
        found["stale_share"] = 1.0 - float(alive.mean())
        probabilities = as_float64("batch.probabilities", batch.probabilities)
        found |= _of_errors(errors, probabilities) | _of_weights(as_float64("batch.weights", batch.weights))
        latest = self._of_traffic(indices.size)
        if alive.any():
            size = int(stored.sizes.sum())
            if size <= MOST_TRANSITIONS:
                some = stored.at(np.arange(size))
            else:
                some = stored.at(self._rng.integers(size, size=MOST_TRANSITIONS))
            found |= self._of_places(indices[alive], previous, some, stored)
            found |= self._of_states(indices[alive], previous, stored)
            latest |= self._of_probabilities(some, indices.size, size)
        self._examined.append(found)
        self._history.append(self._summary(latest))
        if len(self._history) > LONGEST_HISTORY:
            del self._history[1::2]

    def _of_traffic(self, batch_size: int) -> dict[str, float]:
        """How many batches a transition lives for, and how often it is drawn in that time."""
        numbers = self.buffer.stats()
        draws, added, stale = self._since
        self._since = self._draws, numbers["added"], numbers.get("stale_updates", 0.0)
        drawn, new = self._draws - draws, numbers["added"] - added
        return {
            "batches": float(self._batches),
            "size": numbers["size"],
            "batch_size": float(batch_size),
            "draws_per_transition": drawn / new if new else float("inf"),
            "lifetime_batches": numbers["capacity"] * drawn / batch_size / new if new else float("inf"),
            "stale_update_share": (self._since[2] - stale) / drawn,
            "features": float(self._states.chosen.size),
            "features_total": float(self._states.total),
            "reference_states": float(self._states.most),
        }

    def _of_places(self, indices: Indices, previous: Indices | None, some: Indices, stored: Stored) -> dict[str, float]:
        """Where in the buffer a batch comes from, beside uniform draws."""
        size, ages = int(stored.sizes.sum()), stored.ages(indices)
        age = relative_age(ages, stored.sizes)
        # The expected share of pairs, sum (L / N)²: the mean of L / N over transitions drawn uniformly
        _, first, last = self.buffer.episode(some)
        lanes = some % stored.oldest.size
        first = np.maximum(first // stored.oldest.size, stored.oldest[lanes])
        lengths = last // stored.oldest.size - first + 1
        pairs = Compared(pairs_alike(self.buffer.episode(indices)[0]), float(lengths.mean()) / size)
        return {
            "duplicates": duplicates(indices, size).ratio,
            "overlap": overlap(indices, previous, size).ratio if previous is not None else float("nan"),
            "same_episode": pairs.ratio,
            "temporal_distance": temporal_distance(ages, stored.sizes).ratio,
            "relative_age": age.ratio,
            "age_steps": age.value,
        }

    def _of_states(self, indices: Indices, previous: Indices | None, stored: Stored) -> dict[str, float]:
        """How the states of a batch compare with those stored."""
        if not self._states.total:
            return {}
        reference = self._states.read(stored.at(self._rng.integers(stored.sizes.sum(), size=self._states.most)))
        drawn = self._states.read(indices)
        before = self._states.read(indices[:0] if previous is None else previous[stored.has(previous)])
        found = {"state_nonfinite_share": 1.0 - float(np.isfinite(drawn).all(axis=1).mean())}
        drawn, before, reference = (states[np.isfinite(states).all(axis=1)] for states in (drawn, before, reference))
        if drawn.shape[0] and reference.shape[0]:
            self._shifts.append(Shift.between(drawn, before, reference))
        if min(drawn.shape[0], reference.shape[0]) > 1:
            # Every k-th of the batch: stratified draws come in order of time, so the first ones are the oldest
            some = drawn[:: -(-drawn.shape[0] // MOST_DISTANCES)]
            found["energy_distance"] = energy_distance(some, reference[:MOST_DISTANCES])
        return found

    def _of_probabilities(self, some: Indices, batch_size: int, size: int) -> dict[str, float]:
        """How unequal the draws are meant to be, and how unequal they have been."""
        p = self.buffer.probability(some, batch_size)
        draws = draw_count_stats(*self._ledger.counts(some))
        found = {f"draws_{name}": value for name, value in draws.items()}
        found["probability_starved_share"] = float((p * size < 0.1).mean())
        if p.max() > 0.0:
            shape = draw_distribution(p)
            # Of a sample, the share carries over, and the entropy follows from it
            shape["entropy"] = 1.0 + np.log(shape["perplexity_share"]) / np.log(size) if size > 1 else 1.0
        else:  # what can be drawn is so little that none of it is in the sample
            shape = {"top_percent_share": 1.0, "undrawable_share": 1.0}
        return found | {f"probability_{name}": float(value) for name, value in shape.items()}

    def _summary(self, latest: dict[str, float]) -> dict[str, float]:
        """The numbers of the window."""
        table = np.array([list(found.values()) for found in self._examined])
        known = np.isfinite(table)
        sums = np.where(known, table, 0.0).sum(axis=0)
        means = np.divide(sums, known.sum(axis=0), out=np.full(sums.shape, np.nan), where=known.any(axis=0))
        return (
            dict.fromkeys(LATEST, float("nan"))
            | latest
            | dict(zip(AVERAGED, means.tolist(), strict=True))
            | summary_of(self._shifts, latest["batch_size"])
        )

    # -- Looking ---------------------------------------------------------------------------------------------

    def stats(self) -> dict[str, float]:
        """Numbers for a logger: always the same names, nan where nothing is known yet.

        What is one number of a batch is averaged over the last `window` batches examined. The names and what to make of
        them are listed in the documentation of the module.
        """
        if self._history:
            return dict(self._history[-1])
        return dict.fromkeys((*LATEST, *AVERAGED, *SHIFT_NAMES), float("nan")) | {"batches": float(self._batches)}

    @property
    def history(self) -> list[dict[str, float]]:
        """What `stats` gave after each batch examined, as a list; every other one is dropped whenever it has 10,000."""
        return [dict(row) for row in self._history]

    def warnings(self) -> list[str]:
        """What is wrong, in words: each with the number that shows it, and what to do about it. Empty if all is well.

        Examples
        --------
        >>> from replaykit import Field, PrioritizedBuffer, Spec
        >>> from replaykit.diagnostics import ReplayMonitor
        >>> buffer = PrioritizedBuffer(1000, Spec(obs=Field(()), action=Field(())), alpha=1.0, eps=1e-6, seed=0)
        >>> for step in range(1000):
        ...     index = buffer.add(step % 100, 0, 1.0, step % 100 + 1, step % 100 == 99, False)
        >>> applied = buffer.update_priorities(np.arange(1000), td_errors=np.arange(1000) >= 998)
        >>> monitor = ReplayMonitor(buffer, every=10)
        >>> for _ in range(100):
        ...     monitor.record(buffer.sample(32))
        >>> warnings = monitor.warnings()
        >>> len(warnings), warnings[-1]
        (8, '99.5% of the stored transitions have never been drawn; under uniform draws 4.1% would not have been. \
Raise eps, or lower alpha.')
        """
        return words_for(self.stats())

    def plot(self, ax: Any = None, panels: Sequence[str] | None = None) -> Any:
        """The figure of the history: what was measured by batch, with a dashed line at what i.i.d. draws would give.

        Needs Matplotlib.

        Parameters
        ----------
        ax : Axes, or array of them, optional
            Where to draw, one panel on each; a new figure without it.
        panels : sequence of str, optional
            Of ``"td_error"``, ``"pairs"``, ``"mean"``, ``"states"``, ``"weights"`` and ``"draws"``; all of them, or as
            many as there are axes.

        Returns
        -------
        matplotlib.figure.Figure
        """
        return draw_panels(self._history, ax, panels)


def _of_errors(errors: npt.NDArray[np.float64] | None, probabilities: npt.NDArray[np.float64]) -> dict[str, float]:
    """The TD errors of a batch, and how much larger they are than those of the buffer."""
    if errors is None:
        return {}
    found = td_error_stats(errors)
    found["nonfinite_share"] = found.pop("nonfinite") / errors.size
    known = np.isfinite(errors) & (probabilities > 0.0)
    lift = weighted_td_lift(errors[known], probabilities[known]) if known.any() else float("nan")
    return {f"td_error_{name}": value for name, value in found.items()} | {"td_lift": lift}


def _of_weights(weights: npt.NDArray[np.float64]) -> dict[str, float]:
    """What the weights leave of a batch. Undivided ones may be infinite: then the others are left nothing."""
    infinite = np.isinf(weights)
    weights = infinite.astype(np.float64) if infinite.any() else weights
    return {f"weight_{name}": value for name, value in weight_stats(weights).items()}
