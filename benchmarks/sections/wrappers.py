"""Samples of one and three steps from buffers of 300,000 transitions and from wrappers around them; and updates."""

from collections.abc import Callable

from benchmarks.adapters.base import N_STEP, Library
from benchmarks.data import Task
from benchmarks.sections.rows import Shelf, make_row, only_replaykit, update
from benchmarks.timing import Row, Workload

TASK = Task(300_000)
GOALS = Task(300_000, obs=10, action=4, goal=3, episode=50)
BATCHES = (32, 256)
KINDS = {"uniform": "uniform", "prioritized": "PER"}
STACKS: dict[str, tuple[str, Task, tuple[str, ...]]] = {
    "buffer": ("{}", TASK, ()),
    "combined": ("CombinedReplay({})", TASK, ("combined",)),
    "hindsight": ("HindsightReplay({})", GOALS, ("hindsight",)),
    "combined-hindsight": ("CombinedReplay(HindsightReplay({}))", GOALS, ("hindsight", "combined")),
}


def rows(libraries: list[Library], quick: bool) -> list[Row]:
    shelf, ours, made = Shelf(), only_replaykit(libraries), []

    def sample(task: Task, layers: tuple[str, ...], n_step: int, batch_size: int) -> Callable[[Library], Workload]:
        return lambda library: Workload(shelf.get(library, "composed", task, layers, n_step).sampling(batch_size))

    def update_of(batch_size: int) -> Callable[[Library], Workload]:
        return lambda library: update(shelf.get(library, "composed", TASK, ("prioritized",), 1), TASK, batch_size)

    for stack, (form, task, wrappers) in STACKS.items():
        for kind, name in KINDS.items():
            for n_step in (1, N_STEP):
                for batch_size in BATCHES:
                    build = sample(task, (kind, *wrappers), n_step, batch_size)
                    title = f"{form.format(name)}, n={n_step}, B={batch_size}"
                    made.append(make_row(sample_key(stack, kind, n_step, batch_size), title, ours, build, {}))
    return made + [
        make_row(f"update-{batch_size}", f"update of {batch_size}", ours, update_of(batch_size), {})
        for batch_size in BATCHES
    ]


def sample_key(stack: str, kind: str, n_step: int, batch_size: int) -> str:
    """The key of the row for one of `STACKS` around one of `KINDS`."""
    return f"{stack}-{kind}-n{n_step}-{batch_size}"
