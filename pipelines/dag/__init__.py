"""The DAG: its stages and their connections, where they run, and its compiled form.

It knows nothing about the machine it is started from.
"""
