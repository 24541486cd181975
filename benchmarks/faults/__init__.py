"""Faults brought about on purpose, and what becomes of them: `python -m benchmarks.faults [--json FILE]`."""
