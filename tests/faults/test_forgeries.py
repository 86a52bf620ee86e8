"""Forged checkpoints with valid checksums: each raises an error and changes nothing, or gives a replay that works."""

import copy
import hashlib
import io
import os
import random
import shutil
import tracemalloc

import numpy as np
import pytest
from hypothesis import settings

from replaykit import CombinedReplay, Field, HindsightReplay, LinearSchedule, PrioritizedBuffer, ReplayBuffer, Spec
from tests.checkpoints import Learner, content_of, manifest_of, references_in, seal
from tests.helpers import GOAL_SPEC, sparse

FRAMES = Spec(obs=Field((4, 6), np.uint8), action=Field((), np.int64), big=Field((300,)), is_on=Field((2,), np.bool_))
COUNT = 4 * settings().max_examples
"""Forgeries of each replay."""


def frames(seed=0):
    beta = LinearSchedule(0.4, 1.0, 100)
    return PrioritizedBuffer(18, FRAMES, num_envs=3, n_step=2, stack=2, share="all", beta=beta, seed=seed)


def goals(seed=0):
    generator = np.random.Generator(np.random.MT19937(seed))
    return CombinedReplay(HindsightReplay(ReplayBuffer(12, GOAL_SPEC, seed=generator), sparse))


def simple(seed=0):
    return PrioritizedBuffer(9, Spec(obs=Field(()), action=Field(())), seed=seed)


NUMBERS = [0, -1, 1, 2, 3, 5, 17, 1 << 31, (1 << 62) - 1, 1 << 62, 1 << 63, -(1 << 63), 1 << 64, 1 << 200, 10**400]
NUMBERS += [0.5, 1e308, float("inf"), float("nan"), True, False, None, "", "x", "é", [], {}, [1], {"a": 1}]
DTYPES = ["<i8", "<f8", "|u1", "|b1", "<i4", "|O", "|S3", "<M8[s]", ">i8", "|V4", "x", "", "i4,f8", None, 3]


def forge(path, rng):
    """Change a checkpoint in a few places. Returns a description for the message of a failure."""
    content, ways = manifest_of(path), [forge_value, forge_array, forge_array, forge_array]
    notes = [rng.choice(ways)(path, content, rng) for _ in range(rng.choice([1, 1, 1, 2, 3]))]
    seal(path, content)
    return notes


def places_in(node, found=None):
    """Every entry of the containers of a manifest: its container and key."""
    found = [] if found is None else found
    if isinstance(node, dict | list):
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            found.append((node, key))
            places_in(node[key], found)
    return found


def forge_value(path, content, rng):
    """Another value, a value from elsewhere, an entry removed or repeated, or another key."""
    container, key = rng.choice(places_in(content))
    former, action = copy.deepcopy(container[key]), rng.randrange(6)
    if action == 0:
        del container[key]
    elif action == 1:
        other, place = rng.choice(places_in(content))
        container[key] = copy.deepcopy(other[place])
    elif action == 2 and isinstance(container, list):
        container.append(copy.deepcopy(container[key]))
    elif action == 2:
        container[str(key) + rng.choice(["", " ", "x"])] = copy.deepcopy(container.pop(key))
    elif action == 3 and type(former) is int:
        container[key] = former + rng.choice([-1, 1, 3, -3, 1 << 32])
    elif action == 4:
        container[key] = rng.choice(
            [{"list": [former]}, {"tuple": [former]}, {"float": "nan"}, {"dict": [[former, 1]]}]
        )
    else:
        container[key] = copy.deepcopy(rng.choice(NUMBERS + DTYPES))
    return f"{key}: {former!r:.200} -> {container[key] if key in places(container) else None!r:.200}"


def places(container):
    return container if isinstance(container, dict) else range(len(container))


def forge_array(path, content, rng):
    """Replace an array in a file, with its size and checksum in the manifest."""
    reference = rng.choice(references_in(content) or [None])
    try:
        name, _, _ = reference
        array = np.load(os.path.join(path, name), allow_pickle=False)
    except (TypeError, ValueError, OSError):
        return "no array"
    action, rows = rng.randrange(8), array.copy()
    if action < 4 and rows.size and rows.dtype.kind in "iufb":
        flat = rows.reshape(-1)
        for _ in range(rng.choice([1, 1, 2, 5])):
            value = rng.choice(
                [0, 1, 2, 3, -1, 7, 255, 32767, -5, 1 << 40, (1 << 62) - 1, 1 << 61, 1e300, np.nan, np.inf]
            )
            with np.errstate(all="ignore"):
                flat[rng.randrange(flat.size)] = np.array(value).astype(rows.dtype)
    elif action == 4 and rows.size and rows.dtype.kind == "i":
        rows += rng.choice([-1, 1, 3, 1 << 33])
    elif action == 5:
        rows = rows[: rng.randrange(len(rows) + 1)] if rows.ndim else rows
    elif action == 6:
        rows = np.concatenate((rows, rows)) if rows.ndim else rows
    else:
        rows = rng.choice(
            [rows.reshape(-1), rows[None], rows.astype(np.float32), rows.view(np.uint8), np.zeros(0), rows.T]
        )
    file = io.BytesIO()
    np.lib.format.write_array(file, rows, (1, 0))
    data = file.getvalue()
    with open(os.path.join(path, name), "wb") as target:
        target.write(data)
    reference[1:] = len(data), hashlib.sha256(data).hexdigest()
    before, after = (f"{a.dtype} {a.shape} {a.reshape(-1)[:40]}" for a in (array, rows))
    return f"{name}: {before} -> {after}"


@pytest.mark.filterwarnings("ignore:.*contains NaN or infinite numbers:RuntimeWarning")  # of forged observations
@pytest.mark.parametrize("make", [frames, goals, simple])
def test_a_forged_checkpoint_is_refused_or_works(tmp_path, make):
    """Loading a forged checkpoint either raises an error and changes nothing, or gives a replay that works."""
    seed = int(os.environ.get("FORGERY_SEED", "0"))
    saved = make()
    Learner(1).act(saved, 80)
    saved.update_priorities(saved.stored(), np.arange(len(saved)) + 0.0)
    Learner(2).act(saved, 1)
    saved.save(tmp_path / "first")
    outcomes = set()
    for number in range(seed, seed + COUNT):
        rng, path = random.Random(number), tmp_path / "forged"
        shutil.copytree(tmp_path / "first", path)
        notes = forge(path, rng)
        try:
            outcomes.add(tried(make, path, is_exact=rng.random() < 0.7))
        except BaseException as error:
            raise AssertionError(f"forgery {number}: {notes}") from error
        shutil.rmtree(path)
    assert {"loaded", "ValueError"} <= outcomes


def tried(make, path, is_exact):
    """Load a forged checkpoint into a replay in use. Returns the result."""
    replay = make()
    Learner(3).act(replay, 10)
    before = content_of(replay)
    tracemalloc.start()
    try:
        replay.load(path, exact=is_exact)
    except (ValueError, OSError) as error:
        outcome, message = type(error).__name__, str(error)
    else:
        outcome, message = "loaded", ""
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 50_000_000, f"{peak} bytes were allocated"
    if message:
        assert content_of(replay) == before, "a refused load changed the replay"
        assert str(path) in message, "the error names no file"
        replay.check()
        return outcome
    replay.check()
    Learner(4).act(replay, 12)
    replay.check()
    replay.save(path)
    twin = make()
    twin.load(path)
    twin.check()
    return outcome
