"""Tests of distributions: exact expectations, and statistical tests with fixed seeds and a stated error rate."""
