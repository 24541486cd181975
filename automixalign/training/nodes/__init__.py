"""Trainings on several nodes of a cluster, as TrainJobs of Kubeflow Trainer."""
