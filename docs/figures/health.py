"""Draw the figures of "Is my replay healthy?": ``python docs/figures/health.py``.

With ``--train``, the runs are first made again, which takes about two minutes: a DQN learns CartPole from three
buffers, and a monitor records each run. The histories of the monitors are written to health.csv, and their warnings at
the end of a run to health-<run>.txt. On the same machine, the files are the same every time.
"""

import argparse
import csv
import sys
import textwrap
from pathlib import Path

import gymnasium
import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from replaykit import LatestBuffer, PrioritizedBuffer
from replaykit.diagnostics import ReplayMonitor
from replaykit.diagnostics.plotting import draw_panels
from replaykit.diagnostics.symptoms import warnings_for

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parents[1]), str(HERE.parents[1] / "examples")]
STEPS = 20_000
BUFFERS = {
    "healthy": (PrioritizedBuffer, {"alpha": 0.6, "eps": 1e-2, "beta": 0.4}),
    "latest": (LatestBuffer, {}),
    "collapsed": (PrioritizedBuffer, {"alpha": 1.5, "eps": 1e-6, "beta": 1.0, "weights": "buffer"}),
}
DESCRIPTIONS = {
    "healthy": "Prioritized replay: all measures are near those of i.i.d. draws, and few transitions are never drawn",
    "latest": "No replay: pairs of the same episode up to 80 times as frequent as chance, batches worth 3 of 64 draws",
    "collapsed": "Priorities that collapsed: TD errors grow without end, and states drift away from those stored",
}


def run(name: str) -> ReplayMonitor:
    """The monitor of a DQN that learned CartPole from a buffer."""
    from dqn import Settings, train

    torch.set_num_threads(1)
    env = gymnasium.make("CartPole-v1")
    cls, options = BUFFERS[name]
    buffer = cls.from_env(env, 100_000, seed=0, **options)
    monitor = ReplayMonitor(buffer)
    settings = Settings(total_timesteps=STEPS, eval_every=STEPS)
    rng = np.random.default_rng(0)
    _, history = train(env, buffer, settings, rng, env_id="CartPole-v1", seed=0, eval_seed=500_000, monitor=monitor)
    print(f"{name}: greedy return {history.evaluations[-1][1]:.1f} after {STEPS} steps")
    return monitor


def train_all(path: Path) -> None:
    """Make the runs and write what their monitors recorded."""
    with path.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        for name in BUFFERS:
            history = run(name).history
            if name == next(iter(BUFFERS)):
                table.writerow(["run", *history[0]])
            table.writerows([name, *(f"{value:.5g}" for value in row.values())] for row in history)


def draw_all(path: Path) -> None:
    """One figure for each run, from what was recorded."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    from benchmarks.plot import save

    matplotlib.rcParams["legend.framealpha"] = 0.0
    for name in BUFFERS:
        history = [
            {key: float(value) for key, value in row.items() if key != "run"} for row in rows if row["run"] == name
        ]
        words = warnings_for(history[-1]) or ["(nothing)"]
        wrapped = (textwrap.fill(each, 86, initial_indent="- ", subsequent_indent="  ") for each in words)
        (HERE / f"health-{name}.txt").write_text("\n".join(wrapped) + "\n")
        figure = Figure(figsize=(7.6, 7.8), layout="constrained")
        draw_panels(history, figure.subplots(3, 2), None)
        save(figure, DESCRIPTIONS[name], HERE / f"health-{name}.svg")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", action="store_true", help="first make the runs again, which takes about two minutes")
    if parser.parse_args().train:
        train_all(HERE / "health.csv")
    draw_all(HERE / "health.csv")
