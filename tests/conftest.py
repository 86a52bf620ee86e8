"""Profiles of Hypothesis, chosen by the environment variable HYPOTHESIS_PROFILE.

- ci: 100 examples for each property, the same ones in every run. The default.
- quick: 20 examples, the same ones in every run. CI uses it for the suite without compilation, which is slow.
- dev: 20 random examples, new ones in every run, for work on the code.
- deep: 5,000 random examples. CI never uses it; run it by hand before a release or after a change of the core:
  ``HYPOTHESIS_PROFILE=deep python -m pytest -q -n auto tests/laws``.
- mutation: as ci, but a failing example is not shrunk. For breaking the code on purpose, when any failure is enough.

pytest-randomly shuffles the tests with the fixed seed in pyproject.toml. Tests must pass in any order; pass
``--randomly-seed=1`` to try another one.

Each worker of pytest-xdist has one core, so torch and NumPy use one thread unless OMP_NUM_THREADS is set. `os.fsync`
does nothing: only after a power failure would a test see a difference, and each call may wait 5 ms for the disk. Tests
of what is flushed when replace it by a function of their own.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

from hypothesis import HealthCheck, Phase, settings

# Kernels compile inside tests, so examples have no deadline
common = settings(deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
settings.register_profile("ci", common, derandomize=True, max_examples=100)
settings.register_profile("quick", common, derandomize=True, max_examples=20)
settings.register_profile("dev", common, max_examples=20)
settings.register_profile("deep", common, max_examples=5000)
settings.register_profile("mutation", common, derandomize=True, max_examples=100, phases=(Phase.generate,))
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
os.fsync = lambda descriptor: None
