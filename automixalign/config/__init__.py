"""An experiment as data: its schema, its file, and the settings of each stage.

It knows nothing of how a stage does its work.
"""
