"""Draw, window and reduce in one call, through a CUDA graph for each batch size."""

from typing import Any

import torch

from replaykit.batch import Draw, Window
from replaykit.on_device.graphs import Graphs
from replaykit.storage.base import EMPTY, Floats, Open, Serve
from replaykit.trees import leaves_of, map_tree


def fuse(storage: Any, distribution: Any, powers: Floats, rng: Any) -> tuple[Serve, Open] | None:
    """`serve`, with a CUDA graph for each batch size, and `open`. None if draws do not have fixed shapes."""
    if not getattr(distribution, "is_capturable", False):
        return None
    structure: dict[str, Any] = {}

    def fields(batch_size: int) -> list[torch.Tensor]:
        draw = distribution.draw_captured(batch_size, rng)
        made = storage.reduce(storage.window_at(draw.indices, len(powers) - 1), powers)
        made["weights"] = distribution.weigh(draw, len(storage))
        made["probabilities"], made["indices"] = draw.probabilities, draw.indices
        structure.update({name: map_tree(lambda *_: None, tree) for name, tree in made.items()})
        return [leaf for _, leaf in leaves_of(made)]

    graphs = Graphs(fields, rng)
    storage.graphs.own.add(graphs)

    def serve(batch_size: int) -> dict[str, Any]:
        if not len(storage):
            raise ValueError(EMPTY)
        storage.refresh()
        distribution.prepare()
        leaves = iter(graphs(batch_size))
        return {name: map_tree(lambda _leaf, _path: next(leaves), tree) for name, tree in structure.items()}

    def open_windows(batch_size: int, look: Any = None) -> tuple[Draw, Window]:
        if not len(storage):
            raise ValueError(EMPTY)
        draw = distribution.draw(batch_size, rng)
        return draw, storage.window(draw.indices, len(powers) - 1)

    return serve, open_windows
