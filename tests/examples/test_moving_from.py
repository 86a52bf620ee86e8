"""The programs on the pages about moving from other libraries."""

import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("gymnasium")

PROGRAMS = Path(__file__).parents[2] / "docs" / "moving-from" / "programs"
STEPS = {"cleanrl": 1040, "cpprb": 540, "sb3": 505, "sb3_loop": 300, "tianshou": 280, "torchrl": 540}
BUFFERS = {"cleanrl": "rb", "cpprb": "buffer", "sb3_loop": "buffer", "tianshou": "buffer", "torchrl": "buffer"}


def run(name, directory, monkeypatch):
    """The variables of a program after a few steps, run in another directory."""
    source, replaced = re.subn(r"^STEPS = .*$", f"STEPS = {STEPS[name]}", read(name, "after"), flags=re.MULTILINE)
    assert replaced == 1
    monkeypatch.chdir(directory)
    variables = {"__name__": "__main__"}
    exec(compile(source, f"{name}_after.py", "exec"), variables)
    return variables


def read(name, moment):
    return (PROGRAMS / f"{name}_{moment}.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(BUFFERS))
def test_each_program_stores_every_step_and_learns_from_them(name, tmp_path, monkeypatch):
    """Each program runs as printed, stores each of its steps, and learns finite weights."""
    variables = run(name, tmp_path, monkeypatch)
    buffer, env = variables[BUFFERS[name]], variables.get("envs", variables.get("env"))
    assert STEPS[name] * buffer.num_envs * 0.8 < len(buffer) <= STEPS[name] * buffer.num_envs
    assert buffer.stats()["batches"] > 0
    buffer.check()
    networks = [value for value in variables.values() if isinstance(value, torch.nn.Module)]
    assert all(parameter.isfinite().all() for network in networks for parameter in network.parameters())
    env.close()


def test_the_program_for_sb3_saves_what_it_has_learned(tmp_path, monkeypatch):
    """The program for Stable-Baselines3 sets priorities, and saves its model and its buffer."""
    pytest.importorskip("stable_baselines3")
    model = run("sb3", tmp_path, monkeypatch)["model"]
    stats = model.replay_buffer.replay.stats()
    assert stats["added"] == STEPS["sb3"]
    assert stats["batches"] == STEPS["sb3"] - model.learning_starts > 0
    assert stats["scaled_priority_max"] != 1.0
    assert (tmp_path / "sac.zip").exists() and (tmp_path / "sac-buffer" / "manifest.json").exists()
    model.get_env().close()


@pytest.mark.parametrize("name", sorted(STEPS))
def test_both_programs_of_a_page_have_the_same_settings(name):
    """The two programs of a page learn the same task in the same number of steps, and fit side by side."""
    sources = [read(name, moment) for moment in ("before", "after")]
    settings = [re.findall(r"^STEPS = \S+|\w+-v1", source, flags=re.MULTILINE) for source in sources]
    assert settings[0] == settings[1]
    assert len(settings[0]) == 2
    assert max(len(line) for source in sources for line in source.splitlines()) <= 64
