"""Seconds until the first batch of each kind: ``python -m benchmarks.first_batch LIBRARY CHECKOUT KIND ...``

Each KIND is a method of the library that builds a buffer of 1000 transitions. The time of the first kind includes the
import of the library. Kinds that the library does not have are not reported.
"""

import time

start = time.perf_counter()

import json  # noqa: E402
import sys  # noqa: E402

from benchmarks.checkouts import import_replaykit  # noqa: E402

import_replaykit(sys.argv[2])

from benchmarks.adapters import load  # noqa: E402
from benchmarks.adapters.base import NotOfferedError  # noqa: E402
from benchmarks.data import Task  # noqa: E402

library, task, seconds = load(sys.argv[1]), Task(1_000), {}
for kind in sys.argv[3:]:
    try:
        getattr(library, kind)(task).sampling(32)()
    except NotOfferedError:
        continue
    seconds[kind] = time.perf_counter() - start
    start = time.perf_counter()
print(json.dumps(seconds))
