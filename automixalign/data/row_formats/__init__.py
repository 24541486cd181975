"""Row formats: each reads one layout of public preference data as TRL's preference fields.

They know nothing of files, tokens or tasks. `registry.py` says how to add one.
"""
