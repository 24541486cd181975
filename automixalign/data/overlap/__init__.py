"""Overlap between pairs: of two tasks, of prompts that are alike, and with test sets of others.

It knows nothing of tokens.
"""
