"""Import and export: Minari data sets, and files of plain NumPy arrays.

Each reading function creates a `ReplayBuffer <replaykit.ReplayBuffer>` or fills a buffer of your choice. The writing
functions accept any buffer or wrapper. They write the transitions as stored, without changes by wrappers. To write
priorities, counters and the generator's state, use ``save``.
"""

from replaykit.io.arrays import from_npz, to_npz
from replaykit.io.minari_datasets import from_minari, to_minari

__all__ = ["from_minari", "from_npz", "to_minari", "to_npz"]
