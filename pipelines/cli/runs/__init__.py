"""The commands that look at run folders: their list, state, logs, differences, reports and records.

They start no run, and change nothing that a run computes.
"""
