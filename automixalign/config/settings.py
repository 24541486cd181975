"""The base of every stage's settings, and the types that several sections of an experiment share."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from automixalign.config.plugins import Plugin

Precision = Literal["auto", "fp32", "bf16"]


class Settings(BaseModel):
    """The part of an experiment that changes the result of one stage of the DAG, and no more.

    A stage's settings travel as one JSON string. Two experiments that differ elsewhere give a stage equal
    settings, so its cached result serves both: another eta trains one generalist again and nothing before it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    plugins: list[Plugin] = Field(default_factory=list)
    """Modules that the stage needs. They are imported before the other settings are checked."""
    code: str = ""
    """Digest of the modules that the stage imports."""
    environment: str = ""
    """Digest of the installed versions, and of the environment variables that can change a result."""
    seed: int


@dataclass(frozen=True)
class _Shorthand(BeforeValidator):
    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        return {"anyOf": [handler(core_schema), {"type": "string"}]}


def shorthand(key: str) -> BeforeValidator:
    """Let a bare string stand for `{key: string}`: `- standard` is `- method: standard`."""
    return _Shorthand(lambda value: {key: value} if isinstance(value, str) else value)
