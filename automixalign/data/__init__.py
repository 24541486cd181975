"""Preference data: read it, clean it, split it by prompt, tokenise it once.

It knows nothing of models, losses or training; the tokenizer and the verifiers are arguments.
"""
