"""Files that are whole or absent, S3, the model hub, and copies published for others.

It knows nothing of what the files hold.
"""
