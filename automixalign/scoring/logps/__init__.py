"""Log-probabilities of preference pairs under a model, for training and scoring alike, at no wasted token."""
