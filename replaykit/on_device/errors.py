"""Errors that only the device can detect. The device counts them. They are raised when the CPU waits for the device."""

from typing import ClassVar

import torch


class LateErrors:
    """Counts of invalid values, by kind.

    Parameters
    ----------
    counts : tensor of shape (kinds,), int64
        Zeros on the device, one for each entry of `TEXTS`.
    """

    TEXTS: ClassVar[dict[str, tuple[type[Exception], str]]] = {
        "reward": (ValueError, "{} rewards that were added are NaN or infinite; expected finite numbers"),
        "too large": (OverflowError, "{} values that were added do not fit the dtype of their field; widen the dtype"),
        "not stored": (IndexError, "{} indices that were read are not stored: they are stale or were never returned"),
        "never returned": (IndexError, "{} indices that were passed were never returned; pass those of a batch"),
        "td_errors": (
            ValueError,
            "{} TD errors or priorities are NaN, infinite or too large; their update was ignored",
        ),
        "negative": (ValueError, "{} priorities are negative; expected non-negative numbers; they were ignored"),
        "reward_fn": (
            ValueError,
            "{} rewards that reward_fn returned are NaN, infinite or too large; expected finite numbers",
        ),
        "nothing": (ValueError, "{} batches were drawn while every priority was 0; set one to a positive number first"),
    }

    def __init__(self, counts: torch.Tensor) -> None:
        self._counts = counts
        self._places = {kind: counts[place] for place, kind in enumerate(self.TEXTS)}

    def note(self, kind: str, wrong: torch.Tensor) -> None:
        """Count the invalid values of a kind: the entries of `wrong` that are True."""
        self._places[kind].add_(wrong.sum())

    def raise_first(self) -> None:
        """Raise an error that names all recorded problems, and set all counts to 0. Waits for the device."""
        counts = self._counts.tolist()
        if any(counts):
            self._counts.zero_()
            found = [(count, *text) for count, text in zip(counts, self.TEXTS.values(), strict=True) if count]
            _, kind, _ = found[0]
            raise kind("; ".join(text.format(count) for count, _, text in found))
