"""Rows computed from their indices, with a checksum that shows torn rows, and threads that run at the same time."""

import sys
import threading
import time

import numpy as np

from replaykit import Field, Spec

GAMMA = 0.9
PRIMES = np.array([3, 5, 7, 11, 13], np.int64)
PERIODS = 11, 7
"""An episode terminates after so many steps of a lane, and is truncated after so many."""


class Stream:
    """The transitions that are added to a buffer of E lanes. Step t of lane e has the number t E + e, like its index.

    Each field is computed from this number. The extra field `checksum` is that of all others.
    """

    def __init__(self, lanes=1, shape=(5,), dtype=np.float32):
        self.lanes, self.shape, self.dtype = lanes, shape, np.dtype(dtype)
        self.pattern = np.arange(np.prod(shape)).reshape(shape) * 17
        self.spec = Spec(
            obs=Field(shape, dtype),
            action=Field((), np.int64),
            note=Field((3,), np.int32),
            checksum=Field((), np.uint64),
        )

    def obs(self, numbers):
        wide = numbers.reshape(numbers.shape + (1,) * len(self.shape))
        return ((wide * 31 + self.pattern) % 251).astype(self.dtype)

    @staticmethod
    def reward(numbers):
        return ((numbers * 7) % 97 - 48).astype(np.float32)

    def ends(self, numbers):
        """Whether the steps terminate their episodes, and whether they truncate them."""
        return [(numbers // self.lanes) % period == period - 1 for period in PERIODS]

    @staticmethod
    def note(numbers):
        return (numbers[..., None] * PRIMES[:3] % 1009).astype(np.int32)

    def rows(self, numbers):
        """All fields of the steps with these numbers."""
        numbers = np.asarray(numbers, np.int64)
        terminated, truncated = self.ends(numbers)
        fields = {
            "obs": self.obs(numbers),
            "action": numbers,
            "reward": self.reward(numbers),
            "next_obs": self.obs(numbers + self.lanes),
            "terminated": terminated,
            "truncated": truncated,
            "note": self.note(numbers),
        }
        return fields | {"checksum": checksum(fields)}

    def row(self, number):
        """One step without a leading axis."""
        return {name: value[0] for name, value in self.rows([number]).items()}

    def assert_whole(self, batch, n=1, is_cut=False):
        """Every row of a batch is the transition of its index, of up to n steps of one episode.

        Episodes may be cut elsewhere than where they end, if `is_cut`.
        """
        number, length = batch.indices, batch.length
        newest = self.dtype == np.uint8 and batch.obs.ndim > 1 + len(self.shape)
        obs, next_obs = (array[:, -1] if newest else array for array in (batch.obs, batch.next_obs))
        last = number + (length - 1) * self.lanes
        assert (batch.action == number).all(), "a row of another index"
        assert (obs == self.obs(number)).all(), "a torn obs"
        assert (next_obs == self.obs(last + self.lanes)).all(), "a torn next_obs"
        assert (batch.note == self.note(number)).all(), "a torn note"
        terminated, truncated = self.ends(last)
        assert (batch.terminated == terminated).all() and (batch.truncated == truncated).all(), "a torn flag"
        total = np.zeros(len(number))
        for k in range(n):
            within = number + np.minimum(k, length - 1) * self.lanes
            total += np.where(k < length, GAMMA**k * self.reward(within).astype(np.float64), 0.0)
            over = np.logical_or(*self.ends(within))
            assert not (over & (k < length - 1)).any(), "a window crosses an episode's end"
        assert ((length >= 1) & (length <= n)).all()
        np.testing.assert_allclose(batch.reward, total, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(batch.discount, np.where(terminated, 0.0, GAMMA**length), rtol=1e-6)
        if n == 1:
            first = {name: batch[name] for name in ("action", "reward", "terminated", "truncated", "note")}
            assert (batch.checksum == checksum({"obs": obs, "next_obs": next_obs} | first)).all(), "a torn row"
        else:
            assert (batch.checksum == self.rows(number)["checksum"]).all(), "a torn row"


def checksum(fields):
    """A number that depends on every byte of every row."""
    total = np.zeros(fields["action"].shape, np.uint64)
    for name in sorted(fields):
        values = np.ascontiguousarray(fields[name])
        flat = values.reshape(*total.shape, -1).view(np.uint8).astype(np.uint64)
        total = total * np.uint64(1_000_003) + (flat * np.arange(1, flat.shape[-1] + 1, dtype=np.uint64)).sum(axis=-1)
    return total


def run_together(leader, *others, seconds=0.3, interval=1e-6, least=20):
    """Run functions in threads that switch often: `leader` for some time, and the others until their next end.

    Each is called again and again, at least so many times, with the number of the call. Raises the first error of any,
    and fails if a thread does not end.
    """
    errors, over = [], threading.Event()

    def run(function, is_over):
        calls = 0
        try:
            while not errors and not (is_over() and calls >= least):
                function(calls)
                calls += 1
        except BaseException as error:
            errors.append(error)

    def lead():
        end = time.monotonic() + seconds
        run(leader, lambda: time.monotonic() >= end)
        over.set()

    threads = [threading.Thread(target=run, args=(function, over.is_set), daemon=True) for function in others]
    threads.append(threading.Thread(target=lead, daemon=True))
    before = sys.getswitchinterval()
    sys.setswitchinterval(interval)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            if thread.is_alive() and not errors:
                errors.append(AssertionError("a thread does not end"))
    finally:
        sys.setswitchinterval(before)
    if errors:
        raise errors[0]
