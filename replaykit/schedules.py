"""Values that change over training."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from replaykit.checks import check_count, check_finite, check_unit


@dataclass(frozen=True)
class LinearSchedule:
    """A value that changes linearly from `start` to `end` over `steps` steps, and then stays there.

    For a schedule of `beta`, a step is a batch sampled. `steps` is at least 1.

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


def check_schedule(name: str, value: Any) -> float | Callable[[int], float]:
    """`value`, a number in [0, 1] or a function of the number of batches, which is asked about steps far apart."""
    if not callable(value):
        return check_unit(name, value)
    for batches in (0, *(10**power for power in range(19))):
        try:
            found = value(batches)
        except Exception as error:
            if batches:  # a table that ends there
                break
            wanted = "a function of the number of batches"
            raise TypeError(f"{name} raised {type(error).__name__}: {error}; expected {wanted}") from error
        check_unit(f"{name} after {batches} batches", found)
    schedule: Callable[[int], float] = value
    return schedule
