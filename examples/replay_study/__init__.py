"""The study that replaykit grew from, in parts: does it matter more that a batch is i.i.d. than what its TD errors are?

Read in this order: `settings` (the two protocols), `samplers` (the replays that are compared), `learner` (a Q-network
in NumPy), `run` (one run of training), `measures` (what is measured of batches), `plan` (all runs, kept in files),
`statistics`, `analysis` (the answer), `figures`.
"""
