"""The options without which a mixer cannot be made."""

from collections.abc import Iterable
from typing import Any

from automixalign.method.mixers import registered_mixers


def needed_options(name: str, tasks: Iterable[str]) -> dict[str, Any]:
    """Equal weights for a mixer that needs a weight for each of `tasks`; empty for the others."""
    weights = registered_mixers()[name].schema.model_fields.get("weights")
    return {"weights": dict.fromkeys(tasks, 1.0)} if weights else {}
