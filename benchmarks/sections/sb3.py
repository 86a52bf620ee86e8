"""Buffers of replaykit and Stable-Baselines3's own buffers, compared in one run with the calls that a model makes.

`SB3ReplayBuffer` is compared with `ReplayBuffer`, `DictReplayBuffer` and `NStepReplayBuffer`, and `SB3HindsightBuffer`
with `HerReplayBuffer`. Steps are those of a running environment: an observation is the previous step's `next_obs`,
stacks of frames overlap, and an episode ends by its time limit after `EPISODE` steps. Batches are tensors on the CPU.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from benchmarks.adapters.base import GAMMA, HINDSIGHT_RATIO, N_STEP, Library
from benchmarks.data import GOAL_KEYS, SCREEN, STACK
from benchmarks.sections.rows import in_turn
from benchmarks.timing import Row, Workload

BATCH, OBS, ACTION, GOAL, EPISODE = 256, 17, 6, 3, 50
CAPACITY, IMAGES = 100_000, 2_000
ADDS = (
    ("vector", 1),
    ("vector", 4),
    ("vector", 8),
    ("vector", 16),
    ("dict", 8),
    ("n-step", 8),
    ("goals", 8),
    ("image", 8),
)
SAMPLES = "vector", "dict", "n-step", "goals", "image"
TITLES = {
    "vector": "vectors",
    "dict": "Dict observations",
    "n-step": f"{N_STEP} steps",
    "goals": "hindsight goals",
    "image": f"{STACK} frames",
}


class Pair(NamedTuple):
    """Equivalent buffers of replaykit and Stable-Baselines3, and steps of their environments."""

    ours: Any
    theirs: Any
    steps: list[Any]


def rows(libraries: list[Library], quick: bool) -> list[Row]:
    names = [library.name for library in libraries]
    if "stable_baselines3" not in names:
        print("sb3: left out, because it needs stable_baselines3")
        return []
    made = []
    for kind, n_envs in ADDS:
        environments = f"{n_envs} environments" if n_envs > 1 else "1 environment"
        row = Row(f"sb3-add-{kind}-{n_envs}", f"add of {environments}, {TITLES[kind]}")
        ours, theirs, steps = filled(kind, n_envs)
        row.workloads["replaykit"] = in_turn([partial(ours.add, *step) for step in steps])
        row.workloads["stable_baselines3"] = in_turn([partial(theirs.add, *step) for step in steps])
        made.append(row)
    for kind in SAMPLES:
        row = Row(f"sb3-sample-{kind}", f"sample {BATCH}, {TITLES[kind]}")
        ours, theirs, _ = filled(kind, 1)
        row.workloads["replaykit"] = Workload(partial(ours.sample, BATCH))
        row.workloads["stable_baselines3"] = Workload(partial(theirs.sample, BATCH))
        made.append(row)
    return made


def filled(kind: str, n_envs: int) -> Pair:
    """Two full buffers."""
    pair = empty(kind, n_envs)
    for buffer in (pair.ours, pair.theirs):
        for number in range(buffer.buffer_size + EPISODE):
            buffer.add(*pair.steps[number % len(pair.steps)])
    return pair


def empty(kind: str, n_envs: int) -> Pair:
    """Two buffers without transitions."""
    from gymnasium import spaces
    from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
    from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

    from benchmarks.adapters.stable_baselines3 import NoReward
    from replaykit.integrations.sb3 import SB3HindsightBuffer, SB3ReplayBuffer

    sizes = dict(zip(GOAL_KEYS, (OBS, GOAL, GOAL), strict=True))
    boxes: dict[str, Any] = {key: spaces.Box(-np.inf, np.inf, (size,)) for key, size in sizes.items()}
    observation_space: Any = spaces.Dict(boxes) if kind in ("dict", "goals") else boxes["observation"]
    if kind == "image":
        observation_space = spaces.Box(0, 255, (STACK, *SCREEN), np.uint8)
    capacity = IMAGES if kind == "image" else CAPACITY
    options: dict[str, Any] = {"device": "cpu", "n_envs": n_envs}
    our_class: Any = SB3ReplayBuffer
    their_class: Any = ReplayBuffer
    if kind == "dict":
        their_class = DictReplayBuffer
    elif kind == "n-step":
        their_class = NStepReplayBuffer
        options |= {"n_steps": N_STEP, "gamma": GAMMA}
    elif kind == "goals":
        our_class, their_class = SB3HindsightBuffer, HerReplayBuffer
        goals = round(HINDSIGHT_RATIO / (1 - HINDSIGHT_RATIO))
        options |= {"env": NoReward(capacity), "n_sampled_goal": goals}
    spaces_of_both = observation_space, spaces.Box(-1.0, 1.0, (ACTION,))
    ours = our_class(capacity, *spaces_of_both, seed=0, **options)
    return Pair(ours, their_class(capacity, *spaces_of_both, **options), list(steps(kind, n_envs)))


def steps(kind: str, n_envs: int) -> Iterator[Any]:
    """The arguments of `add` for the steps of one episode of every environment."""
    rng = np.random.default_rng(0)
    if kind == "image":
        frames = rng.integers(256, size=(n_envs, EPISODE + STACK, *SCREEN), dtype=np.uint8)
        observations: list[Any] = [frames[:, step : step + STACK].copy() for step in range(EPISODE + 1)]
    else:
        observations = [rng.standard_normal((n_envs, OBS), np.float32) for _ in range(EPISODE + 1)]
    if kind in ("dict", "goals"):
        goals = rng.standard_normal((EPISODE + 1, n_envs, GOAL), np.float32)
        values = zip(observations, goals, goals[::-1], strict=True)
        observations = [dict(zip(GOAL_KEYS, each, strict=True)) for each in values]
    for step in range(EPISODE):
        is_last = step == EPISODE - 1
        action, reward = rng.standard_normal((n_envs, ACTION), np.float32), rng.standard_normal(n_envs, np.float32)
        infos = [{"TimeLimit.truncated": is_last} for _ in range(n_envs)]
        yield observations[step], _copied(observations[step + 1]), action, reward, np.full(n_envs, is_last), infos


def _copied(obs: Any) -> Any:
    return {key: value.copy() for key, value in obs.items()} if isinstance(obs, dict) else obs.copy()
