"""Buffers on a GPU: ``python -m benchmarks.gpu``

    python -m benchmarks.gpu --output benchmarks/gpu.json       # about ten minutes
    python -m benchmarks.gpu --device cpu --rows 20000 --quick  # to try the program without a GPU

All rivals take turns in random order. A figure is the time of a call in microseconds, as the median over the rounds. A
round is many calls with one synchronisation at the end, so it includes the work of the GPU. If no other library is
installed, replaykit is compared with plain tensors only.

Read `rivals` (what is compared) before `__main__` (what is measured).
"""
