"""Answers of a run's models: in a conversation, and to a file of prompts.

It knows nothing of terminals, tasks and scores.
"""
