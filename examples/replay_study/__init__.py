"""The study that replaykit grew from, in parts: does it matter more that a batch is i.i.d. than what its TD errors are?

Read in this order: `settings` (the two protocols), `samplers` (the replays that are compared), `learner` (a Q-network
in NumPy), `run` (one run of training), `measures` (what is measured of batches), `plan` (all runs, kept in files),
`statistics`, `analysis` (the answer), `report` (in words), `figures`.
"""

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"  # before NumPy is imported, in every process: one core each, and the same rounding
