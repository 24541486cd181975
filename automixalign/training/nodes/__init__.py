"""Trainings on several nodes of a cluster, as TrainJobs of Kubeflow Trainer.

It knows nothing of the algorithm: each node starts the worker that a training on one machine starts.
"""
