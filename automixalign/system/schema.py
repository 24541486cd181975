"""What every checked piece of configuration is made of: strict numbers, and models that refuse unknown keys."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is needed, not a boolean")
    return value


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,39}$")]
LARGEST = 2**31 - 1
"""The largest number that every library below takes where it wants an integer."""

Text = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]+$", max_length=1000)]
"""A path, an address or a name given by others: on one line, and not empty."""
Count = Annotated[int, Field(strict=True, ge=1, le=LARGEST)]
Natural = Annotated[int, Field(strict=True, ge=0, le=LARGEST)]
Number = Annotated[float, BeforeValidator(_not_bool), Field(allow_inf_nan=False)]
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
PositiveFraction = Annotated[Number, Field(gt=0, le=1)]
Flag = Annotated[bool, Field(strict=True)]


class Schema(BaseModel):
    """Unknown keys are refused, and a configuration never changes after it was checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)


_TOLD = 20
"""So many faults are told at once."""


def describe(error: ValidationError) -> str:
    """One line a fault: the key as one would write it (`tasks.0.name`), then what is wrong with it."""
    lines = []
    faults = error.errors(include_url=False, include_context=False)
    for fault in faults[:_TOLD]:
        key = ".".join(str(part) for part in fault["loc"])
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            message = "unknown key"
        elif not isinstance(fault["input"], (dict, list, Schema)):
            message += f" (it is {fault['input']!r:.80})"
        lines.append(f"{key:.200}: {message}" if key else message)
    if len(faults) > _TOLD:
        lines.append(f"and {len(faults) - _TOLD} more")
    return "\n".join(lines)
