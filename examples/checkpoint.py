"""Save a run regularly, so that it can be killed at any moment and resumed exactly."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from replaykit import Replay


@dataclass(frozen=True)
class Checkpoint:
    """A directory with the last checkpoint of a run: the buffer and the rest of the agent at the same moment.

    `buffer.save` replaces the saved buffer atomically, as its last step. The agent is written before, to a new file
    whose name contains the number of added transitions. This number shows which file belongs to the saved buffer.
    """

    path: Path
    options: dict[str, Any]  # the resumed run must have the same options

    def exists(self) -> bool:
        """Whether there is a checkpoint from which a run can be resumed."""
        return (self.path / "buffer" / "manifest.json").exists()

    def save(self, buffer: Replay, rng: np.random.Generator, history: Any, parts: dict[str, Any]) -> None:
        """Replace the last checkpoint. `parts` are networks and optimizers by name."""
        agent = {name: part.state_dict() for name, part in parts.items()}
        agent |= {"history": asdict(history), "options": self.options}
        agent |= {"numpy": rng.bit_generator.state, "torch": torch.get_rng_state()}
        self.path.mkdir(parents=True, exist_ok=True)
        with self._file_of(buffer).open("wb") as file:
            torch.save(agent, file)
            file.flush()
            os.fsync(file.fileno())  # the agent is on the disk before the buffer
        buffer.save(self.path / "buffer")  # from here on, this is the current checkpoint
        for other in set(self.path.glob("agent-*.pt")) - {self._file_of(buffer)}:
            other.unlink()

    def load(self, buffer: Replay, rng: np.random.Generator, history: Any, parts: dict[str, Any]) -> None:
        """Load the last checkpoint: restore everything in place."""
        buffer.load(self.path / "buffer")
        agent = torch.load(self._file_of(buffer), weights_only=True)
        for name, value in self.options.items():
            if agent["options"].get(name) != value:
                raise ValueError(f"{self.path}: {name} is {value}; expected {agent['options'].get(name)}, as saved")
        for name, part in parts.items():
            part.load_state_dict(agent[name])
        vars(history).update(agent["history"])
        rng.bit_generator.state = agent["numpy"]
        torch.set_rng_state(agent["torch"])

    def _file_of(self, buffer: Replay) -> Path:
        return self.path / f"agent-{buffer.stats()['added']:.0f}.pt"
