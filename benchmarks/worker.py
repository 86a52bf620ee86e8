"""One version of replaykit in a separate process: ``python -m benchmarks.worker CHECKOUT SECTION QUICK``

It prints the contents of the section's rows as a line of JSON. Each line of the standard input then names a row and one
of its workloads, and the process prints the microseconds of a call in one turn. See `benchmarks.versions`.
"""

import gc
import json
import os
import sys
import time
from typing import Any

from benchmarks.checkouts import import_replaykit


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # all other output goes to the standard error
    checkout, section, quick = sys.argv[1:]
    import_replaykit(checkout)

    from benchmarks.adapters import load
    from benchmarks.catalogue import TIMED
    from benchmarks.timing import TURN, Row, Timer, few_objects

    def answer(value: Any) -> None:
        print(json.dumps(value), file=answers, flush=True)

    def holds(row: Row) -> dict[str, Any]:
        return {
            "key": row.key,
            "title": row.title,
            "has replaykit": "replaykit" in row.workloads,
            "floors": list(row.floors),
            "absent": row.absent,
        }

    rows = TIMED[section][1]([load("replaykit")], quick == "quick")
    timer = Timer(rows, TURN, time.thread_time)
    answer([holds(row) for row in rows])
    with few_objects():
        for line in sys.stdin:
            gc.collect()
            answer(timer.time(*json.loads(line)))


if __name__ == "__main__":
    main()
