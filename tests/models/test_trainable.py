"""Which modules can have an adapter."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from automixalign.config.experiment import parse_experiment
from automixalign.config.training import TrainingSpec
from automixalign.models.trainable import check_trainable
from automixalign.preflight.full_check import check_in_full
from automixalign.preflight.validate import check_local_sources
from automixalign.system.errors import ConfigError
from benchmarks import tiny


def training(targets: list[str] | str) -> TrainingSpec:
    return TrainingSpec(batch_size=2, learning_rate=1e-3, lora={"rank": 2, "target_modules": targets})


def llama(tied: bool) -> Any:
    return tiny.llama(vocab_size=20, tie_word_embeddings=tied)


def gpt2(tied: bool) -> Any:
    sizes = {"vocab_size": 20, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 1}
    return GPT2LMHeadModel(GPT2Config(**sizes, tie_word_embeddings=tied))


@pytest.mark.parametrize(
    ("build", "tied", "target", "module"),
    [
        (llama, True, "embed_tokens", "model.embed_tokens"),
        (llama, True, "lm_head", "lm_head"),
        (llama, False, "lm_head", "lm_head"),
        (llama, True, "model.embed_tokens", "model.embed_tokens"),
        (gpt2, True, "wte", "transformer.wte"),
    ],
)
def test_the_head_and_what_is_tied_to_it_are_refused(
    build: Callable[[bool], Any], tied: bool, target: str, module: str
) -> None:
    """The folded model would differ from the trained one."""
    with torch.device("meta"):
        model = build(tied)
    inner = "c_attn" if build is gpt2 else "q_proj"
    with pytest.raises(ConfigError, match=rf"target_modules: '{target}' is {module}, the head"):
        check_trainable(model, training([inner, target]))


@pytest.mark.parametrize(
    ("tied", "targets"), [(True, "all-linear"), (False, "all-linear"), (False, ["embed_tokens"])]
)
def test_other_modules_are_accepted(tied: bool, targets: list[str] | str) -> None:
    check_trainable(llama(tied), training(targets))


@pytest.mark.parametrize("check", [check_local_sources, check_in_full])
@pytest.mark.parametrize("source", ["folder", "tiny"])
def test_a_run_is_refused_before_any_stage(
    check: Callable[..., Any], source: str, experiment_data: dict[str, Any], base_model: Path
) -> None:
    if source == "folder":
        experiment_data["base_model"] = str(base_model)
    experiment_data["training"]["lora"] = {"target_modules": ["q_proj", "lm_head"]}
    with pytest.raises(ConfigError, match=r"training\.lora\.target_modules: 'lm_head' is lm_head"):
        check(parse_experiment(experiment_data, "test"))


def test_the_check_before_a_run_shows_no_warning_of_a_library(
    experiment_data: dict[str, Any], base_model: Path, recwarn: pytest.WarningsRecorder
) -> None:
    changes = {"base_model": str(base_model), "training": experiment_data["training"] | {"lora": {"rank": 2}}}
    check_local_sources(parse_experiment(experiment_data | changes, "test"))
    assert not [str(warning.message) for warning in recwarn if "transformers" in warning.filename]
