"""Checkpoints: the state of a replay in files, exact and whole at every moment."""
