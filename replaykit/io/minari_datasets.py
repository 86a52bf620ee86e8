"""Reads and writes Minari data sets on the local disk. Nothing is downloaded."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from replaykit.checks import check_choice
from replaykit.field import Array, Field, FieldNameError, as_array
from replaykit.io.episodes import (
    Target,
    add_episode,
    as_added,
    checked,
    refuse_no_replay,
    spread,
)  # fmt: skip
from replaykit.passes import Episode, episodes_of
from replaykit.progress import bar_of
from replaykit.replay import Replay
from replaykit.spec import Spec
from replaykit.trees import Tree, leaves_of, map_tree

Unfinished: TypeAlias = Literal["keep", "truncate", "drop"]
Overwritten: TypeAlias = Literal["keep", "drop"]
_ERRORS = (FieldNameError, ValueError, TypeError, OverflowError)


def from_minari(
    dataset: Any, buffer: Replay | None = None, *, capacity: int | None = None, progress: bool = False, **options: Any
) -> Replay:
    """Create or fill a buffer with all steps of a Minari data set.

    Each step has its true next observation, including the last one of an episode, and its recorded `terminated` and
    `truncated`. Episodes stay separate, whether or not a flag ended them.

    By default, the fields are those of the data set's spaces, with a float32 reward. For another kind of buffer, other
    dtypes or extra fields, pass your own buffer. Its extra fields are read from the infos of the same name, which have
    one entry for each step. An additional entry at the start, which Minari records for the reset, is skipped.

    Parameters
    ----------
    dataset : minari.MinariDataset
        For example from ``minari.load_dataset``, or a selection from its ``filter_episodes``.
    buffer : Replay, optional
        The buffer to fill, for example a `replaykit.PrioritizedBuffer`. Episodes are distributed over its lanes. By
        default, a new `replaykit.ReplayBuffer`.
    capacity : int, optional
        The capacity of a new buffer. By default, all steps fit.
    progress : bool
        Whether to show a progress bar, if ``tqdm`` is installed.
    **options
        Additional options of the new buffer's constructor, such as `n_step`.

    Returns
    -------
    Replay
        `buffer`, or the new `replaykit.ReplayBuffer`.

    Raises
    ------
    ImportError
        If Minari is not installed.
    TypeError, ValueError, FieldNameError, OverflowError
        If the spaces or an episode do not fit the fields. The message names the data set. Your buffer is then
        unchanged, because all episodes are read and checked before it is filled.

    Examples
    --------
    >>> import os, tempfile
    >>> import minari
    >>> from replaykit import Field, ReplayBuffer, Spec
    >>> from replaykit.io import from_minari, to_minari
    >>> os.environ["MINARI_DATASETS_PATH"] = tempfile.mkdtemp()
    >>> buffer = ReplayBuffer(10, Spec(obs=Field((2,)), action=Field((), "int64")))
    >>> for step in range(6):
    ...     index = buffer.add([step, 0.0], 1, 1.0, [step + 1, 0.0], step == 2, step == 5)
    >>> dataset = to_minari(buffer, "line/random-v0")
    >>> from_minari(minari.load_dataset("line/random-v0"), n_step=3)
    ReplayBuffer(6 of 6, num_envs=1, n_step=3)
    """
    minari = _minari()
    if not isinstance(dataset, minari.MinariDataset):
        expected = "expected a minari.MinariDataset, such as minari.load_dataset returns"
        raise TypeError(f"dataset is a {type(dataset).__name__}; {expected}")
    spec = _spec_of(dataset)
    target = Target(buffer, spec, capacity, options)
    if buffer is not None:
        _refuse_other_fields(f"data set {dataset.id!r}", spec, buffer.spec)
        spec = buffer.spec
    lengths = [int(m["total_steps"]) for m in dataset.storage.get_episode_metadata(dataset.episode_indices)]
    with bar_of(progress, "from_minari", "episode", len(lengths) * (1 + target.keeps_what_it_gets)) as bar:
        if target.keeps_what_it_gets:
            for episode in dataset.iterate_episodes():
                _steps_of(dataset, episode, spec)
                bar.update()
        lanes = spread(lengths, target.num_envs())
        replay = target.make(lengths, lanes)
        for episode, lane in zip(dataset.iterate_episodes(), lanes, strict=True):
            add_episode(replay, lane, _steps_of(dataset, episode, spec))
            bar.update()
    return replay


def _minari() -> Any:
    """The package Minari. Raises ImportError if it, or a package for its files, is missing."""
    try:
        import minari
    except ImportError as error:
        raise ImportError(f"{error}; Minari data sets need: pip install 'replaykit-rl[minari]'") from error
    return minari


def _spec_of(dataset: Any) -> Spec:
    """The spec of the steps of a data set."""
    try:
        return Spec.from_spaces(dataset.observation_space, dataset.action_space)
    except TypeError as error:
        raise TypeError(f"data set {dataset.id!r}: {error}") from error


def _refuse_other_fields(what: str, given: Spec, expected: Spec) -> None:
    """Raise ValueError if observations or actions have other names or shapes."""
    shapes = [
        [(leaf.name, leaf.shape) for leaf in spec.leaves if leaf.name.partition(".")[0] in ("obs", "action")]
        for spec in (given, expected)
    ]
    if sorted(shapes[0]) != sorted(shapes[1]):
        raise ValueError(f"{what} has the spec {given}; expected that of the buffer, {expected}")


def _steps_of(dataset: Any, episode: Any, spec: Spec) -> dict[str, Tree]:
    """The fields of all steps of an episode, checked."""
    steps = len(episode.rewards)

    def part(tree: Tree, path: str, rows: slice, length: int) -> Tree:
        def rows_of(value: Any, name: str) -> Array:
            array = as_array(name, value)
            if array.shape[:1] != (length,):
                raise ValueError(f"{name} has shape {array.shape}; expected {length} entries for {steps} steps")
            return array[rows]

        return map_tree(rows_of, tree, path)

    try:
        fields = {
            "obs": part(episode.observations, "observations", slice(0, -1), steps + 1),
            "action": part(episode.actions, "actions", slice(None), steps),
            "reward": episode.rewards,
            "next_obs": part(episode.observations, "observations", slice(1, None), steps + 1),
            "terminated": episode.terminations,
            "truncated": episode.truncations,
        } | {name: _info(episode.infos or {}, name, spec[name], steps) for name in spec.extra}
        flat = checked(spec, fields, steps)
    except _ERRORS as error:
        raise type(error)(f"data set {dataset.id!r}, episode {episode.id}: {error}") from error
    return spec.unflatten(flat, tuple(spec))


def _info(infos: Mapping[str, Any], name: str, fields: Tree, steps: int) -> Tree:
    """An extra field from the infos: their last entries, one for each step."""
    if name not in infos:
        wanted = "which is an extra field of the buffer's spec"
        raise FieldNameError(f"the infos have no {name!r}, {wanted}; they have {list(infos)}")
    found = infos[name]
    if isinstance(fields, Field):
        array = as_array(name, found)
        return array[1:] if array.shape[:1] == (steps + 1,) else array
    if isinstance(fields, tuple):
        return tuple(_info(found, f"_index_{i}", entry, steps) for i, entry in enumerate(fields))
    return {key: _info(found, key, entry, steps) for key, entry in fields.items()}


def to_minari(
    buffer: Replay, dataset_id: str, *, env: Any = None, observation_space: Any = None, action_space: Any = None,
    unfinished: Unfinished = "keep", overwritten: Overwritten = "keep", metadata: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Any:  # fmt: skip
    """Write the stored episodes as a Minari data set on the local disk, and return it.

    Each episode has its T steps, T + 1 observations including the true last one, and its original flags. Extra fields
    become infos with one entry for each step. Images are written losslessly, not as JPEG.

    The metadata of each episode show whether it is complete. ``has_beginning`` is False if its first steps have been
    overwritten. ``truncation_added`` is True if `unfinished` has set a flag. ``lane`` is the number of its lane.

    The data set appears in Minari's directory of data sets only when it is complete. The buffer is locked during the
    write, so the data set shows its contents at one moment.

    Parameters
    ----------
    buffer : Replay
        A buffer or a wrapper around one. Wrappers do not change the written data.
    dataset_id : str
        A new name, such as ``"cartpole/random-v0"``.
    env : gymnasium.Env or VectorEnv, optional
        The recorded environment. The data set gets its spaces, and its ``spec`` for ``recover_environment``.
    observation_space, action_space : gymnasium.Space, optional
        Replace the spaces of `env`. If neither is given, each field gets a Box with the limits of its dtype.
    unfinished : {"keep", "truncate", "drop"}
        How to write episodes whose last stored step has no flag, because they are running or `end_episode` ended them.
        "keep" writes them without a flag. "truncate" sets ``truncated`` in their last step, like Minari's
        ``DataCollector``. "drop" leaves them out.
    overwritten : {"keep", "drop"}
        How to write episodes whose first steps have been overwritten. "keep" writes the steps that are still stored.
        "drop" leaves these episodes out.
    metadata : dict, optional
        Metadata of the data set, such as ``author``, ``description``, ``algorithm_name`` and ``code_permalink``.
    progress : bool
        Whether to show a progress bar, if ``tqdm`` is installed.

    Returns
    -------
    minari.MinariDataset

    Raises
    ------
    ImportError
        If Minari is not installed.
    TypeError
        If a field has a dtype without a space, such as complex numbers.
    ValueError
        If `dataset_id` is invalid or exists, the spaces do not fit, there is no episode to write, or a step's `obs`
        differs from the previous step's `next_obs`, which Minari cannot represent. No data set is left behind.

    Examples
    --------
    >>> import os, tempfile
    >>> from replaykit import Field, ReplayBuffer, Spec
    >>> from replaykit.io import to_minari
    >>> os.environ["MINARI_DATASETS_PATH"] = tempfile.mkdtemp()
    >>> buffer = ReplayBuffer(10, Spec(obs=Field(()), action=Field((), "int64")))
    >>> for step in range(5):
    ...     index = buffer.add(step, 1, 1.0, step + 1, step == 2, False)
    >>> dataset = to_minari(buffer, "line/random-v0", unfinished="drop")
    >>> dataset[0].observations, dataset[0].terminations
    (array([0., 1., 2., 3.], dtype=float32), array([False, False,  True]))
    """
    minari = _minari()
    refuse_no_replay(buffer)
    check_choice("unfinished", unfinished, Unfinished)
    check_choice("overwritten", overwritten, Overwritten)
    final = _new_place(dataset_id)
    spaces = _spaces(buffer.spec, env, observation_space, action_space)
    with buffer.lock, _scratch() as scratch:
        episodes = _chosen(buffer, unfinished, overwritten)
        storage = _new_storage(scratch / "data", spaces, env)
        storage.update_metadata({"dataset_id": dataset_id, "minari_version": minari.__version__})
        storage.update_metadata(_with_sets(metadata or {}))
        found: list[dict[str, Any]] = []
        with bar_of(progress, "to_minari", "episode", len(episodes)) as bar:
            storage.update_episodes(_written(buffer, episodes, unfinished == "truncate", found, bar))
        storage.update_episode_metadata(found)
        _publish(scratch, final, dataset_id)
    return minari.MinariDataset(final / "data")


def _chosen(buffer: Replay, unfinished: Unfinished, overwritten: Overwritten) -> list[Episode]:
    """The episodes to write."""
    episodes = [e for e in episodes_of(buffer) if e.has_beginning or overwritten == "keep"]
    if unfinished == "drop":
        episodes = [episode for episode in episodes if _has_end(buffer, episode)]
    if not episodes:
        raise ValueError("buffer has no episode to write; add steps, or set unfinished and overwritten to 'keep'")
    return episodes


def _with_sets(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata, with one or several authors converted to a set, as Minari expects."""
    names = [name for name in ("author", "author_email") if name in metadata]
    given = {name: metadata[name] for name in names}
    return dict(metadata) | {n: {each} if isinstance(each, str) else set(each) for n, each in given.items()}


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A temporary directory for an unfinished data set, beside the others. It is removed at the end if it exists."""
    from minari.storage import get_dataset_path

    parent = Path(tempfile.mkdtemp(prefix=".", dir=get_dataset_path()))  # hidden from lists of data sets
    try:
        (parent / "dataset").mkdir()
        yield parent / "dataset"
    finally:
        shutil.rmtree(parent, ignore_errors=True)


def _new_place(dataset_id: Any) -> Path:
    """The directory of a new data set. Raises ValueError for an invalid or existing name."""
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.storage import get_dataset_path

    try:
        parse_dataset_id(dataset_id)
    except (ValueError, TypeError) as error:
        expected = "expected a name such as 'cartpole/random-v0', with at least two letters before a '/' and a version"
        raise ValueError(f"dataset_id is {dataset_id!r}; {expected}") from error
    place: Path = get_dataset_path(dataset_id)
    if place.exists():
        remedy = f"choose another version, or call minari.delete_dataset({dataset_id!r})"
        raise ValueError(f"dataset_id is {dataset_id!r}, which exists at {place}; expected a new name: {remedy}")
    return place


def _spaces(spec: Spec, env: Any, observation_space: Any, action_space: Any) -> tuple[Any, Any]:
    """The spaces of a data set: the given ones, those of the environment, or spaces that fit the fields."""
    if env is not None and not hasattr(env, "observation_space"):
        raise TypeError(f"env is a {type(env).__name__}; expected a Gymnasium environment, single or vector")
    single = "single_" if hasattr(env, "single_observation_space") else ""
    spaces = []
    for name, given, kind in (("obs", observation_space, "observation"), ("action", action_space, "action")):
        if given is None and env is not None:
            given = getattr(env, f"{single}{kind}_space")
        spaces.append(_space_of(spec[name], name) if given is None else given)
    _refuse_other_fields("the spaces", Spec.from_spaces(*spaces), spec)
    return spaces[0], spaces[1]


def _space_of(fields: Tree, path: str) -> Any:
    """A space that contains all values of a field."""
    from gymnasium import spaces

    if isinstance(fields, dict):
        for key in fields:
            if "/" in key or key in ("", "."):
                raise ValueError(f"{path} has the key {key!r}, which Minari cannot write; expected a name without '/'")
        return spaces.Dict({key: _space_of(entry, f"{path}.{key}") for key, entry in fields.items()})
    if isinstance(fields, tuple):
        return spaces.Tuple([_space_of(entry, f"{path}.{i}") for i, entry in enumerate(fields)])
    dtype, limits = fields.dtype, {"b": (0, 1), "f": (-np.inf, np.inf)}
    if dtype.kind in "iu":
        limits[dtype.kind] = (np.iinfo(dtype).min, np.iinfo(dtype).max)
    if dtype.kind not in limits or dtype.itemsize > 8:
        raise TypeError(f"{path} has dtype {dtype}, for which Gymnasium has no space; write it with to_npz")
    return spaces.Box(*limits[dtype.kind], fields.shape, dtype)


def _new_storage(path: Path, spaces: tuple[Any, Any], env: Any) -> Any:
    """An empty data set in a directory."""
    from minari.dataset.minari_storage import MinariStorage

    return MinariStorage.new(
        path,
        observation_space=spaces[0],
        action_space=spaces[1],
        env_spec=None if env is None else env.spec,
        jpeg_encoding=False,  # JPEG loses precision
    )


def _has_end(buffer: Replay, episode: Episode) -> bool:
    """Whether the last stored step of an episode has a flag."""
    last = episode.indices[-1:]
    return bool(buffer.read(last, "terminated")[0] or buffer.read(last, "truncated")[0])


def _written(
    buffer: Replay, episodes: list[Episode], truncates: bool, found: list[dict[str, Any]], bar: Any
) -> Iterator[Any]:
    """The episodes in Minari's form, one at a time. Their metadata are appended to `found`."""
    from minari.data_collector import EpisodeBuffer

    for episode in episodes:
        fields = _fields_of(buffer, episode)
        is_cut = truncates and not (fields["terminated"][-1] or fields["truncated"][-1])
        fields["truncated"][-1] |= is_cut
        found.append({"lane": episode.lane, "has_beginning": episode.has_beginning, "truncation_added": bool(is_cut)})
        yield EpisodeBuffer(
            observations=fields["obs"],
            actions=fields["action"],
            rewards=fields["reward"],
            terminations=fields["terminated"],
            truncations=fields["truncated"],
            infos={name: fields[name] for name in buffer.spec.extra} or None,
        )
        bar.update()


def _fields_of(buffer: Replay, episode: Episode) -> dict[str, Tree]:
    """The fields of an episode, with T + 1 observations. The last one follows the last step."""
    spec, indices = buffer.spec, episode.indices
    arrays = {leaf.name: as_added(buffer, indices, leaf.name) for leaf in spec.leaves}
    for path, _ in leaves_of(spec["obs"], "obs"):
        later = f"next_{path}"
        first, then = arrays[path][1:], arrays[later][:-1]
        differs = ~((first == then) | ((first != first) & (then != then)))
        rows = differs.any(axis=tuple(range(1, differs.ndim)))
        if rows.any():
            step = indices[int(rows.argmax())]
            raise ValueError(
                f"{later} of the step with index {step} is not {path} of the next step of its episode, but Minari "
                "stores only one of them; call end_episode() where an episode is interrupted, or use to_npz"
            )
        arrays[path] = np.concatenate((arrays[path], arrays[later][-1:]))
    return spec.unflatten([arrays[leaf.name] for leaf in spec.leaves], tuple(spec))


def _publish(made: Path, final: Path, dataset_id: str) -> None:
    """Move the finished data set to its final place, and create Minari's namespace."""
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.namespace import create_namespace, list_local_namespaces

    namespace = parse_dataset_id(dataset_id)[0]
    if namespace is not None and namespace not in list_local_namespaces():
        create_namespace(namespace)
    final.parent.mkdir(parents=True, exist_ok=True)
    made.rename(final)
