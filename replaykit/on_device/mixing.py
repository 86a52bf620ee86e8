"""The rows of a mixture on a device. Their shapes do not depend on the draw, so the CPU never waits for the device."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from replaykit.backend import Backend
from replaykit.batch import Draw, Rewrite
from replaykit.mixing import Ring, Rows
from replaykit.replay import Replay


class DeviceRows(Rows):
    """The rows of a batch by source. Each source gets all B rows. Rows of other sources are removed later.

    In `own`, the rows of other sources are -1. If windows are opened at the rows, the rows of other sources are instead
    the newest index of the source, and an empty source has no rows. `begins` is unused.
    """

    __slots__ = ()

    def of(self, k: int, width: int = 1) -> Any:
        return slice(None) if len(self.own[k]) else slice(0)

    def alone(self, k: int, draw: Any, share: float) -> Draw:
        """As in `Rows`, but rows of other sources have probability inf, so that they have no effect."""
        probabilities: Any = torch.where(self._is_of(k, draw.probabilities), draw.probabilities / share, torch.inf)
        part = Draw(self.own[k], probabilities)
        if draw.least is not None:
            given: Any = draw.least
            given = given if isinstance(given, torch.Tensor) else probabilities.new_full((), given)
            least = given.expand(len(self.own))[k]
            part.least = torch.where(least.isnan(), probabilities.min(), least / share)  # type: ignore[assignment]
        return part

    def given_to(self, k: int, of_all: Any, own: Any) -> Any:
        """As in `Rows`, but with an entry for each window. Entries of other sources keep their value in `own`."""
        return torch.where(self._is_of(k, own), of_all, own) if len(own) else own

    def _is_of(self, k: int, part: Any) -> Any:
        """Whether each entry of a part belongs to source k. Entries are rows or windows."""
        owner: Any = self.owner
        owner = owner if len(part) == len(owner) else owner.repeat_interleave(self.width)
        return (owner == k).view(-1, *(1 for _ in part.shape[1:]))

    def rewards(self, parts: list[Any]) -> Any:
        longest = max(reward.shape[1] for reward in parts)
        pads = [(*(0, 0) * (reward.ndim - 2), 0, longest - reward.shape[1]) for reward in parts]
        return self.joined([torch.nn.functional.pad(each, pad) for each, pad in zip(parts, pads, strict=True)])

    def joined(self, parts: list[Any]) -> Any:
        """Take the entry of each row, or of each window, from the part of its source.

        `parts` has one part for each source, or one for each source that has rows.
        """
        having = [k for k, own in enumerate(self.own) if len(own)]
        if len(parts) == len(self.own):
            parts = [parts[k] for k in having] or parts[:1]
        result = parts[0]
        for k, part in zip(having[1:], parts[1:], strict=True):
            result = torch.where(self._is_of(k, part), part, result)
        return result

    def rewrites_of(self, rewrites: list[Rewrite], begin: int, count: int) -> Iterator[Rewrite]:
        return iter(rewrites if count else ())


class DeviceRing(Ring):
    """A ring that joins the lanes of replays on a device.

    Parameters
    ----------
    sources : sequence of Replay
    backend : Backend
    """

    def __init__(self, sources: Sequence[Replay], backend: Backend) -> None:
        super().__init__([source.successor for source in sources])
        self._sources = sources
        self._tables = tuple(map(backend.array, (self.owner, self._lanes, self._offsets)))

    def owner_of(self, indices: Any) -> Any:
        return self._tables[0][indices % self.successor]

    def placed(self, k: int, own: Any) -> Any:
        indices: Any = self.mapped(k, own)
        return torch.where(own < 0, own, indices)

    def split(self, indices: Any, is_opening: bool = False) -> Rows:
        """As in `Ring`, but each source gets all rows. A row with indices of several sources is recorded as not stored.

        If `is_opening`, windows are opened at the indices, and the newest index of the source replaces those of others.
        """
        if isinstance(indices, np.ndarray):
            return super().split(indices)
        _, lanes_of, offsets = self._tables
        steps, lanes = indices // self.successor, indices % self.successor
        owners: Any = self.owner_of(indices)
        own: Any = steps * lanes_of[owners] + lanes - offsets[owners]
        owner = owners if indices.ndim == 1 else self.owner_of(indices.amax(1))
        of_rows = owner.view(-1, *(1 for _ in indices.shape[1:]))
        own = torch.where(owners == of_rows, own, -2)
        own = torch.where(indices < 0, indices, own)
        parts = [self._part(k, own, of_rows == k, is_opening) for k in range(len(self._sources))]
        return DeviceRows(parts, owner, [], owner, indices.shape[1] if indices.ndim == 2 else 1)

    def _part(self, k: int, own: Any, is_mine: Any, is_opening: bool) -> Any:
        """The rows of source k, with a replacement for those of other sources."""
        source = self._sources[k]
        newest = int(source.newest.max()) if is_opening else -1
        part = torch.where(is_mine, own, newest)
        if is_opening and newest < 0:
            source.read(part.view(-1), "terminated")  # records indices of an empty source
            return part[:0]
        return part

    def together(self, own: list[Any], indices: Any = None) -> Rows:
        return self.split(indices, True)
