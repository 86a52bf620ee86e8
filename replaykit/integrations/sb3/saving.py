"""Saves a Stable-Baselines3 replay buffer as one pickle file. It is replaced atomically and verified when loaded."""

import contextlib
import hashlib
import os
import pathlib
import pickle
import re
import secrets
from collections.abc import Iterable
from typing import Any

from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from replaykit.saving.directory import sync


def save_replay_buffer(model: Any, path: Any) -> None:
    """Write the replay buffer of a model to a file, like ``model.save_replay_buffer(path)``, but atomically.

    The new file is written completely to the disk, and then replaces the existing file. If the disk is full, or the
    process crashes before then, the existing file is unchanged. ``model.load_replay_buffer(path)`` loads the file.

    Parameters
    ----------
    model : OffPolicyAlgorithm
        DQN, SAC, TD3 or DDPG of Stable-Baselines3, or another algorithm with a replay buffer.
    path : str, path-like or file
        If the path has no suffix, ``.pkl`` is appended. Missing folders are created. If an open binary file is passed,
        the buffer is written directly to it.

    Raises
    ------
    OSError
        If the file cannot be written.
    TypeError
        If `model` has no ``save_replay_buffer`` of Stable-Baselines3.
    """
    if not isinstance(model, OffPolicyAlgorithm):
        raise TypeError(f"model is a {type(model).__name__}; expected an OffPolicyAlgorithm, such as DQN or SAC")
    if not isinstance(path, str | os.PathLike):
        OffPolicyAlgorithm.save_replay_buffer(model, path)
        return
    place = pathlib.Path(path)
    place = pathlib.Path(os.path.realpath(place if place.suffix else f"{place}.pkl"))
    place.parent.mkdir(parents=True, exist_ok=True)
    _delete_unfinished(place)
    unfinished = place.with_name(f"{place.name}.{secrets.token_hex(8)}.unfinished")
    try:
        with open(unfinished, "xb") as file:
            OffPolicyAlgorithm.save_replay_buffer(model, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, place)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise
    sync(str(place.parent))


def _delete_unfinished(place: pathlib.Path) -> None:
    """Delete the unfinished files of interrupted saves to this path."""
    name = re.compile(rf"{re.escape(place.name)}\.[0-9a-f]{{16}}\.unfinished")
    for other in place.parent.iterdir():
        if name.fullmatch(other.name):
            with contextlib.suppress(OSError):
                other.unlink()


def verified(reduced: tuple[Any, ...], protocol: int) -> tuple[Any, ...]:
    """Add a checksum to the result of ``__reduce_ex__``. It is verified before the object is rebuilt.

    Pickle protocols below 5, as in ``copy.deepcopy``, get no checksum, because it would need a copy of all arrays.
    Stable-Baselines3 uses the latest protocol.
    """
    if protocol < 5:
        return reduced
    arrays: list[pickle.PickleBuffer] = []
    data = pickle.dumps(reduced[:3], protocol, buffer_callback=arrays.append)
    return _rebuilt, (_checksum_of(data, (array.raw() for array in arrays)), data, arrays)


def _rebuilt(checksum: bytes, data: bytes, arrays: list[Any]) -> Any:
    """Rebuild an object from the result of `verified`."""
    if _checksum_of(data, arrays) != checksum:
        raise ValueError("the pickle of the replay buffer is damaged: its checksum is wrong; load an earlier one")
    make, arguments, state = pickle.loads(data, buffers=arrays)
    made = make(*arguments)
    made.__setstate__(state)
    return made


def _checksum_of(data: bytes, arrays: Iterable[Any]) -> bytes:
    """A checksum of all bytes and of the lengths of the parts."""
    digest = hashlib.sha256()
    for part in (data, *arrays):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()
