"""Tests of the adapters for other libraries; those of a library that is not installed are skipped."""
