"""The one way a kernel is compiled, and where its machine code is kept.

Numba's own ``cache=True`` raises at import if no directory is writable, raises from the user's call on every truncated
file, and runs damaged machine code. :class:`KernelCache` keeps each compiled kernel in one file that starts with a
checksum. The file's name depends on everything the code depends on. A file that is missing, unreadable or damaged is
compiled again. If the directory cannot be written, kernels are compiled once per process.
"""

import contextlib
import functools
import hashlib
import os
import pickle
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import config, types
from numba.core.compiler import CompileResult
from numba.core.imputils import impl_ret_borrowed
from numba.core.runtime import rtsys
from numba.core.serialize import dumps
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

_CHECKSUM_BYTES = hashlib.sha256().digest_size


def jit(function: Callable[..., Any]) -> Any:
    """`function` compiled on first call, without the GIL, its machine code cached; itself with JIT disabled.

    Kernels of your own may call those of replaykit: the cache key holds the sources of both.
    """
    kernel = numba.njit(nogil=True, error_model="numpy")(function)
    if not config.DISABLE_JIT and cache_directory() is not None:
        with contextlib.suppress(OSError):  # sources that cannot be read, as in a zip: no cache
            kernel._cache = KernelCache(function)
    return kernel


def inlined(function: Callable[..., Any]) -> Any:
    """`function` for use inside kernels only: its code becomes part of each kernel that calls it."""
    return numba.njit(nogil=True, error_model="numpy", inline="always")(function)


def _prefetch(typing_context: Any, array: Any, position: Any) -> Any:
    """Type and code of :func:`prefetch`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        pointer = builder.gep(data, [arguments[1]])
        number = ir.IntType(32)
        function_type = ir.FunctionType(ir.VoidType(), [pointer.type, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], function_type)
        builder.call(function, [pointer, number(0), number(3), number(1)])  # to be read, kept in all caches, data
        return context.get_dummy_value()

    return types.void(array, position), generate


def _no_prefetch(array: Any, position: Any) -> None:
    """:func:`prefetch` without compilation."""


prefetch = _no_prefetch if config.DISABLE_JIT else intrinsic(_prefetch)
"""``prefetch(array, i)`` in a kernel: start to load the cache line of ``array[i]``, and go on without waiting."""


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

`memory` is a contiguous array or bytes, and nothing is copied. NumPy's own views take longer to compile than most
kernels.
"""


@functools.cache
def cache_directory() -> Path | None:
    """Where compiled kernels are kept, or None where no private directory can be written.

    ``REPLAYKIT_CACHE_DIR`` if set (empty: no cache), else ``NUMBA_CACHE_DIR``, else the user's cache directory.
    """
    chosen = os.environ.get("REPLAYKIT_CACHE_DIR")
    if chosen == "":
        return None
    chosen = chosen or os.environ.get("NUMBA_CACHE_DIR")
    try:
        directory = Path(chosen) / "replaykit" if chosen else _user_cache() / "replaykit"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()
        if hasattr(os, "getuid"):  # the files hold code: nobody else may write them
            status = directory.stat()
            if status.st_uid != os.getuid() or status.st_mode & 0o022:
                return None
    except (OSError, RuntimeError):
        return None
    return directory


def _user_cache() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


@functools.cache
def _sources(directory: Path) -> str:
    """A digest of the sources in a directory: a kernel contains the code of the kernels that it calls."""
    digest = hashlib.sha256()
    paths = sorted(directory.glob("*.py"))
    if not paths:
        raise FileNotFoundError(f"no sources in {directory}")
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


class KernelCache:
    """One kernel's compiled code on disk: the part of Numba's cache interface that a dispatcher calls."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._name = function.__name__
        sources = _sources(Path(__file__).parent), _sources(Path(function.__code__.co_filename).parent)
        versions = sys.version, numba.__version__, np.__version__
        options = config.BOUNDSCHECK, config.OPT, config.DEBUGINFO_DEFAULT
        self._version = repr((function.__module__, *sources, *versions, *options))

    @property
    def cache_path(self) -> str:
        """The directory, as Numba's reports name it."""
        return str(cache_directory())

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """The compiled kernel for `signature`, or None if it must be compiled."""
        path = self._path(signature, target_context.codegen())
        if path is None:
            return None
        try:
            content = path.read_bytes()
            checksum, payload = content[:_CHECKSUM_BYTES], content[_CHECKSUM_BYTES:]
            if hashlib.sha256(payload).digest() != checksum:
                raise ValueError("checksum differs")
            # All that machine code needs to run. Numba would load the whole compiler here, and SciPy with it, which
            # takes longer than everything else until the first batch
            rtsys.initialize(target_context)
            return CompileResult._rebuild(target_context, *pickle.loads(payload))
        except FileNotFoundError:
            return None
        except Exception:  # a damaged file: compile again
            with contextlib.suppress(OSError):
                path.unlink()
            return None

    def save_overload(self, signature: Any, result: Any) -> None:
        """Keep the compiled kernel, atomically; where that fails, go on without."""
        path = self._path(signature, result.codegen)
        if path is None:
            return
        with contextlib.suppress(
            Exception
        ):  # a full disk or a kernel that does not pickle costs the cache, not the call
            payload = dumps(result._reduce())
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(hashlib.sha256(payload).digest() + payload)
                os.replace(temporary, path)
            except BaseException:
                os.unlink(temporary)
                raise

    def _path(self, signature: Any, codegen: Any) -> Path | None:
        directory = cache_directory()
        if directory is None:
            return None
        key = repr((self._version, str(signature), codegen.magic_tuple()))
        return directory / f"{self._name}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.kernel"
