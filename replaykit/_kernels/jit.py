"""`jit`, which compiles every kernel, and two operations in kernels that Numba does not provide."""

import contextlib
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import config, types
from numba.core.imputils import impl_ret_borrowed
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from replaykit._kernels.cache import KernelCache, cache_directory

# Looked up while this module is imported: in one thread, so there is at most one warning
_KEEPS_KERNELS = not config.DISABLE_JIT and cache_directory() is not None


def jit(function: Callable[..., Any]) -> Any:
    """Compile `function` on its first call, without the GIL, and cache its machine code. Returns it if JIT is disabled.

    Your own kernels may call those of replaykit: the cache key includes the sources of both.
    """
    kernel = numba.njit(nogil=True, error_model="numpy")(function)
    if _KEEPS_KERNELS:
        with contextlib.suppress(OSError):  # the sources cannot be read, for example in a zip file: no cache
            kernel._cache = KernelCache(function)
    return kernel


def inlined(function: Callable[..., Any]) -> Any:
    """Compile `function` for use inside kernels only: its code becomes part of each kernel that calls it."""
    return numba.njit(nogil=True, error_model="numpy", inline="always")(function)


def _prefetch(typing_context: Any, array: Any, position: Any) -> Any:
    """Type and code of :func:`prefetch`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        pointer = builder.gep(data, [arguments[1]])
        number = ir.IntType(32)
        function_type = ir.FunctionType(ir.VoidType(), [pointer.type, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], function_type)
        builder.call(function, [pointer, number(0), number(3), number(1)])  # for reading, in all caches, data
        return context.get_dummy_value()

    return types.void(array, position), generate


def _no_prefetch(array: Any, position: Any) -> None:
    """:func:`prefetch` without compilation."""


prefetch = _no_prefetch if config.DISABLE_JIT else intrinsic(_prefetch)
"""``prefetch(array, i)`` in a kernel: start to load the cache line of ``array[i]`` without waiting for it."""


def _view(typing_context: Any, memory: Any, start: Any, count: Any, dtype: Any) -> Any:
    """Type and code of :func:`view`."""
    made = types.Array(dtype.dtype, 1, "C", readonly=not memory.mutable)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        view = context.make_array(made)(context, builder)
        data = builder.bitcast(builder.gep(array.data, [arguments[1]]), view.data.type)
        size = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(dtype.dtype)))
        populate_array(
            view, data=data, shape=[arguments[2]], strides=[size], itemsize=size, meminfo=array.meminfo,
            parent=array.parent,
        )  # fmt: skip
        return impl_ret_borrowed(context, builder, made, view._getvalue())

    return made(memory, types.intp, types.intp, dtype), generate


def _view_of(memory: Any, start: Any, count: Any, dtype: Any) -> Any:
    """:func:`view` without compilation."""
    memory = np.frombuffer(memory, np.uint8) if isinstance(memory, bytes) else memory
    size = max(np.dtype(dtype).itemsize // memory.itemsize, 1)
    return memory[start : start + count * size].view(dtype)


view = _view_of if config.DISABLE_JIT else intrinsic(_view)
"""``view(memory, start, count, dtype)`` in a kernel: `count` numbers of `dtype` from entry `start` of `memory` on.

`memory` is a contiguous array or bytes. Nothing is copied. NumPy's own views take longer to compile than most kernels.
"""
