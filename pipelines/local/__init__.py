"""A run of the DAG on this machine, by kfp's local runner.

It knows nothing about clusters.
"""
