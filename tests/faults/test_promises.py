"""The documentation's list of promises is that of the tests."""

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "figures" / "promises.py"
PROMISES = runpy.run_path(str(SCRIPT))


@pytest.mark.parametrize("group", PROMISES["GROUPS"])
def test_every_promise_is_a_sentence_that_no_other_test_makes(group):
    """Each test of a fault has a docstring of whole sentences, which is its row in the documentation."""
    rows = PROMISES["promises"](group)
    assert all(promise and promise[0] not in " abcdefghijklmnopqrstuvwxyz" for promise, _ in rows)
    assert all(promise.endswith(".") for promise, _ in rows)
    assert len({promise for promise, _ in rows}) == len(rows)


def test_the_tables_in_the_documentation_are_up_to_date():
    """If this fails after a change of these tests, run ``python docs/figures/promises.py``."""
    for path, content in PROMISES["files"]().items():
        assert path.read_text(encoding="utf-8") == content, f"{path.name} is out of date: run docs/figures/promises.py"
