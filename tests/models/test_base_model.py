"""The base model: the sources and formats that are accepted, and those that are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from automixalign.config.models import BaseModelSettings, BaseModelSpec
from automixalign.config.sources import parse_base_model
from automixalign.models.base_card import read_licence
from automixalign.models.prepare import prepare_base_model
from automixalign.steps.step import collect_warnings
from automixalign.storage.files import digest
from automixalign.system.errors import ModelError

Weights = dict[str, torch.Tensor]


def prepare(source: Path | str, output: Path, **more: Any) -> dict[str, Any]:
    spec = BaseModelSpec(source=str(source), **more)
    settings = BaseModelSettings(seed=0, base_model=spec, synthetic_tasks=["arithmetic"], fingerprint="")
    return prepare_base_model(settings, output)


@pytest.fixture
def model(base_model: Path, tmp_path: Path) -> Path:
    """A copy of the base model that a test may change."""
    return Path(shutil.copytree(base_model, tmp_path / "copy"))


def edit_weights(model: Path, edit: Callable[[Weights], object]) -> None:
    weights = load_file(model / "model.safetensors")
    edit(weights)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def edit_config(model: Path, **values: Any) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_folder_keeps_its_weights_and_tokenizer(
    base_model: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    facts = prepare(base_model, tmp_path / "out")
    assert facts == {
        "source": str(base_model),
        "parameters": sum(weight.numel() for weight in load_file(base_model / "model.safetensors").values()),
        "architecture": "LlamaForCausalLM",
        "ends": ["<eos>"],
    }
    before, after = (load_file(folder / "model.safetensors") for folder in (base_model, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    messages = [{"role": "user", "content": "hi"}]
    restored = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert restored.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == (
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    )
    assert restored("2+2=")["input_ids"] == tokenizer("2+2=")["input_ids"]


def test_a_folder_gives_its_licence_and_no_path(model: Path, tmp_path: Path) -> None:
    (model / "README.md").write_text("---\nlicense: apache-2.0\nlicense_name: [1]\n---\n# Mine\n")
    prepare(model, tmp_path / "out")
    assert read_licence(tmp_path / "out") == {"license": "apache-2.0"}
    assert str(tmp_path) not in (tmp_path / "out" / "README.md").read_text()
    assert read_licence(tmp_path / "nothing") == {}


def test_without_the_hub_its_local_copy_is_used(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (model / "README.md").write_text("---\nlicense: mit\n---\n")
    with pytest.raises(
        ModelError, match="owner/name: the hub does not answer, and there is no local copy of it"
    ):
        prepare("owner/name", tmp_path / "out")
    commit = "a" * 40
    shutil.copytree(model, tmp_path / "models--owner--name" / "snapshots" / commit)
    with collect_warnings() as warnings:
        prepare("owner/name", tmp_path / "out", revision=commit)
    told = f"base_model.source: owner/name: the hub does not answer; its local copy is used, commit {commit}"
    assert told in warnings
    assert read_licence(tmp_path / "out") == {"license": "mit"}


def test_a_folder_on_s3(base_model: Path, tmp_path: Path, s3: Any) -> None:
    for file in base_model.iterdir():
        s3.upload_file(str(file), "ready", f"models/base/{file.name}")
    facts = [prepare("s3://ready/models/base", tmp_path / "s3"), prepare(base_model, tmp_path / "local")]
    assert facts[0] == facts[1] | {"source": "s3://ready/models/base"}
    address = json.loads((tmp_path / "local" / "base_model.json").read_text())
    assert address == {"name": str(base_model), "revision": None}
    (tmp_path / "local" / "base_model.json").unlink()  # other programs cannot load a folder on S3
    assert digest(tmp_path / "s3") == digest(tmp_path / "local")


def test_half_precision_stays(model: Path, tmp_path: Path) -> None:
    edit_weights(model, lambda w: w.update({name: weight.bfloat16() for name, weight in w.items()}))
    edit_config(model, dtype="bfloat16")
    prepare(model, tmp_path / "out")
    before, after = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "out"))
    assert {weight.dtype for weight in after.values()} == {torch.bfloat16}
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


def test_a_tokenizer_with_more_tokens_than_the_embedding(model: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"pad_token": "<padding>"})
    tokenizer.save_pretrained(model)
    prepare(model, tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").pad_token == tokenizer.eos_token
    # peft would enlarge the embedding under an adapter, so LoRA gives full models.
    assert not (tmp_path / "out" / "base_model.json").exists()


def test_tied_weights_are_not_missing(model: Path, tmp_path: Path) -> None:
    edit_weights(model, lambda w: w.pop("lm_head.weight"))
    edit_config(model, tie_word_embeddings=True)
    prepare(model, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(loaded.lm_head.weight, loaded.model.embed_tokens.weight)


def test_the_tiny_model(tmp_path: Path) -> None:
    tiny = {"hidden_size": 8, "layers": 1, "heads": 1, "steps": 2, "batch_size": 2, "rows_per_task": 4}
    facts = prepare("tiny", tmp_path / "out", tiny=tiny)
    assert facts["source"] == "tiny"
    assert facts["parameters"] == AutoModelForCausalLM.from_pretrained(tmp_path / "out").num_parameters()
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template


UP = "model.layers.0.mlp.up_proj.weight"


def test_the_fingerprint_follows_the_content(model: Path) -> None:
    source = parse_base_model(str(model))
    fingerprints = [source.fingerprint()]
    edit_weights(model, lambda w: w[UP].mul_(2))
    fingerprints.append(source.fingerprint())
    edit_config(model, rope_theta=1.0)
    fingerprints.append(source.fingerprint())
    (model / "tokenizer.json").rename(model / "other.json")
    fingerprints.append(source.fingerprint())
    assert len(set(fingerprints)) == 4
    assert source.fingerprint() == fingerprints[-1]


def write_gguf(path: Path, model: Path, leave_out: str = "") -> None:
    """The model with Q8_0 matrices and a byte-level BPE vocabulary, as llama.cpp's converter writes it."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
    config = json.loads((model / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config["vocab_size"])
    tokens = ["<|endoftext|>", "!!", *(chr(33 + number) for number in range(config["vocab_size"] - 2))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL, *[gguf.TokenType.NORMAL] * (len(tokens) - 1)])
    writer.add_token_merges(["! !"])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    for name, weight in load_file(model / "model.safetensors").items():
        stem, _, suffix = name.rpartition(".")
        short = names.get_name(stem)
        if short is None or name == leave_out:
            continue
        array = weight.float().numpy()
        if array.ndim == 2 and array.shape[1] % 32 == 0:
            quantised = gguf.quants.quantize(array, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(f"{short}.{suffix}", quantised, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(f"{short}.{suffix}", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file(base_model: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", base_model)
    assert prepare(tmp_path / "m.gguf", tmp_path / "out")["architecture"] == "LlamaForCausalLM"
    before, after = (load_file(folder / "model.safetensors") for folder in (base_model, tmp_path / "out"))
    assert before.keys() == after.keys()
    for name, weight in before.items():
        assert after[name].dtype == torch.float32
        if "q_proj" in name or "k_proj" in name:  # stored with their rows in another order
            continue
        # Q8_0 has a step of 1/127 of a block's largest weight.
        assert torch.allclose(after[name], weight, atol=float(weight.abs().max()) / 127)
    assert not torch.equal(
        after["model.layers.0.mlp.down_proj.weight"], before["model.layers.0.mlp.down_proj.weight"]
    )
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer.chat_template


def test_a_gguf_file_without_one_of_its_weights(base_model: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", base_model, leave_out=UP)
    with pytest.raises(ModelError, match=f"1 weights are missing, first {UP}"):
        prepare(tmp_path / "m.gguf", tmp_path / "out")
