"""Tests of the code in examples/: the reproductions of papers, and the study."""
