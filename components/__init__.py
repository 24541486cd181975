"""The Kubeflow components: one folder each, a thin typed function that calls the library."""
