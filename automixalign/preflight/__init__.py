"""What can be refused before any work starts: the configuration and the sources it names.

It computes nothing and writes nothing.
"""
