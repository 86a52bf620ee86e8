"""Progress bars, if ``tqdm`` is installed."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any


class NoBar:
    """A placeholder for a bar that is not shown."""

    total: int | None = 0

    def update(self, count: int = 1) -> None:
        """Do nothing."""


@contextlib.contextmanager
def bar_of(is_shown: bool, label: str, unit: str = "chunk", total: int | None = None) -> Iterator[Any]:
    """A context manager with a progress bar, for public functions. The `total` of the bar can be set later."""
    bar: Any = NoBar()
    if is_shown:
        try:
            from tqdm import tqdm

            bar = tqdm(desc=label, unit=unit, total=total)
        except ImportError:
            warnings.warn("progress=True needs tqdm: pip install tqdm", RuntimeWarning, stacklevel=4)
    try:
        yield bar
    finally:
        if not isinstance(bar, NoBar):
            bar.refresh()
            bar.close()
