"""Objects that are copied, pickled and saved as what they were built from and the state that they declare."""

from typing import Any


class Declared:
    """Base of all that has state: storages, distributions, buffers and wrappers.

    A copy or a pickle is the constructor's arguments and what `state` returns, which `load` takes. Everything else is
    made anew by the constructor. A class that keeps nothing else needs neither method.
    """

    _arguments: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Remember the constructor's arguments."""
        made = super().__new__(cls)
        made._arguments = args, kwargs
        return made

    def state(self) -> dict[str, Any]:
        """Arrays and plain values from which this object can go on, apart from the constructor's arguments.

        Arrays may be views of what is kept. They hold only what is stored.
        """
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Take the state of an object that was built with the same arguments."""

    def __reduce__(self) -> Any:
        return _rebuilt, (type(self), *self._arguments), self.copied_state()

    def copied_state(self) -> dict[str, Any]:
        """The state as it is now: later changes of this object do not show in it."""
        return {name: value.copy() if hasattr(value, "copy") else value for name, value in self.state().items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.load(state)


def _rebuilt(cls: type[Declared], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return cls(*args, **kwargs)
