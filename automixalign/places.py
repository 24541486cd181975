"""Names of files that one module writes and others look for."""

LEADERBOARD = "leaderboard.json"
"""In a run folder, once a run has ended well."""
SUMMARY = "summary.json"
"""In an evaluation."""
