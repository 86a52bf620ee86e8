"""Buffers whose transitions and priorities are tensors on a torch device: ``ReplayBuffer(..., device="cuda")``."""

from replaykit.on_device.distributions import DeviceLatest, DeviceProportional, DeviceUniform
from replaykit.on_device.generator import DeviceGenerator
from replaykit.on_device.mixing import DeviceRing
from replaykit.on_device.pinned import PinnedStorage
from replaykit.on_device.storage import DeviceStorage
from replaykit.on_device.tree import DeviceTree

__all__ = [
    "DeviceGenerator",
    "DeviceLatest",
    "DeviceProportional",
    "DeviceRing",
    "DeviceStorage",
    "DeviceTree",
    "DeviceUniform",
    "PinnedStorage",
]
