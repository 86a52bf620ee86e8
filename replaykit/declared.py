"""Objects that are copied, pickled and saved as their constructor's arguments and a declared state."""

import contextlib
import inspect
import threading
import weakref
from collections.abc import Iterable, Iterator
from operator import attrgetter
from typing import Any

from replaykit.checks import check_arguments


def read_only(path: str, meaning: str) -> Any:
    """A property that returns the attribute at `path` of its object, such as ``"settings.gamma"``."""

    def refuse(instance: Any, _value: Any) -> None:
        kind = type(instance).__name__
        raise AttributeError(f"{name} of a {kind} cannot be set later; build another {kind} with the value you want")

    name = path.rpartition(".")[2].removeprefix("_")
    return property(attrgetter(path), refuse, doc=meaning)


class Moment:
    """The states of several objects at one moment, shared by their copies.

    The thread that makes the copies finds a moment as long as a reference to it exists. ``__reduce__`` provides this
    reference: it returns the moment as its iterator of list items, which is empty.
    """

    def __init__(self, parts: "Iterable[Declared]") -> None:
        self.states: dict[int, dict[str, Any]] = {}
        for part in parts:
            if id(part) not in self.states:
                known = _copying.state_of(part)  # if an outer object is being copied: the state at its moment
                self.states[id(part)] = part.copied_state() if known is None else known
        _copying.moments = [*_copying.living(), weakref.ref(self)]

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        raise StopIteration


class _Copying(threading.local):
    """The moments that a thread is copying, innermost last."""

    moments: "list[weakref.ref[Moment]]" = []  # noqa: RUF012

    def living(self) -> "list[weakref.ref[Moment]]":
        return [moment for moment in self.moments if moment() is not None]

    def state_of(self, part: "Declared") -> dict[str, Any] | None:
        for reference in reversed(self.moments):
            moment = reference()
            if moment is not None and id(part) in moment.states:
                return moment.states.pop(id(part))
        return None


_copying = _Copying()


class Declared:
    """Base class of every object with state: storages, distributions, buffers and wrappers.

    A copy or a pickle consists of the constructor's arguments and the result of `state`, which is passed to `restore`.
    The constructor rebuilds everything else. A class without further state needs neither method.

    Attributes
    ----------
    lock
        Held while the state is copied, so that a copy shows the object at one moment.
    """

    lock: Any = contextlib.nullcontext()
    saved_kind: str | None = None
    """The name of the class that a checkpoint records for this object, or None for its own class."""
    _arguments: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Remember the constructor's arguments if they are valid."""
        check_arguments(cls, args, kwargs)
        made = super().__new__(cls)
        made._arguments = args, kwargs
        return made

    def built_with(self) -> dict[str, Any]:
        """The constructor's arguments by name, including defaults."""
        args, options = self._arguments
        bound = inspect.signature(type(self).__init__).bind(self, *args, **options)
        bound.apply_defaults()
        return dict(list(bound.arguments.items())[1:])

    def made_of(self) -> "Iterator[Declared]":
        """Every `Declared` object among the constructor's arguments, and among the arguments of those objects."""
        args, options = self._arguments
        for argument in (*args, *options.values()):
            for part in argument.values() if isinstance(argument, dict) else [argument]:
                if isinstance(part, Declared):
                    yield part
                    yield from part.made_of()

    def state(self) -> dict[str, Any]:
        """The state besides the constructor's arguments: arrays, which may be views, and plain values.

        They may be nested in lists, tuples and dicts. Large arrays may be `LiveChunks <replaykit.chunks.LiveChunks>`.
        """
        return {}

    def check_state(self, state: dict[str, Any]) -> None:
        """Raise ValueError for a state that this object cannot have. Changes nothing."""

    def fits(self, built: dict[str, Any]) -> bool:
        """Whether this object can restore a state of an object with this "class" and these "arguments"."""
        return bool(built["class"] == (self.saved_kind or type(self).__name__))

    def restart(self) -> None:
        """Start again from the data of the other parts: called if this part has no saved state, or `restore` failed."""

    def complete_state(self, state: dict[str, Any]) -> None:
        """Called after all chunks of `state` were copied: record in it which steps were retired in the meantime."""

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the state of an object with the same constructor arguments."""

    def __reduce__(self) -> Any:
        state = _copying.state_of(self)
        if state is None:
            with self.lock:
                state = self.copied_state()
        return _rebuilt, self.copied_arguments(), state

    def copied_arguments(self) -> tuple[type[Any], tuple[Any, ...], dict[str, Any]]:
        """The class and the constructor's arguments of a copy."""
        return type(self), *self._arguments

    def copied_state(self) -> dict[str, Any]:
        """A copy of the current state. Later changes of this object do not affect it."""
        return {name: copied(value) for name, value in self.state().items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.restore(state)


def copied(value: Any) -> Any:
    """A copy of an array, or of lists, tuples and dicts of them."""
    if type(value) is dict:
        return {key: copied(entry) for key, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(copied, value))
    return value.copy() if hasattr(value, "copy") else value


def _rebuilt(cls: type[Declared], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return cls(*args, **kwargs)
