"""Draw the figure of "Checkpoints and exact resume": ``python docs/figures/resume.py``.

With ``--train``, the runs are first made again, which takes about a minute: a DQN learns CartPole once without a stop,
and once in processes that are killed and resumed. The returns and losses of both are written to resume.csv.
"""

import argparse
import csv
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gymnasium
import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parents[1]), str(HERE.parents[1] / "examples")]
STEPS, SAVE_EVERY = 12_000, 2_500
KILLS = (4_300, 9_200)
DESCRIPTION = "A DQN that was killed twice and resumed has the returns and losses of one that was never stopped"


class Killed(gymnasium.Wrapper):
    """An environment that kills its process in the step with a certain number."""

    def __init__(self, env: Any, steps: int) -> None:
        super().__init__(env)
        self.left = steps

    def step(self, action: Any) -> Any:
        """Step the environment, or kill the process."""
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.env.step(action)


def run(path: str, kill_after: int = 0) -> Any:
    """Train with a checkpoint in `path`; the history, if the process was not killed after `kill_after` steps."""
    from checkpoint import Checkpoint
    from dqn import Settings, train
    from dqn_cartpole import Task, make_buffer

    torch.set_num_threads(1)
    settings = Settings(total_timesteps=STEPS, save_every=SAVE_EVERY, eval_every=STEPS, eval_episodes=1)
    env = Killed(gymnasium.make("CartPole-v1"), kill_after)
    buffer = make_buffer("prioritized", env, Task(settings=settings), 1, np.random.SeedSequence(0))
    options: dict[str, Any] = {"env_id": "CartPole-v1", "seed": 1, "eval_seed": 500_000}
    _, history = train(
        env, buffer, settings, np.random.default_rng(0), **options, checkpoint=Checkpoint(Path(path), {})
    )
    return history


def steps_saved(path: str) -> int:
    """The number of the last step in a checkpoint."""
    (file,) = Path(path).glob("agent-*.pt")
    return int(torch.load(file, weights_only=True)["history"]["steps"])


def train_all(path: Path) -> None:
    """Both runs, and where the second was killed and resumed."""
    rows: list[tuple[str, str, int, float]] = []
    with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as stopped:
        resumed = 0
        for kill in KILLS:
            subprocess.run([sys.executable, __file__, "--run", stopped, str(kill - resumed)], check=False)
            resumed = steps_saved(stopped)
            rows += [("stopped", "killed", kill, 0.0), ("stopped", "resumed", resumed, 0.0)]
        for name, directory in (("whole", whole), ("stopped", stopped)):
            history = run(directory)
            rows += [(name, "return", step, value) for step, value in history.returns]
            losses = np.array(history.losses)[: len(history.losses) // 25 * 25].reshape(-1, 25, 2)
            rows += [(name, "loss", int(group[-1, 0]), float(group[:, 1].mean())) for group in losses]
    with path.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["run", "what", "step", "value"])
        table.writerows((name, what, step, f"{value:.9g}") for name, what, step, value in rows)


def draw(path: Path) -> None:
    """The second run over the first."""
    from benchmarks.plot import ACCENT, save

    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))

    def points(run: str, what: str) -> tuple[Any, Any]:
        chosen = [(int(row["step"]), float(row["value"])) for row in rows if (row["run"], row["what"]) == (run, what)]
        steps, values = np.array(chosen).T
        return steps, values

    matplotlib.rcParams |= {"legend.framealpha": 0.0, "font.size": 11}
    figure = Figure(figsize=(9, 4.8), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    kills, resumes = points("stopped", "killed")[0], points("stopped", "resumed")[0]
    for axis, what in zip(axes, ("return", "loss"), strict=True):
        for name, style, label in (
            ("whole", {"color": "#e0a050", "linewidth": 6}, "never stopped"),
            ("stopped", {"color": ACCENT, "linewidth": 1.5}, "killed twice, and resumed"),
        ):
            axis.plot(*points(name, what), **style, label=label, solid_capstyle="round")
        for kill, resume in zip(kills, resumes, strict=True):
            axis.axvspan(resume, kill, color="#888888", alpha=0.2, linewidth=0)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.01)
    top, bottom = axes
    for kill, resume in zip(kills, resumes, strict=True):
        top.text(kill, 1.0, " killed", transform=top.get_xaxis_transform(), va="top")
        top.text(resume, 1.0, "resumed from here ", transform=top.get_xaxis_transform(), va="top", ha="right")
    top.set_ylabel("return of an episode")
    top.set_ylim(0, 270)
    figure.legend(*top.get_legend_handles_labels(), loc="outside upper left", ncols=2, frameon=False)
    bottom.set(xlabel="environment steps", ylabel="loss")
    save(figure, DESCRIPTION, HERE / "resume.svg")


def main() -> None:
    """Train if asked, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", action="store_true", help="first make the runs again, which takes about a minute")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run(options.run[0], int(options.run[1]))
        return
    if options.train:
        train_all(HERE / "resume.csv")
    draw(HERE / "resume.csv")


if __name__ == "__main__":
    main()
