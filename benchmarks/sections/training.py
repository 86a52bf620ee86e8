"""A complete training step of a DQN, to measure the share of time that replay takes.

Add a transition, sample 256, make tensors, compute targets with a second network, the loss, its gradients and the
optimizer's step, and update the priorities. The floor is the same network on one batch, repeatedly.
"""

from collections.abc import Callable
from typing import Any

from benchmarks.adapters.base import GAMMA, Library
from benchmarks.data import Task
from benchmarks.sections.rows import Shelf, make_row
from benchmarks.timing import Row, Workload

TASK = Task(100_000)
BATCH, HIDDEN = 256, 128


def rows(libraries: list[Library], quick: bool) -> list[Row]:
    try:
        import torch
    except ImportError:
        print("training: left out, because torch is not installed")
        return []
    torch.set_num_threads(1)
    shelf = Shelf()

    def build(kind: str) -> Callable[[Library], Workload]:
        def workload(library: Library) -> Workload:
            if library.name == "flashbax":
                raise NotOfferedError("its agents are written in JAX")
            buffer, learn = shelf.get(library, kind, TASK), learner()
            add, sample, read = buffer.adding(TASK.one()), buffer.sampling(BATCH), buffer.read

            def step() -> None:
                add()
                batch = sample()
                errors = learn(read(batch))
                if kind == "prioritized":
                    buffer.update(buffer.indices_of(batch), errors)

            return Workload(step)

        return workload

    from benchmarks.adapters.base import NotOfferedError

    def network() -> dict[str, Workload]:
        steps, learn = TASK.stretch(0, BATCH), learner()
        batch = steps._asdict()
        return {"network": Workload(lambda: learn(batch))}

    return [
        make_row("training-uniform", "DQN step, uniform", libraries, build("uniform"), network()),
        make_row("training-per", "DQN step, prioritized", libraries, build("prioritized"), network()),
    ]


def learner() -> Callable[[dict[str, Any]], Any]:
    """A function that learns from a batch and returns its absolute TD errors."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    q_net, target_net = (
        nn.Sequential(
            nn.Linear(TASK.obs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2)
        )
        for _ in range(2)
    )
    optimizer = torch.optim.Adam(q_net.parameters(), lr=1e-4)

    def column(value: Any) -> torch.Tensor:
        return torch.as_tensor(value, dtype=torch.float32).reshape(-1)

    def learn(batch: dict[str, Any]) -> Any:
        with torch.no_grad():
            q_next = target_net(torch.as_tensor(batch["next_obs"])).amax(1)
            target = column(batch["reward"]) + GAMMA * (1.0 - column(batch["terminated"])) * q_next
        action = torch.as_tensor(batch["action"], dtype=torch.int64).reshape(-1, 1)
        errors = target - q_net(torch.as_tensor(batch["obs"])).gather(1, action).squeeze(1)
        loss = errors.square()
        if "weights" in batch:
            loss = loss * column(batch["weights"])
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        return errors.detach().abs().numpy()

    return learn
