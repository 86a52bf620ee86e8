"""The faster way to a batch: one kernel call for what several verbs do, made of the same kernels."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from replaykit._kernels import lazy
from replaykit.batch import Ahead, Draw, Look, Window
from replaykit.storage.base import EMPTY, Open, Serve

if TYPE_CHECKING:
    from replaykit.storage.local import LocalStorage

windows, store = lazy("windows"), lazy("store")

_SCOPES = {"future": 0, "final": 1, "episode": 2, "random": 3}
"""The numbers of the strategies in the kernels."""
_UINT8, _INT64, _BOOL = np.dtype(np.uint8), np.dtype(np.int64), np.dtype(np.bool_)


def fuse(
    storage: "LocalStorage", distribution: Any, powers: npt.NDArray[np.float64], rng: np.random.Generator
) -> tuple[Serve, Open]:
    """Functions of a batch size that do `draw`, `window`, `reduce` and `weigh`, or only `draw` and `window`.

    The kernels come from ``distribution.kernels``.
    """
    draw_batch, draw_and_look = distribution.kernels()
    row, n = storage.row, len(powers) - 1
    bounds, rows, name, layouts, layout_of = storage.bounds, storage.bytes, row.name_batch, row.layouts(n), row.layout
    arguments, finish, complete = distribution.arguments, distribution.finish, distribution.complete
    header, stored = storage.header, store.STORED
    both, only_open, discount, has_columns = windows.BOTH, windows.OPEN, len(storage.spec.leaves), bool(storage.columns)

    def serve(batch_size: int) -> dict[str, Any]:
        if not header.item(stored):
            raise ValueError(EMPTY)
        layout = layouts.get(batch_size) or layout_of(batch_size, n)
        block, given = np.empty(layout.nbytes, _UINT8), arguments(batch_size, rng)
        draw_batch(*given, bounds, rows, layout.plan, powers, block, both)
        fields = np.ndarray((), layout.batch, block).item()
        if has_columns:
            fields = storage.with_columns(fields, fields[-1], fields[discount + 1])
        batch = name(*fields)
        finish(batch, given)
        return batch

    def open_windows(batch_size: int, look: Look | None = None) -> tuple[Draw, Window]:
        if not header.item(stored):
            raise ValueError(EMPTY)
        layout = layouts.get(batch_size) or layout_of(batch_size, n)
        block, given = np.empty(layout.nbytes, _UINT8), arguments(batch_size, rng)
        kernel_arguments = *given, bounds, rows, layout.plan, powers, block, only_open
        ahead = None
        if look is None or storage.is_in_columns(look.leaf):
            draw_batch(*kernel_arguments)
        else:
            uniforms = rng.random((2, batch_size))
            looking, answer = looking_ahead(storage, look, uniforms, batch_size, batch_size, n)
            ahead = answer(*draw_and_look(*kernel_arguments, storage.tables, *looking))
        fields = np.ndarray((), layout.windows, block).item()
        window = storage.window_in(fields[-2], (batch_size,), layout, block, fields)
        window.ahead = ahead
        return complete(Draw(fields[-2], fields[-3])), window

    return serve, open_windows


def looking_ahead(
    storage: "LocalStorage", look: Look, uniforms: npt.NDArray[np.float64], count: int, groups: int, n: int
) -> tuple[tuple[Any, ...], Callable[[int, int], Ahead]]:
    """The last arguments of a kernel that looks ahead, and a function that makes its results an `Ahead`."""
    column = storage.positions[look.leaf]
    leaf = storage.spec.leaves[column]
    shape, dtype, new = leaf.shape, leaf.dtype, np.ndarray
    first, step = (groups + 7) // 8 * 8, (count * n * leaf.field.nbytes + 7) // 8 * 8
    places, values = first + 8 * count, first + 8 * (count + count * n)
    out = np.empty(values + 3 * step, _UINT8)

    def answer(chosen: int, steps: int) -> Ahead:
        return Ahead(
            new(groups, _BOOL, out),
            new(chosen, _INT64, out, first),
            new(steps, _INT64, out, places),
            new((steps, *shape), dtype, out, values),
            new((steps, *shape), dtype, out, values + step),
            new((chosen, *shape), dtype, out, values + 2 * step),
        )

    return (uniforms, look.ratio, _SCOPES[look.strategy], column, out), answer
