"""Measures on one GPU, in 15 minutes, what no CPU can show: kernels, speed against TRL, memory, checkpoints.

`python -m benchmarks.gpu_check` runs it. It knows nothing of data sets and hubs: models and pairs are random.
"""
