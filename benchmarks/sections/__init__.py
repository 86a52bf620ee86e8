"""The measurements: one module for each part of a buffer's work."""
