"""Keeps the checkpoints of a training in a folder or in S3, and recognises the complete ones.

It knows nothing of what a checkpoint holds.
"""
