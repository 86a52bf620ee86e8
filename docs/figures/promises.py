"""Write the tables of "What is promised, and how it is tested": ``python docs/figures/promises.py``.

Each row is a test in ``tests/faults``: the promise is its docstring, and the test its name.
"""

import ast
import csv
import io
import itertools
from pathlib import Path

HERE = Path(__file__).resolve().parent
TESTS = HERE.parents[1] / "tests" / "faults"
GROUPS = (
    *("arguments", "priorities", "semantics", "state", "processes", "resources"),
    *("persistence", "mapped", "forgeries"),
)


def promises(group: str) -> list[tuple[str, str]]:
    """The promise and the name of each test of a group, in the order of the file."""
    module = ast.parse((TESTS / f"test_{group}.py").read_text(encoding="utf-8"))
    tests = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    return [(" ".join((ast.get_docstring(test) or "").split()), test.name) for test in tests]


def table(group: str) -> str:
    """The table of a group."""
    file = io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(["Promise", "Test"])
    for promise, name in promises(group):
        rows.writerow([promise.replace("`", "``"), f"``{name}``"])
    return file.getvalue()


def files() -> dict[Path, str]:
    """What each file should contain."""
    tables = {HERE / f"promises-{group}.csv": table(group) for group in GROUPS}
    counts = itertools.chain.from_iterable(promises(group) for group in GROUPS)
    return tables | {HERE / "promises-count.txt": f"There are {sum(1 for _ in counts)} of these tests.\n"}


if __name__ == "__main__":
    for path, content in files().items():
        path.write_text(content, encoding="utf-8")
