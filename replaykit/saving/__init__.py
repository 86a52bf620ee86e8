"""Checkpoints: the exact state of a replay in files, which are consistent at every moment."""
