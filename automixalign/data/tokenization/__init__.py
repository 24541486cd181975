"""From a pair to token ids: render it by the chat template, then encode it.

It knows nothing of files and tasks.
"""
