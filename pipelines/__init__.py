"""The DAG, its presets, local runs, submission, and the command line `ama`.

They wire components and show progress; they compute nothing.
"""
