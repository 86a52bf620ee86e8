"""Storages, which hold the transitions of a buffer."""

from replaykit.storage.base import Storage
from replaykit.storage.local import LocalStorage
from replaykit.storage.lock import Lock
from replaykit.storage.mapped import MappedStorage

__all__ = ["LocalStorage", "Lock", "MappedStorage", "Storage"]
