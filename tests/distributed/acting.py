"""The code that the processes of these tests run, in a module that is imported fast."""

import os

import numpy as np


def step(number, **changes):
    """One transition of the spec `FLAT` whose values are computed from `number`."""
    obs = np.full(3, number, np.float32)
    fields = {"obs": obs, "action": 1, "reward": float(number), "next_obs": obs + np.float32(0.5)}
    return fields | {"terminated": False, "truncated": False} | changes


def act(writer, steps, begin=0):
    """Add steps in episodes of ten."""
    with writer:
        for number in range(begin, begin + steps):
            writer.add(**step(number, truncated=number % 10 == 9))


def act_for_ever(writer):
    number = 0
    while True:
        writer.add(**step(number))
        number += 1


def report_end(writer, directory):
    """Add steps until the learner has ended, and write the error to a file."""
    try:
        act_for_ever(writer)
    except RuntimeError as error:
        with open(os.path.join(directory, f"{writer.number}.new"), "w") as file:
            file.write(str(error))
        os.rename(file.name, os.path.join(directory, str(writer.number)))
