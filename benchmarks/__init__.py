"""Replay buffers side by side: what a call of replaykit costs, of the libraries one might pick instead, and of a floor.

    pip install -c constraints.txt -e ".[bench]"
    python -m benchmarks                                    # everything, about twenty minutes
    python -m benchmarks --quick                            # a first look, two or three minutes
    python -m benchmarks --only per --libs cpprb,tianshou
    python -m benchmarks --output benchmarks/results.json   # keep the figures
    python -m benchmarks --only sb3 --libs stable_baselines3 --clock cpu --output benchmarks/sb3.json
    python -m benchmarks.plot benchmarks/results.json       # draw them, and fill the tables of the documentation
    python -m benchmarks.check                              # do the adapters do what they say?

Two versions of replaykit in one run, where ../old is a checkout of the earlier one:

    python -m benchmarks --before ../old --only per
    python -m benchmarks --before ../old --only architecture --output benchmarks/before_after.json
    python -m benchmarks.report benchmarks/before_after.json

To read the package from top to bottom: `data` says what is stored, `adapters` how each library is used, `sections` what
is measured, `floors` what the machine needs at least, `timing` how it is timed, and `targets` what replaykit promised.
`catalogue` names the sections, `versions` measures two versions, and `architecture` is what the later one must reach.
"""
