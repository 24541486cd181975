"""The container image every component runs in, chosen when a pipeline is compiled."""

import os

IMAGE = os.environ.get("AMA_IMAGE", "automixalign:0.1.0")
"""`AMA_IMAGE`, best by digest (`registry/automixalign@sha256:...`); the local runner does not look at it."""
