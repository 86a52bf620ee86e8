"""The version, read by the build and by ``replaykit.__version__``."""

__version__ = "0.2.0"
