"""What leaves a finished run: a registered model, and published files.

It knows nothing of how the models were made.
"""
