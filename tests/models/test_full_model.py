"""A full model holds exactly the weights that are scored, in the dtype of the base model."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from automixalign.models.full_model import write_full_model
from automixalign.models.load import load_full_model, load_model, load_tokenizer
from automixalign.system.errors import ModelError
from benchmarks import tiny


def write_base(folder: Path, dtype: torch.dtype, tied: bool) -> Path:
    tiny.write_base_model(folder)
    tokenizer = load_tokenizer(folder)
    model = tiny.llama(vocab_size=len(tokenizer), tie_word_embeddings=tied).to(dtype)
    model.generation_config = GenerationConfig(eos_token_id=[2, 3])
    model.save_pretrained(folder)
    return folder


def write_adapter(base: Path, folder: Path) -> Path:
    torch.manual_seed(1)
    lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(load_full_model(base), lora).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_folded_adapter_is_what_is_scored(tmp_path: Path, dtype: torch.dtype, tied: bool) -> None:
    base = write_base(tmp_path / "base", dtype, tied)
    adapter = write_adapter(base, tmp_path / "adapter")
    write_full_model(adapter, base, tmp_path / "full")
    stored = load_file(tmp_path / "full" / "model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {dtype}
    assert stored.keys() == load_file(base / "model.safetensors").keys()
    served = AutoModelForCausalLM.from_pretrained(tmp_path / "full")
    assert served.dtype == dtype
    assert served.generation_config.eos_token_id == [2, 3]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "full")
    assert tokenizer.chat_template == load_tokenizer(base).chat_template
    scored = load_model(adapter, base)
    assert scored.dtype == torch.float32
    for name, weight in scored.state_dict().items():
        assert torch.equal(weight, served.state_dict()[name].float()), name
        if name == "model.layers.0.mlp.up_proj.weight":
            assert not torch.equal(weight, load_full_model(base).state_dict()[name])


def test_an_adapter_without_its_base_model_is_refused(base_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="adapter holds an adapter, which cannot be loaded without its base"):
        load_model(write_adapter(base_model, tmp_path / "adapter"), None)


def test_a_full_model_stays_as_it_is(base_model: Path, tmp_path: Path) -> None:
    write_full_model(base_model, base_model, tmp_path / "full")
    assert {file.name: file.read_bytes() for file in (tmp_path / "full").iterdir()} == {
        file.name: file.read_bytes() for file in base_model.iterdir()
    }
