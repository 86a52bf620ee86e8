"""Tests of single classes and functions."""
