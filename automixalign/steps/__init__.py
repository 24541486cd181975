"""The life of one step of the DAG: its events, its log, the digests of its artifacts, its MLflow record.

It knows nothing of what a step computes.
"""
