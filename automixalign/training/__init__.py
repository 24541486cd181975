"""Trainings of specialists and generalists, in one process, several, or on several nodes.

It knows nothing of merges, reports and registries.
"""
