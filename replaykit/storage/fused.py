"""The fast path to a batch: one kernel call does the work of several verbs. It consists of the same kernels."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from replaykit._kernels import lazy
from replaykit.batch import Ahead, Draw, Look, Window
from replaykit.spec import Spec
from replaykit.storage.base import EMPTY, Floats, Indices, Open, Serve
from replaykit.storage.row import LAYOUTS_KEPT

if TYPE_CHECKING:
    from replaykit.storage.local import LocalStorage

windows: Any = lazy("windows")
store: Any = lazy("store")

SCOPES = {"future": 0, "final": 1, "episode": 2, "random": 3}
"""The numbers of the strategies in the kernels."""
_UINT8, _INT64, _BOOL = np.dtype(np.uint8), np.dtype(np.int64), np.dtype(np.bool_)
LookingAhead: TypeAlias = tuple[Indices, int, Callable[[npt.NDArray[np.uint8], tuple[int, int]], Ahead]]


def fuse(storage: "LocalStorage", distribution: Any, powers: Floats, rng: np.random.Generator) -> tuple[Serve, Open]:
    """Two functions of the batch size. One does `draw`, `window`, `reduce` and `weigh`, one `draw` and `window`."""
    draw_batch, draw_and_look = distribution.kernels()
    bounds, rows, header, stored, n = storage.bounds, storage.bytes, storage.header, store.STORED, len(powers) - 1
    layout_of = functools.lru_cache(LAYOUTS_KEPT)(lambda count: storage.row.layout(count, n))
    name, length = storage.row.name_batch, len(storage.spec.leaves) + 1
    arguments, finish, complete = distribution.arguments, distribution.finish, distribution.complete
    both, only_open, has_columns = windows.BOTH, windows.OPEN, bool(storage.columns)

    def serve(batch_size: int) -> dict[str, Any]:
        if not header.item(stored):
            raise ValueError(EMPTY)
        layout = layout_of(batch_size)
        block, given = np.empty(layout.nbytes, _UINT8), arguments(batch_size, rng)
        draw_batch(*given, bounds, rows, layout.plan, powers, block, both)
        fields = np.ndarray((), layout.batch, block).item()
        if has_columns:
            fields = storage.with_columns(fields, fields[-1], fields[length])
        batch = name(*fields)
        finish(batch, given)
        return batch

    def open_windows(batch_size: int, look: Look | None = None) -> tuple[Draw, Window]:
        if not header.item(stored):
            raise ValueError(EMPTY)
        layout = layout_of(batch_size)
        block, given = np.empty(layout.nbytes, _UINT8), arguments(batch_size, rng)
        kernel_arguments = *given, bounds, rows, layout.plan, powers, block, only_open
        ahead = None
        if look is None or (has_columns and any(map(storage.is_in_columns, look.leaves))):
            draw_batch(*kernel_arguments)
        else:
            leaves, ratio, strategy = look
            asked_of, nbytes, read = storage.looking(leaves, batch_size, batch_size, n)
            uniforms, out = rng.random((2, batch_size)), np.empty(nbytes, _UINT8)
            asked = storage.tables, uniforms, ratio, SCOPES[strategy], asked_of, out
            ahead = read(out, draw_and_look(*kernel_arguments, *asked))
        fields = np.ndarray((), layout.windows, block).item()
        draw = complete(Draw(fields[-2], fields[-3]))
        return draw, storage.window_in(fields[-2], (batch_size,), (layout, block, fields), ahead)

    return serve, open_windows


def looking_ahead(spec: Spec, leaves: tuple[str, ...], count: int, groups: int, n: int) -> LookingAhead:
    """What the kernel `look_ahead` needs for `count` windows of n steps in `groups` rows of a batch.

    Returns the columns of the achieved goals, the number of bytes of the kernel's output, and a function that makes an
    `Ahead` from the output and the return value of the kernel.
    """
    names, new = [leaf.name for leaf in spec.leaves], np.ndarray
    columns = np.array([names.index(name) for name in leaves], np.int64)
    first = (groups + 7) // 8 * 8
    places, nbytes = first + 8 * count, first + 8 * (count + count * n)
    parts = []
    for field in (spec.leaves[column].field for column in columns):
        step = (count * n * field.nbytes + 7) // 8 * 8
        parts.append((field.shape, field.dtype, nbytes, nbytes + step, nbytes + 2 * step))
        nbytes += 3 * step

    def read(out: npt.NDArray[np.uint8], found: tuple[int, int]) -> Ahead:
        chosen, steps = found
        windows, at = new(chosen, _INT64, out, first), new(steps, _INT64, out, places)
        achieved = tuple([new((steps, *shape), dtype, out, start) for shape, dtype, start, _, _ in parts])
        wanted = tuple([new((steps, *shape), dtype, out, start) for shape, dtype, _, start, _ in parts])
        goals = tuple([new((chosen, *shape), dtype, out, start) for shape, dtype, _, _, start in parts])
        return Ahead(new(groups, _BOOL, out), windows, at, achieved, wanted, goals)

    return columns, nbytes, read
