"""The last known state of each shard, and the handling of lost shards."""

import time
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from replaykit.distributed.generations import Generations
from replaykit.distributed.hosts import Failed, Hosts, Late, Lost
from replaykit.distributed.shard import Description, Lanes, Status
from replaykit.storage.base import Indices

_RETRY = 1.0
"""Seconds between two attempts to reach a lost shard."""


class Shards:
    """All shards of a replay, with the last `Status` of each.

    A shard that does not answer is *away*. It has no mass, so nothing is drawn from it. From time to time the
    learner asks, without waiting, whether it is back. If the shard was restarted, it begins its next generation, empty
    or with its last checkpoint.

    Parameters
    ----------
    hosts : Hosts
    seeds : SeedSequence
        Seeds for the random generators of the shards.
    patience : float
        Seconds to wait for an answer before a shard counts as away.

    Attributes
    ----------
    about : Description
    generations : Generations
    known : list of Status
    checkpoint : str or None
        The directory of the last save.
    warnings : list of str
        Messages about shards that were lost or came back.
    losses : int
        Number of times that a shard was lost.
    """

    def __init__(self, hosts: Hosts, seeds: np.random.SeedSequence, patience: float) -> None:
        self.hosts: Hosts = hosts
        self._seeds, self._patience = seeds, patience
        self.warnings: list[str] = []
        self.losses: int = 0
        self._unsaid: list[str] = []
        self.checkpoint: str | None = None
        self._away: dict[int, tuple[Any, float]] = {}
        self.about: Description = self._described()
        settings, count = self.about.settings, self.about.shards
        self.generations: Generations = Generations(count, settings.num_envs)
        self.known: list[Status] = [self._nothing(())] * count

    def _nothing(self, claimed: Lanes) -> Status:
        """The status of a shard without transitions."""
        bounds = np.zeros((2, self.about.settings.num_envs), np.int64)
        return Status(0, (0,) * self.about.shards, 0, bounds, 0, 0.0, None, claimed)

    def _described(self) -> Description:
        """The description of the shards. Raises an error unless all shards have the same settings."""
        answers = self.hosts.ask("describe", dict.fromkeys(range(self.hosts.count), ()), None)
        for k, each in answers.items():
            if isinstance(each, Lost | Failed):
                raise RuntimeError(f"shard {k} could not be started: {each[0]}")
            if isinstance(each, str):
                raise RuntimeError(f"make_buffer raised an error in shard {k}: {each}")
            if each.settings != answers[0].settings:
                first = answers[0].label
                raise ValueError(f"make_buffer returned {each.label} in shard {k}, and {first} in shard 0")
        found: Description = answers[0]
        return found

    def begin(self) -> None:
        """Begin the first generation of all shards."""
        calls = {k: (self._now, self._seeds.spawn(1)[0], None, ()) for k in range(len(self.known))}
        self.ask("begin", calls)

    def resume(self) -> int:
        """Continue with the shards of another learner. Returns the number of batches that it had sampled."""
        answers = self.hosts.ask("call", dict.fromkeys(range(len(self.known)), ("status",)), None)
        found = {k: each[0] for k, each in answers.items() if not isinstance(each, Lost | Failed)}
        for status in found.values():
            self.generations.raise_to(status.generations)
        self.ask_all("status")
        return max((status.batches for status in found.values()), default=0)

    @property
    def _now(self) -> tuple[int, ...]:
        return tuple(self.generations.each)

    # -- Asking ----------------------------------------------------------------------------------------------

    @property
    def present(self) -> list[int]:
        """The numbers of the shards that answer."""
        return [k for k in range(len(self.known)) if k not in self._away]

    def ask_all(self, method: str, *args: Any, patience: float | None = -1.0) -> dict[int, Any]:
        """Call a method of all present shards with the same arguments."""
        self.look_for_others()
        return self.ask(method, dict.fromkeys(self.present, args), patience=patience)

    def ask(
        self, method: str, calls: Mapping[int, tuple[Any, ...]], *, patience: float | None = -1.0
    ) -> dict[int, Any]:
        """Call a method of several shards concurrently, and store their statuses. Returns the result of each shard.

        Shards that do not answer are left out. If a call raised an error in a shard, the error is raised here, after
        the other answers have been processed.
        """
        calls = {k: (method, *args) for k, args in calls.items()}
        answers = self.hosts.ask("call", calls, self._patience if patience == -1.0 else patience)
        results, failed = dict[int, Any](), dict[int, Exception]()
        for k, answer in answers.items():
            if isinstance(answer, Failed):
                failed[k] = answer.error
            elif isinstance(answer, Lost | Late):
                self._leave(k, answer.reason)
            elif answer[0].generation is None:
                self._leave(k, "it was restarted")
            else:
                self.known[k], results[k] = answer
        self._say()
        for k, error in failed.items():
            if isinstance(error, ValueError):
                raise type(error)(f"shard {k}: {error}") from error
            raise error
        return results

    def _leave(self, k: int, reason: str) -> None:
        """Mark a shard as away until it is back."""
        self.losses += 1
        rows = self.known[k].size
        self._note(f"shard {k} is lost, with {rows} transitions: {reason}; the replay continues without it")
        self.known[k] = self._nothing(self.known[k].claimed)
        self._away[k] = self.hosts.host(k).send("call", "status"), time.monotonic()

    def look_for_others(self) -> None:
        """Use lost shards again if they are back. Does not wait."""
        for k, (pending, asked) in list(self._away.items()):
            host = self.hosts.host(k)
            answer = host.result(pending, 0.0)
            if isinstance(answer, Late):
                continue
            if isinstance(answer, Lost | Failed):
                if time.monotonic() >= asked + _RETRY:
                    self._away[k] = host.send("call", "status"), time.monotonic()
                continue
            status, problem = answer
            if status.generation is None:
                self.generations.restart(k)
                checkpoint = shard_path(self.checkpoint, k)
                args = self._now, self._seeds.spawn(1)[0], checkpoint, self.known[k].claimed
                pending = host.send("call", "begin", *args)
                self._away[k] = pending, time.monotonic()
                continue
            del self._away[k]
            self.known[k] = status
            failure = f"; its checkpoint could not be loaded: {problem}" if problem else ""
            self._note(f"shard {k} is back, with {status.size} transitions{failure}")
            for other in self.present:  # so that another learner can continue if this one dies
                self.hosts.host(other).send("call", "note", self._now, self.known[other].batches)
        self._say()

    def _note(self, message: str) -> None:
        self.warnings.append(message)
        self._unsaid.append(message)

    def _say(self) -> None:
        """Issue each new message once as a warning."""
        unsaid, self._unsaid = self._unsaid, []
        for message in unsaid:
            warnings.warn(message, RuntimeWarning, stacklevel=2)

    # -- Looking ---------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """The last known number of transitions in all shards."""
        return sum(status.size for status in self.known)

    @property
    def bounds(self) -> Indices:
        """The last known bounds of all lanes."""
        return self.generations.bounds([status.bounds for status in self.known])

    @property
    def cursors(self) -> Indices:
        """The last known next step of each lane in its generation."""
        return np.concatenate([status.bounds[1] for status in self.known])

    def masses(self) -> list[float]:
        """The last known mass of each shard. Rows are drawn from the shards in proportion to it."""
        return [status.mass for status in self.known]

    def least(self, shares: Iterable[float]) -> float | None:
        """The smallest positive probability of any transition, or None if the shards do not compute it."""
        found = [s.least * share for s, share in zip(self.known, shares, strict=True) if s.least is not None and share]
        return min(found, default=None)


def shard_path(path: str | None, k: int) -> str | None:
    """The path of shard k in a checkpoint."""
    return None if path is None else f"{path}/shard-{k}"
