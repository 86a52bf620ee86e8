"""The forwards that every wrapper shares, spelt out."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from replaykit.batch import Draw, Window
from replaykit.replay import Replay
from replaykit.trees import Tree


class ReplayWrapper(Replay):
    """A replay that changes how another is replayed: subclass it, override one verb, and the rest goes to `inner`.

    `sample` runs in the outermost wrapper and calls its verbs, so an override takes effect whatever is around it,
    and wrappers on different verbs commute.

    Parameters
    ----------
    inner : Replay
        A buffer, or another wrapper.
    """

    def __init__(self, inner: Replay) -> None:
        if not isinstance(inner, Replay):
            raise TypeError(f"inner is a {type(inner).__name__}; expected a buffer or another wrapper")
        super().__init__(inner._storage)
        cls = type(self)
        self._is_transparent = cls.window is ReplayWrapper.window and cls.reduce is ReplayWrapper.reduce
        self._is_plain = inner._is_plain and self._is_transparent
        self.inner = inner

    def add(
        self,
        obs: Tree,
        action: Tree,
        reward: Any,
        next_obs: Tree,
        terminated: Any,
        truncated: Any,
        *,
        mask: npt.ArrayLike | None = None,
        td_error: Any = None,
        **extras: Tree,
    ) -> npt.NDArray[np.int64]:
        """As the wrapped buffer's; see :meth:`Replay.add`."""
        return self.inner.add(
            obs, action, reward, next_obs, terminated, truncated, mask=mask, td_error=td_error, **extras
        )

    def extend(
        self,
        obs: Tree,
        action: Tree,
        reward: Any,
        next_obs: Tree,
        terminated: Any,
        truncated: Any,
        *,
        mask: npt.ArrayLike | None = None,
        td_error: Any = None,
        **extras: Tree,
    ) -> npt.NDArray[np.int64]:
        """As the wrapped buffer's; see :meth:`Replay.extend`."""
        return self.inner.extend(
            obs, action, reward, next_obs, terminated, truncated, mask=mask, td_error=td_error, **extras
        )

    def end_episode(self, mask: npt.ArrayLike | None = None) -> None:
        """As the wrapped buffer's; see :meth:`Replay.end_episode`."""
        self.inner.end_episode(mask)

    def reset(self) -> None:
        """As the wrapped buffer's; see :meth:`Replay.reset`."""
        self.inner.reset()

    def update_priorities(
        self,
        indices: npt.ArrayLike,
        td_errors: npt.ArrayLike | None = None,
        *,
        priorities: npt.ArrayLike | None = None,
    ) -> int:
        """As the wrapped buffer's; see :meth:`Replay.update_priorities`."""
        return self.inner.update_priorities(indices, td_errors, priorities=priorities)

    def _transitions(self, indices: npt.NDArray[np.int64]) -> dict[str, Any]:
        return self.inner._transitions(indices) if self._is_transparent else super()._transitions(indices)

    def draw(self, batch_size: int) -> Draw:
        """As the wrapped buffer's."""
        return self.inner.draw(batch_size)

    def probability(self, indices: npt.ArrayLike, batch_size: int = 1) -> npt.NDArray[np.float64]:
        """As the wrapped buffer's."""
        return self.inner.probability(indices, batch_size)

    def window(self, indices: npt.NDArray[np.int64]) -> Window:
        """As the wrapped buffer's."""
        return self.inner.window(indices)

    def reduce(self, window: Window) -> dict[str, Any]:
        """As the wrapped buffer's."""
        return self.inner.reduce(window)

    def weigh(self, draw: Draw) -> npt.NDArray[np.float32]:
        """As the wrapped buffer's."""
        return self.inner.weigh(draw)

    def least_probability(self, batch_size: int, without: npt.NDArray[np.int64]) -> float:
        """As the wrapped buffer's, or as `probability` says, in O(N), where that is overridden."""
        if type(self).probability is not ReplayWrapper.probability:
            return super().least_probability(batch_size, without)
        return self.inner.least_probability(batch_size, without)

    @property
    def beta(self) -> float:
        """As the wrapped buffer's, where it has one; settable as there."""
        return float(self._prioritized.beta)

    @beta.setter
    def beta(self, value: float | Callable[[int], float]) -> None:
        self._prioritized.beta = value

    @property
    def _prioritized(self) -> Any:
        """What is wrapped, which must have a beta."""
        if not hasattr(self.inner, "beta"):
            raise AttributeError(f"{self.inner!r} prioritizes nothing, so it has no beta")
        return self.inner

    @property
    def nbytes(self) -> int:
        """Bytes of the wrapped buffer's arrays."""
        return self.inner.nbytes

    def stats(self) -> dict[str, float]:
        """Numbers of the wrapped buffer."""
        return self.inner.stats()

    def check(self) -> None:
        """Verify every invariant of the wrapped buffer."""
        self.inner.check()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.inner!r})"
