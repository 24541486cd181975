"""What a model gives to pairs and prompts: log-probabilities, losses, metrics, verified answers.

It scores and never trains; it knows nothing of mixing or of the report.
"""
