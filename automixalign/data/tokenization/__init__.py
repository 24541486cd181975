"""From a pair to token ids: render by the chat template, encode. Knows nothing of files and tasks."""
