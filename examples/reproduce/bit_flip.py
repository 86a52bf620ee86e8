"""Flip bits until they equal a goal, with hindsight and without: which numbers of bits can be learned.

    python examples/reproduce/bit_flip.py
    python examples/reproduce/bit_flip.py --bits 50 --cycles 4000
    python examples/reproduce/bit_flip.py --bits 10 12 13 14 15 --seeds 0 1 2

Agent, environment and training are those of `her_bitflip.py`, one directory up, which tells what happens; here they
stand beside what Andrychowicz et al. (2017) report, and are run side by side.

References
----------
Andrychowicz et al. (2017), Hindsight Experience Replay, section 3.1 and figure 1.
"""

import argparse
from statistics import mean

from harness import judge, parser, run_all, show  # first: it puts the other examples on the path
from her_bitflip import EPISODES, SOLVED, Result, plot, train
from options import at_least

QUICK_BITS, QUICK_CYCLES = [6, 14], 150
BITS, CYCLES = [5, 8, 10, 13, 15, 20, 30], 1_000
PAPER_PLAIN, PAPER_HINDSIGHT = 13, 50
"""The most bits that the paper solves without hindsight and with it."""
SAID = f"Andrychowicz et al. (2017): without hindsight up to {PAPER_PLAIN} bits, with it up to {PAPER_HINDSIGHT}"


def result_of(task: tuple[int, str, int, int]) -> Result:
    """Train and test an agent, for a number of bits, with hindsight or without, at most so many cycles, and a seed."""
    import torch

    bits, strategy, cycles, seed = task
    torch.set_num_threads(1)  # networks this small are slower on several
    return train(bits, "future" if strategy == "future" else "none", 0.8, cycles, seed, progress=False)


def tabulate(results: list[Result]) -> list[list[str]]:
    """Mean success with each strategy, and after how many cycles training ended, by number of bits."""
    rows = [["bits", "without hindsight", "cycles", "with hindsight", "cycles"]]
    for bits in sorted({result.bits for result in results}):
        row = [f"{bits}"]
        for strategy in ("none", "future"):
            cell = [result for result in results if (result.bits, result.strategy) == (bits, strategy)]
            row += [f"{mean([each.success for each in cell]):.3f}", f"{mean([each.cycles for each in cell]):.0f}"]
        rows.append(row)
    return rows


def claims(results: list[Result]) -> list[tuple[str, bool]]:
    """What the paper says of them, and whether it holds: solved is a success of 95 %, by each seed."""
    hindsight = [result for result in results if result.strategy == "future" and result.bits <= PAPER_HINDSIGHT]
    plain = [result for result in results if result.strategy == "none" and result.bits > PAPER_PLAIN]
    made = []
    if hindsight:
        least = min(hindsight, key=lambda result: result.success)
        text = f"with hindsight all are solved: the least success is {least.success:.3f}, at {least.bits} bits"
        made.append((text, least.success >= SOLVED))
    if plain:
        most = max(plain, key=lambda result: result.success)
        text = f"without it none above {PAPER_PLAIN} bits is: the most success there is {most.success:.3f}"
        made.append((text, most.success < SOLVED))
    return made


def parse_arguments() -> argparse.Namespace:
    """The options, checked."""
    quick = f"bits {QUICK_BITS}, {QUICK_CYCLES} cycles"
    made = parser("bit-flip", "The bit flip of hindsight experience replay.", quick)
    add = made.add_argument
    add("--bits", type=at_least(2), nargs="+", help=f"default: {' '.join(map(str, BITS))}")
    add("--cycles", type=at_least(1), help=f"at most, of {EPISODES} episodes (default: {CYCLES}; 50 bits take more)")
    add("--seeds", type=at_least(0), nargs="+", default=[0], help="an agent for each (default: 0)")
    options = made.parse_args()
    options.bits = sorted(set(options.bits or (QUICK_BITS if options.quick else BITS)))
    options.cycles = options.cycles or (QUICK_CYCLES if options.quick else CYCLES)
    return options


def main() -> None:
    """Train an agent with hindsight and one without, for each number of bits and seed."""
    options = parse_arguments()
    # With hindsight training ends when the task is solved, after some N^2 + 50 cycles; a cycle is 40 updates
    cost = {
        (bits, strategy, options.cycles, seed): 0.025 * min(limit, options.cycles) * (1.0 + bits / 40.0)
        for bits in options.bits
        for strategy, limit in (("none", options.cycles), ("future", bits * bits + 50))
        for seed in sorted(set(options.seeds))
    }
    results = list(run_all(result_of, cost, options.jobs).values())
    print("Success in fresh greedy episodes, and cycles of training:")
    show(tabulate(results), options.output.with_suffix(".csv"))
    plot(results, f"Bit flip, at most {options.cycles} cycles of {EPISODES} training episodes\n{SAID}", options.output)
    print(f"Picture: {options.output}")
    judge(claims(results))


if __name__ == "__main__":
    main()
