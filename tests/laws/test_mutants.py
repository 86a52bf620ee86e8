"""Known faults, inserted into a copy of the package. Each must be detected by the law that guards against it."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import PACKAGE

TESTS = Path(__file__).parents[2]
STORE, FRAMES, LANES, LOCAL = "_kernels/store.py", "_kernels/frames.py", "_kernels/lanes.py", "storage/local.py"
MACHINE = """
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import initialize, run_state_machine_as_test
from replaykit.testing import ReplayMachine, configurations

class Machine(ReplayMachine):
    @initialize(configuration=configurations(kinds=("uniform", "prioritized"), specs=("flat",)))
    def start(self, configuration):
        super().start(configuration)

short = {"max_examples": EXAMPLES, "stateful_step_count": 25, "phases": [Phase.generate]}
fixed = {"derandomize": True, "database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}
run_state_machine_as_test(Machine, settings=settings(**short, **fixed))
"""
ORDER = """
from tests.kernels.test_store import test_what_counts_as_stored_is_whole_at_every_line as law

for num_envs in (1, 3):
    for some in (False, True):
        law(num_envs, some)
"""
COLUMNS = """
import pytest
from tests.unit.test_storage import test_columns_are_written_between_retiring_and_publishing as law

for spec in ("frames", "large"):
    for num_envs in (1, 2):
        with pytest.MonkeyPatch.context() as monkeypatch:
            law(spec, num_envs, monkeypatch)
"""
LAWS = {"machine": MACHINE, "order": ORDER, "columns": COLUMNS}

# -- How sources are changed ---------------------------------------------------------------------------------------


def replaced(pattern, replacement):
    """A change of the only place that matches a pattern."""

    def change(source):
        changed, count = re.subn(pattern, lambda _: replacement, source)
        assert count == 1, f"{pattern} is found {count} times; adapt the mutant to the source"
        return changed

    return change


def restructured(move):
    """A change of the statements of a module by a function of its syntax tree."""

    def change(source):
        tree = ast.parse(source)
        move(tree)
        return ast.unparse(ast.fix_missing_locations(tree))

    return change


def place_of(tree, function, text):
    """The list of statements in which the one simple statement of a function with this text is, and its place there."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == function]
    lists = [
        node.body for top in nodes for node in ast.walk(top) if isinstance(node, ast.FunctionDef | ast.For | ast.If)
    ]
    found = [
        (statements, i)
        for statements in lists
        for i, statement in enumerate(statements)
        if not hasattr(statement, "body") and text in ast.unparse(statement)
    ]
    assert len(found) == 1, f"{function} has {len(found)} statements with {text!r}; adapt the mutant to the source"
    return found[0]


def leave_out_episodes(tree):
    """A mutant in which new steps are not added to the tables of episodes."""
    statements, place = place_of(tree, "store", "_advance_episodes(")
    del statements[place]


def write_before_retiring(tree):
    """A mutant in which the oldest steps are retired after their rows are overwritten."""
    statements, place = place_of(tree, "store", "first, cursor = ")
    statements[place + 1 : place + 1] = ast.parse("actual, first = first, first.copy()").body
    statements, place = place_of(tree, "store", "_write(view(")
    statements[place + 1 : place + 1] = ast.parse("actual[:] = first\nfirst = actual").body


def publish_before_writing(tree):
    """A mutant in which new steps count as stored before their rows are written."""
    statements, place = place_of(tree, "store", "_write(view(")
    moved = [statements.pop(place)]
    statements, place = place_of(tree, "store", "_advance_episodes(")
    moved.append(statements.pop(place))
    statements += moved


def publish_before_columns(tree):
    """A mutant in which new steps count as stored before their columns are written."""
    statements, place = place_of(tree, "_write_block", "kernels.PUBLISH")
    publish = statements.pop(place)
    statements, place = place_of(tree, "_write_block", "kernels.begins_of(")
    statements.insert(place + 1, publish)


def publish_before_frames(tree):
    """A mutant in which new steps count as stored before the same kernel has written their frames."""
    statements, place = place_of(tree, "store_at_once", "PUBLISH")
    publish = statements.pop(place)
    statements, place = place_of(tree, "store_at_once", "write(")
    statements.insert(place, publish)


MUTANTS = {
    "the episode advance is left out": (STORE, restructured(leave_out_episodes), "machine"),
    "rows are written before the oldest are retired": (STORE, restructured(write_before_retiring), "order"),
    "columns are written before the oldest are retired": (STORE, restructured(write_before_retiring), "columns"),
    "rows are published before they are written": (STORE, restructured(publish_before_writing), "order"),
    "columns are published before they are written": (LOCAL, restructured(publish_before_columns), "columns"),
    "frames are published before they are written": (FRAMES, restructured(publish_before_frames), "columns"),
    "an update keeps stale entries": (LANES, replaced(r"if step >= bounds\[FIRST, lane\]:", "if True:"), "machine"),
    "a window crosses the newest step": (
        "_kernels/windows.py", replaced(r" and index \+ num_envs < stop", ""), "machine"
    ),
    "a uniform draw never chooses the last step": (
        LANES, replaced(r"int\(uniforms\[i\] \* total\)", "int(uniforms[i] * (total - 1))"), "machine"
    ),
    "a stratified draw uses half of each stratum": (
        "_kernels/tree.py", replaced(r"\(i \+ uniforms\[i\]\)", "(i + 0.5 * uniforms[i])"), "machine"
    ),
}  # fmt: skip


@pytest.mark.parametrize("law", LAWS)
def test_the_package_itself_is_lawful(law, tmp_path):
    """The unchanged package obeys all laws, so a mutant fails because of its fault."""
    result = judged(law, tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_found(name, tmp_path):
    """A mutant fails with an assertion, not with a crash."""
    path, change, law = MUTANTS[name]
    result = judged(law, tmp_path, path, change)
    assert result.returncode == 1, f"{law} does not find that {name}"
    assert "AssertionError" in result.stderr, result.stderr


def judged(law, directory, path=None, change=None):
    """The process that runs a law on a changed copy of the package, without compilation."""
    copy = directory / "replaykit"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    if change is not None:
        source = copy / path
        source.write_text(change(source.read_text()))
    script = directory / "law.py"
    examples = 20 if change is None else 100  # a mutant is found before they are all tried
    script.write_text(f"EXAMPLES = {examples}\n{LAWS[law]}")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(directory), str(TESTS)]), "NUMBA_DISABLE_JIT": "1"}
    command = [sys.executable, script]  # whose directory is searched first for the package
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
