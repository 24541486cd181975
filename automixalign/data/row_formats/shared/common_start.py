"""Split the prompt off two sides that both contain it."""

from typing import Any

from automixalign.data.row_formats.row_format import Messages


def shared_messages(chosen: Messages, rejected: Messages) -> int:
    """How many messages the sides share as a prompt: their common start up to an assistant's turn."""
    shared = 0
    for left, right in zip(chosen, rejected, strict=False):
        if left != right:
            break
        shared += 1
    while shared and _role(chosen[shared - 1]) == "assistant":
        shared -= 1
    return shared


def shared_text(chosen: str, rejected: str) -> int:
    """How many characters the sides share as a prompt: their common start up to its last blank.

    A side that is the beginning of the other keeps some text.
    """
    shared = min(_common_length(chosen, rejected), len(chosen.rstrip()) - 1, len(rejected.rstrip()) - 1)
    shared = max(shared, 0)
    if " " in chosen[:shared]:
        shared = chosen.rindex(" ", 0, shared)
    return shared if chosen[:shared].strip() else 0


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, dict) else None


def _common_length(left: str, right: str) -> int:
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
