"""Text from elsewhere as it may be shown: it steers no terminal, and holds no credential.

Messages quote what others wrote: rows, file names, templates, answers of servers. `AutoMixAlignError`, a step's
events and what the terminal prints go through here.
"""

import os
import re
import traceback
from urllib.parse import quote

# Control characters but line feed and tab, what reorders or breaks lines, and halves of surrogate pairs.
_STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
_SECRET_NAMES = re.compile(r"(TOKEN|PASSWORD|PASSWD|SECRET|SECRET_ACCESS_KEY|API_KEY)$", re.IGNORECASE)
_USER = re.compile(r"://[^/\s]*@")
_SHORTEST = 8
"""A shorter secret is none, and may well be part of a name."""


def shown(text: str) -> str:
    """The text with credentials masked, and what would steer a terminal written out (`\\x1b`)."""
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), masked(text))


def masked(text: str) -> str:
    """The text without users and passwords in URIs, and without the secrets of this process's environment."""
    text = _USER.sub("://***@", text)
    for name, value in os.environ.items():
        secret = value.strip()
        if len(secret) >= _SHORTEST and _SECRET_NAMES.search(name):
            text = text.replace(secret, "***").replace(quote(secret, safe=""), "***")
    return text


def of_exception(error: BaseException) -> str:
    """The traceback of an error, as it may be shown."""
    return shown("".join(traceback.format_exception(error)))
