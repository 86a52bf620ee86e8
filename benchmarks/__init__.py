"""Replay buffers side by side: what a call of replaykit costs, of the libraries one might pick instead, and of a floor.

    pip install -c constraints.txt -e ".[bench]"
    python -m benchmarks                                    # everything, about a quarter of an hour
    python -m benchmarks --quick                            # a first look, two or three minutes
    python -m benchmarks --only per --libs cpprb,tianshou
    python -m benchmarks --output benchmarks/results.json   # keep the figures
    python -m benchmarks.plot benchmarks/results.json       # draw them, and fill the tables of the documentation
    python -m benchmarks.check                              # do the adapters do what they say?

To read the package from top to bottom: `data` says what is stored, `adapters` how each library is used, `sections` what
is measured, `floors` what the machine needs at least, `timing` how it is timed, and `targets` what replaykit promised.
"""
