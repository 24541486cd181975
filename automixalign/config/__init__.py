"""An experiment as data: its schema, its file, and the settings that each step gets.

It knows nothing of how a step does its work.
"""
