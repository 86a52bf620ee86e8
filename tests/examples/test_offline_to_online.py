"""The example of demonstrations and online steps: its demonstrator, its file, its mixture, and a short run."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
gymnasium = pytest.importorskip("gymnasium")
pytest.importorskip("matplotlib")
tqdm = pytest.importorskip("tqdm")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.append(str(EXAMPLES))

import offline_to_online  # noqa: E402
from offline_to_online import ENV_ID, SETTINGS, TIME_LIMIT, demonstrate, main, make_replay, train  # noqa: E402

from replaykit import MixedReplay, PrioritizedBuffer  # noqa: E402
from replaykit.io import from_npz  # noqa: E402

SHORT = replace(SETTINGS, total_timesteps=60, learning_starts=20, batch_size=8, eval_every=30, eval_episodes=2)


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setattr(tqdm.tqdm, "monitor_interval", 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def demos(tmp_path):
    """A file with two demonstrations."""
    path = tmp_path / "demos.npz"
    demonstrate(path, 2, seed=0)
    return path


def test_the_demonstrator_reaches_the_flag_in_every_episode(demos):
    """Every episode in the file terminates before its time limit."""
    buffer = from_npz(demos)
    steps = {name: buffer.read(buffer.stored(), name) for name in ("action", "reward", "terminated", "truncated")}
    assert steps["terminated"].sum() == steps["reward"].sum() == 2
    assert not steps["truncated"].any()
    assert len(buffer) < 2 * TIME_LIMIT
    assert set(steps["action"].tolist()) == {0, 2}


def test_the_share_of_a_batch_is_of_demonstrations(demos):
    """The share of a batch comes from the demonstrations. Without a share, there is no mixture."""
    env = gymnasium.make(ENV_ID)
    replay = make_replay(env, demos, 0.25, SHORT, np.random.SeedSequence(0))
    obs, _ = env.reset(seed=0)
    replay.add(obs, 1, -1.0, obs, False, False)
    assert isinstance(replay, MixedReplay)
    assert replay.sample(8).source.tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    assert type(make_replay(env, demos, 0.0, SHORT, np.random.SeedSequence(0))) is PrioritizedBuffer


def test_the_same_seed_gives_the_same_agent(demos):
    """The same seed gives the same agent, another seed another one. Evaluations happen when they are due."""
    runs = [train(demos, 0.5, SHORT, seed) for seed in (1, 1)]
    assert runs[0] == runs[1]
    assert runs[0].steps == [30, 60]


def test_the_demonstrations_are_learned_from(demos, monkeypatch):
    """From the first update on, every batch has rows of the demonstrations."""
    seen = []

    def update(q_net, target_net, optimizer, replay, settings):
        batch = replay.sample(settings.batch_size)
        assert (batch.reward[batch.source == 1] == 0.0).all()
        seen.append(np.bincount(batch.source).tolist())
        return 0.0

    monkeypatch.setattr(offline_to_online, "update", update)
    train(demos, 0.5, SHORT, seed=0)
    assert seen == [[4, 4]] * SHORT.batches_by(SHORT.total_timesteps)


def test_a_short_run_prints_a_table_and_saves_a_picture(tmp_path, monkeypatch, capsys):
    """The script works from the command line and records its own demonstrations."""
    monkeypatch.setattr(offline_to_online, "SETTINGS", SHORT)
    picture = tmp_path / "run.png"
    arguments = ["--seeds", "0", "--demo-episodes", "1", "--total-timesteps", "40", "--output", str(picture)]
    monkeypatch.setattr(sys, "argv", ["offline_to_online.py", *arguments])
    main()
    assert picture.stat().st_size > 0
    assert picture.with_suffix(".npz").stat().st_size > 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[2:4]] == [["0%", "0"], ["50%", "0"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--demo-share", "2"], "not between 0 and 1"),
        (["--total-timesteps", "0"], "too small"),
        (["--sees", "1"], "--sees"),
    ],
)
def test_wrong_options_are_refused(arguments, message, monkeypatch, capsys):
    """Invalid options raise an error before anything is recorded."""
    monkeypatch.setattr(sys, "argv", ["offline_to_online.py", *arguments])
    with pytest.raises(SystemExit):
        main()
    assert message in capsys.readouterr().err
