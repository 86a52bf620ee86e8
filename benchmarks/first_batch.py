"""Seconds until a library's first batch, from before its import: ``python -m benchmarks.first_batch LIBRARY``

Of a prioritized buffer of 1000 transitions where the library has one, else of a uniform one.
"""

import time

start = time.perf_counter()

import json  # noqa: E402
import sys  # noqa: E402

from benchmarks.adapters import load  # noqa: E402
from benchmarks.adapters.base import NotOfferedError  # noqa: E402
from benchmarks.data import Task  # noqa: E402

library, task = load(sys.argv[1]), Task(1_000)
try:
    buffer = library.prioritized(task)
except NotOfferedError:
    buffer = library.uniform(task)
buffer.sampling(32)()
print(json.dumps({"seconds": time.perf_counter() - start}))
