"""Metrics: what an evaluation measures on test pairs and generated answers.

They know nothing of models, files or reports. `registry.py` says how to add one.
"""
