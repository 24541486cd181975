"""Files that are written whole or not at all, S3, the model hub, and publications of a run's results.

It knows nothing of what the files hold.
"""
