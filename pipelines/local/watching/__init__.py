"""What is known of a run, during it and afterwards: its stages, its state, and the time that is left.

It reads events and files, and knows nothing of terminals. It never changes a run folder.
"""
