"""Profiles of Hypothesis: ci (the default, the same examples every time), dev (quick), deep (thousands, by hand).

The profile mutation stops at the first failure without making it small, for breaking the code on purpose.
"""

import os

from hypothesis import HealthCheck, Phase, settings

# Kernels compile inside tests, so examples have no deadline
common = settings(deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
settings.register_profile("ci", common, derandomize=True, max_examples=100)
settings.register_profile("dev", common, max_examples=20)
settings.register_profile("deep", common, max_examples=5000)
settings.register_profile("mutation", common, derandomize=True, max_examples=100, phases=(Phase.generate,))
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
