"""What several row formats need: typed values, dialogues, prompts within sides, known layouts.

It knows nothing of a single format.
"""
