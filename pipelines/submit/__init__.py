"""`ama submit`: run an experiment's pipeline on a Kubeflow Pipelines server, and follow the run.

It knows nothing about local runs, except how their progress is displayed.
"""
