"""Preference data: read it, clean it, split it by prompt, tokenise it once."""
