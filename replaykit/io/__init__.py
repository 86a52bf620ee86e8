"""Data in and out: data sets of Minari, and files of plain NumPy arrays.

Each function that reads makes a `ReplayBuffer <replaykit.ReplayBuffer>`, or fills a buffer of your choice. Those that
write take any buffer or wrapper, and write what is stored: no wrapper changes it. Priorities, counters and the state of
the generator are kept only by ``save`` of the buffer.
"""

from replaykit.io.arrays import from_npz, to_npz
from replaykit.io.minari_datasets import from_minari, to_minari

__all__ = ["from_minari", "from_npz", "to_minari", "to_npz"]
