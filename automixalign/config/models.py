"""The base model: its section of an experiment, and the settings of `prepare_base_model`."""

from typing import Self

from pydantic import model_validator

from automixalign.config.settings import Settings
from automixalign.quickstart.spec import TinyModel
from automixalign.system.schema import Schema, Text


class BaseModelSpec(Schema):
    """The policy that trainings start from; it is also the reference model."""

    source: Text
    """Folder, GGUF file, `package:MODULE/FILE.gguf`, hub id, `s3://` or `models:/` URI, or `tiny`."""
    revision: Text | None = None
    """Branch, tag or commit of a model on the hub."""
    tiny: TinyModel | None = None
    """What `source: tiny` trains."""

    @model_validator(mode="after")
    def _check_tiny(self) -> Self:
        if (self.tiny is not None) != (self.source == "tiny"):
            raise ValueError("the key 'tiny' goes with 'source: tiny', and only with it")
        return self


class BaseModelSettings(Settings):
    """Of `prepare_base_model`."""

    base_model: BaseModelSpec
    synthetic_tasks: list[str]
    """The synthetic tasks whose forms a `tiny` model learns."""
    fingerprint: str
    """Of the content of the source."""
