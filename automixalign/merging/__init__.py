"""Merges of the specialists into one model, through mergekit.

It knows nothing of how the specialists were trained.
"""
