"""The sections of the benchmark: those timed in this process, and those that need separate processes."""

from collections.abc import Callable
from typing import Any

from benchmarks.adapters.base import Library
from benchmarks.sections import (
    add,
    frames,
    images,
    inputs,
    memory,
    mixtures,
    pauses,
    per,
    saving,
    sb3,
    sequences,
    startup,
    tensors,
    threads,
    training,
    uniform,
    views,
    wrappers,
)
from benchmarks.timing import Row

RowsOf = Callable[[list[Library], bool], list[Row]]
TIMED: dict[str, tuple[str, RowsOf]] = {
    "add": ("Adding", add.rows),
    "inputs": ("Adding what environments give", inputs.rows),
    "uniform": ("Uniform sampling", uniform.rows),
    "per": ("Prioritized replay", per.rows),
    "nstep": ("Returns of three steps", views.n_step_rows),
    "her": ("Hindsight goals", views.hindsight_rows),
    "wrappers": ("Wrappers, beside the buffers inside", wrappers.rows),
    "mixtures": ("Mixtures of two buffers", mixtures.rows),
    "sequences": ("Sequences of transitions", sequences.rows),
    "images": ("Stacks of frames", images.rows),
    "frames": ("Adding frames", frames.rows),
    "threads": ("Two threads", threads.rows),
    "training": ("A training step with its network", training.rows),
    "tensors": ("Batches as tensors", tensors.rows),
    "sb3": ("In Stable-Baselines3, beside its own buffers", sb3.rows),
}
IN_PROCESSES: dict[str, tuple[str, Any]] = {
    "pauses": ("The longest add", pauses),
    "startup": ("Start-up", startup),
    "memory": ("Memory, over the bytes of the rows", memory),
    "saving": ("Checkpoints of a million transitions", saving),
}
SECTIONS = (*TIMED, *IN_PROCESSES)
ARCHITECTURE = ("add", "inputs", "wrappers", "frames", "pauses", "startup")
"""The sections that `benchmarks.architecture` reads."""
