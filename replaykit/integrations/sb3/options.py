"""Checks of the arguments of the buffers for Stable-Baselines3."""

from typing import Any

from replaykit.buffer import Buffer
from replaykit.checks import check_count

_RENAMED = {"capacity": "buffer_size", "num_envs": "n_envs", "n_step": "n_steps", "spec": "observation_space"}
"""Arguments of replaykit's buffers that have different names in Stable-Baselines3."""


def refuse_sb3_options(optimize_memory_usage: bool, handle_timeout_termination: bool) -> None:
    """Raise ValueError for options of Stable-Baselines3's buffers that are not supported."""
    if optimize_memory_usage:
        remedy = "leave it out: large observations are already stored once, and with share='all' also small ones"
        raise ValueError(f"optimize_memory_usage is {optimize_memory_usage}; expected False; {remedy}")
    if not handle_timeout_termination:
        remedy = (
            "leave it out; if the value after a time limit must be 0, let the environment return terminated=True there"
        )
        raise ValueError(f"handle_timeout_termination is {handle_timeout_termination}; expected True; {remedy}")


def refuse_options(n_steps: Any, gamma: float | None, buffer_class: Any, options: dict[str, Any]) -> None:
    """Raise an error for invalid options of the integration. The constructor of the buffer checks the other options."""
    if not (isinstance(buffer_class, type) and issubclass(buffer_class, Buffer)):
        wanted = "expected ReplayBuffer, PrioritizedBuffer or LatestBuffer of replaykit"
        raise TypeError(f"buffer_class is {buffer_class!r}; {wanted}; pass wrappers as wrap=")
    for name, meant in _RENAMED.items():
        if name in options:
            raise TypeError(f"{name} is not an option of this buffer; use {meant}, as Stable-Baselines3 does")
    if options.get("stack", 1) != 1:
        remedy = "stack frames with VecFrameStack; each frame is still stored once"
        raise ValueError(f"stack is {options['stack']!r}; expected 1, because SB3 policies get stacks; {remedy}")
    if check_count("n_steps", n_steps) > 1 and gamma is None:
        remedy = f"add it: replay_buffer_kwargs=dict(n_steps={n_steps}, gamma=...)"
        raise ValueError(f"n_steps is {n_steps}, but gamma is missing; expected the gamma of the model; {remedy}")
