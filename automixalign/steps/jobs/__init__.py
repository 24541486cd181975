"""A part of a stage that one process does, or several processes of this machine share.

It knows nothing of what the part computes.
"""
