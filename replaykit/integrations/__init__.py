"""Adapters for using replaykit's buffers in other libraries. Each subpackage needs the extra of the same name."""
