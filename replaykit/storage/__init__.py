"""Where transitions are kept."""

from replaykit.storage.base import Storage
from replaykit.storage.local import LocalStorage
from replaykit.storage.lock import Lock

__all__ = ["LocalStorage", "Lock", "Storage"]
