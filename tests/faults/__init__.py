"""The catalogue of faults around a buffer: one test for each case, named by what is promised.

``docs/explanation/promises.rst`` lists these tests. ``docs/figures/promises.py`` makes its tables from their names and
docstrings. Threads have tests of their own in ``tests/laws``.
"""
