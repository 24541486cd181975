"""Errors, messages, checked types, and the memory, disk, processors and processes of this machine.

It knows nothing of models, data, tasks or storage.
"""
