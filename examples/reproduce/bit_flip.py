"""Flip bits until they equal a goal, with and without hindsight: how many bits can be learned?

    python examples/reproduce/bit_flip.py
    python examples/reproduce/bit_flip.py --bits 50 --cycles 4000
    python examples/reproduce/bit_flip.py --bits 10 12 13 14 15 --seeds 0 1 2

`her_bitflip.py` in the parent directory defines and explains the agent, the environment and the training. This script
runs them in parallel, and compares the results with those of Andrychowicz et al. (2017).

References
----------
Andrychowicz et al. (2017), Hindsight Experience Replay, section 3.1 and figure 1.
"""

import argparse
from statistics import mean

from harness import judge, parser, run_all, show  # first: it adds the other examples to the path
from her_bitflip import EPISODES, SOLVED, Result, plot, train
from options import at_least

QUICK_BITS, QUICK_CYCLES = [6, 14], 150
BITS, CYCLES = [5, 8, 10, 13, 15, 20, 30], 1_000
PAPER_PLAIN, PAPER_HINDSIGHT = 13, 50
"""The largest numbers of bits that the paper solves without and with hindsight."""
SAID = f"Andrychowicz et al. (2017): up to {PAPER_PLAIN} bits without hindsight, up to {PAPER_HINDSIGHT} with it"


def result_of(task: tuple[int, str, int, int]) -> Result:
    """Train and test an agent. A task is a number of bits, a strategy, a maximum number of cycles, and a seed."""
    import torch

    bits, strategy, cycles, seed = task
    torch.set_num_threads(1)  # networks this small are slower with more threads
    return train(bits, "future" if strategy == "future" else "none", 0.8, cycles, seed, progress=False)


def tabulate(results: list[Result]) -> list[list[str]]:
    """Mean success of each strategy and the number of training cycles, by number of bits."""
    rows = [["bits", "without hindsight", "cycles", "with hindsight", "cycles"]]
    for bits in sorted({result.bits for result in results}):
        row = [f"{bits}"]
        for strategy in ("none", "future"):
            cell = [result for result in results if (result.bits, result.strategy) == (bits, strategy)]
            row += [f"{mean([each.success for each in cell]):.3f}", f"{mean([each.cycles for each in cell]):.0f}"]
        rows.append(row)
    return rows


def claims(results: list[Result]) -> list[tuple[str, bool]]:
    """The paper's claims, and whether they hold. A task is solved if each seed has a success of 95 %."""
    hindsight = [result for result in results if result.strategy == "future" and result.bits <= PAPER_HINDSIGHT]
    plain = [result for result in results if result.strategy == "none" and result.bits > PAPER_PLAIN]
    made = []
    if hindsight:
        least = min(hindsight, key=lambda result: result.success)
        text = f"with hindsight all tasks are solved: the lowest success is {least.success:.3f}, at {least.bits} bits"
        made.append((text, least.success >= SOLVED))
    if plain:
        most = max(plain, key=lambda result: result.success)
        text = f"without it no task above {PAPER_PLAIN} bits is solved: the highest success is {most.success:.3f}"
        made.append((text, most.success < SOLVED))
    return made


def parse_arguments() -> argparse.Namespace:
    """Parse and check the options."""
    quick = f"bits {QUICK_BITS}, {QUICK_CYCLES} cycles"
    made = parser("bit-flip", "Reproduce the bit-flip experiment of hindsight experience replay.", quick)
    add = made.add_argument
    add(
        "--bits", type=at_least(2), nargs="+", help=f"numbers of bits to train on (default: {' '.join(map(str, BITS))})"
    )
    add(
        "--cycles",
        type=at_least(1),
        help=f"maximum number of training cycles of {EPISODES} episodes each (default: {CYCLES}; 50 bits need more)",
    )
    add("--seeds", type=at_least(0), nargs="+", default=[0], help="random seeds; one agent for each seed (default: 0)")
    options = made.parse_args()
    options.bits = sorted(set(options.bits or (QUICK_BITS if options.quick else BITS)))
    options.cycles = options.cycles or (QUICK_CYCLES if options.quick else CYCLES)
    return options


def main() -> None:
    """Train two agents, with and without hindsight, for each number of bits and each seed."""
    options = parse_arguments()
    # With hindsight, training ends when the task is solved, after about N^2 + 50 cycles of 40 updates each
    cost = {
        (bits, strategy, options.cycles, seed): 0.025 * min(limit, options.cycles) * (1.0 + bits / 40.0)
        for bits in options.bits
        for strategy, limit in (("none", options.cycles), ("future", bits * bits + 50))
        for seed in sorted(set(options.seeds))
    }
    results = list(run_all(result_of, cost, options.jobs).values())
    print("Success in new greedy episodes, and cycles of training:")
    show(tabulate(results), options.output.with_suffix(".csv"))
    plot(results, f"Bit flip, at most {options.cycles} cycles of {EPISODES} training episodes\n{SAID}", options.output)
    print(f"Picture: {options.output}")
    judge(claims(results))


if __name__ == "__main__":
    main()
