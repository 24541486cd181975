"""The algorithm: how tasks are mixed, what a pair's loss is, and how specialists are merged.

It knows nothing of files, models or trainers.
"""
