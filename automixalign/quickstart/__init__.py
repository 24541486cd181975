"""The quickstart's generated tasks and the tiny model that is trained on them.

It knows nothing of other tasks or models.
"""
