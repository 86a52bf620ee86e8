"""Saving and loading: the state of all parts of a replay at one moment, in a directory or a dict of tensors."""

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from replaykit.chunks import CHUNK_BYTES, Chunks, LiveChunks, Slots
from replaykit.declared import Declared, copied
from replaykit.progress import NoBar, bar_of
from replaykit.saving.directory import Directory
from replaykit.saving.manifest import arrays_in, decode, describe, differences, encode, is_function
from replaykit.saving.tensors import Tensors

Array: TypeAlias = npt.NDArray[Any]
Path: TypeAlias = str | os.PathLike[str]
_REMEMBERED = 8
"""Number of checkpoints that a storage remembers. A later save does not write their unchanged chunks again."""
_LONGEST_CHUNK = 1 << 22
"""Maximum number of slots in a chunk, unless there are many lanes."""


class Checkpointed(Declared):
    """The saving and loading methods of every replay."""

    def parts(self) -> dict[str, Declared]:
        """Every object with state, by name, in the order in which they must be restored."""
        raise NotImplementedError

    def save(self, path: Path, *, progress: bool = False) -> None:
        """Write a checkpoint to a directory: transitions, priorities, running episodes, counters and the generator.

        After :meth:`load`, a run continues with identical results. An existing checkpoint is replaced only when the new
        one is complete: a crash or a full disk leaves the old one intact. Files of unchanged data are reused. Other
        threads can continue. The checkpoint shows the moment when `save` was called, with two exceptions for changes
        made during the save: overwritten transitions are missing, and fields changed by `overwrite` may be new.
        Functions, such as `reward_fn`, are not saved.

        Parameters
        ----------
        path : str or path-like
            A directory that is new, empty, or contains a checkpoint.
        progress : bool
            Whether to show a progress bar, if ``tqdm`` is installed.

        Raises
        ------
        OSError
            If a file cannot be written, or the directory contains other files. The old checkpoint stays intact.
        TypeError
            If the state of your own class contains a value that cannot be saved.
        RuntimeError
            If the call comes from a function that is called for a batch.

        Examples
        --------
        >>> import tempfile
        >>> from replaykit import Field, PrioritizedBuffer, Spec
        >>> spec = Spec(obs=Field(()), action=Field(()))
        >>> buffer = PrioritizedBuffer(1000, spec, seed=0)
        >>> for step in range(10):
        ...     index = buffer.add(step, 0, 1.0, step + 1, False, False)
        >>> path = tempfile.mkdtemp()
        >>> buffer.save(path)
        >>> twin = PrioritizedBuffer(1000, spec)
        >>> twin.load(path)
        >>> twin.sample(4).indices == buffer.sample(4).indices
        array([ True,  True,  True,  True])
        """
        _refuse_in_a_sample(self)
        directory = Directory(path)
        with directory.saving() as former, bar_of(progress, "save") as bar:
            directory.commit(_saved(self, directory, former or {}, bar))

    def load(self, path: Path, *, exact: bool = True, progress: bool = False) -> None:
        """Load a checkpoint in place. It replaces the current contents.

        First build the replay like the saved one, with the same functions. All files are verified before anything
        changes. No code is run, and only files in the directory are read. If the capacity differs, the newest
        transitions that fit are kept. Running episodes continue: call :meth:`end_episode` if you reset the
        environments, or wrap them with ``record``, which does it for you.

        Parameters
        ----------
        path : str or path-like
            A directory written by :meth:`save`.
        exact : bool
            Whether the replay must have the same settings as the saved one. If False, only the arguments of the
            storage, such as the spec and `num_envs`, must be equal. The kind of buffer, `n_step` and wrappers may
            differ. Priorities are loaded if `alpha` is equal; otherwise they start again.
        progress : bool
            Whether to show a progress bar, if ``tqdm`` is installed.

        Raises
        ------
        OSError
            If there is no checkpoint, or a file cannot be read.
        ValueError
            If a file is damaged or has a newer format, or the settings differ. The replay is then unchanged.
        RuntimeError
            If lanes have writers, or the call comes from a function that is called for a batch.
        """
        _refuse_in_a_sample(self)
        directory = Directory(path)
        with directory.loading() as content, bar_of(progress, "load") as bar:
            restore(self, content, directory.path, reader(directory.read, bar), exact)

    def state_dict(self) -> dict[str, Any]:
        """The data of a checkpoint as a flat dict of tensors and one string, which describes them.

        Pass it to ``torch.save`` together with a network's state. ``torch.load(weights_only=True)`` accepts it. It is a
        copy, which takes as much memory as the stored data. Raises TypeError and RuntimeError like
        :meth:`save`.
        """
        _refuse_in_a_sample(self)
        tensors = Tensors({})
        with self.lock:
            content = _saved(self, tensors, {}, NoBar())
        return tensors.with_manifest(content)

    def load_state_dict(self, state_dict: Mapping[str, Any], *, exact: bool = True) -> None:
        """Load the result of :meth:`state_dict` in place. `exact` and the errors are those of :meth:`load`."""
        _refuse_in_a_sample(self)
        tensors = Tensors(state_dict)
        restore(self, tensors.manifest(), "state_dict", reader(tensors.read, NoBar()), exact)


def _refuse_in_a_sample(replay: Checkpointed) -> None:
    """Raise RuntimeError if this thread is making a batch: waiting for files could then cause a deadlock."""
    with replay.lock:
        if replay.lock.sampling:
            replay.lock.refuse_writing()


def _saved(replay: Checkpointed, target: Any, former: dict[str, Any], bar: Any) -> dict[str, Any]:
    """Write the arrays of a checkpoint to a directory or to tensors. Returns the content of its manifest.

    The lock is held while the states are made, and then for the copy of one chunk at a time.
    """
    with replay.lock:
        parts = replay.parts()
        states = {name: _without_chunks(part.state()) for name, part in parts.items()}
        large = {(name, key): value for name in parts for key, value in states[name].items() if _is_large(value)}
        if sum(chunks.nbytes for chunks in large.values()) <= CHUNK_BYTES:
            large = {place: chunks.copy() for place, chunks in large.items()}
        moments = {name: chunks.slots for (name, _), chunks in large.items()}
        before = {name: _remember(parts[name], target.token, slots, former) for name, slots in moments.items()}
    bar.total, nodes = sum(map(len, large.values())), {str(node["name"]): node for node in arrays_in(former)}
    write = _Writer(replay, target, nodes, bar)
    for (name, key), chunks in large.items():
        write.chunks(f"{name}.{key}", chunks, before[name])
    with replay.lock:
        for name, part in parts.items():
            part.complete_state(states[name])
    described, functions = {}, []
    for name, part in parts.items():
        functions += [f"{name}.{key}" for key, value in states[name].items() if is_function(value)]
        state = {key: value for key, value in states[name].items() if not is_function(value)}
        described[name] = {"built": describe(part), "state": encode(state, name, write)}
    return {"token": target.token, "built": describe(replay), "parts": described, "functions": functions}


def _is_large(value: Any) -> bool:
    return isinstance(value, LiveChunks)


def _without_chunks(state: dict[str, Any]) -> dict[str, Any]:
    """A copy of a state, except for data that is copied in chunks."""
    return {key: value if _is_large(value) else copied(value) for key, value in state.items()}


def _remember(storage: Any, token: str, slots: Slots, former: Mapping[str, Any]) -> Slots | None:
    """Record the stored indices when a checkpoint is made. Returns those of the previous checkpoint, if known.

    They are known only if the storage itself saved or loaded that checkpoint: its files then contain the same rows.
    """
    moments: dict[str, Slots] = getattr(storage, "moments", {})
    before = moments.get(str(former.get("token")))
    moments[token] = slots
    while len(moments) > _REMEMBERED:
        del moments[next(iter(moments))]
    return before


class _Writer:
    """Writes each array and chunk once and returns references. `former` has those of the last checkpoint, by name."""

    def __init__(self, replay: Checkpointed, target: Any, former: dict[str, dict[str, Any]], bar: Any) -> None:
        self._replay, self._target, self._former, self._bar = replay, target, former, bar
        self._written: dict[str, dict[str, Any]] = {}
        self._moments: dict[int, dict[str, Any]] = {}

    def __call__(self, where: str, value: Any) -> dict[str, Any]:
        """A reference to a written array or to written chunks."""
        if where in self._written:
            return self._written[where]
        rows = value.reshape(value.shape or (1,))
        old, step = self._former.get(where, {}).get("chunks", []), max(CHUNK_BYTES // max(rows[:1].nbytes, 1), 1)
        begins = range(0, len(rows) if rows.size else 0, step)
        chunks = [
            self._target.write(f"{where}.{k}", rows[begin : begin + step], old[k] if k < len(old) else None)
            for k, begin in enumerate(begins)
        ]
        return {"name": where, "dtype": rows.dtype.str, "shape": list(value.shape), "chunks": chunks}

    def chunks(self, where: str, chunks: Chunks, before: Slots | None) -> None:
        """Write the chunks that have changed since `before`. Each is copied while the lock is held."""
        slots, old = chunks.slots, self._former.get(where, {})
        if id(slots) not in self._moments:
            self._moments[id(slots)] = self(f"{where}.bounds", slots.bounds)
        node = {"name": where, "span": chunks.span, "capacity": slots.capacity, "bounds": self._moments[id(slots)]}
        is_alike = (old.get("span"), old.get("capacity")) == (chunks.span, slots.capacity)
        is_alike = is_alike and len(old["chunks"]) == len(chunks)
        references = list(old["chunks"]) if is_alike else [None] * len(chunks)
        for k, reference in enumerate(references):
            is_same = before is not None and reference is not None and self._target.has(reference)
            if chunks.is_empty(k):
                references[k] = None
            elif not is_same or not slots.is_unchanged(before, *chunks.range(k)):  # type: ignore[arg-type]
                with self._replay.lock:
                    rows = chunks[k]
                    rows = rows if rows.base is None else rows.copy()
                references[k] = self._target.write(f"{where}.{k}", rows, reference)
            self._bar.update()
        self._written[where] = node | {"chunks": references}


class SavedChunks(Chunks):
    """Chunks of a checkpoint, which are read and verified on each access."""

    def __init__(self, node: dict[str, Any], bounds: Array, read: Callable[[Any], Array], bar: Any) -> None:
        span, capacity, self._references = node["span"], node["capacity"], node["chunks"]
        is_size = type(span) is type(capacity) is int and span > 0 and 0 < capacity < 1 << 62
        if not is_size or bounds.dtype != np.int64 or bounds.ndim != 2 or len(bounds) != 2 or not bounds.size:
            raise ValueError("the chunks have an impossible size")
        super().__init__(Slots(bounds, capacity), span)
        if len(self) != len(self._references) or min(span, capacity) > max(_LONGEST_CHUNK, 8 * bounds.shape[1]):
            raise ValueError(f"{len(self._references)} chunks of {span} slots; expected {len(self)} of fewer")
        self._read, self._bar, self._unread = read, bar, {k for k, r in enumerate(self._references) if r is not None}

    def __getitem__(self, k: int) -> Array:
        rows = self._read(self._references[k])
        if k in self._unread:
            self._unread.remove(k)
            self._bar.update()
        return rows

    def verify_others(self) -> None:
        """Read the chunks that have not been read yet."""
        for k in sorted(self._unread):
            self[k]


def reader(read: Callable[[Any], Array], bar: Any) -> Callable[[dict[str, Any]], Any]:
    """A function that returns the array or the chunks to which a reference of `_Writer` refers."""
    arrays, named = dict[tuple[str, ...], Array](), set[str]()

    def read_node(node: dict[str, Any]) -> Any:
        files = tuple(reference[0] for reference in node["chunks"] if reference is not None)
        if files not in arrays:  # the bounds are read once for all chunks that refer to them
            if len({*files} - named) < len(files):
                raise ValueError(f"{node['name']} refers to a file that was already used")
            named.update(files)
        if "span" in node:
            chunks = SavedChunks(node, read_node(node["bounds"]), read, bar)
            bar.total = (bar.total or 0) + len(chunks)
            return chunks
        shape, dtype = tuple(node["shape"]), np.dtype(node["dtype"])
        if files and files not in arrays:
            parts = [read(reference) for reference in node["chunks"]]
            arrays[files] = np.concatenate(parts).astype(parts[0].dtype, copy=False)  # restores the byte order
        array = arrays[files] if files else np.zeros(shape if math.prod(shape) == 0 else 0, dtype)
        if array.dtype != dtype or array.size != math.prod(shape):
            raise ValueError(f"{node['name']} is not an array {shape} of {dtype}")
        return array.reshape(shape)

    return read_node


def restore(replay: Checkpointed, content: dict[str, Any], where: str, read: Any, exact: bool) -> None:
    """Verify a checkpoint whose manifest has this content, and restore the states of all parts."""
    parts = replay.parts()
    with _verifying(where):
        built, saved, token = content["built"], content["parts"], str(content["token"])
        compared = [(built, replay)] if exact else _storages(saved, parts)
        for difference in [each for pair in compared for each in differences(pair[0], describe(pair[1]))]:
            remedy = ", or pass exact=False to take what fits" if exact else ""
            raise ValueError(f"{where}: {difference}; build it with the saved settings{remedy}")
        fitting = {name: p for name, p in parts.items() if exact or (name in saved and p.fits(saved[name]["built"]))}
        states = {name: decode(saved[name]["state"], read) for name in fitting}
        for name, part in fitting.items():
            part.check_state(states[name])
        for value in [value for state in states.values() for value in state.values()]:
            if isinstance(value, SavedChunks):
                value.verify_others()
    with replay.lock:
        if any(writer() is not None for lock in replay.lock.each for writer in lock.writers.values()):
            raise RuntimeError("lanes have writers, whose episodes load() would replace; close them before load()")
        for lock in replay.lock.each:
            lock.recorder = None
        try:
            for name, part in parts.items():
                if name in fitting:
                    part.restore(states[name])
                else:
                    part.restart()
                if getattr(part, "restored", None) is not None:
                    part.moments = {token: part.restored}  # type: ignore[attr-defined]
        except BaseException:  # an interrupt or an unreadable file
            for part in parts.values():
                getattr(part, "moments", {}).clear()
                part.restart()
            raise


def _storages(saved: dict[str, Any], parts: dict[str, Declared]) -> list[tuple[Any, Declared]]:
    """Pairs of the saved settings of a storage and the storage that takes its place."""
    ours, theirs = ([name for name in named if name.rpartition(".")[2] == "storage"] for named in (parts, saved))
    if ours != theirs:
        raise ValueError(f"it has {', '.join(theirs)}, but this replay has {', '.join(ours)}")
    return [(saved[name]["built"], parts[name]) for name in ours]


@contextlib.contextmanager
def _verifying(where: str) -> Iterator[None]:
    """Replace errors in the ``with`` block by a ValueError: the data at `where` was not written by `save`."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(where):
            raise
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{where} is damaged: {kind}{error}") from error


def load_innermost(path: Path, classes: Mapping[str, Callable[..., Any]], is_shown: bool) -> Any:
    """Build the innermost replay of a checkpoint, if it is one of these classes, and restore it."""
    directory = Directory(path)
    with directory.loading() as content, bar_of(is_shown, "load") as bar:
        with _verifying(directory.path):
            built, functions = content["built"], content["functions"]
            while "inner" in built["arguments"]:
                built = built["arguments"]["inner"]
            name, arguments = built["class"], built["arguments"]
            if name not in classes or functions:
                kind = f"with the function {functions[0]}" if name in classes else "which this function does not build"
                raise ValueError(f"{directory.path} was saved from a {name}, {kind}; build it, and load() into it")
            replay = classes[name](**{key: decode(node, _refuse) for key, node in arguments.items()})
        restore(replay, content | {"built": built}, directory.path, reader(directory.read, bar), True)
    return replay


def _refuse(_node: Any) -> Any:
    raise ValueError("an argument is an array")
