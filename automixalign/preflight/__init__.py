"""Checks before any work starts: the configuration and the sources that it names.

It computes nothing and writes nothing.
"""
