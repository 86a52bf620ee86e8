"""`ReplayWrapper`: forwards calls to the wrapped replay, unless a subclass overrides their verbs."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from replaykit.backend import Backend
from replaykit.batch import Draw, Look, Window
from replaykit.declared import Declared
from replaykit.replay import Replay
from replaykit.settings import Settings
from replaykit.storage.base import Floats, Indices
from replaykit.storage.lock import Lock

Method = TypeVar("Method", bound=Callable[..., Any])

_VERBS = ("draw", "probability", "window", "change", "reduce", "weigh", "read", "episode")
_JOINS = {
    "serve": {"draw", "window", "change", "reduce", "weigh"},
    "open": {"draw", "window", "change", "read", "episode"},
    "fetch": {"window", "change", "reduce"},
    "look_ahead": {"read", "episode"},
}
"""Methods that combine several verbs, with these verbs. `read` and `episode` are used to look for goals."""


def _passed_on(method: Method) -> Method:
    """A method that calls `inner`'s method of the same name. It has the signature and docstring of `method`."""
    name = method.__name__

    @wraps(method, updated=())
    def passed_on(self: "ReplayWrapper", *args: Any, **options: Any) -> Any:
        return getattr(self.inner, name)(*args, **options)

    return passed_on  # type: ignore[return-value]


class ReplayWrapper(Replay):
    """Base class of wrappers, which change how `inner` is replayed. Subclass it and override one verb.

    Override `change` to change windows; `window` to open other windows; `draw` together with `probability`; `reduce`;
    or `weigh`. An override also takes effect inside other wrappers. Wrappers that override different verbs commute. All
    other calls go to `inner`. A method that combines several verbs goes to `inner` only if none of these verbs is
    overridden. Copies and pickles consist of the constructor's arguments and the `state`.

    Parameters
    ----------
    inner : Replay
        A buffer or another wrapper. Raises TypeError for others, and if its device or processes are not supported.
    transitions_each : int
        Number of transitions of `inner` that are read for each row of a batch, for the check of available memory.
    """

    needs_cpu = ""
    """The reason why the wrapper does not work around a buffer on a device. Empty if it works."""
    look: Look | None = None
    """The request that `change` will pass to `look_ahead`. The buffer can then answer it when it opens windows."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Forward each method that combines several verbs if the subclass overrides none of these verbs."""
        super().__init_subclass__(**options)
        made = ReplayWrapper._draw_and_fetch, ReplayWrapper._open_and_change
        for join, verbs in _JOINS.items():
            if getattr(cls, join) not in (getattr(Replay, join), getattr(ReplayWrapper, join), *made):
                remedy = f"override its verbs: {', '.join(sorted(verbs))}"
                raise TypeError(f"{cls.__name__} overrides {join}, which wrappers around it would bypass; {remedy}")
        own = {verb for verb in _VERBS if getattr(cls, verb) is not getattr(ReplayWrapper, verb)}
        if ("draw" in own) != ("probability" in own):
            missing = "probability" if "draw" in own else "draw"
            raise TypeError(
                f"{cls.__name__} overrides only one of draw and probability; override {missing}, too, since the "
                "probabilities of a draw must be equal to those that probability returns"
            )
        for join, verbs in _JOINS.items():
            setattr(cls, join, getattr(Replay if own & verbs else ReplayWrapper, join))
        if "draw" in own:
            cls.serve = ReplayWrapper._draw_and_fetch
        elif "change" in own and not own & {"window", "read", "episode"}:
            cls.open = ReplayWrapper._open_and_change  # type: ignore[assignment]
        if own and not cls.__module__.startswith("replaykit."):
            cls.may_raise = True

    def __init__(self, inner: Replay, *, transitions_each: int = 1) -> None:
        if not isinstance(inner, Replay):
            raise TypeError(f"inner is a {type(inner).__name__}; expected a buffer or another wrapper")
        if inner.is_remote:
            remedy = "put the wrapper around the buffer that make_buffer returns"
            raise TypeError(f"inner is a {type(inner).__name__}, which makes its batches in other processes; {remedy}")
        if type(self).needs_cpu and not inner.backend.is_numpy:
            remedy = "leave device out of the buffer, and pass it to batches() instead"
            raise TypeError(f"inner is on the device {inner.backend.device}, but {type(self).needs_cpu}; {remedy}")
        self.inner = inner
        self.settings: Settings = inner.settings
        self.lock: Lock = inner.lock
        self.rng: Any = inner.rng
        self.backend: Backend = inner.backend
        self.successor: int = inner.successor
        self.note_bytes(inner.bytes_each * transitions_each)
        self.has_sequences: bool = type(self).has_sequences or inner.has_sequences
        self.may_raise: bool = type(self).may_raise or inner.may_raise
        self.is_conditional: bool = type(self).is_conditional or inner.is_conditional
        gives_least = type(self).draw is ReplayWrapper.draw or "least_probability" in vars(type(self))
        self.has_least: bool = inner.has_least and gives_least
        if inner.rate_limit is not None:
            self.rate_limit: Any = inner.rate_limit

    add = _passed_on(Replay.add)
    extend = _passed_on(Replay.extend)
    end_episode = _passed_on(Replay.end_episode)
    clear = _passed_on(Replay.clear)
    overwrite = _passed_on(Replay.overwrite)
    draw = _passed_on(Replay.draw)
    probability = _passed_on(Replay.probability)
    serve = _passed_on(Replay.serve)
    open = _passed_on(Replay.open)
    look_ahead = _passed_on(Replay.look_ahead)
    latest = _passed_on(Replay.latest)
    episode = _passed_on(Replay.episode)
    begins_row = _passed_on(Replay.begins_row)
    read = _passed_on(Replay.read)
    stats = _passed_on(Replay.stats)
    reseed = _passed_on(Replay.reseed)
    random_state = _passed_on(Replay.random_state)
    restore_random_state = _passed_on(Replay.restore_random_state)
    least_of = _passed_on(Replay.least_of)
    check = _passed_on(Replay.check)

    # These methods are called for every batch, so they are written out for speed

    def __len__(self) -> int:
        return len(self.inner)

    def count_batch(self) -> None:
        self.inner.count_batch()

    def update_priorities(self, indices: npt.ArrayLike, td_errors: npt.ArrayLike | None = None, **options: Any) -> int:
        return self.inner.update_priorities(indices, td_errors, **options)

    def fetch(self, indices: Indices) -> dict[str, Any]:
        return self.inner.fetch(indices)

    def reduce(self, window: Window) -> dict[str, Any]:
        return self.inner.reduce(window)

    def weigh(self, draw: Draw) -> npt.NDArray[np.float32]:
        return self.inner.weigh(draw)

    def window(self, indices: Indices) -> Window:
        """The wrapped replay's windows after `change`."""
        with self.lock:
            return self.change(self.inner.window(indices))

    def change(self, window: Window) -> Window:
        """Change a window of the wrapped replay. Returns the same window, changed in place, or a new one."""
        return window

    def least_probability(self, batch_size: int, without: Indices) -> float | Floats:
        if type(self).probability is not ReplayWrapper.probability:
            return super().least_probability(batch_size, without)
        return self.inner.least_probability(batch_size, without)

    def _open_and_change(self, batch_size: int, look: Look | None = None) -> tuple[Draw, Window]:
        """`open` of a wrapper that overrides `change`. Ignores `look`, which is a request for the changed windows."""
        draw, window = self.inner.open(batch_size, self.look)
        window = self.change(window)
        window.ahead = None
        return draw, window

    def parts(self) -> dict[str, Declared]:
        """The parts of the wrapped replay, plus this wrapper if it has state."""
        parts = self.inner.parts()
        if type(self).state is not Declared.state:
            parts[f"{type(self).__name__}{sum(name.startswith(type(self).__name__) for name in parts) or ''}"] = self
        return parts

    @property
    def beta(self) -> float:
        return float(self._prioritized.beta)

    @beta.setter
    def beta(self, value: float | Callable[[int], float]) -> None:
        self._prioritized.beta = value

    @property
    def _prioritized(self) -> Any:
        """The wrapped replay, which must have a beta."""
        if not hasattr(self.inner, "beta"):
            raise AttributeError(f"{self.inner!r} has no priorities, so it has no beta")
        return self.inner

    @property
    def inside(self) -> tuple[Replay, ...]:
        return (self.inner,)

    @property
    def num_slots(self) -> int:
        return self.inner.num_slots

    @property
    def largest_priority(self) -> float:
        return self.inner.largest_priority

    @property
    def nbytes(self) -> int:
        return self.inner.nbytes

    @property
    def bounds(self) -> Indices:
        return self.inner.bounds

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.inner!r})"
