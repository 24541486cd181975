"""The types of checked configuration: strict numbers, and models that refuse unknown keys."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is needed, not a boolean")
    return value


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,39}$")]
LARGEST = 2**31 - 1
"""The largest integer that every library in use accepts."""

Text = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]+$", max_length=1000)]
"""A path, an address or an external name: on one line, and not empty."""
Count = Annotated[int, Field(strict=True, ge=1, le=LARGEST)]
Natural = Annotated[int, Field(strict=True, ge=0, le=LARGEST)]
Number = Annotated[float, BeforeValidator(_not_bool), Field(allow_inf_nan=False)]
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
PositiveFraction = Annotated[Number, Field(gt=0, le=1)]
Flag = Annotated[bool, Field(strict=True)]


class Schema(BaseModel):
    """Refuses unknown keys, and cannot be changed after the check."""

    model_config = ConfigDict(extra="forbid", frozen=True)


_MAX_LISTED_FAULTS = 20


def describe(error: ValidationError) -> str:
    """One line for each fault: the key as a user writes it (`tasks.0.name`), then what is wrong with it.

    Unknown keys come first.
    """
    lines = []
    faults = error.errors(include_url=False, include_context=False)
    faults.sort(key=lambda fault: fault["type"] != "extra_forbidden")  # a misspelt key explains a missing one
    for fault in faults[:_MAX_LISTED_FAULTS]:
        key = ".".join(str(part) for part in fault["loc"])
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            message = "unknown key"
        elif not isinstance(fault["input"], (dict, list, Schema)):
            message += f" (it is {fault['input']!r:.80})"
        lines.append(f"{key:.200}: {message}" if key else message)
    if len(faults) > _MAX_LISTED_FAULTS:
        lines.append(f"and {len(faults) - _MAX_LISTED_FAULTS} more")
    return "\n".join(lines)
