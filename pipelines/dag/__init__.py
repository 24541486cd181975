"""The DAG: its steps and how they are wired, where they run, and its compiled form.

It knows nothing of the machine it is started from.
"""
