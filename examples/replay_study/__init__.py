"""The parts of the study that replaykit started from: do i.i.d. batches matter more than the TD errors in them?

Read the modules in this order: `settings` (the two protocols), `samplers` (the compared replays), `learner` (a
Q-network in NumPy), `run` (one training run), `measures` (measures of batches), `plan` (all runs, stored in files),
`statistics`, `analysis` (the answer), `report` (text and tables), `figures`.
"""

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"  # before NumPy is imported, in every process: one core each, and the same rounding
