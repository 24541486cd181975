"""The container image every component runs in, chosen when a pipeline is compiled."""

import os
import re

from automixalign import __version__

IMAGE = os.environ.get("AMA_IMAGE") or f"automixalign:{__version__}"
"""`AMA_IMAGE`, best by digest (`registry/automixalign@sha256:...`), else what `make images` builds; where the
steps of a local run are processes, nobody looks at it."""

_DIGEST = re.compile(r"[^@\s]+@(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})")


def is_pinned(image: str) -> bool:
    """Whether an image is named by the digest of its content, and not by a tag that can be moved."""
    return _DIGEST.fullmatch(image) is not None
