"""What is measured: one module for each part of a buffer's work."""
