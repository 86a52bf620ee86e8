"""Draw the figure of "Write agents in CleanRL's shape", and its table: ``python docs/figures/single_file_agents.py``.

With ``--train``, the runs that are missing in cleanrl-runs.csv are made first, one after another. The file is written
after each run, so you can stop at any time. To repeat runs, delete their rows, or the file.
"""

import argparse
import csv
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parents[1]), str(HERE.parents[1] / "examples")]
RUNS, RETURNS, TABLE = (HERE / f"cleanrl-{name}.csv" for name in ("runs", "returns", "table"))
TASKS = {"dqn": "DQN on CartPole-v1", "td3": "TD3 on Pendulum-v1", "sac": "SAC on Pendulum-v1"}
REPLAYS = {"uniform": "tab:blue", "prioritized": "tab:orange"}
SEEDS = range(3)
LAST = 20  # episodes in a mean


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a table, or none if there is no file yet."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write `rows` at the end of a table."""
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        if is_new:
            table.writeheader()
        table.writerows(rows)


def train_missing() -> None:
    """Make the runs that are not in the tables."""
    import torch
    from cleanrl import dqn, sac, td3

    torch.set_num_threads(1)
    done = {(row["agent"], row["replay"], int(row["seed"])) for row in rows_of(RUNS)}
    for seed in SEEDS:
        for replay in REPLAYS:
            for agent, module in (("sac", sac), ("td3", td3), ("dqn", dqn)):
                if (agent, replay, seed) in done:
                    continue
                name = {"agent": agent, "replay": replay, "seed": seed}
                print(*name.values(), flush=True)
                args = module.Args(seed=seed, per=replay == "prioritized")
                wall, cpu = time.perf_counter(), time.process_time()
                *_, returns = module.train(args)
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                append(RETURNS, [name | {"step": step, "return": f"{value:.6g}"} for step, value in returns])
                last = np.mean([value for _, value in returns[-LAST:]])
                steps = args.total_timesteps
                rates = {"steps_per_second": f"{steps / wall:.0f}", "steps_per_cpu_second": f"{steps / cpu:.0f}"}
                append(RUNS, [name | {"last": f"{last:.1f}"} | rates])


def write_table() -> None:
    """One row for each agent and replay: the returns of all seeds, and the median rate."""
    runs = rows_of(RUNS)
    with TABLE.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        for agent, task in TASKS.items():
            for replay in REPLAYS:
                chosen = [row for row in runs if (row["agent"], row["replay"]) == (agent, replay)]
                if chosen:
                    returns = ", ".join(f"{float(row['last']):.0f}" for row in chosen)
                    rate = np.median([float(row["steps_per_cpu_second"]) for row in chosen])
                    table.writerow([task, replay, returns, f"{rate:.0f}"])


def draw(path: Path) -> None:
    """Returns of all runs: means over the last episodes, one line for each seed."""
    rows = rows_of(RETURNS)
    matplotlib.rcParams["font.size"] = 11
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axis, (agent, task) in zip(figure.subplots(1, 3), TASKS.items(), strict=True):
        for replay, color in REPLAYS.items():
            for seed in SEEDS:
                name = (agent, replay, str(seed))
                chosen = [row for row in rows if (row["agent"], row["replay"], row["seed"]) == name]
                if not chosen:
                    continue
                steps, values = np.array([(float(row["step"]), float(row["return"])) for row in chosen]).T
                means = [values[max(k - LAST + 1, 0) : k + 1].mean() for k in range(len(values))]
                axis.plot(steps / 1000, means, color=color, linewidth=1.5, label=replay if seed == SEEDS[0] else None)
        axis.set(title=task, xlabel="thousand environment steps")
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel(f"return, mean of {LAST} episodes")
    figure.axes[1].legend(frameon=False)
    figure.savefig(path, dpi=100)


def main() -> None:
    """Train if asked, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", action="store_true", help="first make the runs that are missing in cleanrl-runs.csv")
    if parser.parse_args().train:
        train_missing()
    write_table()
    draw(HERE / "cleanrl.png")


if __name__ == "__main__":
    main()
