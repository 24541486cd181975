"""Errors, checked types, and what the machine under a run is like.

It knows nothing of models, data, tasks or storage.
"""
