"""The DQN example, stopped and resumed, gives the same bits as an uninterrupted run."""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import gymnasium
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")
tqdm = pytest.importorskip("tqdm")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.append(str(EXAMPLES))

from checkpoint import Checkpoint  # noqa: E402
from dqn import Settings, train  # noqa: E402
from dqn_cartpole import Task, find_checkpoint, make_buffer  # noqa: E402

SETTINGS = Settings(
    total_timesteps=240, learning_starts=40, batch_size=8, hidden=8, eval_every=100, eval_episodes=2, save_every=50
)


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setattr(tqdm.tqdm, "monitor_interval", 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(path, kind="prioritized", num_envs=1, steps=SETTINGS.total_timesteps):
    """Train with a checkpoint in `path`, until `steps` or the end. Returns all numbers, also of the next batch."""
    env = gymnasium.make("CartPole-v1") if num_envs == 1 else gymnasium.make_vec("CartPole-v1", num_envs=num_envs)
    buffer = make_buffer(kind, env, Task(settings=SETTINGS, capacity=150), 3, np.random.SeedSequence(0))
    settings = Settings(**(asdict(SETTINGS) | {"total_timesteps": steps}))
    rng, checkpoint = np.random.default_rng(0), Checkpoint(path, {"buffer": kind})
    best, history = train(env, buffer, settings, rng, env_id="CartPole-v1", seed=0, eval_seed=9, checkpoint=checkpoint)
    env.close()
    buffer.check()
    batch = buffer.sample(8)
    weights = [value.numpy() for value in best.state_dict().values()]
    arrays = [*weights, batch.indices, batch.obs, batch.probabilities, buffer.stored(), rng.random(3)]
    return asdict(history), [array.tobytes() for array in arrays], buffer.stats()


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("kind", ["uniform", "prioritized", "combined"])
def test_a_resumed_run_is_the_run_that_was_never_stopped(tmp_path, kind, num_envs):
    """Returns, losses, evaluations, weights, stored transitions and all generators are equal bit for bit."""
    expected = run(tmp_path / "whole", kind, num_envs)
    for steps in (99, 180):
        history, _, _ = run(tmp_path / "stopped", kind, num_envs, steps)
        assert 0 < history["saved"] < history["steps"] < SETTINGS.total_timesteps
    assert run(tmp_path / "stopped", kind, num_envs) == expected
    assert expected[0]["losses"]
    assert expected[0]["evaluations"]
    assert expected[0]["returns"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_a_run_can_be_killed_at_every_moment_of_a_save(tmp_path):
    """Before each write, rename and deletion, the old or the new checkpoint is complete."""
    expected, first = run(tmp_path / "whole", steps=150), tmp_path / "first"
    saved, files = run(first, steps=90)[0]["saved"], set()
    for at in range(1, 20):
        path = shutil.copytree(first, tmp_path / f"killed {at}")
        child = os.fork()
        if child == 0:
            code = 1
            try:
                kill_at(at)
                run(path, steps=150)
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) == 0:
            break
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        files.add(len(list(path.glob("agent-*.pt"))))
        assert run(path, steps=150) == expected
    assert saved < expected[0]["saved"]
    assert at > 8  # all moments of a save
    assert files == {1, 2}  # of two moments, when it was killed before the buffer was saved


def kill_at(count):
    """Kill this process at the `count`-th operation that changes files or waits for the disk."""
    left = [count]

    def killing(operation):
        def kill(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*args, **kwargs)

        return kill

    for name in ("fsync", "replace", "unlink", "mkdir"):
        setattr(os, name, killing(getattr(os, name)))


def test_other_options_are_refused(tmp_path):
    run(tmp_path, steps=99)
    with pytest.raises(ValueError, match="it was saved from a PrioritizedBuffer, and this is a ReplayBuffer"):
        run(tmp_path, "uniform")


def test_a_checkpoint_is_not_overwritten_by_mistake(tmp_path):
    options = argparse.Namespace(
        checkpoint=tmp_path, resume=False, env="CartPole-v1", buffer="uniform", n_step=1, num_envs=1, seed=0
    )
    assert find_checkpoint(options, SETTINGS).path == tmp_path
    run(tmp_path, steps=99)
    with pytest.raises(SystemExit, match="continue from it with --resume, or choose another directory"):
        find_checkpoint(options, SETTINGS)
    options.resume = True
    assert find_checkpoint(options, SETTINGS).exists()


def test_the_script_survives_a_kill(tmp_path):
    """A script that is killed after its first checkpoint and resumed has the same output and the same picture."""
    options = ["--total-timesteps", "1200", "--save-every", "300"]
    script = [sys.executable, str(EXAMPLES / "dqn_cartpole.py"), *options]
    whole, killed = ([*script, "--checkpoint", str(tmp_path / name)] for name in ("a", "b"))

    def finish(command, name):
        command = [*command, "--output", str(tmp_path / name)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return said.replace(name, ""), (tmp_path / name).read_bytes()

    with subprocess.Popen(killed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        while not (tmp_path / "b" / "buffer" / "manifest.json").exists():
            assert child.poll() is None
            time.sleep(0.01)
        child.kill()
    assert finish([*killed, "--resume"], "b.png") == finish(whole, "a.png")
