"""Benchmarks: the time of replaykit's calls, compared with other libraries and with a lower bound, called a floor.

    pip install -c constraints.txt -e ".[bench]"
    python -m benchmarks                                    # everything, about twenty minutes
    python -m benchmarks --quick                            # a quick run, two or three minutes
    python -m benchmarks --only per --libs cpprb,tianshou
    python -m benchmarks --output benchmarks/results.json   # save the figures
    python -m benchmarks --only sb3 --libs stable_baselines3 --clock cpu --output benchmarks/sb3.json
    python -m benchmarks.plot benchmarks/results.json       # draw the figures and tables of the documentation
    python -m benchmarks.check                              # check the adapters

To compare two versions of replaykit in one run, where ../old is a checkout of the earlier version:

    python -m benchmarks --before ../old --only per
    python -m benchmarks --before ../old --only architecture --output benchmarks/before_after.json
    python -m benchmarks.report benchmarks/before_after.json

Read the modules in this order: `data` (the stored transitions), `adapters` (the use of each library), `sections` (the
measurements), `floors` (the minimum that the machine needs), `timing`, and `targets` (replaykit's targets). `catalogue`
lists the sections, `versions` compares two versions, and `architecture` has the limits for the later one.
"""
