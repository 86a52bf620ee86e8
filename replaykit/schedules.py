"""Values that change over training."""

from dataclasses import dataclass

from replaykit.checks import check_count


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
        check_count("steps", self.steps)

    def __call__(self, step: int) -> float:
        """The value at `step`."""
        progress = min(step / self.steps, 1.0)
        return (1.0 - progress) * self.start + progress * self.end
