"""Schedules: values that change during training."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from replaykit.checks import check_count, check_finite, check_unit


@dataclass(frozen=True)
class LinearSchedule:
    """A value that changes linearly from `start` to `end` over `steps` steps and then stays constant.

    As a schedule of `beta`, it counts sampled batches. Invalid arguments raise TypeError or ValueError.

    Parameters
    ----------
    start, end : float
        The value at step 0, and from step `steps` on.
    steps : int
        The number of steps over which the value changes, at least 1.

    Examples
    --------
    >>> beta = LinearSchedule(0.4, 1.0, steps=100)
    >>> beta(0), beta(50), beta(1000)
    (0.4, 0.7, 1.0)
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        check_finite("start", self.start)
        check_finite("end", self.end)
        check_count("steps", self.steps)

    def __call__(self, step: int) -> float:
        """The value at `step`."""
        progress = min(step / self.steps, 1.0)
        return (1.0 - progress) * self.start + progress * self.end


@dataclass(frozen=True)
class ERESchedule:
    """A schedule for the argument `newest` of `RecentReplay`, which emphasizes recent experience.

    In a series of K updates, such as those after an episode, update k replays the newest ``max(capacity * eta**(1000 k
    / K), least)`` transitions: nearly all at first, then fewer and fewer. `eta` increases linearly to 1. With ``eta=1``
    every update replays all transitions. Invalid arguments raise TypeError or ValueError.

    Parameters
    ----------
    capacity : int
        The capacity of the buffer.
    updates : int
        Number of updates in a series, K: the batches sampled from one episode's end to the next. If episodes differ in
        length, use the typical number.
    steps : int
        Number of batches over which `eta` increases to 1: normally all batches of the training.
    eta : float
        The initial value, in [0, 1].
    least : int
        The smallest number of transitions to replay.

    References
    ----------
    Wang and Ross (2019), Boosting Soft Actor-Critic: Emphasizing Recent Experience without Forgetting the Past, section
    4.

    Examples
    --------
    >>> newest = ERESchedule(1_000_000, updates=1000, steps=1_000_000)
    >>> [round(newest(batches)) for batches in (0, 499, 999, 1000, 999_999)]
    [996000, 134929, 18242, 996004, 999996]
    """

    capacity: int
    updates: int
    steps: int
    eta: float = 0.996
    least: int = 5000

    def __post_init__(self) -> None:
        for name in ("capacity", "updates", "steps", "least"):
            check_count(name, getattr(self, name))
        check_unit("eta", self.eta)

    def __call__(self, batches: int) -> float:
        """The number of newest transitions that the next batch is drawn from, after `batches` batches."""
        place = batches % self.updates + 1
        eta = LinearSchedule(self.eta, 1.0, self.steps)(batches)
        return float(max(self.capacity * eta ** (1000.0 * place / self.updates), self.least))


def check_schedule(
    name: str, value: Any, check: Callable[[str, Any], float] = check_unit
) -> float | Callable[[int], float]:
    """`value`, a number that `check` accepts or a function of the number of batches.

    A function is tried with several numbers that are far apart.
    """
    if not callable(value):
        return check(name, value)
    for batches in (0, *(10**power for power in range(19))):
        try:
            found = value(batches)
        except Exception as error:
            if batches:  # for example, a lookup table that ends earlier
                break
            wanted = "a function of the number of batches"
            raise TypeError(f"{name} raised {type(error).__name__}: {error}; expected {wanted}") from error
        check(f"{name} after {batches} batches", found)
    schedule: Callable[[int], float] = value
    return schedule
