"""Reads the rows of a source: files of any kind, saved data sets, the hub, generated rows.

It knows nothing of preferences: a row is a mapping of columns, with its file and line for messages.
"""
