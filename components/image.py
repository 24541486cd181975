"""The container image every component runs in, chosen when a pipeline is compiled."""

import os
import re

from automixalign import __version__

IMAGE = os.environ.get("AMA_IMAGE") or f"automixalign:{__version__}"
"""`AMA_IMAGE`, best by digest (`registry/automixalign@sha256:...`), otherwise the image of `make images`.

A local run whose stages are processes ignores it.
"""

_DIGEST = re.compile(r"[^@\s]+@(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})")


def is_pinned(image: str) -> bool:
    """Whether an image is named by the digest of its content; a tag can move to another image."""
    return _DIGEST.fullmatch(image) is not None
