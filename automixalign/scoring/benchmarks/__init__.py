"""Public benchmarks and tasks of the user, through lm-evaluation-harness, which is the optional extra `bench`.

It knows nothing of preference pairs; the other modules of `scoring` never need the extra.
"""
