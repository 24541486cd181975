"""Verifiers: each decides whether a generated answer passes.

They know nothing of models, tasks or data. `registry.py` says how to add one.
"""
