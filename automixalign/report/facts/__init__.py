"""The facts on the page of one run, as JSON.

It reads what the stages wrote, and knows nothing of how the page shows it.
"""
