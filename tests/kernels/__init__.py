"""Tests of the compiled kernels against plain Python, and of their cache on disk."""
