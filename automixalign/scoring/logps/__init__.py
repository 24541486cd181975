"""Log-probabilities of preference pairs under a model, without padding; training and scoring share them.

It knows nothing of losses, tasks or caches.
"""
