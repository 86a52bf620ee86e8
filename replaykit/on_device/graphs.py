"""CUDA graphs: one call to the driver draws a batch, instead of dozens of operations."""

import weakref
from collections.abc import Callable
from typing import Any

import torch

from replaykit.on_device.generator import DeviceGenerator

_GRAPHS_KEPT = 16
_ALIGNED = 16
Fields = list[torch.Tensor]


class Graphs:
    """Runs a function of a batch size that returns tensors, through a CUDA graph where that is possible.

    The first call for a batch size runs the function. The second call records a graph, and later calls replay it. The
    graph writes all tensors to one block. A call replays the graph, copies the block, and returns views of the copy. On
    other devices, and while the program records its own graph, the function is called directly.

    Parameters
    ----------
    function : callable
        Takes a batch size and returns tensors on the device. It must read every value that may change from a tensor,
        and its shapes must depend on the batch size only.
    rng : DeviceGenerator
        The random generator that the function uses.

    Attributes
    ----------
    is_recording : bool
        Whether a graph is being recorded.
    """

    is_recording: bool = False

    def __init__(self, function: Callable[[int], Fields], rng: DeviceGenerator) -> None:
        self._function, self._rng = function, rng
        self._uses: dict[int, int] = {}
        self._recorded: dict[int, tuple[Any, torch.Tensor, list[Place]]] = {}  # the last used at the end

    def __call__(self, batch_size: int) -> Fields:
        """The tensors for a batch of this size. Later calls do not change them."""
        if self._rng.device.type != "cuda" or torch.cuda.is_current_stream_capturing():
            return self._function(batch_size)
        uses = self._uses[batch_size] = self._uses.get(batch_size, 0) + 1
        if uses == 1:  # also allocates the memory that the operations need only once
            return self._function(batch_size)
        kept = self._recorded
        kept[batch_size] = kept.pop(batch_size) if batch_size in kept else self._record(batch_size)
        if len(kept) > _GRAPHS_KEPT:
            del kept[next(iter(kept))]
        graph, block, places = kept[batch_size]
        graph.replay()
        return views_of(block.clone(), places)

    def _record(self, batch_size: int) -> tuple[Any, torch.Tensor, "list[Place]"]:
        """A graph, the block that it writes to, and the places of the tensors in the block."""
        places, nbytes = places_of(self._function(batch_size))
        block = torch.empty(nbytes, dtype=torch.uint8, device=self._rng.device)
        graph: Any = torch.cuda.CUDAGraph()
        graph.register_generator_state(self._rng.generator)
        torch.cuda.synchronize(self._rng.device)
        self.is_recording = True
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                for source, target in zip(self._function(batch_size), views_of(block, places), strict=True):
                    target.copy_(source)
        finally:
            self.is_recording = False
        return graph, block, places

    def forget(self) -> None:
        """Record all graphs again at their next use, because tensors that they read have moved."""
        self._recorded.clear()


class Recorded:
    """All graphs that read from a storage. A graph reads the addresses that its tensors had when it was recorded.

    Attributes
    ----------
    own : WeakSet of Graphs
        The graphs of replaykit. They are recorded again after tensors have moved.
    """

    def __init__(self) -> None:
        self.own: weakref.WeakSet[Graphs] = weakref.WeakSet()
        self._has_others = False

    def look(self, device: torch.device) -> None:
        """Note whether the user is recording a graph on the device."""
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            self._has_others |= not any(graphs.is_recording for graphs in self.own)

    def refuse_moving(self, reason: str) -> None:
        """Raise RuntimeError if a graph of the user reads from the storage."""
        if self._has_others:
            remedy = "build the buffer with share='none', which never moves memory, or sample outside your graph"
            raise RuntimeError(f"{reason}; this moves frames, but a CUDA graph that you recorded reads them; {remedy}")

    def forget(self) -> None:
        """Record all graphs of replaykit again at their next use."""
        for graphs in self.own:
            graphs.forget()


Place = tuple[torch.dtype, tuple[int, ...], int]
"""The dtype and the shape of a tensor, and the byte of a block at which it begins."""


def places_of(tensors: Fields) -> tuple[list[Place], int]:
    """The places of tensors in one block, and the size of the block in bytes."""
    places, nbytes = list[Place](), 0
    for tensor in tensors:
        places.append((tensor.dtype, tuple(tensor.shape), nbytes))
        nbytes += -(-tensor.numel() * tensor.element_size() // _ALIGNED) * _ALIGNED
    return places, nbytes


def views_of(block: torch.Tensor, places: list[Place]) -> Fields:
    """The tensors in a block."""
    made, typed = list[torch.Tensor](), dict[torch.dtype, torch.Tensor]()
    for dtype, shape, begin in places:
        if dtype not in typed:
            typed[dtype] = block.view(dtype)
        strides, count = list[int](), 1
        for size in reversed(shape):
            strides.insert(0, count)
            count *= size
        made.append(torch.as_strided(typed[dtype], shape, strides, begin // dtype.itemsize))
    return made
