"""Files of plain arrays, one for each field, which `numpy.load` can read."""

import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from replaykit.field import Array, FieldNameError
from replaykit.io.episodes import (
    Target,
    add_episode,
    as_added,
    checked,
    refuse_no_replay,
    spread,
)  # fmt: skip
from replaykit.passes import episodes_of
from replaykit.progress import bar_of
from replaykit.replay import Replay
from replaykit.spec import Spec

FilePath: TypeAlias = str | os.PathLike[str]
_INDICES, _LANE, _EPISODE = "indices", "_lane", "_episode"
"""Names of the arrays that hold the position of each step. No field has such a name."""
_CHUNK_BYTES = 1 << 22


def to_npz(buffer: Replay, path: FilePath, *, compress: bool = False, progress: bool = False) -> None:
    """Write all stored transitions to a file of plain arrays, which ``numpy.load(path)`` can read.

    The file has an array of shape (N, ...) for each field: ``obs``, ``action``, ``reward``, ``next_obs``,
    ``terminated``, ``truncated`` and the extra fields. A nested field has an array for each leaf, such as
    ``obs.position``. Flags are unchanged: the newest step of a running episode has none. If the buffer stacks frames,
    the file contains single frames. Rows are ordered by lane, then by time. ``indices`` are their indices in the
    buffer, ``_lane`` their lanes, and ``_episode`` their episode numbers, which also show episodes that ended without a
    flag.

    The buffer is locked during the write, so the file shows its state at one moment. The file appears, or replaces an
    existing file, only when it is complete.

    Parameters
    ----------
    buffer : Replay
        A buffer or a wrapper around one. Wrappers do not change the written data.
    path : str or path-like
        The name of the file. No suffix is appended.
    compress : bool
        Whether to compress the arrays, which is slower.
    progress : bool
        Whether to show a progress bar, if ``tqdm`` is installed.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from replaykit import Field, ReplayBuffer, Spec
    >>> from replaykit.io import to_npz
    >>> buffer = ReplayBuffer(10, Spec(obs=Field(()), action=Field((), "int64")))
    >>> for step in range(4):
    ...     index = buffer.add(step, 0, 1.0, step + 1, step == 2, False)
    >>> path = os.path.join(tempfile.mkdtemp(), "steps.npz")
    >>> to_npz(buffer, path)
    >>> arrays = np.load(path)
    >>> arrays["obs"], arrays["_episode"]
    (array([0., 1., 2., 3.], dtype=float32), array([0, 0, 0, 1]))
    """
    refuse_no_replay(buffer)
    final = Path(path)
    part = final.with_name(f".{final.name}.{os.getpid()}.part")
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with bar_of(progress, "to_npz", "array", len(buffer.spec.leaves)) as bar:
        try:
            with buffer.lock, zipfile.ZipFile(part, "w", kind) as archive:
                for name, array in _places(buffer).items():
                    _write(archive, name, array.shape, array.dtype, iter([array]))
                for leaf in buffer.spec.leaves:
                    shape = (len(buffer), *leaf.shape)
                    _write(archive, leaf.name, shape, leaf.dtype, _rows(buffer, leaf.name, leaf.field.nbytes))
                    bar.update()
            os.replace(part, final)
        finally:
            part.unlink(missing_ok=True)


def _places(buffer: Replay) -> dict[str, Array]:
    """The arrays with the position of each step."""
    episodes, stored = episodes_of(buffer), buffer.stored()
    lengths = [len(episode.indices) for episode in episodes]
    numbers = np.repeat(np.array([episode.number for episode in episodes], np.int64), lengths)
    return {_INDICES: stored, _LANE: stored % buffer.successor, _EPISODE: numbers}


def _rows(buffer: Replay, name: str, nbytes: int) -> Iterator[Array]:
    """The values of a leaf for all stored steps, in pieces."""
    stored, count = buffer.stored(), max(_CHUNK_BYTES // max(nbytes * buffer.stack, 1), 1)
    for begin in range(0, len(stored), count):
        yield as_added(buffer, stored[begin : begin + count], name)


def _write(archive: zipfile.ZipFile, name: str, shape: Any, dtype: np.dtype[Any], rows: Iterator[Array]) -> None:
    """Write an array whose rows are given in pieces."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        for piece in rows:
            member.write(piece.tobytes())


def from_npz(
    path: FilePath, buffer: Replay | None = None, *, spec: Spec | None = None, capacity: int | None = None,
    progress: bool = False, **options: Any,
) -> Replay:  # fmt: skip
    """Create or fill a buffer with all transitions of a file of plain arrays, such as one written by `to_npz`.

    Your own file needs an array of shape (N, ...) for each field, as described in `to_npz`, with steps in order.
    Without ``_episode``, episodes end at the flags.

    Lanes and episodes are restored. If the file has no ``_lane``, or the buffer has fewer lanes, the episodes are
    distributed over the lanes of the buffer. No episode is running afterwards: the next step you add begins a new one.
    Steps get new indices and the priority of new transitions.

    Parameters
    ----------
    path : str or path-like
    buffer : Replay, optional
        The buffer to fill, for example a `replaykit.PrioritizedBuffer`. By default, a new `replaykit.ReplayBuffer`.
    spec : Spec, optional
        The fields of a new buffer. By default, those of the arrays. Dots in the names of arrays separate nested fields.
    capacity : int, optional
        The capacity of a new buffer. By default, all steps fit.
    progress : bool
        Whether to show a progress bar, if ``tqdm`` is installed.
    **options
        Additional options of the new buffer's constructor, such as `n_step`. By default, `num_envs` is the number of
        lanes in the file.

    Returns
    -------
    Replay
        `buffer`, or the new `replaykit.ReplayBuffer`.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError, FieldNameError, TypeError, OverflowError
        If the file does not contain plain arrays, or they do not fit the fields. The buffer is then unchanged.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from replaykit.io import from_npz
    >>> path = os.path.join(tempfile.mkdtemp(), "steps.npz")
    >>> ends = np.array([False, False, True, False])
    >>> obs, ones = np.zeros((4, 2)), np.ones(4)
    >>> arrays = {"obs": obs, "action": np.zeros(4, int), "reward": ones, "next_obs": obs + 1}
    >>> np.savez(path, **arrays, terminated=ends, truncated=np.zeros(4, bool))
    >>> from_npz(path, n_step=3)
    ReplayBuffer(4 of 4, num_envs=1, n_step=3)
    """
    if buffer is not None:
        refuse_no_replay(buffer)
        if spec is not None:
            raise TypeError("spec is an option of a new buffer; pass either buffer or the options of a new one")
        spec = buffer.spec
    arrays = _loaded(path)
    places = {name: arrays.pop(name, None) for name in (_INDICES, _LANE, _EPISODE)}
    arrays = {name: array for name, array in arrays.items() if not name.startswith("_")}
    if spec is None:
        spec = Spec.from_example({name: np.zeros(array.shape[1:], array.dtype) for name, array in arrays.items()})
    target = Target(buffer, spec, capacity, options)
    leaves = _fitting(path, arrays, spec)
    lane, begins = _stretches(path, places, leaves, spec)
    ends = [*begins[1:], len(lane)] if begins else []
    lengths = [end - begin for begin, end in zip(begins, ends, strict=True)]
    wanted = int(lane.max(initial=0)) + 1
    num_envs = target.num_envs(wanted)
    keeps_lanes = places[_LANE] is not None and num_envs >= wanted
    lanes = [int(lane[begin]) for begin in begins] if keeps_lanes else spread(lengths, num_envs)
    replay = target.make(lengths, lanes)
    with bar_of(progress, "from_npz", "step", len(lane)) as bar, replay.lock:
        for begin, end, place in zip(begins, ends, lanes, strict=True):
            add_episode(replay, place, spec.unflatten([leaf[begin:end] for leaf in leaves], tuple(spec)))
            bar.update(end - begin)
    return replay


def _loaded(path: FilePath) -> dict[str, Array]:
    """All arrays of a file. No code from the file is run."""
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            raise ValueError("it has a single array without a name")
        with found:
            return {name: found[name] for name in found.files}
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{os.fspath(path)} is not a file of plain arrays, as to_npz writes it: {error}") from error


def _fitting(path: FilePath, arrays: Mapping[str, Array], spec: Spec) -> list[Array]:
    """The leaves of the spec, in order, in the dtypes of their fields."""
    where, names = os.fspath(path), [leaf.name for leaf in spec.leaves]
    for name in names:
        if name not in arrays:
            raise FieldNameError(f"{where} has no array {name!r}; expected one for each field; it has {list(arrays)}")
    for name in arrays:
        if name not in names:
            raise FieldNameError(f"{where} has the array {name!r}, which is not a field; expected {', '.join(names)}")
    size = len(arrays["reward"]) if arrays["reward"].ndim else 0
    for name in names:
        if arrays[name].shape[:1] != (size,):
            raise ValueError(
                f"{where}: {name} has shape {arrays[name].shape}; expected {size} rows, the number of rows of reward"
            )
    try:
        fields = spec.unflatten([arrays[name] for name in names], tuple(spec))
        return checked(spec, fields, size)
    except (ValueError, TypeError, OverflowError) as error:
        raise type(error)(f"{where}: {error}") from error


def _stretches(
    path: FilePath, places: Mapping[str, Array | None], leaves: list[Array], spec: Spec
) -> tuple[Array, list[int]]:
    """The lane of each row, and the rows that begin an episode or a lane."""
    by_name = {leaf.name: array for leaf, array in zip(spec.leaves, leaves, strict=True)}
    ends = by_name["terminated"] | by_name["truncated"]
    found = dict.fromkeys(places, np.zeros(ends.shape, np.int64))
    for name, array in places.items():
        if array is None:
            continue
        if array.shape != ends.shape or array.dtype.kind not in "iu" or array.min(initial=0) < 0:
            got = f"shape {array.shape} and dtype {array.dtype}"
            raise ValueError(f"{os.fspath(path)}: {name} has {got}; expected {ends.shape} and integers of at least 0")
        found[name] = array.astype(np.int64)
    lane, episode = found[_LANE], found[_EPISODE]
    is_new = np.ones(len(ends), np.bool_)
    is_new[1:] = ends[:-1] | (lane[1:] != lane[:-1]) | (episode[1:] != episode[:-1])
    return lane, np.flatnonzero(is_new).tolist()
