"""The tokenizer and the configuration of a base model, without its weights."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from automixalign.config.models import BaseModelSpec
from automixalign.config.sources import BaseModelSource, HubSource, S3Source, parse_base_model
from automixalign.models.prepare import address, transformers_silenced
from automixalign.storage import hub, s3
from automixalign.system.errors import ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from automixalign.quickstart.spec import TinyModel

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx")
"""Endings of the files on S3 that are not fetched."""


class Outline(NamedTuple):
    """What is known of a base model before its weights are read."""

    tokenizer: "PreTrainedTokenizerBase"
    config: "PretrainedConfig"

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding; the tokenizer may have more tokens."""
        return int(self.config.get_text_config().vocab_size)

    def empty_model(self) -> "PreTrainedModel":
        """The model without memory for its weights."""
        import torch

        with torch.device("meta"):
            return self._model()

    @property
    def bytes(self) -> int:
        """Of its weights, in the dtype that its configuration names; fp32 without one."""
        import torch

        dtype = getattr(self.config, "dtype", None) or torch.float32
        return int(self.empty_model().num_parameters() * dtype.itemsize)

    def random_model(self) -> "PreTrainedModel":
        """The model with random weights in fp32."""
        return self._model()

    def _model(self) -> "PreTrainedModel":
        import torch
        from transformers import AutoModelForCausalLM

        with transformers_silenced():
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                self.config, dtype=torch.float32, trust_remote_code=False
            )
        return model


def is_at_hand(spec: BaseModelSpec) -> bool:
    """Whether the base model can be read without a network: a path, a package, `tiny`, or the hub's cache."""
    source = parse_base_model(spec.source, spec.revision)
    if isinstance(source, HubSource):
        return hub.is_cached(spec.source, "config.json", spec.revision)
    return source.service is None


def read_outline(spec: BaseModelSpec, scratch: Path) -> Outline:
    """Read the tokenizer and the configuration of a base model, wherever it is.

    Only a model in MLflow's registry is fetched with its weights.

    Args:
        spec: the base model.
        scratch: an empty folder for downloads. It must exist as long as the result is used.

    Raises:
        ModelError: the source does not exist, or holds no model with a tokenizer.
        StorageError: a source on S3 cannot be fetched.
    """
    if spec.tiny is not None:
        return _tiny(spec.tiny)
    source = parse_base_model(spec.source, spec.revision)
    path = (
        s3.download(source.text, scratch, _WEIGHTS) if isinstance(source, S3Source) else source.fetch(scratch)
    )
    return _read(source, path, spec.revision)


def _read(source: BaseModelSource, path: Path | None, revision: str | None) -> Outline:
    from transformers import AutoConfig, AutoTokenizer

    from automixalign.models.load import failure_reason

    folder, options = address(source, path, revision)
    options["local_files_only"] = path is not None or hub.is_cached(folder, "tokenizer_config.json", revision)
    try:
        with transformers_silenced():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **options)
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **options)
    except Exception as error:  # transformers raises many kinds, tokenizers a bare Exception
        raise ModelError(f"{source.label} cannot be loaded: {failure_reason(error)}") from error
    if tokenizer.eos_token is None:
        raise ModelError(f"{source.label}: its tokenizer has no end-of-sequence token")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Outline(tokenizer, config)


def _tiny(tiny: "TinyModel") -> Outline:
    from automixalign.quickstart.tiny_model import build_model, build_tokenizer

    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed=0, hidden_size=tiny.hidden_size, layers=tiny.layers, heads=tiny.heads)
    return Outline(tokenizer, model.config)
