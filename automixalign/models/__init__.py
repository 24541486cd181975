"""Model folders: bring one into normal form, load it safely, and choose what a training changes.

It knows nothing of data, losses or tasks.
"""
