"""The log-probabilities of both sides of every pair, from one forward pass.

It knows nothing of files, tasks or losses.
"""
