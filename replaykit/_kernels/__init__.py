"""Every function that Numba compiles: arrays and plain numbers in, arrays out.

Importing this package imports no Numba. :func:`lazy` gives a kernel module that is executed, and Numba
with it, when the first kernel is looked up, that is, when the first buffer is built.
"""

import importlib.util
import sys
from types import ModuleType


def lazy(name: str) -> ModuleType:
    """Kernel module `name`, executed on the first access of one of its attributes."""
    full_name = f"{__name__}.{name}"
    if full_name in sys.modules:
        return sys.modules[full_name]
    spec = importlib.util.find_spec(full_name)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"no kernel module named {full_name!r}")
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules[full_name] = module
    spec.loader.exec_module(module)
    return module
