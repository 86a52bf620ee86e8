"""Numbers for loggers: their names, and the code in the documentation that logs them."""

import csv
import doctest
import inspect
import math
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest

from replaykit import CombinedReplay, HindsightReplay, LatestBuffer, PrioritizedBuffer, Replay, ReplayBuffer
from replaykit.diagnostics import ReplayMonitor
from tests.helpers import FLAT, GOAL_SPEC, filled, sparse

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "log-metrics.rst"
SOURCES = {
    "uniform": lambda: ReplayBuffer(8, FLAT),
    "latest": lambda: LatestBuffer(8, FLAT),
    "prioritized": lambda: PrioritizedBuffer(8, FLAT),
    "combined": lambda: CombinedReplay(PrioritizedBuffer(8, FLAT)),
    "hindsight": lambda: HindsightReplay(PrioritizedBuffer(8, GOAL_SPEC), sparse),
    "monitor": lambda: ReplayMonitor(PrioritizedBuffer(8, FLAT)),
}
every_source = pytest.mark.parametrize("make", SOURCES.values(), ids=list(SOURCES))


@every_source
def test_a_prefix_is_put_before_every_name(make):
    """A prefix is put before every name. By default there is none."""
    source = make()
    plain, prefixed = source.stats(), source.stats(prefix="replay/")
    assert list(prefixed) == [f"replay/{name}" for name in plain]
    np.testing.assert_equal(list(prefixed.values()), list(plain.values()))
    assert all(type(value) is float for value in plain.values())
    with pytest.raises(TypeError, match="prefix is 3; expected a str, such as 'replay/'"):
        source.stats(prefix=3)


def test_a_monitor_that_has_examined_batches_takes_a_prefix():
    """A monitor accepts a prefix, before and after it has examined a batch."""
    buffer = filled(ReplayBuffer(8, FLAT, seed=0), 8)
    watcher = ReplayMonitor(buffer, every=1)
    names = list(watcher.stats("a."))
    watcher.record(buffer.sample(4))
    assert set(watcher.stats("a.")) == set(names) and watcher.stats("a.")["a.recorded_batches"] == 1.0


def test_no_name_of_a_buffer_is_one_of_the_monitor():
    """A buffer and its monitor have different names, so both can be logged with one prefix."""
    buffer = PrioritizedBuffer(8, FLAT)
    assert not buffer.stats().keys() & ReplayMonitor(buffer).stats().keys()


def test_every_name_is_documented():
    """Names of buffers are documented in the docstring of `stats`, and names of the monitor on its reference page."""
    known = re.findall(r"`(\w+)`", inspect.getdoc(Replay.stats))
    names = PrioritizedBuffer(8, FLAT).stats()
    assert set(names) <= set(known)
    page = (PAGE.parents[1] / "reference" / "diagnostics.rst").read_text()
    listed, group = set(), ""
    for name in re.findall(r"``(\w+)``", page.split("Measures of a monitor\n")[1].split("TD errors\n")[0]):
        if not name.startswith("_"):
            group = name
        listed |= {name} if name == group else {start + name for start in _beginnings(group)}
    assert ReplayMonitor(PrioritizedBuffer(8, FLAT)).stats().keys() <= listed


def _beginnings(name):
    """The beginnings that names in a list such as ``td_error_mean``, ``_max`` may share."""
    parts = name.split("_")
    return ["_".join(parts[:i]) for i in range(1, len(parts))]


@pytest.fixture(scope="module")
def page():
    """The names that exist after the code of the documentation page has run."""
    pytest.importorskip("tensorboard")
    test = doctest.DocTestParser().get_doctest(PAGE.read_text(), {}, PAGE.name, str(PAGE), 0)
    assert doctest.DocTestRunner().run(test, clear_globs=False).failed == 0
    return test.globs


def test_tensorboard_reads_what_was_logged(page):
    """TensorBoard has every number at every step, and the figure of the monitor."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(page["log_dir"])
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(page["metrics"]())
    assert [(each.step, each.value) for each in events.Scalars("replay/size")] == [(100, 100), (200, 200), (300, 300)]
    assert [each.value for each in events.Scalars("replay/recorded_batches")] == [100, 200, 300]
    assert events.Tags()["images"] == ["replay/monitor"]
    assert events.Images("replay/monitor")[0].width > 100


def test_the_csv_has_a_row_for_each_step(page):
    """It has a column for each number."""
    with open(page["path"], newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["400", "500"]
    assert set(rows[0]) == {"step", *page["metrics"]()}
    assert [float(row["replay/added"]) for row in rows] == [400.0, 500.0]
    assert not math.isnan(float(rows[0]["replay/td_error_mean"]))


def test_weights_and_biases_takes_the_numbers_offline(page, monkeypatch, tmp_path):
    """The test runs if the package is installed. Nothing is sent."""
    pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    block = PAGE.read_text().split("Weights & Biases\n---")[1].split(".. code-block:: python\n")[1]
    code = textwrap.dedent(re.split(r"\n(?=\S)", block)[0])
    assert "wandb.init" in code
    exec(compile(code, str(PAGE), "exec"), page | {})
    assert list(tmp_path.rglob("*.wandb"))
