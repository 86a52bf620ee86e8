"""Seconds until first batches, one after the other: ``python -m benchmarks.first_batch LIBRARY CHECKOUT KIND ...``

Each KIND is a method of the library, whose buffer holds 1000 transitions. The seconds of the first one begin before the
library is imported. Of kinds that the library does not have, nothing is reported.
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
