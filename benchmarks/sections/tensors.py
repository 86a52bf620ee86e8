"""A batch as tensors: on the CPU, compared with plain torch calls, and on a CUDA device if there is one."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.adapters.base import Library
from benchmarks.data import Task
from benchmarks.sections.rows import Shelf, only_replaykit
from benchmarks.timing import Row, Workload

BATCHES, TASK = (256, 4096), Task(100_000, obs=17, action=6)
BARE = "torch.from_numpy"


def rows(libraries: list[Library], quick: bool) -> list[Row]:
    shelf, made = Shelf(), []
    for library in only_replaykit(libraries):
        for size in BATCHES:
            batch: Any = shelf.get(library, "uniform", TASK).sampling(size)()
            arrays = list(batch.values())
            title = f"a batch of {size} as tensors"
            row = Row(f"tensors-{size}", title, floors={BARE: Workload(partial(bare, arrays))})
            row.workloads[library.name] = Workload(batch.to_torch)
            made.append(row)
            if torch.cuda.is_available():
                row = Row(f"tensors-{size}-cuda", f"{title} on a GPU", floors={"each field": Workload(apart(arrays))})
                row.workloads[library.name] = Workload(waited_for(partial(batch.to_torch, "cuda")))
                made.append(row)
    return made


def bare(arrays: list[np.ndarray[Any, Any]]) -> list[Any]:
    """Plain torch calls."""
    return [torch.from_numpy(array) for array in arrays]


def apart(arrays: list[np.ndarray[Any, Any]]) -> Callable[[], Any]:
    """Copy each field separately, through pinned memory."""
    return waited_for(lambda: [tensor.pin_memory().to("cuda", non_blocking=True) for tensor in bare(arrays)])


def waited_for(call: Callable[[], Any]) -> Callable[[], Any]:
    """A call that waits for all work that it has started on the GPU."""

    def called() -> None:
        call()
        torch.cuda.synchronize()

    return called
