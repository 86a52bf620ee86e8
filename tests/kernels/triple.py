"""A kernel that compiles quickly, for the tests of the cache."""

from replaykit._kernels.jit import jit


@jit
def triple(number):
    return 3 * number
