"""The judge: a language model behind an API compares generated answers with those of a baseline.

It knows nothing of the models that answer, and runs nothing that an endpoint returns.
"""
