"""The life of one stage of the DAG: its events, its log file, its artifacts' digests, its MLflow record.

It knows nothing of what a stage computes.
"""
