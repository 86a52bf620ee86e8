"""Adapters that put replaykit's buffers into other libraries. Each is a module that needs the extra of its name."""
