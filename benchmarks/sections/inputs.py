"""Adding steps in the form that environments and agents return: different dtypes, lists, and axes of length 1.

Each is compared with the same step in the stored dtypes: float32 observations and Python numbers for one lane, arrays
in the stored dtypes for several lanes.
"""

from collections.abc import Callable

import numpy as np

from benchmarks.adapters.base import Library, NotOfferedError
from benchmarks.data import Steps, Task
from benchmarks.sections.rows import Shelf, make_row, only_replaykit
from benchmarks.timing import Row, Workload

TASK = Task(300_000)
LANES = (4, 64)
Change = Callable[[Steps], Steps]


def as_stored(step: Steps) -> Steps:
    return step


def float64_reward(step: Steps) -> Steps:
    """Rewards as in Gymnasium: a NumPy number, or a float64 array from a vector environment."""
    return step._replace(reward=np.asarray(step.reward, np.float64)[()])


def float64_obs(step: Steps) -> Steps:
    return step._replace(obs=step.obs.astype(np.float64), next_obs=step.next_obs.astype(np.float64))


def float64(step: Steps) -> Steps:
    return float64_obs(float64_reward(step))


def numpy_scalars(step: Steps) -> Steps:
    """Every number is a NumPy scalar: an action from argmax, a reward and flags from computations."""
    obs, action, reward, next_obs, terminated, truncated = step
    return Steps(obs, np.int64(action), np.float64(reward), next_obs, np.bool_(terminated), np.bool_(truncated))


def lists(step: Steps) -> Steps:
    return step._replace(obs=step.obs.tolist(), next_obs=step.next_obs.tolist())


def vector_of_one(step: Steps) -> Steps:
    """A step of a vector environment of one: everything has an axis of length 1, and rewards are float64."""
    return Steps(*(np.asarray(value)[None] for value in step))


OF_ONE: dict[str, tuple[str, Change]] = {
    "stored": ("stored dtypes", as_stored),
    "float64-reward": ("float64 reward", float64_reward),
    "float64-obs": ("float64 observations", float64_obs),
    "scalars": ("NumPy scalars", numpy_scalars),
    "lists": ("lists as observations", lists),
    "vector": ("vector environment of 1", vector_of_one),
}
OF_SEVERAL: dict[str, tuple[str, Change]] = {
    "stored": ("stored dtypes", as_stored),
    "float64-reward": ("float64 rewards", float64_reward),
    "float64": ("float64 rewards and observations", float64),
}


def rows(libraries: list[Library], quick: bool) -> list[Row]:
    shelf, ours, made = Shelf(), only_replaykit(libraries), []

    def build(task: Task, change: Change) -> Callable[[Library], Workload]:
        def workload(library: Library) -> Workload:
            add = shelf.get(library, "uniform", task).adding(change(task.one()))
            try:
                add()
            except ValueError as error:
                raise NotOfferedError(str(error)) from error
            return Workload(add)

        return workload

    for key, (title, change) in OF_ONE.items():
        made.append(make_row(f"input-1-{key}", f"add 1, {title}", ours, build(TASK, change), {}))
    for lanes in LANES:
        task = Task(64_000, lanes=lanes)
        for key, (title, change) in OF_SEVERAL.items():
            name = f"add of {lanes} lanes, {title}"
            made.append(make_row(f"input-{lanes}-{key}", name, ours, build(task, change), {}))
    return made
