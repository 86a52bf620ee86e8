"""The parts of a mixture: checks of its sources, joint locks, shares as row counts, and the rows of each source."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from operator import methodcaller
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from replaykit.batch import Draw, Rewrite
from replaykit.checks import check_unit, nearest
from replaykit.replay import Replay
from replaykit.schedules import check_schedule
from replaykit.storage.base import Indices
from replaykit.storage.lock import Lock
from replaykit.trees import Tree

Share: TypeAlias = float | Callable[[int], float]
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_SUM_ROUNDING = 1e-6
"""Tolerance of the sum of the shares."""
_PLANS = 64
"""Number of batch sizes for which the counts of fixed shares are cached."""
_ROUNDING = 1e-12
"""Tolerance, relative to the batch size, within which a share of a batch counts as an integer."""
_acquire, _release = methodcaller("acquire"), methodcaller("release")


class Locks:
    """The locks of several storages, held together. It has the interface of a `Lock <replaykit.storage.Lock>`.

    Locks are always acquired in the order of their creation, which prevents deadlocks.
    """

    def __init__(self, locks: list[Lock], written: Lock) -> None:
        self.each: list[Lock] = sorted(locks, key=lambda lock: lock.number)
        self.written: Lock = written
        self._reversed = self.each[::-1]

    def __enter__(self) -> bool:
        taken: list[Any] = []
        try:
            taken.extend(map(_acquire, self.each))  # a single call, so that the count is correct after an interrupt
        except BaseException:
            for lock in self.each[: len(taken)]:
                lock.release()
            raise
        return True

    def __exit__(self, *_exception: object) -> None:
        list(map(_release, self._reversed))

    @property
    def sampling(self) -> bool:
        """Whether one of the storages is in the middle of a sample."""
        return any(lock.sampling for lock in self.each)

    @sampling.setter
    def sampling(self, value: bool) -> None:
        for lock in self.each:
            lock.sampling = value or lock.refusal is not None

    @property
    def is_held(self) -> bool:
        """Whether this thread holds one of the locks."""
        return any(lock.is_held for lock in self.each)

    @property
    def refusal(self) -> str | None:
        """The reason why one of the storages is no longer usable, or None."""
        return next((lock.refusal for lock in self.each if lock.refusal), None)

    def refuse_writing(self) -> None:
        """Raise RuntimeError if the thread that holds the locks is in the middle of a sample."""
        for lock in self.each:
            if lock.sampling:
                lock.refuse_writing()


class Plan(NamedTuple):
    """The number of rows of each source in a batch: `counts`, plus one more row with probability `chances`.

    `edges` are the cumulative sums of the chances, from 0 to their total, which is an integer. `most` is the largest
    possible number of rows of each source. `is_whole`: whether no number is random.
    """

    shares: list[float]
    counts: list[int]
    chances: list[float]
    edges: list[float]
    most: list[int]
    is_whole: bool

    def rounded(self, uniform: float) -> list[int]:
        """Row counts by systematic sampling with a random number in [0, 1). Their sum and expectations are exact."""
        up = [int(edge + uniform) for edge in self.edges]
        return [count + end - begin for count, (begin, end) in zip(self.counts, pairwise(up), strict=True)]

    def counts_of(self, k: int) -> list[tuple[int, float]]:
        """The possible numbers of rows of source k, except 0, with their probabilities."""
        count, chance = self.counts[k], self.chances[k]
        return [(n, p) for n, p in ((count, 1.0 - chance), (count + 1, chance)) if n and p > 0.0]


def planned(shares: list[float], size: int) -> Plan:
    """The plan for a batch of `size`. The sum of `shares` is 1 up to rounding."""
    shares = [share / sum(shares) for share in shares]
    exact = np.array(shares) * size
    whole = np.rint(exact)
    is_whole = np.abs(exact - whole) <= _ROUNDING * size
    counts = np.where(is_whole, whole, np.floor(exact)).astype(np.int64)
    fractions, rest = np.where(is_whole, 0.0, exact - counts), size - int(counts.sum())
    edges = np.concatenate(([0.0], np.cumsum(fractions)))
    if rest:
        edges *= rest / edges[-1]
        edges[-1] = rest
    chances = np.diff(edges) if rest else np.zeros(len(shares))
    most = counts + (chances > 0.0)
    return Plan(shares, counts.tolist(), chances.tolist(), edges.tolist(), most.tolist(), not rest)


class Shares:
    """The shares of the sources: numbers in [0, 1] or schedules of such numbers. Their sum is 1.

    Raises TypeError or ValueError for invalid shares. `given` are the shares in the order of the names.
    """

    def __init__(self, names: tuple[str, ...], shares: Any) -> None:
        if not isinstance(shares, Mapping):
            raise TypeError(f"shares is {shares!r}; expected a dict with a number for each of {_listed(names)}")
        for name in shares:
            if name not in names:
                meant = nearest(name, names)
                raise ValueError(f"shares has the unknown name {name!r}; expected {_listed(names)}{meant}")
        for name in names:
            if name not in shares:
                raise ValueError(f"shares lacks {name!r}; expected a share of each source, 0 for none")
        self._names = names
        self.given: tuple[Share, ...] = tuple(check_schedule(f"shares[{name!r}]", shares[name]) for name in names)
        self._is_fixed = not any(map(callable, self.given))
        self._plans: dict[int, Plan] = {}
        for batches in (0,) if self._is_fixed else (0, *(10**power for power in range(19))):
            try:
                found = [share(batches) if callable(share) else share for share in self.given]
            except Exception:  # the schedule covers fewer batches; `after` raises its error later
                break
            self._refuse_sum(found, batches)

    def after(self, batches: int) -> list[float]:
        """The values of the shares after `batches` batches."""
        named = zip(self._names, self.given, strict=True)
        found = [check_unit(f"shares[{name!r}]", s(batches)) if callable(s) else s for name, s in named]
        self._refuse_sum(found, batches)
        return found

    def _refuse_sum(self, shares: list[float], batches: int) -> None:
        if not abs(sum(shares) - 1.0) <= _SUM_ROUNDING:
            when = f" after {batches} batches" if batches else ""
            listed = ", ".join(f"{name!r}: {share:g}" for name, share in zip(self._names, shares, strict=True))
            raise ValueError(
                f"shares is {{{listed}}}{when}, with the sum {sum(shares):g}; expected a sum of 1; divide each by it"
            )

    def plan(self, batch_size: int, batches: int) -> Plan:
        """The number of rows of each source in the batch that follows `batches` batches."""
        plan = self._plans.get(batch_size)
        if plan is None:
            plan = planned(self.after(batches), batch_size)
            if self._is_fixed:
                if len(self._plans) >= _PLANS:
                    self._plans.clear()
                self._plans[batch_size] = plan
        return plan


class Rows(NamedTuple):
    """The rows of a batch by source.

    Attributes
    ----------
    own : list of ndarray
        The rows of each source, as indices of that source.
    owner : ndarray of shape (B,), int64
        The number of the source of each row.
    begins : list of int
        The position where the rows of each source begin when sorted by source, followed by B.
    order : ndarray of shape (B,), int64, or None
        The row numbers sorted by source; None if the rows are already sorted.
    width : int
        Number of windows in each row, T.
    """

    own: list[Indices]
    owner: Indices
    begins: list[int]
    order: Indices | None
    width: int

    def of(self, k: int, width: int = 1) -> Any:
        """An indexer for the rows of source k, or for their windows, in an array of all rows."""
        begin, end = self.begins[k : k + 2]
        if self.order is None:
            return slice(begin * width, end * width)
        return _widened(self.order[begin:end], width)

    def given_to(self, k: int, of_all: npt.NDArray[Any], own: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The entries of source k's windows in an array of all windows. They replace `own`, the source's array."""
        return of_all[self.of(k, self.width)]  # type: ignore[no-any-return]

    def widened(self, width: int) -> "Rows":
        """The same rows with this number of windows in each."""
        return self._replace(width=width)

    def alone(self, k: int, draw: Draw, share: float) -> Draw:
        """The rows of source k in a draw, with the probabilities that they have in this source alone."""
        part = Draw(self.own[k], draw.probabilities[self.of(k)] / share)
        if draw.least is not None:
            known = float(np.broadcast_to(draw.least, len(self.own))[k])
            part.least = None if np.isnan(known) else known / share
        return part

    def rewards(self, parts: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """Join rewards (M, n, ...). The n of a source is smaller than `n_step` if its lanes are shorter."""
        longest = max(reward.shape[1] for reward in parts)
        missing = [(longest - reward.shape[1], reward.ndim) for reward in parts]
        return self.joined(
            [
                np.pad(reward, [(0, 0), (0, steps), *[(0, 0)] * (axes - 2)]) if steps else reward
                for reward, (steps, axes) in zip(parts, missing, strict=True)
            ]
        )

    def joined(self, parts: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """Join the sources' arrays, which have an entry for each row or each window."""
        array = np.concatenate(parts)
        if self.order is None:
            return array
        width = 1 if len(array) == len(self.order) else self.width
        result = np.empty_like(array)
        result[_widened(self.order, width)] = array
        return result

    def tree(self, parts: list[Tree]) -> Tree:
        """`joined`, for nested arrays."""
        first = parts[0]
        if type(first) is np.ndarray:
            return self.joined(parts)
        if isinstance(first, dict):
            return {key: self.tree([part[key] for part in parts]) for key in first}
        if isinstance(first, tuple):
            return tuple(self.tree(list(entries)) for entries in zip(*parts, strict=True))
        return self.joined(parts)

    def rewrites_of(self, rewrites: list[Rewrite], begin: int, count: int) -> Iterator[Rewrite]:
        """The rewrites of a source's `count` windows, which start at number `begin` when sorted by source."""
        for fields, windows, values in rewrites:
            if self.order is not None:
                places = np.empty(len(self.order) * self.width, np.int64)
                places[_widened(self.order, self.width)] = np.arange(places.size)
                windows = places[windows]
            is_mine = (windows >= begin) & (windows < begin + count)
            yield Rewrite(fields, windows[is_mine] - begin, values[is_mine])


class Ring:
    """A ring that joins the lanes of several replays: first the lanes of replay 0, then those of replay 1, and so on.

    Index i of replay k becomes ``i // E * S + o + i % E``. E is the number of lanes of the replay, o is the number of
    its first lane in the ring, and S is the number of lanes of the ring.

    Parameters
    ----------
    lanes : sequence of int
        The number of lanes of each replay.

    Attributes
    ----------
    successor : int
        The number of all lanes, S.
    numbers : ndarray of shape (K,), int64
        The numbers of the replays.
    owner : ndarray of shape (S,), int64
        The number of the replay of each lane.

    Examples
    --------
    >>> ring = Ring([1, 2])
    >>> ring.mapped(1, np.array([0, 1, 2, 3]))  # two steps of each of the lanes 1 and 2
    array([1, 2, 4, 5])
    >>> ring.split(np.array([3, 4, 1])).own
    [array([1]), array([2, 0])]
    """

    def __init__(self, lanes: Sequence[int]) -> None:
        self.successor: int = sum(lanes)
        self._lanes = np.array(lanes)
        self._offsets: Indices = np.cumsum([0, *lanes[:-1]])
        self._each = list(zip(lanes, self._offsets.tolist(), strict=True))
        self.numbers: Indices = np.arange(len(lanes))
        self.owner: Indices = np.repeat(self.numbers, lanes)

    def mapped(self, k: int, own: Indices) -> Indices:
        """Convert indices of replay k to indices of the ring."""
        lanes, offset = self._each[k]
        indices: Indices = own * self.successor if lanes == 1 else own + own // lanes * (self.successor - lanes)
        indices += offset
        return indices

    def placed(self, k: int, own: Indices) -> Indices:
        """Like `mapped`, but negative indices do not change."""
        indices = self.mapped(k, own)
        return np.where(own < 0, own, indices) if own.min(initial=0) < 0 else indices

    def owner_of(self, indices: Indices) -> Indices:
        """The number of the replay of each index."""
        owners: Indices = self.owner[indices % self.successor]
        return owners

    def split(self, indices: Indices, is_opening: bool = False) -> Rows:
        """The rows of each replay in indices of shape (B,) or (B, T). The index -1 can stand in rows of any replay.

        `is_opening`: whether windows are opened at the indices. This matters only on a device.
        """
        width = indices.shape[1] if indices.ndim == 2 else 1
        steps, lanes = np.divmod(indices, self.successor)
        owners = self.owner[lanes]
        owner = owners
        if indices.ndim == 2:
            owner = self.owner[indices.max(axis=1, initial=-1) % self.successor]
            if ((owners != owner[:, None]) & (indices >= 0)).any():
                raise IndexError(
                    "a row of indices belongs to several sources; expected the indices of one episode in each row"
                )
            owners = owner[:, None]
        own = steps * self._lanes[owners] + lanes - self._offsets[owners]
        if indices.size and indices.min() < 0:
            own = np.where(indices < 0, indices, own)
        order = None
        if (owner[1:] < owner[:-1]).any():
            order = np.argsort(owner, kind="stable")
            own = own[order]
        begins = [0, *np.bincount(owner, minlength=len(self.numbers)).cumsum().tolist()]
        return Rows([own[begin:end] for begin, end in pairwise(begins)], owner, begins, order, width)

    def together(self, own: list[Indices], indices: Indices | None = None) -> Rows:
        """The rows of a batch that consists of the rows `own` of each replay, sorted by replay.

        `indices` are the same rows as indices of the ring.
        """
        counts = [indices.size for indices in own]
        return Rows(own, np.repeat(self.numbers, counts), [0, *accumulate(counts)], None, 1)


def _widened(rows: Indices, width: int) -> Indices:
    """The window numbers of these rows, `width` windows for each."""
    return rows if width == 1 else (rows[:, None] * width + np.arange(width)).reshape(-1)


# -- Checks of the sources -----------------------------------------------------------------------------------------


def _listed(names: Any) -> str:
    return ", ".join(map(repr, names))


def refuse_wrong_sources(sources: Any, add_to: Any) -> None:
    """Raise TypeError or ValueError unless `sources` are replays that can be mixed and `add_to` names one of them."""
    if not isinstance(sources, Mapping):
        raise TypeError(f"sources is a {type(sources).__name__}; expected a dict of names and replays")
    if not sources:
        raise ValueError("sources is empty; expected a dict of at least one name and replay")
    for name, source in sources.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"sources has the name {name!r}; expected letters, digits, '_' and '-'")
        if not isinstance(source, Replay):
            wanted = "expected a buffer, or a wrapper around one"
            raise TypeError(f"source {name!r} is a {type(source).__name__}; {wanted}")
        if source.is_remote:
            got = f"source {name!r} is a {type(source).__name__}, which makes its batches in other processes"
            raise TypeError(f"{got}; expected a replay of this process; let make_buffer return the mixture")
        if source.has_sequences:
            remedy = "put the SequenceReplay around the mixture"
            raise ValueError(f"source {name!r} returns sequences; expected single transitions; {remedy}")
        if source.is_conditional:
            remedy = "put the LargeBatchReplay around the mixture"
            raise ValueError(f"source {name!r} has no probabilities of single transitions; {remedy}")
        if source.rate_limit is not None:
            remedy = "put the RateLimitedReplay around the mixture"
            raise ValueError(f"source {name!r} has a RateLimit; expected a replay without one; {remedy}")
        if isinstance(source.lock, Locks):
            raise ValueError(
                f"source {name!r} is itself a mixture; pass all its sources here, and multiply their shares"
            )
    (first, one), *others = sources.items()
    for name, other in others:
        if one.backend.device != other.backend.device:
            where = f"source {first!r} is {_place(one)} and source {name!r} {_place(other)}"
            raise ValueError(f"{where}; expected one device; build both buffers with the same device, or without")
        for what in ("spec", "n_step", "gamma", *(["stack"] if _has_frames(one) else [])):
            ours, theirs = getattr(one, what), getattr(other, what)
            if ours != theirs:
                found = _difference(ours, theirs) if what == "spec" else f"{ours!r} and {theirs!r}"
                raise ValueError(
                    f"sources {first!r} and {name!r} differ in {what}: {found}; build both with the same settings"
                )
    if not isinstance(add_to, str) or add_to not in sources:
        raise ValueError(f"add_to is {add_to!r}; expected one of {_listed(sources)}{nearest(add_to, sources)}")


def _place(replay: Replay) -> str:
    device = replay.backend.device
    return "in NumPy arrays" if device is None else f"on the device {device}"


def _has_frames(replay: Replay) -> bool:
    return any(leaf.name.startswith("obs") and len(leaf.shape) >= 2 for leaf in replay.spec.leaves)


def _difference(ours: Any, theirs: Any) -> str:
    """The first field in which two specs differ."""
    one, other = ({leaf.name: leaf.field for leaf in spec.leaves} for spec in (ours, theirs))
    for name in [*one, *other]:
        if one.get(name) != other.get(name):
            return f"{name} is {one.get(name, 'missing')!r} and {other.get(name, 'missing')!r}"
    return f"{ours!r} and {theirs!r}"


def refuse_shared(sources: Mapping[str, Replay], rng: np.random.Generator) -> None:
    """Raise ValueError if two sources share a storage or a generator."""
    locks, generators = dict[int, str](), {id(rng): "the mixture"}
    for name, source in sources.items():
        for lock in source.lock.each:
            if id(lock) in locks:
                reason = "so each transition would have two indices and two probabilities"
                raise ValueError(
                    f"sources {locks[id(lock)]!r} and {name!r} share a storage, {reason}; pass one of them"
                )
            locks[id(lock)] = name
        if id(source.rng) in generators:
            both = f"{generators[id(source.rng)]} and source {name!r} use the same random generator"
            raise ValueError(f"{both}, so each would change the draws of the other; give each its own seed")
        generators[id(source.rng)] = f"source {name!r}"
