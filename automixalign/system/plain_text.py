"""Text from outside that is safe to print: it controls no terminal, and contains no credential.

Messages quote rows, file names, templates and answers of servers. Every error, event and log message of the
library, and what the terminal prints, goes through this module.
"""

import os
import re
from urllib.parse import quote

# Control characters except line feed and tab; what reorders or breaks lines; halves of surrogate pairs.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
_SECRET_NAMES = re.compile(r"(TOKEN|PASSWORD|PASSWD|SECRET|SECRET_ACCESS_KEY|API_KEY)$", re.IGNORECASE)
_USER = re.compile(r"://[^/\s]*@")
_MIN_SECRET_CHARACTERS = 8
"""A shorter value is no secret, and may be part of a name."""


def printable(text: str) -> str:
    """The text with masked credentials, and with control characters as escapes (`\\x1b`)."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), mask_secrets(text))


def mask_secrets(text: str) -> str:
    """The text without users and passwords in URIs, and without the secrets of this process's environment."""
    text = _USER.sub("://***@", text)
    for name, value in os.environ.items():
        secret = value.strip()
        if len(secret) >= _MIN_SECRET_CHARACTERS and _SECRET_NAMES.search(name):
            text = text.replace(secret, "***").replace(quote(secret, safe=""), "***")
    return text


def byte_size(count: float) -> str:
    """`14.5 GB`."""
    unit, name = (1e9, "GB") if count >= 1e9 else (1e6, "MB") if count >= 1e6 else (1e3, "kB")
    return f"{count / unit:,.1f} {name}"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.4 h` or `2.5 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:.2g} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:,.1f} days"
