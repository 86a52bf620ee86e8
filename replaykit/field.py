"""One field of a transition: its shape and dtype, and the checks of every value before it is stored."""

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from replaykit._kernels import lazy
from replaykit.checks import check_choice

kernels: Any = lazy("lanes")

Step: TypeAlias = Literal["first", "last"]
_FLOAT32, _FLOAT64, _INT64 = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.int64)
_INTEGERS = (int, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64)
_FLOATS = (float, np.float16, np.float32, np.float64)
_SCALARS: dict[str, tuple[type, ...]] = {"b": (bool, np.bool_), "i": _INTEGERS, "u": _INTEGERS, "f": _FLOATS}
"""Python number types by kind of field. ``struct.pack`` converts them as `Leaf.coerce` does, or raises an error."""
_EXACT_INT = 2**53
"""A float64 represents every int up to this one exactly."""
_WIDEN = "widen the field's dtype in the Spec or clip the value"
Array: TypeAlias = npt.NDArray[Any]


class FieldNameError(KeyError, TypeError):
    """A transition lacks a field of its spec, or has a field that the spec does not have."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True, init=False)
class Field:
    """The shape and dtype of one array in a single transition.

    Parameters
    ----------
    shape : tuple of int
        Without a batch or lane axis; ``()`` for a scalar.
    dtype : dtype-like
        A boolean, integer, floating or complex dtype of NumPy, stored in native byte order. Others raise TypeError.
    step : {"first", "last"}
        The step of an n-step window whose value a batch contains. Use "last" for extra fields that belong to
        `next_obs`, such as its legal actions.

    Examples
    --------
    >>> Field((17,), "float32")
    Field((17,), float32)
    >>> Field((4,), "bool", step="last")
    Field((4,), bool, step='last')
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    step: Step = "first"

    def __init__(
        self, shape: tuple[int, ...] | int = (), dtype: npt.DTypeLike = np.float32, *, step: Step = "first"
    ) -> None:
        check_choice("step", step, Step)
        shape = tuple(shape) if isinstance(shape, tuple | list) else (shape,)
        for size in shape:
            if isinstance(size, bool | np.bool_) or not isinstance(size, int | np.integer):
                raise TypeError(f"Field shape contains {size!r}; expected ints")
        shape = tuple(map(int, shape))
        if min(shape, default=0) < 0:
            raise ValueError(f"Field shape has a negative dimension: {shape}")
        try:
            native = np.dtype(dtype).newbyteorder("=")
        except (TypeError, ValueError):
            native = np.dtype(object)
        if dtype is None or native.kind not in "biufc":
            wanted = "a boolean, integer, floating or complex dtype"
            raise TypeError(f"Field dtype is {dtype!r}; expected {wanted}")
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "dtype", np.dtype(native.type))
        object.__setattr__(self, "step", step)

    def __repr__(self) -> str:
        step = "" if self.step == "first" else f", step={self.step!r}"
        return f"Field({self.shape}, {self.dtype}{step})"

    @property
    def nbytes(self) -> int:
        """Bytes of one value."""
        return math.prod(self.shape) * self.dtype.itemsize


class Leaf:
    """One array of a transition, with its name. Converts values to the field's shape and dtype.

    Errors contain `name`, such as ``obs.position``. For a scalar, `scalar_types` are the types in `_SCALARS`.
    `is_of_last`: whether a batch contains the value of a window's last step instead of its first.
    """

    __slots__ = ("dtype", "field", "is_of_last", "name", "scalar_types", "shape")

    def __init__(self, name: str, field: Field) -> None:
        self.name: str = name
        self.field: Field = field
        self.shape: tuple[int, ...] = field.shape
        self.is_of_last: bool = field.step == "last" or name.partition(".")[0] == "next_obs"
        # NumPy's own object, for comparisons by identity; unpickling makes another
        self.dtype: np.dtype[Any] = np.dtype(field.dtype.type)
        is_number = not self.shape and self.dtype.itemsize <= 8
        self.scalar_types: frozenset[type] = frozenset(_SCALARS.get(self.dtype.kind, ()) if is_number else ())

    def __reduce__(self) -> tuple[type["Leaf"], tuple[str, Field]]:
        return Leaf, (self.name, self.field)

    def coerce(self, value: Any, lead: tuple[int, ...] = (), mask: npt.NDArray[np.bool_] | None = None) -> Array:
        """`value` as an array of shape ``(*lead, *shape)`` and this dtype. Raises if it would change beyond rounding.

        With a `mask` of shape `lead`, only the selected entries are checked and returned, with one leading axis.
        """
        array = value if type(value) is np.ndarray else as_array(self.name, value)
        if array.shape != lead + self.shape:
            if array.dtype.kind == "O":
                raise self._no_numbers(array)
            raise ValueError(self.wrong_shape(array.shape, lead))
        if mask is not None:
            array = array[mask]
        if array.dtype is self.dtype:
            return array
        if array.dtype is _FLOAT64 and self.dtype is _FLOAT32:  # Gymnasium returns rewards as float64
            array = array if array.flags.carray else array.copy()
            narrowed = np.empty(array.shape, _FLOAT32)
            flat = (array, narrowed) if array.ndim == 1 else (array.reshape(-1), narrowed.reshape(-1))
            if kernels.narrow(*flat) < 0:
                return narrowed
        return self._cast(array)

    def coerce_scalar(self, value: Any) -> Any:
        """`coerce` to a Python number, or to a 0-d array if none fits. Raises for a NaN, whose bits may change."""
        if type(value) is int and self.dtype.kind == "f" and -_EXACT_INT <= value <= _EXACT_INT:
            return value  # a float64 represents it exactly
        array = self.coerce(value)
        if self.dtype.kind == "c" or self.dtype.itemsize > 8:
            return array
        number = array.item()
        if number != number:
            raise OverflowError(f"{self.name} is {number}")
        return number

    def wrong_shape(self, got: tuple[int, ...], lead: tuple[int, ...]) -> str:
        """The error message for a value of the wrong shape."""
        parts = f", {lead} for the leading axes and {self.shape} for the field" if lead else ""
        message = f"{self.name} has shape {got}; expected {lead + self.shape}{parts}"
        if math.prod(got) == math.prod(lead + self.shape):
            return f"{message}; reshape it"
        if not lead and len(got) == len(self.shape) + 1 and got[1:] == self.shape:
            return f"{message}; use extend for several steps, or num_envs= for parallel environments"
        return f"{message}; give it that shape, or declare another in the Spec"

    def _cast(self, array: Array) -> Array:
        """`array` in this dtype. Raises an error if a value would change by more than rounding."""
        source, target = array.dtype, self.dtype
        if np.can_cast(source, target, "safe"):
            return array.astype(target)
        if target.kind in "biu" and source.kind in "biu":
            low, high = (0, 1) if target.kind == "b" else (np.iinfo(target).min, np.iinfo(target).max)
            for extreme in (int(array.min()), int(array.max())) if array.size else ():
                if not low <= extreme <= high:
                    wanted = f"{target} values in [{low}, {high}]"
                    raise OverflowError(f"{self.name} contains {extreme}; expected {wanted}; {_WIDEN}")
            return array.astype(target)
        if (target.kind == "f" and source.kind in "iuf") or (target.kind == "c" and source.kind in "iufc"):
            with np.errstate(over="ignore", under="ignore", invalid="ignore"):
                cast = array.astype(target)
                lost = np.isinf(cast) & np.isfinite(array)
            if lost.any():
                wanted = f"{target} values of at most {np.finfo(target).max:.4g} in magnitude"
                raise OverflowError(f"{self.name} contains {array[lost].flat[0]}; expected {wanted}; {_WIDEN}")
            return cast
        if source.kind == "O":
            raise self._no_numbers(array)
        remedy = "declare the field with another dtype in the Spec"
        if source.kind == "f" and target.kind in "biu":
            remedy = f"round it and call .astype('{target}') if that is meant, or declare a floating field in the Spec"
        raise TypeError(f"{self.name} has dtype {source}; {self._expected_dtype}; {remedy}")

    def _no_numbers(self, array: Array) -> Exception:
        """The error for objects without a numeric dtype. Among them are Python ints that are too large for NumPy."""
        if array.size and all(type(entry) is int for entry in array.flat):
            largest = max(array.flat, key=abs)
            if np.asarray(largest).dtype.kind == "O":
                wanted = f"{self.dtype} values, of at most 64 bits as ints"
                return OverflowError(f"{self.name} contains {largest}; expected {wanted}; clip or scale them")
        remedy = "give all its entries one shape and a numeric dtype"
        return TypeError(f"{self.name} has dtype object; {self._expected_dtype}; {remedy}")

    @property
    def _expected_dtype(self) -> str:
        return f"expected {self.dtype}, or one that casts to it safely"


def as_array(name: str, value: Any, detach: bool = False) -> Array:
    """`value`, an array-like or CPU tensor, as an array. With `detach`, any tensor. Raises for a masked array."""
    kind = type(value)
    if kind is not list and isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array; expected an array without a mask: pass .filled(...)")
    try:
        if kind is list or kind.__module__.partition(".")[0] != "torch":
            return np.asarray(value)
        if detach:
            value = value.detach().cpu()
            value = value.float() if str(value.dtype) == "torch.bfloat16" else value
        if not value.requires_grad and value.device.type == "cpu":
            array: Array = value.numpy()
            return array
    except ValueError as error:
        raise ValueError(f"{name} cannot be read as an array: {error}") from error
    except (TypeError, RuntimeError) as error:  # lists of tensors, sparse tensors, dtypes that NumPy lacks
        raise TypeError(f"{name} cannot be read as an array: {error}; pass .detach().cpu() of a tensor") from error
    state = "requires grad" if value.requires_grad else f"is on {value.device}"
    raise TypeError(f"{name} is a torch tensor that {state}; expected an array on the CPU: pass .detach().cpu()")


def as_float64(name: str, value: Any, detach: bool = False) -> npt.NDArray[np.float64]:
    """`value`, an array-like or CPU tensor, as float64. Raises for values that are not real numbers."""
    if type(value) is np.ndarray and (value.dtype is _FLOAT32 or value.dtype is _FLOAT64):
        return value if value.dtype is _FLOAT64 and value.flags.carray else value.astype(_FLOAT64)
    array = as_array(name, value, detach)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} has dtype {array.dtype}; expected real numbers")
    with np.errstate(over="ignore"):
        return array.astype(np.float64)


def as_indices(name: str, value: Any, detach: bool = False) -> npt.NDArray[np.int64]:
    """`value`, an array-like or CPU tensor, as int64 of shape (B,). Raises for floats and booleans."""
    if type(value) is np.ndarray and value.dtype is _INT64 and value.ndim == 1:
        return value if value.flags.carray else value.copy()  # kernels are compiled for ordinary arrays
    array = as_array(name, value, detach)
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {array.shape}; expected (B,)")
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{name} has dtype {array.dtype}; expected integers, such as batch.indices")
    if array.dtype == np.uint64 and array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise IndexError(f"{name} contains {array.max()}, which the buffer never returned")
    return array.astype(np.int64)


def refuse_too_large(name: str, values: npt.NDArray[np.float64], limit: float) -> None:
    """Raise ValueError if a TD error or priority is NaN, or larger than `limit` in magnitude."""
    wrong = ~(np.abs(values) <= limit)
    if wrong.any():
        expected = f"finite numbers of at most {limit:.3g} in magnitude"
        raise ValueError(f"{name} contains {values[wrong][0]}; expected {expected}")


def refuse_negative(priorities: npt.NDArray[np.float64]) -> None:
    """Raise ValueError if a priority is negative."""
    if priorities.size and priorities.min() < 0.0:
        raise ValueError(f"priorities contains {priorities.min()}; expected non-negative numbers")
