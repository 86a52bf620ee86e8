"""Helpers of the tests of saving: a random learner, the contents of a replay as bytes, and forged checkpoints."""

import hashlib
import json
import os
from typing import Any

import numpy as np

from replaykit.chunks import Chunks, pieces
from tests.helpers import map_leaves

MANIFEST = "manifest.json"


class Learner:
    """Random steps, batches, priorities and ends of episodes, the same for the same seed and replay.

    The observations of a lane go on from one step to the next, most of the time.
    """

    def __init__(self, seed: int = 0, masks: bool = True) -> None:
        self.rng, self.masks = np.random.default_rng(seed), masks
        self.last: Any = None

    def values(self, field: Any, lead: tuple[int, ...]) -> Any:
        shape = (*lead, *field.shape)
        if field.dtype.kind == "b":
            return self.rng.random(shape) < 0.3
        if field.dtype.kind in "iu":
            return self.rng.integers(0, 3, shape).astype(field.dtype)
        return self.rng.normal(size=shape).astype(field.dtype)

    def fields(self, spec: Any, steps: int | None, lanes: int) -> dict[str, Any]:
        """Values of all fields, in episodes of about eight steps."""
        lead = (() if steps is None else (steps,)) + ((lanes,) if lanes > 1 else ())
        fields = {name: map_leaves(lambda field: self.values(field, lead), spec[name]) for name in spec}
        fields["next_obs"] = map_leaves(lambda field: self.values(field, lead), spec["obs"])
        for flag in ("terminated", "truncated"):
            fields[flag] = self.rng.random(lead) < 0.07
        if steps is None:
            if self.last is not None and self.rng.random() < 0.8:
                fields["obs"] = self.last
            self.last = fields["next_obs"]
        return fields

    def act(self, replay: Any, count: int) -> list[Any]:
        """Take this many random actions. Returns the batches as bytes."""
        batches = []
        for _ in range(count):
            action, lanes = self.rng.random(), replay.num_envs
            if action < 0.6:
                steps = None if self.rng.random() < 0.6 else int(self.rng.integers(0, 5))
                fields = self.fields(replay.spec, steps, lanes)
                lead = fields["terminated"].shape
                if self.masks and lanes > 1 and self.rng.random() < 0.4:
                    fields["mask"] = self.rng.random(lead) < 0.6
                if self.rng.random() < 0.2:
                    fields["td_error"] = self.rng.normal(size=lead)
                (replay.add if steps is None else replay.extend)(**fields)
            elif action < 0.95 and len(replay):
                try:
                    batch = replay.sample(4)
                except ValueError as error:  # too few are stored, or all priorities are 0
                    batches.append(str(error))
                    continue
                batches.append(bytes_of(dict(batch.items())))
                if self.rng.random() < 0.7:
                    replay.update_priorities(batch.indices, self.rng.normal(size=4))
            elif action < 0.98:
                replay.end_episode()
            elif self.rng.random() < 0.3:
                replay.clear()
        return batches


def bytes_of(value: Any) -> Any:
    """Nested values, with arrays as their dtype, shape and bytes, and chunks as the rows of each index."""
    if isinstance(value, Chunks):
        found = [(indices.tolist(), bytes_of(rows)) for indices, rows in pieces(value)]
        return value.span, value.slots.capacity, found
    if isinstance(value, dict):
        return {key: bytes_of(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [bytes_of(entry) for entry in value]
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    return value


def content_of(replay: Any) -> str:
    """A hash of all states of a replay, for bit-identical comparisons.

    Of frames, what is read counts. Those that two chunks of a checkpoint share are there twice once it was loaded.
    """
    with replay.lock:
        parts = {name: part.state() for name, part in replay.parts().items()}
        states = {
            name: bytes_of({key: value for key, value in state.items() if not key.endswith(".frames")})
            for name, state in parts.items()
        }
        states["read"] = [replay.read(replay.stored(), leaf.name).tobytes() for leaf in replay.spec.leaves]
    return hashlib.sha256(repr(states).encode()).hexdigest()


def manifest_of(path: Any) -> Any:
    """The content of a manifest."""
    with open(os.path.join(path, MANIFEST)) as file:
        return json.load(file)["content"]


def seal(path: Any, content: Any, **changes: Any) -> None:
    """Write a manifest with a valid checksum."""
    with open(os.path.join(path, MANIFEST), "w") as file:
        json.dump(sealed(content) | changes, file)


def sealed(content: Any) -> dict[str, Any]:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return {"format": 1, "checksum": hashlib.sha256(text.encode()).hexdigest(), "content": content}


def references_in(content: Any) -> list[Any]:
    """All references to files in a manifest. They can be changed in place."""
    if isinstance(content, list):
        if len(content) == 3 and isinstance(content[0], str) and content[0].endswith(".npy"):
            return [content]
        return [reference for entry in content for reference in references_in(entry)]
    return references_in(list(content.values())) if isinstance(content, dict) else []


def assert_tidy(path: Any) -> None:
    """Check that a directory has exactly the files that its manifest names."""
    named = {reference[0] for reference in references_in(manifest_of(path))}
    assert set(os.listdir(path)) == named | {MANIFEST}
