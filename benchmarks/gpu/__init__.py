"""Buffers on a GPU: ``python -m benchmarks.gpu``

    python -m benchmarks.gpu --output benchmarks/gpu.json       # about ten minutes
    python -m benchmarks.gpu --device cpu --rows 20000 --quick  # to try the program without a GPU

Everything is measured in turns, in random order. A figure is the median over the rounds of the time of a call, in
microseconds. A round is many calls with one synchronisation at the end, so it includes the work of the GPU. Without a
rival that is installed, replaykit is compared with plain tensors only.

Read `rivals` (what is compared) before `__main__` (what is measured).
"""
