"""The form of a model's results on benchmarks."""

RESULTS, SAMPLES = "results.json", "samples"
STDERR = "_stderr"
"""At the end of a metric's name: its standard error."""
