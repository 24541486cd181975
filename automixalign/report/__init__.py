"""What a run found: leaderboard, plots, and one self-contained page; several runs compared, paired by seed.

It reads what the stages wrote, and knows nothing of how they compute it.
"""
