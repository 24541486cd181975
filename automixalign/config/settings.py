"""The base of every stage's settings, and the types that several sections of an experiment share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from automixalign.config.plugins import Plugin
from automixalign.system.errors import ConfigError
from automixalign.system.schema import Schema, Text, describe, did_you_mean

_Plugin = TypeVar("_Plugin", bound=Schema)
Precision = Literal["auto", "fp32", "bf16"]
Quantization = Literal["4bit", "8bit"]
QUANTIZES_VARIABLE = "AMA_QUANTIZES"
"""Set for the stages of `ama run` if they quantise a model."""
AttnImplementation = Literal["auto", "sdpa", "flash_attention_2", "flex_attention"]


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


class Loading(BaseModel):
    """How a stage holds a model in memory. All stages that train or score do it alike: their numbers agree."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    attn_implementation: AttnImplementation = "auto"
    max_length: int | None = None
    """The largest number of tokens of a sequence. Attention windows of that length are none."""
    dtype: Literal["fp32", "source", "bf16"] = "fp32"
    """Of the weights in a bf16 forward pass: fp32, as a full training holds them; `source`, as the base model
    has them, for frozen ones; or bf16, as FSDP gathers them. Without bf16 it is always fp32."""
    trained: list[str] = Field(default_factory=list)
    """Regular expressions of the weights that are in fp32 beside those of `source`: a training changes them."""
    quantize: Quantization | None = None
    """Of the weights of linear layers but the head, in the reference model and under every adapter."""

    def of(self, family: str) -> Self:
        """How to hold a model of a family: a merge is a full model, which is never quantised."""
        return self.model_copy(update={"quantize": None}) if family == "merge" else self

    def without_attention(self) -> Self:
        """For generated answers, whose attention is always `sdpa`."""
        return self.model_copy(update={"attn_implementation": "auto", "max_length": None})


PLAIN = Loading()
"""A stage's default."""


class PluginSpec(Schema):
    """The name of a registered class, and its options."""

    model_config = ConfigDict(extra="allow")

    name: Text

    @property
    def options(self) -> dict[str, Any]:
        """The options that were set."""
        return self.__pydantic_extra__ or {}

    @model_serializer(mode="wrap")
    def _shorten(self, serialize: SerializerFunctionWrapHandler) -> Any:
        return serialize(self) if self.options else self.name

    def make(self, kind: str, known: Mapping[str, type[_Plugin]]) -> _Plugin:
        """An instance of the class with these options.

        Args:
            kind: what messages call one of them.
            known: name -> class.

        Raises:
            ConfigError: there is no such class, or it has no such option.
        """
        if self.name not in known:
            hint = did_you_mean(self.name, known)
            raise ConfigError(f"unknown {kind} {self.name!r:.80}{hint}; there are: {', '.join(sorted(known))}")
        try:
            return known[self.name].model_validate(self.options)
        except ValidationError as error:
            raise ConfigError(
                f"{kind} {self.name}: {describe(error, known[self.name], self.options)}"
            ) from error


@dataclass(frozen=True)
class _Shorthand(BeforeValidator):
    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        return {"anyOf": [handler(core_schema), {"type": "string"}]}


def shorthand(key: str) -> BeforeValidator:
    """Let a bare string stand for `{key: string}`: `- standard` is `- method: standard`."""
    return _Shorthand(lambda value: {key: value} if isinstance(value, str) else value)


def is_task_file(task: str) -> bool:
    """Whether the `task` of a benchmark is a file of the user, not a name that lm-evaluation-harness knows."""
    return task.endswith((".yaml", ".yml"))
