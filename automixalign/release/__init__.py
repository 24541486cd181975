"""What a finished run gives away: a version in a model registry, and published files.

It knows nothing of how the models were made.
"""
